"""What GPU-seconds came to: unit costs, a month, its forecast, FOCUS rows, energy."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from itertools import count

import numpy as np
import pyarrow as pa
import pytest

from heliostat.errors import UsageError
from heliostat.events import Event
from heliostat.meter.cells import HOUR
from heliostat.meter.counts import counts_of
from heliostat.meter.economics import forecast, month, saved_by_spot, unit_costs
from heliostat.meter.energy import BUSY_SHARE, IDLE_SHARE, energy, rated_watts
from heliostat.meter.facts import Owner, Place, Use
from heliostat.meter.focus import COLUMNS, focus_rows, to_focus_csv, unpriced_gpu_hours
from heliostat.meter.fold import Entries
from heliostat.meter.ledger import counts_table, table_of
from heliostat.meter.prices import GpuPrice
from heliostat.meter.report import Line, name_instances, report
from heliostat.plan.catalogue import load

SPOT = Place("train", "spot", "g5.xlarge", "a")
DEMAND = Place("serve", "on-demand", "g6.xlarge", "b")
JOB = Owner("job", "classify", "red", "words", "classify-20260101-000000-aaaa")
RED, READY = Owner("app", "classifier", "red", "words", "v1"), Owner("app", "classifier", "", "words", "v1")
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR_NUMBER = int(NOON.timestamp()) // 3600
PRICES = [
    GpuPrice("g5.xlarge", "spot", 0.5, "me", "2026-01-01"),
    GpuPrice("g5.xlarge", "on-demand", 2.0, "me", "2026-01-01"),
    GpuPrice("g6.xlarge", "on-demand", 1.0, "me", "2026-01-01"),
]
_ids = count(1)


def rows(*given: tuple[int, Place, Owner, Use, float]) -> pa.Table:
    spots, owners = list(dict.fromkeys(r[1] for r in given)), list(dict.fromkeys(r[2] for r in given))
    return table_of(
        Entries(
            np.array([r[0] for r in given], dtype=np.int64),
            np.array([spots.index(r[1]) for r in given], dtype=np.int32),
            np.array([owners.index(r[2]) for r in given], dtype=np.int32),
            np.array([int(r[3]) for r in given], dtype=np.int8),
            np.array([r[4] for r in given], dtype=np.float64),
            tuple(spots),
            tuple(owners),
        )
    )


TABLE = rows(
    (HOUR_NUMBER, SPOT, JOB, Use.TRAINING, 7200),
    (HOUR_NUMBER, SPOT, JOB, Use.RECOMPUTED, 3600),
    (HOUR_NUMBER, DEMAND, RED, Use.SERVING, 900),
    (HOUR_NUMBER, DEMAND, READY, Use.RESERVED, 2700),
    (HOUR_NUMBER, DEMAND, RED, Use.OVERLAP, 5),
    (HOUR_NUMBER - 1, DEMAND, Owner(), Use.UNALLOCATED, 1800),
)


def event(kind: str, at: float, **fields: object) -> Event:
    return Event(f"{next(_ids):032x}", kind, "test", at, at, dict(fields))


def day(hour: int) -> dict[str, int]:
    return {"start": hour * HOUR, "end": (hour + 24) * HOUR}


def asked(at: float, **teams: int) -> Event:
    use = {team or "": {"requests": n, "items": n, "tokens": 10 * n} for team, n in teams.items()}
    return event("replica_busy", at, app="classifier", replica="r", project="words", version=1, busy_s={}, asked=use)


BEGIN = HOUR_NUMBER * 3600.0
EVENTS = [
    asked(BEGIN + 10, red=300),
    asked(BEGIN + 20, red=200, blue=100),
    *(event("step", BEGIN + n, run=JOB.version, attempt="000001-a", team="red", project="words", step=n, tokens=50)
      for n in range(1, 5)),
]  # fmt: skip
COUNTS = counts_table(counts_of([*EVENTS, EVENTS[0]], **day(HOUR_NUMBER)))


def test_an_event_told_twice_counts_once_and_one_of_another_day_not_at_all() -> None:
    sums: dict[str, float] = {}
    for row in counts_table(counts_of([*EVENTS, *EVENTS, asked(BEGIN - 5, red=9)], **day(HOUR_NUMBER))).to_pylist():
        sums[row["what"]] = sums.get(row["what"], 0) + row["amount"]
    assert sums == {"requests": 600, "items": 600, "tokens": 6000, "steps": 4, "trained_tokens": 200}


def test_an_app_is_charged_for_all_it_held_and_a_team_for_its_answers() -> None:
    (app,) = unit_costs(TABLE, COUNTS, by=["app"], prices=PRICES)
    assert (app.requests, app.tokens, app.usd) == (600, 6000, pytest.approx(1.0))
    assert app.usd_per_1000_requests == pytest.approx(1.0 / 0.6)
    assert app.usd_per_million_tokens == pytest.approx(1e6 / 6000)
    red = next(cost for cost in unit_costs(TABLE, COUNTS, by=["app", "team"], prices=PRICES) if cost.keys[1] == "red")
    assert (red.requests, red.usd) == (500, pytest.approx(0.25))


def test_a_run_is_charged_for_what_was_computed_twice() -> None:
    (run,) = unit_costs(TABLE, COUNTS, by=["run"], prices=PRICES)
    assert run.keys == (JOB.version,)
    assert (run.usd, run.steps, run.gpu_hours) == (pytest.approx(1.5), 4, pytest.approx(3.0))


def test_without_a_price_there_is_no_cost_rather_than_none_at_all() -> None:
    (app,) = unit_costs(TABLE, COUNTS, by=["app"])
    assert (app.usd, app.usd_per_1000_requests) == (None, None)
    assert app.gpu_seconds_per_1000_requests == pytest.approx(6000)


def test_spot_saved_the_difference_where_both_prices_are_known() -> None:
    assert saved_by_spot(TABLE, PRICES) == pytest.approx(3 * 1.5)
    assert saved_by_spot(TABLE, PRICES[:1]) == 0


def test_a_month_tells_use_goodput_and_what_has_no_price() -> None:
    made = month(TABLE, now=NOON.timestamp() + 3600, prices=PRICES[:1])
    assert made.month == "2026-03"
    assert made.gpu_hours == pytest.approx(4.5)
    assert made.utilisation == pytest.approx((7200 + 900) / 16_200)
    assert made.goodput == pytest.approx(2 / 3)
    assert made.unpriced_gpu_hours == pytest.approx(1.5)
    earlier = month(TABLE, now=datetime(2026, 4, 1, 1, tzinfo=UTC).timestamp(), prices=PRICES)
    assert earlier.gpu_hours == 0


def daily(*usd: float, first: int = 1) -> list[Line]:
    return [Line((f"2026-03-{first + n:02d}",), {"training": 3600 * value}, usd=value) for n, value in enumerate(usd)]


def test_the_forecast_goes_on_at_the_pace_of_the_last_whole_days() -> None:
    noon = datetime(2026, 3, 11, 12, tzinfo=UTC).timestamp()
    made = forecast(daily(*[10.0] * 10, 5.0), noon)  # ten whole days of 10, half a day of 5
    assert made.usd == pytest.approx(105 + 10 * 20.5)
    assert (made.days, made.low_usd, made.high_usd) == (7, made.usd, made.usd)
    uneven = forecast(daily(*[10.0] * 8, 0.0, 20.0, 5.0), noon)
    assert uneven.low_usd == pytest.approx(105)
    assert uneven.high_usd == pytest.approx(105 + 20 * 20.5)


def test_days_before_the_first_one_are_no_days_without_use() -> None:
    noon = datetime(2026, 3, 11, 12, tzinfo=UTC).timestamp()
    made = forecast(daily(10.0, 10.0, 5.0, first=9), noon)
    assert (made.days, made.usd) == (2, pytest.approx(25 + 10 * 20.5))
    today = forecast(daily(5.0, first=11), noon)
    assert (today.days, today.usd) == (0, pytest.approx(5 + 10 * 20.5))
    assert forecast([], noon).usd == 0


def test_focus_rows_have_every_column_and_add_up_to_the_report() -> None:
    found = list(csv.DictReader(io.StringIO(to_focus_csv(focus_rows(TABLE, cluster="laptop", prices=PRICES)))))
    assert list(found[0]) == list(COLUMNS)
    assert sum(float(row["BilledCost"]) for row in found) == pytest.approx(report(TABLE, prices=PRICES).total.usd)
    assert sum(float(row["ConsumedQuantity"]) for row in found) == pytest.approx(4.5)
    for row in found:
        assert float(row["ListCost"]) == pytest.approx(float(row["ListUnitPrice"]) * float(row["PricingQuantity"]))
        assert row["BillingPeriodStart"] <= row["ChargePeriodStart"] < row["ChargePeriodEnd"] <= row["BillingPeriodEnd"]
    train = next(row for row in found if row["ResourceId"] == "job/classify")
    assert (train["SubAccountId"], train["PricingCategory"]) == ("red", "Dynamic")
    assert json.loads(train["Tags"])["heliostat/market"] == "spot"


def test_what_has_no_price_is_left_out_of_focus_and_told() -> None:
    assert {row["PricingCategory"] for row in focus_rows(TABLE, cluster="c", prices=PRICES[:1])} == {"Dynamic"}
    assert unpriced_gpu_hours(TABLE, PRICES[:1]) == pytest.approx(1.5)


def test_energy_goes_by_measured_power_and_else_by_the_rated_one() -> None:
    samples = [
        event("node_sample", BEGIN + 30 * n, node="n", group="train", gpus=1.0, free=0.0, power_w=200.0)
        for n in range(5)
    ]
    counts = counts_table(counts_of(samples, **day(HOUR_NUMBER)))
    found = {each.keys[0]: each for each in energy(TABLE, counts, by=["group"], grams_per_kwh=400, pue=1.5)}
    assert found["train"].kwh == pytest.approx(3 * 0.2 * 1.5)
    assert found["train"].co2_kg == pytest.approx(3 * 0.2 * 1.5 * 0.4)
    assert (found["train"].measured_share, found["serve"].measured_share) == (1.0, 0.0)
    watts = rated_watts(load())["g6.xlarge"]
    assert found["serve"].kwh == pytest.approx(1.5 * (0.25 * BUSY_SHARE + 1.25 * IDLE_SHARE) * watts / 1000)


def test_figures_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="PUE"):
        energy(TABLE, counts_table({}), pue=0.5)


def test_a_row_without_an_instance_has_that_of_its_group() -> None:
    table = rows((0, Place("train", "spot"), JOB, Use.TRAINING, 60), (0, DEMAND, RED, Use.SERVING, 60))
    named = name_instances(table, {"train": "g5.xlarge", "serve": "another"})
    assert {row["instance"] for row in named.to_pylist()} == {"g5.xlarge", "g6.xlarge"}
    assert report(named, by=["job"], prices=PRICES).total.usd > 0
    assert name_instances(table, {}) is table
