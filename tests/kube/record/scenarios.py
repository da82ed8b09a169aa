"""Records tests/golden/server-side-apply.json: what Kubernetes' own library says about who holds which field.

    apt-get install golang-go golang-k8s-sigs-structured-merge-diff-dev     (4.1.2 was used)
    build main.go as `recorder`, with the library under sigs.k8s.io/structured-merge-diff/v4 on GOPATH
    python -m tests.kube.record.scenarios recorder > tests/golden/server-side-apply.json

Two appliers and two updaters write random parts of one small object to one another's feet: maps, an atomic list, an
empty map, forced and not.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

COUNT = 150
LEAVES = frozenset(f"f:{name}" for name in ("a", "b", "c", "l", "m", "list", "n", "in"))


def leaf(chance: random.Random) -> Any:
    return chance.choice(["x", "y", 1])


def thing(chance: random.Random) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if chance.random() < 0.8:
        made["data"] = {key: leaf(chance) for key in "abc" if chance.random() < 0.5}
    if chance.random() < 0.6:
        spec: dict[str, Any] = {}
        if chance.random() < 0.6:
            spec["list"] = [{"name": name, "v": leaf(chance)} for name in "pq" if chance.random() < 0.6]
        if chance.random() < 0.5:
            inner = [key for key in "de" if chance.random() < 0.6]
            spec["map"] = {key: {"in": leaf(chance)} if chance.random() < 0.6 else {} for key in inner}
        if chance.random() < 0.4:
            spec["n"] = leaf(chance)
        made["spec"] = spec
    if chance.random() < 0.5:
        made["metadata"] = {"labels": {key: leaf(chance) for key in "lm" if chance.random() < 0.6}}
    return made


def operation(chance: random.Random) -> dict[str, Any]:
    op = chance.choice(["Apply", "Apply", "Update"])
    manager = chance.choice(["heliostat", "kubectl"] if op == "Apply" else ["editor", "scaler"])
    return {"op": op, "manager": manager, "force": op == "Apply" and chance.random() < 0.4, "object": thing(chance)}


def held(fields: Any, path: tuple[str, ...] = ()) -> list[str]:
    """The leaves that are held, as .spec.n. Not the maps: who holds an empty one makes no difference to anybody."""
    if path and path[-1] in LEAVES:
        return ["".join(f".{element[2:]}" for element in path)]
    return sorted(found for element, inner in fields.items() for found in held(inner, (*path, element)))


def main() -> None:
    chance = random.Random(20260)
    scenarios = [[operation(chance) for _ in range(chance.randint(2, 6))] for _ in range(COUNT)]
    told = subprocess.run([sys.argv[1]], input=json.dumps(scenarios), capture_output=True, text=True, check=True)
    for operations, steps in zip(scenarios, json.loads(told.stdout), strict=True):
        for one, step in zip(operations, steps, strict=True):
            one["conflicts"] = sorted([manager.split("/")[0], path] for manager, path in step["conflicts"])
            one["live"] = step["live"]
            one["held"] = {name: leaves for name, fields in step["held"].items() if (leaves := held(fields))}
    lines = ",\n".join(json.dumps(operations, separators=(",", ":"), sort_keys=True) for operations in scenarios)
    sys.stdout.write(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
