"""Traces of requests, measurements, formulas, delays, plots."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.errors import DefinitionError, UsageError
from heliostat.simulate.engine import Engine, next_tick
from heliostat.simulate.measured import Measured, check_names, load_measured
from heliostat.simulate.queues import erlang_c, mg1_wait_s, mmc_wait_s
from heliostat.simulate.scaling import Delays
from heliostat.simulate.tally import Histogram
from heliostat.simulate.traffic import arrivals, draw, read_traffic


def test_single_requests_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("at_s,app,work_s\n70,a,0.5\n3.5,a,\n200000,a,1\n")
    found = read_traffic(path, days=1, apps={"a", "b"})
    assert found["a"].per_minute[:2].tolist() == [1, 1]
    assert found["b"].requests == 0
    (first, second) = arrivals(found["a"], np.random.default_rng(0))
    assert first[0] == 3.5
    assert math.isnan(first[1])
    assert second == (70.0, 0.5)


def test_counts_by_the_minute_are_read_and_spread(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("minute,app,requests\n2,a,5\n0,a,1\n")
    traffic = read_traffic(path, days=0.01, apps={"a"})["a"]
    found = [at for at, _ in arrivals(traffic, np.random.default_rng(0))]
    assert found == sorted(found)
    assert [int(at // 60) for at in found] == [0, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("when,who\n1,a\n", "header is when,who"),
        ("at_s,app\n-1,a\n", "times from 0"),
        ("at_s,app\nx,a\n", "could not convert"),
        ("at_s,app\n1,z\n", "'z' is not in the definition"),
        ("minute,app,requests\n1,a,-2\n", "both from 0"),
        ("minute,app,requests\n1,a\n", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match=says) as caught:
        read_traffic(path, days=1, apps={"a"})
    assert "line " in str(caught.value)


@pytest.mark.parametrize("shape", ["steady", "diurnal", "bursty"])
def test_what_is_drawn_follows_from_the_seed(shape: str) -> None:
    one, same, other = (
        draw(shape, requests_per_s=5, days=2, seed=seed).per_minute  # type: ignore[arg-type]
        for seed in (1, 1, 2)
    )
    assert (one == same).all()
    assert (one != other).any()
    most = 2.0 if shape == "bursty" else 1.05
    assert 0.95 < one.sum() / (5 * 2 * 86400) < most


def test_measurements_with_mistakes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("starts: {node: 3m}\napplications: {a: {seconds_per_item: 0}}\nnope: 1\n")
    with pytest.raises(DefinitionError) as caught:
        load_measured(path)
    assert "nope" in str(caught.value)
    assert "seconds_per_item" in str(caught.value)


def test_measurements_of_what_is_not_there_are_refused() -> None:
    known = Measured.model_validate({"applications": {"intnt": {}}})
    with pytest.raises(UsageError, match=r"'intnt'.*not"):
        check_names(known, groups=set(), applications={"intent"}, jobs=set())


def test_formulas_agree_with_their_special_cases() -> None:
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert mmc_wait_s(1, 0.8, 1.0) == pytest.approx(mg1_wait_s(0.8, 1.0, 1.0)) == pytest.approx(4.0)
    assert mg1_wait_s(0.8, 1.0, 0.0) == pytest.approx(2.0)


def test_quantiles_are_within_one_percent() -> None:
    histogram, values = Histogram(), np.random.default_rng(0).lognormal(0, 2, 20_000)
    for value in values:
        histogram.add(float(value))
    for share in (0.1, 0.5, 0.99):
        assert histogram.quantile(share) == pytest.approx(float(np.quantile(values, share)), rel=0.02)


def test_events_of_one_moment_happen_in_the_order_they_were_asked_for() -> None:
    engine, seen = Engine(), []  # type: ignore[var-annotated]
    for name in "abc":
        engine.at(5.0, seen.append, name)
    engine.at(1.0, seen.append, "first")
    engine.run(4.0)
    engine.at(2.0, seen.append, "late")  # has passed: now
    engine.run(9.0)
    assert seen == ["first", "late", "a", "b", "c"]
    assert engine.now == 9.0
    assert next_tick(0.1 + 0.2, 0.1) == pytest.approx(0.3)


@settings(deadline=None)  # the first example imports Ray
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 3.0, 11.0]), st.integers(0, 4)), max_size=60))
def test_the_delays_are_those_of_ray_serve(asked: list[tuple[float, int]]) -> None:
    from ray.serve.autoscaling_policy import _apply_delay_logic
    from ray.serve.config import AutoscalingConfig

    config = AutoscalingConfig(
        min_replicas=0, max_replicas=9, upscale_delay_s=2, downscale_delay_s=10, downscale_to_zero_delay_s=20
    )
    ours, mine, theirs, state, now = Delays(2, 10, 20), 1, 1, {}, 1000.0  # type: ignore[var-annotated]
    for pause, wanted in asked:
        now += pause
        mine = ours.decide(wanted, mine, now)
        theirs, state = _apply_delay_logic(wanted, theirs, config, state, now)
        assert mine == theirs
