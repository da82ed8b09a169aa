"""A budget run dry on an embedded cluster: training paused at a saved step, resumed there after a raise; serving on.

    python tests/benchmarks/budget_run.py [--seed 0]

A team may use 0.012 GPU-hours (43 GPU-seconds). Its job of two workers trains until the controller finds the budget
spent: it must stop at a step that is saved, without being restarted or computing a step again later. Meanwhile a second
job is refused with the reason, an application of the same cluster answers every request, and a webhook of Slack's form
gets each rung of the ladder once. After `heliostat cost budget set` the job goes on at the next step and ends well.
The last line is JSON; exit 1 where any of that is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parent))

import metered_run
from metered_run import JOB, Play

from heliostat.errors import BudgetSpent
from heliostat.events import read_spool
from heliostat.show import print_report, print_table
from heliostat.train.checkpoint import complete

LIMIT_GPU_H = 0.012
STEPS = 300


class Hook(BaseHTTPRequestHandler):
    said: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["HELIOSTAT_ALERT_WEBHOOK"] = f"http://127.0.0.1:{server.server_port}/hook"
    metered_run.DEFINITION += f"budgets: {{teams: {{violet: {{gpu_hours: {LIMIT_GPU_H}, at_limit: pause}}}}}}\n"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HELIOSTAT_HOME"] = str(folder / "home")
        os.environ["METERED_LOG"] = str(folder / "logs")
        (folder / "logs").mkdir()
        play = Play(folder, 5, faults=False, seed=given.seed)
        play.steps = STEPS
        try:
            found = run(play)
        finally:
            play.platform.down()
    print_table(("seconds", "what"), play.watch.notes)
    print(json.dumps(found))
    return 0 if found["ok"] else 1


def run(play: Play) -> dict[str, Any]:
    from heliostat.serve.keys import create_key

    platform, watch = play.platform, play.watch
    keys = {team: create_key(platform.store, f"{team}-key", team=team) for team in metered_run.TEAMS}
    play._release(None)
    platform.apps.deploy(metered_run.APP)
    url = platform.apps.url(metered_run.APP)
    driver = threading.Thread(target=watch.load, args=(lambda: url, keys, play.seed), daemon=True)
    driver.start()
    watch.loaded.set()
    play._until(lambda: watch.statuses["200"] > 0, "the first answer", limit_s=90)
    time.sleep(2)
    watch.statuses.clear()  # until here it was being started
    play.job = play._submit(None)
    watch.note("job submitted")

    def events(kind: str) -> list[Any]:
        return [
            e for e in read_spool(platform.settings.spool) if e.kind == kind and e.fields.get("run") == play.job.run
        ]

    play._until(lambda: bool(events("run_paused")), "the pause", limit_s=180)
    paused = events("run_paused")[0]
    at = max(int(event.fields["step"]) for event in events("step"))
    saved = next(complete(platform.store, play.job.run)).step
    watch.note(f"paused after step {at}, saved step {saved}: {paused.fields['reason']}")
    try:
        platform.jobs.submit(JOB, arguments=["1", "/nowhere"])
        refused = ""
    except BudgetSpent as error:
        refused = str(error)
    watch.note(f"a new job: {refused or 'was taken'}")
    play._until(lambda: not [n for n in platform.nodes() if n.group == "train"], "the nodes to go", limit_s=60)
    watch.note("no training node is held")
    still = max(int(event.fields["step"]) for event in events("step")) == at
    platform.set_budget("team/violet", gpu_hours=10, why="the release needs it")
    watch.note("raised")
    play._until(lambda: bool(events("run_unpaused")), "going on", limit_s=90)
    status = "FAILED"

    def ended() -> bool:
        nonlocal status
        status = play._status()
        return status in metered_run.FINISHED

    play._until(ended, "the end of the job", limit_s=180)
    watch.note(f"the job {status.lower()}")
    steps = [int(event.fields["step"]) for event in events("step")]
    resumed = [int(event.fields["step"]) for event in events("train_resumed")]
    time.sleep(35)  # the next fold and the next look at the budgets
    watch.ended.set()
    driver.join(70)
    print_report(platform.cost_report(["team", "job", "app"]))
    errors = {status: n for status, n in watch.statuses.items() if status != "200"}
    said = Counter(text.partition(":")[0] for text in Hook.said)
    found = {
        "paused_at_step": at,
        "saved_step": saved,
        "resumed_at_step": resumed[-1] if resumed else None,
        "steps_computed_again": len(steps) - len(set(steps)),
        "refused": refused,
        "job": status,
        "served": watch.statuses["200"],
        "serving_errors": errors,
        "alerts": Hook.said,
    }
    fine = (
        at == saved == found["resumed_at_step"]
        and still
        and not found["steps_computed_again"]
        and bool(refused)
        and status == "SUCCEEDED"
        and not errors
        and max(said.values(), default=0) <= 2
        and any("100%" in text or "Critical" in text for text in Hook.said)
    )
    return {**found, "ok": fine}


if __name__ == "__main__":
    sys.exit(main())
