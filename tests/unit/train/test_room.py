"""A gang that never finds room is refused before it holds a node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heliostat.definition import load
from heliostat.errors import UsageError
from heliostat.train import job, queued

DEFINITION = """\
name: rooms
groups:
  small: {role: training, market: spot, cpus: 1, gpus: 1, nodes: 0..3, fallback: large}
  large: {role: training, market: on-demand, cpus: 4, gpus: 4, nodes: 0..1}
store: {kind: embedded, bucket: heliostat}
jobs:
  stays: {entrypoint: sleep 9, group: small, publishes: m}
  moves: {entrypoint: sleep 9, group: small, publishes: m, falls_back: true}
tags: {team: demo, project: voice}
"""


@pytest.mark.parametrize(("name", "most"), [("stays", 3), ("moves", 4)])
def test_as_many_workers_as_its_groups_may_ever_have(
    name: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rooms.yaml"
    file.write_text(DEFINITION)
    told = queued.environment(load(file), name)[job.MOST_WORKERS]
    assert max(json.loads(told).values()) == most
    monkeypatch.setenv(job.MOST_WORKERS, told)
    job._check_room(most, "small")
    with pytest.raises(UsageError, match=f"{most + 1} workers at once never find room"):
        job._check_room(most + 1, "small")


def test_a_group_of_which_nothing_is_told_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(job.MOST_WORKERS, raising=False)
    job._check_room(99, "train")
    monkeypatch.setenv(job.MOST_WORKERS, '{"train": 3}')
    job._check_room(99, "another")
