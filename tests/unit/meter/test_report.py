"""Reports and prices: groups, money, forms."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from heliostat.cli.app import app
from heliostat.errors import UsageError
from heliostat.meter.facts import Owner, Place, Use
from heliostat.meter.fold import Entries
from heliostat.meter.ledger import from_parquet, table_of, to_parquet
from heliostat.meter.prices import GpuPrice, from_catalogue, hourly, read_prices
from heliostat.meter.report import columns_of, places, report, to_csv, to_json
from heliostat.show import plain, print_report

SPOT = Place("train", "spot", "g5.xlarge", "a")
DEMAND = Place("serve", "on-demand", "g6.xlarge", "b")
JOB = Owner("job", "classify", "red", "words")
APP = Owner("app", "classifier", "blue", "words")


def rows(*given: tuple[int, Place, Owner, Use, float]) -> pa.Table:
    spots = list(dict.fromkeys(row[1] for row in given))
    owners = list(dict.fromkeys(row[2] for row in given))
    return table_of(
        Entries(
            np.array([row[0] for row in given], dtype=np.int64),
            np.array([spots.index(row[1]) for row in given], dtype=np.int32),
            np.array([owners.index(row[2]) for row in given], dtype=np.int32),
            np.array([int(row[3]) for row in given], dtype=np.int8),
            np.array([row[4] for row in given], dtype=np.float64),
            tuple(spots),
            tuple(owners),
        )
    )


TABLE = rows(
    (0, SPOT, JOB, Use.TRAINING, 3600),
    (1, SPOT, JOB, Use.TRAINING, 1800),
    (1, SPOT, JOB, Use.RECOMPUTED, 1800),
    (25, DEMAND, APP, Use.SERVING, 900),
    (25, DEMAND, APP, Use.RESERVED, 2700),
    (25, DEMAND, Owner(), Use.UNALLOCATED, 3600),
    (25, DEMAND, APP, Use.OVERLAP, 5),
)
PRICES = [
    GpuPrice("g5.xlarge", "spot", 1.0, "me", "2026-01-01"),
    GpuPrice("g5.xlarge", "spot", 3.0, "me", "2026-01-01", since=1),
]


def test_by_team_the_largest_first_and_what_is_nobodys_apart() -> None:
    made = report(TABLE, by=["team"], prices=PRICES)
    assert [line.keys for line in made.lines] == [("red",), ("blue",), (None,)]
    red = made.lines[0]
    assert red.gpu_seconds == {"training": 5400, "recomputed": 1800}
    assert (red.held, red.useful) == (7200, 5400)
    assert red.usd == pytest.approx(1.0 + 3.0)  # an hour at 1, the next at 3
    assert made.lines[1].unpriced_gpu_seconds == 3600
    assert made.lines[1].overlap_gpu_seconds == 5
    assert made.total.held == 14_400


@pytest.mark.parametrize("by", ["team", "project", "job", "app", "group", "market", "day", "zone", "version", "user"])
def test_every_dimension_parts_the_same_whole(by: str) -> None:
    made = report(TABLE, by=[by], prices=PRICES)
    assert sum(line.held for line in made.lines) == pytest.approx(14_400)
    assert made.total.usd == pytest.approx(4.0)


def test_a_job_is_no_app() -> None:
    assert [line.keys for line in report(TABLE, by=["job", "app"]).lines] == [
        ("classify", None), (None, "classifier"), (None, None)
    ]  # fmt: skip


def test_days_are_in_order() -> None:
    assert [line.keys for line in report(TABLE, by=["day", "group"]).lines] == [
        ("1970-01-01", "train"), ("1970-01-02", "serve")
    ]  # fmt: skip


@pytest.mark.parametrize("by", [["node"], ["team", "team"], []])
def test_an_unknown_dimension_is_refused_with_those_that_there_are(by: list[str]) -> None:
    with pytest.raises(UsageError, match="team, project, job"):
        report(TABLE, by=by)


def test_a_table_comes_back_from_parquet_as_it_was() -> None:
    assert from_parquet(to_parquet(TABLE)).to_pylist() == TABLE.to_pylist()


@pytest.mark.parametrize("by", [["team"], ["job", "day"], ["user", "market"]])
def test_a_report_needs_only_the_columns_it_names(by: list[str]) -> None:
    some = from_parquet(to_parquet(TABLE), columns_of(by))
    assert report(some, by=by, prices=PRICES) == report(TABLE, by=by, prices=PRICES)


def test_csv_columns_add_up_to_the_total() -> None:
    made = report(TABLE, by=["group", "day"], prices=PRICES)
    read = list(csv.DictReader(io.StringIO(to_csv(made))))
    assert [(row["group"], row["day"]) for row in read] == [("serve", "1970-01-02"), ("train", "1970-01-01")][::-1]
    classes = [name for name in read[0] if name.endswith("_gpu_seconds") and name[:4] not in ("held", "unpr")]
    assert sum(float(row[name]) for row in read for name in classes) == pytest.approx(made.total.held)


def test_json_names_each_price_with_its_source_and_date() -> None:
    shown = json.loads(json.dumps(plain(to_json(report(TABLE, by=["team"], prices=PRICES)))))
    assert shown["lines"][0]["team"] == "red"
    assert shown["total"]["usd"] == pytest.approx(4.0)
    assert {(price["source"], price["date"]) for price in shown["prices"]} == {("me", "2026-01-01")}


def test_the_table_tells_what_has_no_price(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(TABLE, by=["team"], prices=PRICES))
    shown = capsys.readouterr()
    assert "recomputed" in shown.out
    assert "2.00 GPU-hours have no price" in shown.err
    assert "told twice" in shown.err


def test_the_command_refuses_two_forms_at_once() -> None:
    result = CliRunner().invoke(app, ["cost", "report", "--csv", "--json"])
    assert isinstance(result.exception, UsageError)


def test_a_zone_has_its_own_price_where_one_is_given() -> None:
    prices = [*PRICES, GpuPrice("g5.xlarge", "spot", 9.0, "me", "2026-01-01", zone="b")]
    hours = np.array([0, 1, 5], dtype=np.int64)
    assert hourly(prices, SPOT, hours).tolist() == [1.0, 3.0, 3.0]
    assert hourly(prices, Place("x", "spot", "g5.xlarge", "b"), hours).tolist() == [9.0] * 3
    assert np.isnan(hourly(prices, DEMAND, hours)).all()


def test_the_catalogue_prices_one_gpu_of_the_instance() -> None:
    whole, part = from_catalogue([Place("g", "on-demand", "g5.12xlarge"), Place("g", "on-demand", "nothing")]), 4
    (price,) = whole
    from heliostat.plan.catalogue import load

    instance = next(one for one in load().instances if one.name == "g5.12xlarge")
    known = load().price(instance)
    assert known is not None
    assert price.usd_per_gpu_hour * part == pytest.approx(float(known.usd_per_hour))
    assert price.source
    assert price.date


def test_prices_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text(
        "instance,market,zone,since,usd_per_gpu_hour,source,date\n"
        "g5.xlarge,spot,,,0.4,console,2026-01-01\n"
        "g5.xlarge,spot,a,2026-01-02T05:00,0.5,console,2026-01-02\n"
    )
    first, second = read_prices(path)
    assert (first.since, second.since) == (0, 20_455 * 24 + 5)
    path.write_text(
        "instance,market,zone,since,usd_per_gpu_hour,source,date\ng5.xlarge,spot,,,free,console,2026-01-01\n"
    )
    with pytest.raises(UsageError) as caught:
        read_prices(path)
    assert caught.value.where.endswith("prices.csv, line 2")
    path.write_text("instance\n")
    with pytest.raises(UsageError, match="no column 'market'"):
        read_prices(path)


def test_places_are_those_of_the_rows() -> None:
    assert set(places(TABLE)) == {SPOT, DEMAND}
