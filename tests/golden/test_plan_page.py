"""docs/plan.md: five stories, as the command line answers them on one fixed day.

    python -m tests.golden.test_plan_page

writes the page anew. The prices are those of the package, and the day is fixed, so the page changes only when a table
or the planner does.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from heliostat.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"
DAY = "--today 2026-11-25 --no-live"

HEAD = """# Plan before spending

`heliostat plan` says what to rent for a goal, where and how, what it costs, and what to ask for first. It starts
nothing and needs no account: prices come from the package, each with source and date; what an account says now comes
in with `heliostat plan refresh`, limits of an account also from a file (`--limits`). What is not known is said.

`--why` prints where each number comes from, `--json` all of it for programs. Throughput is a roofline estimate until
you calibrate it (`--calibrate`, a ratio or a JSON file with what you measured); memory is `heliostat plan size`.

Rules that hold, whatever the prices say: serving goes on inference-class cards while one of them can do it; serving in
production is on demand or reserved, never on spot alone; spot is for what checkpoints; reservations are for steady use,
past their break-even; machines that train together stand close together on a fabric. Offers that a known quota does not
allow are never ranked among the others. Prices with `~` are doubtful, and `?` is a quota whose limit is not known.

The screens below are made by `python -m tests.golden.test_plan_page`, as if it were Wednesday 2026-11-25.
"""

STORIES: tuple[tuple[str, str, str], ...] = (
    (
        "Eight A100 by Friday, for three days",
        "The cards, the quota to ask for today, and what to do if it does not come. `--then 7B` plans the endpoint "
        "after.",
        "plan --by friday 8xA100 --for 3d --then 7B --requests 5",
    ),
    (
        "A 7B model at 50 requests a second, on a budget",
        "Answers of 128 tokens within 10 seconds. The break-even of a reservation is told.",
        "plan serve 7B --requests 50 --prompt 512 --output 128 --latency 10s",
    ),
    (
        "Twenty encoders of 100 MB",
        "They may share a card: each process takes its weights and 1.2 GiB beside. With `--isolation slice` each has a "
        "MIG slice of its own.",
        "plan pack 20x100MB",
    ),
    (
        "Twenty encoders, each alone in a MIG slice",
        "The slices with their start, in the order in which they are made.",
        "plan pack 20x100MB --isolation slice --on 4xA100-80GB",
    ),
    (
        "Fine-tune 70B with LoRA",
        "Fifty million tokens within three days. Spot, since it checkpoints.",
        "plan train 70B --method lora --tokens 50M --context 2048 --deadline 3d",
    ),
    (
        "A steady baseline of 16 L4 for a year",
        "Serving, so never spot; reserved, since a year is past the break-even.",
        "plan 16xL4 --for 365d --role serving",
    ),
)

TAIL = """
## Quotas of a definition

`heliostat plan quota cluster/aws.yaml --limits limits.csv` adds up what the definition asks at its upper bounds, by
region, family and market, and prints the request for what is short; it exits 1 then. The file has the columns
cloud, region, code, market, limit, used; `heliostat plan refresh` reads the same from AWS.

## Live answers

`heliostat plan refresh --region us-east-1 --block 1xp5.48xlarge --by 7d --for 3d` asks AWS for instance types, spot
prices by zone, quotas and what is in use, reserved instances and capacity blocks. Each question may fail alone: no
permission, throttled, no network, no credentials. Then the plan goes on with what it has, and says what it lacks. The
answers are kept in `$HELIOSTAT_HOME/plan/aws.json`, and their age is printed whenever they are used.

## Where the data lies

`--data 500GB@aws/us-east-1` adds to every offer elsewhere the egress of one copy and the storage of a second one.
"""


def screen(command: str) -> str:
    """What it prints on standard output."""
    result = CliRunner().invoke(app, shlex.split(f"{command} {DAY}"), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.stdout.strip("\n").splitlines())


def page() -> str:
    parts = [HEAD]
    for title, about, command in STORIES:
        parts.append(f"\n## {title}\n\n{about}\n\n```console\n$ heliostat {command}\n{screen(command)}\n```\n")
    return "".join([*parts, TAIL])


def test_the_page_shows_what_the_command_line_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOSTAT_HOME", str(tmp_path))
    assert PAGE.read_text() == page(), "run: python -m tests.golden.test_plan_page"


@pytest.mark.parametrize("command", [command for _, _, command in STORIES if "pack" not in command])
def test_each_number_of_a_story_has_its_source(command: str) -> None:
    """In JSON: cost is price x machines x hours, and the price names source, date and age."""
    result = CliRunner().invoke(app, shlex.split(f"{command} {DAY} --json"), catch_exceptions=False)
    made = json.loads(result.stdout)
    made = made.get("offers", made)
    assert made["choices"]
    for choice in made["choices"]:
        price = choice["price"]
        assert price["source"]
        assert price["date"]
        assert price["age_days"] >= 0
        assert choice["usd_per_hour"] == pytest.approx(price["usd_per_machine_hour"] * choice["machines"])
        assert price["doubtful"] in (True, False)
        paid_for = choice["usd"] / choice["usd_per_hour"]
        assert paid_for >= choice["hours"] * 0.999
        if choice["purchase"] in ("on-demand", "spot"):
            assert paid_for == pytest.approx(choice["hours"])


def main() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
