"""An example for each command, shown under its help and in the reference. A test parses every one of them."""

from __future__ import annotations

from typing import Any

EXAMPLES: dict[str, tuple[str, ...]] = {
    "up": ("up cluster/laptop.yaml", "up cluster/laptop.yaml --name second"),
    "down": ("down", "down manifests --yes"),
    "use": ("use", "use laptop"),
    "doctor": ("doctor", "doctor --json"),
    "check": ("check cluster/aws.yaml", "check raycluster.yaml --sarif", "check --explain SPOT_SERVING"),
    "why": ("why", "why intent-classifier"),
    "render": ("render cluster/aws.yaml --out manifests", "render cluster/aws.yaml --iam"),
    "schema": ("schema",),
    "preview": ("preview cluster/aws.yaml cluster/aws-staging.yaml",),
    "diff": ("diff manifests",),
    "apply": ("apply manifests", "apply manifests --yes"),
    "status": ("status", "status --json", "status --html status.html"),
    "simulate": (
        "simulate cluster/aws.yaml --requests diurnal --rate 40 --spot synthetic",
        "simulate cluster/aws.yaml --requests bursty --rate 40 --against cluster/aws-staging.yaml --plot page.html",
    ),
    "plan need": ("plan --by friday 8xA100", "plan 16xL4 --for 365d --role serving"),
    "plan serve": ("plan serve 7B --requests 50 --prompt 512 --output 128 --latency 10s",),
    "plan train": ("plan train 70B --method lora --tokens 50M --deadline 3d",),
    "plan pack": ("plan pack 20x100MB", "plan pack 20x100MB --isolation slice --on 4xA100-80GB"),
    "plan quota": ("plan quota cluster/aws.yaml --limits limits.csv",),
    "plan refresh": ("plan refresh --region us-east-1",),
    "plan size": ("plan size 8B --context 8192 --batch 4", "plan size ./model --train qlora --on L4"),
    "job submit": ("job submit intent-classifier --follow", "job submit intent-classifier -- --recipe v1"),
    "job list": ("job list",),
    "job logs": ("job logs intent-classifier-20260101-120000-ab12-cd34",),
    "job stop": ("job stop intent-classifier-20260101-120000-ab12-cd34",),
    "job show": ("job show intent-classifier-20260101-120000-ab12",),
    "job record": ("job record train --into reclaims.json",),
    "job rehearse": ("job rehearse friday --generate 1 --work 30h --deadline 60h",),
    "model list": ("model list", "model list intent-classifier --deleted"),
    "model show": ("model show intent-classifier@production",),
    "model diff": ("model diff intent-classifier:v1 intent-classifier:v2",),
    "model verify": ("model verify intent-classifier@production",),
    "model key": ("model key publisher.pem",),
    "model sign": ("model sign intent-classifier:v2 --key publisher.pem",),
    "model pull": ("model pull intent-classifier@production ./weights",),
    "model push": ("model push encoder ./folder --licence Apache-2.0",),
    "model publish": ("model publish intent-classifier intent-classifier-20260101-120000-ab12",),
    "model alias": ("model alias intent-classifier", "model alias intent-classifier staging --to v2"),
    "model history": ("model history intent-classifier",),
    "model sweep": ("model sweep", "model sweep intent-classifier --yes"),
    "model delete": ("model delete intent-classifier:v1 --why 'trained on the wrong data'",),
    "model load-test": ("model load-test intent-classifier@production",),
    "app deploy": ("app deploy intent-classifier",),
    "app status": ("app status intent-classifier",),
    "app release": ("app release intent-classifier intent-classifier:v2 --why 'better on kitchens'",),
    "app rollback": ("app rollback intent-classifier --why 'wrong labels'",),
    "app history": ("app history intent-classifier", "app history intent-classifier --json"),
    "app flow": ("app flow intent-classifier --why 'new data' -- --recipe v1",),
    "key create": ("key create phone-app --team mobile",),
    "key list": ("key list",),
    "key revoke": ("key revoke phone-app",),
    "cost budget apply": ("cost budget apply cluster/laptop.yaml",),
    "cost budget list": ("cost budget list",),
    "cost budget set": ("cost budget set team/speech --gpu-hours 500 --at-limit pause --why 'for the quarter'",),
    "cost budget withdraw": ("cost budget withdraw team/speech",),
    "cost energy": ("cost energy --by team --g-per-kwh 380",),
    "cost focus": ("cost focus -o focus.csv",),
    "cost month": ("cost month",),
    "cost unit": ("cost unit --by app",),
    "cost report": ("cost report --by team,project", "cost report --by day --csv", "cost report --html cost.html"),
    "cost idle": ("cost idle", "cost idle --after 20m"),
    "cost advise": ("cost advise --days 30",),
    "chaos reclaim": ("chaos reclaim train --notice 8s",),
    "chaos capacity": ("chaos capacity train 0", "chaos capacity train all"),
}

KUBERNETES = frozenset({"diff", "apply"})
"""Commands that ask a Kubernetes API server."""
ALONE = frozenset(
    {
        "up", "use", "doctor", "check", "simulate", "plan need", "plan serve", "plan train", "plan pack", "plan quota",
        "plan refresh", "plan size", "render", "schema", "preview", "job rehearse", "model key",
    }
)  # fmt: skip
"""Commands that need no cluster; the others end with 1 where there is none, and say how to get one."""
EXIT_CODES = {
    "check": "0 notes at most, 3 warnings, 4 errors, 2 unreadable",
    "doctor": "0 nothing is broken, 1 something is",
    "plan quota": "0 enough, 1 one is short, 2 wrong input",
}
"""Of the commands whose code says more than 0 done, 1 it failed, 2 the input was wrong."""


def attach(command: Any, path: str = "") -> Any:  # Any: typer carries its own copy of click's classes
    """The command with the examples as epilogs, all the way down."""
    if shown := EXAMPLES.get(path):
        lines = "\n".join(f"  heliostat {example}" for example in shown)
        command.epilog = f"\b\nExample{'s' * (len(shown) > 1)}:\n{lines}"
    for name, below in getattr(command, "commands", {}).items():
        attach(below, f"{path} {name}".strip())
    return command


def leaves(command: Any, path: str = "") -> dict[str, Any]:
    """Every command that does something, by its words."""
    below = getattr(command, "commands", None)
    if below is None:
        return {path: command}
    found = {path: command} if getattr(command, "invoke_without_command", False) and path else {}
    for name, entry in below.items():
        found |= leaves(entry, f"{path} {name}".strip())
    return found
