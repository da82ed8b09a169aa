"""`make prove`: run what each claim rests on and write docs/evidence.md. Hours on two cores: name what you need.

python tests/prove.py                                  everything
python tests/prove.py demo import                      some of it; the other claims keep the figures last seen
python tests/prove.py --seen recovery FILE --kills 20  take the figures from what a run with those arguments printed
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "evidence.json"
PAGE = ROOT / "docs" / "evidence.md"


@dataclass(frozen=True)
class Evidence:
    claim: str
    command: str
    figures: str
    seen: str


def prove_demo() -> list[Evidence]:
    command = "make demo"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        begun = time.monotonic()
        _run([sys.executable, "-m", "heliostat.demo", "cluster/laptop.yaml", "--report", str(report)])
        took = time.monotonic() - begun
        facts = json.loads(report.read_text())
    load, processes = facts["load"], facts["processes"]
    reclaim = next(row["figures"] for row in facts["timeline"] if row["step"] == "resumed from checkpoint")
    phases = "; ".join(f"{row['step']} {row['seconds']:.0f} s" for row in facts["timeline"])
    held = "; ".join(
        f"{use['group']} ({use['market']}) {use['held']:.0f} held = {use['starting']:.0f} starting + "
        f"{use['working']:.0f} working + {use['idle']:.0f} idle"
        for use in facts["gpu_seconds"]
    )
    outside = [entry for entry in facts["listeners"] if not entry.startswith(("127.", "::1:", "::ffff:127."))]
    return [
        _evidence(
            "The demo runs from an empty cluster to a hot swap and back to zero", command, f"{took:.0f} s; {phases}"
        ),
        _evidence("A reclaim with notice costs no recomputed step", command, reclaim),
        _evidence(
            "A hot swap at 50 requests/s loses none",
            command,
            f"{load['sent']} sent, {load['failed']} failed, versions {load['versions']}, "
            f"p50 {load['p50_ms']:.0f} ms, p99 {load['p99_ms']:.0f} ms",
        ),
        _evidence(
            "Every listener is on loopback",
            command,
            f"{len(facts['listeners'])} listeners, {len(outside)} beyond loopback: {', '.join(facts['listeners'])}",
        ),
        _evidence(
            "Nothing is left running",
            command + "; tests/real/test_embedded.py for down and for SIGKILL of up",
            f"{processes['ended']} processes ended, {len(processes['left'])} left",
        ),
        _evidence("GPU-seconds by group and market add up", command, held),
    ]


def prove_import() -> list[Evidence]:
    command = "python -X importtime -c 'import heliostat'"
    lines = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import heliostat"], capture_output=True, text=True, check=True
    ).stderr.splitlines()
    ours = next(line for line in reversed(lines) if line.rstrip().endswith(" heliostat"))
    milliseconds = int(ours.split("|")[1]) / 1000
    tool = str(Path(sys.executable).parent / "heliostat")
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        subprocess.run([tool, "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - begun)
    times.sort()
    return [
        _evidence("import heliostat is light", command, f"{milliseconds:.1f} ms cumulative"),
        _evidence(
            "The command line answers in a blink",
            "heliostat --help",
            f"median {times[3]:.2f} s of 7 (min {times[0]:.2f}, max {times[-1]:.2f})",
        ),
    ]


def prove_accuracy() -> list[Evidence]:
    return [
        _accuracy("v2 beats the frozen encoder on held-out templates", []),
        _accuracy("It does on split seeds that chose no recipe", ["--first-seed", "10"]),
    ]


def _accuracy(claim: str, arguments: list[str]) -> Evidence:
    script = "tests/benchmarks/accuracy.py"
    found = json.loads(_run([sys.executable, script, *arguments]).strip().splitlines()[-1])
    rows = "; ".join(
        f"{name} {found[name]['accuracy']:.3f} / {found[name]['macro_f1']:.3f}"
        for name in ("baseline", "baseline-c10", "v1", "v2")
    )
    gains = "; ".join(
        f"v2 - {name} macro-F1 {mean:+.3f} ({low:+.3f} to {high:+.3f}, 95 % bootstrap over templates)"
        for name, (mean, low, high) in found["v2_gain_macro_f1"].items()
    )
    return _evidence(
        claim,
        " ".join(["python", script, *arguments]),
        f"accuracy / macro-F1 over seeds {found['seeds']}: {rows}; {gains}",
    )


def prove_tests() -> list[Evidence]:
    begun = time.monotonic()
    output = _run(["make", "test"])
    closing = " and ".join(re.findall(r"\d+ passed[^\n]*", output))
    return [_evidence("The tests pass", "make test", f"{closing}; {time.monotonic() - begun:.0f} s")]


def prove_slow() -> list[Evidence]:
    """Those that take minutes of a cluster, which `make test` leaves out."""
    command = ["env", "SLOW=1", "FULL_SWEEP=1", str(Path(sys.executable).parent / "pytest"), "-m", "slow"]
    closing = re.findall(r"\d+ passed[^\n]*", _run(command))[-1]
    return [_evidence("So do those that take minutes of a cluster", "SLOW=1 FULL_SWEEP=1 pytest -m slow", closing)]


@dataclass(frozen=True)
class Benchmark:
    """A script whose last line is JSON, and the keys of it that the claim rests on."""

    claim: str
    arguments: tuple[str, ...]  # the script first
    keys: tuple[str, ...] = ()  # none: every figure that is no list

    def prove(self) -> list[Evidence]:
        return self.told(_run([sys.executable, *self.arguments]), self.arguments)

    def told(self, printed: str, arguments: Sequence[str]) -> list[Evidence]:
        """Of a run that printed this: its last line is JSON."""
        found = json.loads(printed.strip().splitlines()[-1])
        keys = self.keys or tuple(key for key, value in found.items() if not isinstance(value, list))
        figures = "; ".join(f"{key} {_shown(found[key])}" for key in keys if key in found)
        return [_evidence(self.claim, " ".join(["python", *arguments]), figures)]


def _shown(value: Any) -> str:  # Any: JSON
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(each)}" for key, each in value.items()) + "}"
    return str(value)


BENCHMARKS = {
    "vram": Benchmark(
        "GPU memory is estimated within a few per cent, and no model is said to fit that does not",
        ("tests/benchmarks/vram.py", "--cases", "../shared/facts/vram_cases.csv"),
        ("n", "series", "median_rel_error", "worst", "false_fits", "false_refusals"),
    ),
    "loading": Benchmark(
        "A model loads at the link's speed, verified, once per node",
        ("tests/benchmarks/loading.py", "--rounds", "5"),
        ("ratio_to_raw", "ratio_verified", "rss_ratio", "second_replica_gets", "ten_replicas_gets"),
    ),
    "registry-faults": Benchmark(
        "A kill before, within or after any request leaves no half version, and a re-run completes",
        ("tests/benchmarks/registry_faults.py",),
        ("kill_points", "failures"),
    ),
    "registry-contention": Benchmark(
        "32 publishers leave no gap, 32 promoters have one winner a round, the others are named",
        ("tests/benchmarks/registry_contention.py", "3"),
        ("publishers", "promoters", "winners_a_round", "conflicts_named", "pause_ratio"),
    ),
    "serving": Benchmark(
        "Serving at the limit of the model, beside what else one would use",
        ("tests/benchmarks/serving.py",),
        (
            "ratio_to_limit", "bf16_ratio_to_fp32_limit", "vs_best_peer", "best_peer", "vs_serve_batch",
            "overhead_cpu_ms", "python_proxy_ratio_to_limit", "bf16_gate", "left_out",
        ),
    ),
    "packed": Benchmark(
        "Packed and padded answers agree, and no text is mixed with another",
        ("tests/benchmarks/packed_equals_padded.py",),
        ("texts", "max_difference", "min_cosine", "mixed_texts"),
    ),
    "fuzz": Benchmark(
        "Fuzzed requests crash nothing and get no 5xx",
        ("tests/benchmarks/fuzz_apps.py",),
        ("inputs", "crashes", "bad_5xx", "malformed", "wrong_answers"),
    ),
    "recovery": Benchmark(
        "A lost spot node costs seconds and at most an interval of steps, with notice none",
        ("tests/benchmarks/recovery.py",),
    ),
    "overload": Benchmark(
        "Under four times the load the accepted keep their latency and the others are told so at once",
        ("tests/benchmarks/overload.py",),
    ),
    "losing-nothing": Benchmark(
        "Replicas and nodes that are killed or drained lose no request",
        ("tests/benchmarks/losing_nothing.py",),
    ),
    "from-zero": Benchmark(
        "A burst at zero replicas and zero nodes is held and answered",
        ("tests/benchmarks/from_zero.py",),
    ),
    "scaling": Benchmark(
        "A step of load gets its second replica, and queue delay keeps near its target",
        ("tests/benchmarks/scaling.py",),
    ),
    "ledger": Benchmark(
        "A year of 1,000 GPUs folds in a minute, and the classes add up to the nodes' lives",
        ("tests/benchmarks/ledger.py",),
        ("sum_error", "fold_events", "fold_s", "peak_rss_mb", "query_s"),
    ),
    "checkpoint-stall": Benchmark(
        "A step waits for a checkpoint's copy, not for its upload",
        ("tests/benchmarks/checkpoint_stall.py",),
    ),
    "deadline": Benchmark(
        "Deadlines are kept on spot near the least cost",
        ("tests/benchmarks/deadline.py", "../shared/facts/spot_traces"),
        (
            "traces", "missed", "cost_vs_optimum", "cost_vs_on_demand", "p95_vs_optimum", "worst_vs_optimum",
            "above_on_demand",
        ),
    ),
    "data-path": Benchmark(
        "The training's data path beside Ray Data",
        ("tests/benchmarks/data_path.py",),
    ),
    "trusted-cluster": Benchmark(
        "From zero and back, fallback and return, sick nodes, nodes lent to serving: no step is lost to a move",
        ("tests/benchmarks/trusted_cluster.py",),
    ),
    "queueing": Benchmark(
        "Two teams and gangs that need all nodes: shares kept, no deadlock",
        ("tests/benchmarks/queueing.py",),
    ),
    "fabric": Benchmark(
        "A gang's network is measured before it trains, and a slow one is refused",
        ("tests/benchmarks/fabric.py", "--ranks", "3"),
    ),
    "releases": Benchmark(
        "Releases under load fail no request, and bad versions are rolled back by themselves",
        ("tests/benchmarks/releases.py",),
    ),
    "gate-noise": Benchmark(
        "How often noise passes the gate, and how often a better model is refused",
        ("tests/benchmarks/gate_noise.py",),
    ),
    "flow-killed": Benchmark(
        "The way from an empty store to live, killed three times, ends live with each step done once",
        ("tests/benchmarks/flow_killed.py",),
    ),
    "mig": Benchmark(
        "MIG packing is optimal on small cases against brute force, and quick on large ones",
        ("tests/benchmarks/mig.py",),
    ),
    "simulate": Benchmark(
        "The simulator agrees with theory and with itself, and runs a month of 10,000 GPUs",
        ("tests/benchmarks/simulate.py",),
    ),
    "metered-run": Benchmark(
        "Every GPU-second of a working cluster is explained, each class against an outside source",
        ("tests/benchmarks/metered_run.py", "--minutes", "10"),
    ),
    "budget": Benchmark(
        "A spent budget pauses training at a saved step and refuses new jobs; serving goes on",
        ("tests/benchmarks/budget_run.py",),
    ),
    "waste": Benchmark(
        "Seeded waste is found, and what works is not blamed",
        ("tests/benchmarks/waste.py",),
    ),
    "wheel": Benchmark(
        "The wheel, in an empty virtual environment, brings up a cluster of one's own",
        ("tests/benchmarks/wheel.py",),
    ),
    "doors": Benchmark(
        "Every port and route, without a token and with a wrong one",
        ("tests/benchmarks/doors.py",),
    ),
    "fuzz-parsers": Benchmark(
        "100,000 hostile inputs to every parser crash nothing",
        ("tests/benchmarks/fuzz_parsers.py",),
    ),
    "faults": Benchmark(
        "Faults against a cluster at work break no invariant",
        ("tests/benchmarks/faults.py",),
    ),
    "soak": Benchmark(
        "An hour of load, jobs, releases and reclaims: no violation, and how fast what grows does",
        ("tests/benchmarks/soak.py",),
    ),
    "scale": Benchmark(
        "10,000 artifacts, 50 applications, 200 jobs: how long the commands take",
        ("tests/benchmarks/scale.py",),
    ),
}  # fmt: skip

PROOFS: dict[str, Callable[[], list[Evidence]]] = {
    "import": prove_import,
    "accuracy": prove_accuracy,
    "demo": prove_demo,
    **{name: benchmark.prove for name, benchmark in BENCHMARKS.items()},
    "tests": prove_tests,
    "slow": prove_slow,
}


def main(names: list[str]) -> int:
    seen = names[:1] == ["--seen"] and len(names) >= 3
    if seen:
        _, name, file, *arguments = names
        names = [name]
    unknown = sorted(set(names) - set(BENCHMARKS if seen else PROOFS))
    if unknown:
        print(f"error: there is no proof {unknown[0]!r}; one of: {', '.join(PROOFS)}", file=sys.stderr)
        return 2
    known: dict[str, list[dict[str, Any]]] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for name in names or list(PROOFS):
        print(f"proving {name} ...", file=sys.stderr, flush=True)
        if seen:
            benchmark = BENCHMARKS[name]
            found = benchmark.told(Path(file).read_text(), (benchmark.arguments[0], *arguments))
        else:
            found = PROOFS[name]()
        known[name] = [asdict(evidence) for evidence in found]
        FIGURES.write_text(json.dumps(known, indent=1) + "\n")
        PAGE.write_text(_page(known))
    print(json.dumps({"claims": sum(len(entries) for entries in known.values()), "proved": names or list(PROOFS)}))
    return 0


def _page(known: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "# Evidence",
        "",
        "Written by `make prove`: each claim, the command that shows it, and the figures last seen.",
        "",
        "| claim | command | figures | seen |",
        "| --- | --- | --- | --- |",
    ]
    for name in PROOFS:
        for entry in known.get(name, []):
            figures = entry["figures"].replace("|", "\\|")
            lines.append(f"| {entry['claim']} | `{entry['command']}` | {figures} | {entry['seen']} |")
    return "\n".join(lines) + "\n"


def _evidence(claim: str, command: str, figures: str) -> Evidence:
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return Evidence(claim, command, figures, f"{datetime.now(UTC):%Y-%m-%d}, {machine}")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        raise SystemExit(f"{' '.join(command)} exited {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
