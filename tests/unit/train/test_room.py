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
  wide: {role: training, market: on-demand, cpus: 4, gpus: 4, nodes: 0..1}
store: {kind: embedded, bucket: heliostat}
jobs:
  stays: {entrypoint: sleep 9, group: small, publishes: m}
  moves: {entrypoint: sleep 9, group: small, publishes: m, falls_back: true}
  shares: {entrypoint: sleep 9, group: wide, publishes: m, gpus: 2}
tags: {team: demo, project: voice}
"""


@pytest.mark.parametrize(
    ("name", "group", "most"), [("stays", "small", 3), ("moves", "small", 4), ("shares", "wide", 2)]
)
def test_as_many_workers_as_its_groups_may_ever_have(
    name: str, group: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rooms.yaml"
    file.write_text(DEFINITION)
    told = queued.environment(load(file), name)[job.MOST_WORKERS]
    assert max(json.loads(told).values()) == most
    monkeypatch.setenv(job.MOST_WORKERS, told)
    job._check_room(most, group)
    with pytest.raises(UsageError, match=f"{most + 1} workers at once never find room"):
        job._check_room(most + 1, group)


def test_a_group_of_which_nothing_is_told_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(job.MOST_WORKERS, raising=False)
    job._check_room(99, "train")
    monkeypatch.setenv(job.MOST_WORKERS, '{"train": 3}')
    job._check_room(99, "another")


def test_a_job_that_shares_a_node_has_no_more_workers_than_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    job._check_part(99)  # whole nodes
    monkeypatch.setenv(job.GPUS, "2")
    job._check_part(2)
    with pytest.raises(UsageError, match="3 workers, standby included, need a GPU each, and the job asks for 2 of one"):
        job._check_part(3)


def test_who_holds_a_node_for_fewer_workers_than_its_gpus_is_told_how_to_share_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(job.JOB_ID, "small-1")
    monkeypatch.delenv(job.GPUS, raising=False)
    job._tell_of_a_node_half_used(8, 8)
    assert capsys.readouterr().out == ""
    job._tell_of_a_node_half_used(2, 8)
    assert "uses 2 of a node's 8 GPUs" in (told := capsys.readouterr().out)
    assert "`gpus: 2`" in told
    monkeypatch.setenv(job.GPUS, "2")
    job._tell_of_a_node_half_used(2, 8)
    assert capsys.readouterr().out == ""


def test_a_trial_holds_what_it_trains_on_and_not_what_its_sweep_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(job.GPUS, raising=False)
    assert job._part("sweep-1", 1) == 0
    monkeypatch.setenv(job.GPUS, "4")
    monkeypatch.setenv(job.RUN, "sweep-1")
    assert (job._part("sweep-1", 2), job._part("trial-7", 1)) == (4, 1)
