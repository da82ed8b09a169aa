from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.errors import UsageError
from heliostat.events import Event
from heliostat.plan.policy.deadline import Spell
from heliostat.plan.policy.traces import (
    Climate,
    Trace,
    cut,
    generate,
    read_folder,
    read_trace,
    record,
    spells,
    write_trace,
)


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_the_name_of_a_published_trace_says_kind_nodes_and_date(tmp_path: Path) -> None:
    name = "preemption_4-node_aws-08-03-2023_us-west-2c_v100_1.json"
    trace = read_trace(write(tmp_path / name, {"metadata": {"gap_seconds": 300}, "data": [4, 3, 4]}))
    assert (trace.kind, trace.nodes, trace.start, trace.tick_s) == ("preemption", 4, "08-03-2023", 300)
    assert trace.up(4).tolist() == [True, False, True]


def test_a_trace_of_any_other_name_is_of_availability_and_of_its_most_nodes(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "mine.json", {"metadata": {"gap_seconds": 60.2}, "data": [0, 3, 1.0]}))
    assert (trace.kind, trace.nodes, trace.tick_s, trace.start) == ("availability", 3, 60, None)


def test_short_ticks_are_merged_and_up_when_all_of_them_are(tmp_path: Path) -> None:
    value = {"metadata": {"gap_seconds": 32}, "data": [1, 1, 1, 0, 0, 1, 1]}
    trace = read_trace(write(tmp_path / "fast.json", value))
    assert trace.tick_s == 64
    assert trace.counts.tolist() == [1, 0, 0]  # the odd one at the end is left off


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([1, 0], "no metadata"),
        ({"metadata": {}, "data": [1]}, "gap_seconds is None"),
        ({"metadata": {"gap_seconds": 0}, "data": [1]}, "gap_seconds is 0"),
        ({"metadata": {"gap_seconds": True}, "data": [1]}, "gap_seconds is True"),
        ({"metadata": {"gap_seconds": float("nan")}, "data": [1]}, "gap_seconds is nan"),
        ({"metadata": {"gap_seconds": 60}, "data": []}, "not a list of counts"),
        ({"metadata": {"gap_seconds": 60}, "data": [1, None]}, "holds None"),
        ({"metadata": {"gap_seconds": 60}, "data": [1, -1]}, "holds -1"),
        ({"metadata": {"gap_seconds": 60}, "data": [1, float("nan")]}, "holds nan"),
        ({"metadata": {"gap_seconds": 60}, "data": [1, "up"]}, "holds 'up'"),
        ({"metadata": {"gap_seconds": 60, "nodes": "two"}, "data": [1]}, "nodes is 'two'"),
    ],
)
def test_a_file_that_holds_no_trace_is_refused_with_the_reason(tmp_path: Path, value: object, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        read_trace(write(tmp_path / "bad.json", value))


def test_a_folder_gives_its_traces_and_lists_what_it_skipped(tmp_path: Path) -> None:
    write_trace(generate(1, days=1), tmp_path / "good.json")
    (tmp_path / "broken.json").write_text('{"metadata": ')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "README.md").write_text("not a trace")
    traces, skipped = read_folder(tmp_path)
    assert [t.name for t in traces] == ["good"]
    assert [s.name for s in skipped] == ["binary.json", "broken.json"]
    with pytest.raises(UsageError, match="not a folder"):
        read_folder(tmp_path / "nowhere")


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    trace = generate(3, days=2, nodes=4)
    write_trace(trace, tmp_path / "a.json")
    again = read_trace(tmp_path / "a.json")
    assert (again.kind, again.nodes, again.tick_s, again.start) == (trace.kind, 4, trace.tick_s, None)
    assert (again.counts == trace.counts).all()


@given(st.lists(st.booleans(), max_size=50))
def test_spells_put_together_give_the_ticks(up: list[bool]) -> None:
    found = spells(np.array(up, dtype=bool), 60)
    assert [s.up for s in found for _ in range(int(s.seconds // 60))] == up
    assert all(a.up != b.up for a, b in itertools.pairwise(found))


def test_windows_are_whole_and_know_what_was_before() -> None:
    trace = Trace("t", "availability", 2, 600, np.array([2, 2, 0, 1, 2, 2]))
    windows = list(cut(trace, seconds=1500, stride_s=1200, nodes=2))
    assert [(w.first_tick, w.up) for w in windows] == [(0, (True, True, False)), (2, (False, False, True))]
    assert windows[1].before == (Spell(True, 1200.0),)
    assert windows[1].forgotten().before == ()


def test_a_seed_gives_one_trace_and_its_climate_shows() -> None:
    assert (generate(5).counts == generate(5).counts).all()
    assert (generate(5).counts != generate(6).counts).any()
    climate = Climate(mean_up_h=2.0, mean_down_h=6.0, spread=0.8, day_swing=0.0)
    up = generate(7, days=400, climate=climate).up(1)
    lengths = [s.seconds / 3600 for s in spells(up, 300) if s.up]
    assert up.mean() == pytest.approx(0.25, abs=0.03)
    assert np.mean(lengths) == pytest.approx(2.0, rel=0.1)
    assert np.std(np.log(lengths)) == pytest.approx(0.8, rel=0.1)


def test_spot_is_up_more_by_night_where_the_day_swings() -> None:
    up = generate(1, days=600, climate=Climate(mean_up_h=2, mean_down_h=2, spread=0.5, day_swing=0.9)).up(1)
    hour = np.arange(len(up)) * 300 // 3600 % 24
    night, day = up[(hour < 4) | (hour >= 22)].mean(), up[(hour >= 10) & (hour < 16)].mean()
    assert night > day + 0.1


def test_a_climate_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError):
        Climate(mean_up_h=0)


def node_event(kind: str, node: str, ready_at: float | None, ended_at: float | None, **other: object) -> Event:
    fields = {"group": "train", "market": "spot", "node": node, "ready_at": ready_at, "ended_at": ended_at, **other}
    return Event(f"{kind}-{node}", kind, "test", 0.0, 0.0, fields)


def test_one_s_own_reclaims_become_a_trace() -> None:
    events = [
        node_event("node_started", "a", None, None),
        node_event("node_ready", "a", 1000.0, None),
        node_event("node_ended", "a", 1000.0, 1650.0),
        node_event("node_ready", "b", 1300.0, None),
        node_event("node_ended", "never-ready", None, 1400.0),
        node_event("node_ready", "served", 0.0, None, group="serve"),
        node_event("node_ready", "bought", 0.0, None, market="on-demand"),
    ]
    trace = record(events, group="train", tick_s=300, until=2200.0)
    assert trace.counts.tolist() == [1, 2, 2, 1]
    assert (trace.kind, trace.nodes, trace.start) == ("preemption", 2, "1970-01-01T00:16:40Z")
    with pytest.raises(UsageError, match="no spot node of group 'other'"):
        record(events, group="other", until=2200.0)
