from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.errors import UsageError
from heliostat.units import Bytes, CountRange, Duration


@given(st.integers(0, 10**7))
def test_a_printed_duration_parses_back(milliseconds: int) -> None:
    duration = Duration(milliseconds)
    assert Duration.parse(str(duration)) == duration


@given(st.integers(0, 2**50))
def test_a_printed_size_parses_back(count: int) -> None:
    assert Bytes.parse(str(Bytes(count))) == Bytes(count)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_printed_range_parses_back(low: int, more: int) -> None:
    wanted = CountRange(low, low + more)
    assert CountRange.parse(str(wanted)) == wanted


@pytest.mark.parametrize(("text", "seconds"), [("5m", 300), ("30s", 30), ("1h30m", 5400), ("250ms", 0.25)])
def test_durations_mean_what_people_write(text: str, seconds: float) -> None:
    assert Duration.parse(text).seconds == seconds


def test_gib_and_gb_are_not_the_same() -> None:
    assert Bytes.parse("1GiB") == Bytes(2**30)
    assert Bytes.parse("1GB") == Bytes(10**9)


@pytest.mark.parametrize("text", ["8..4", "-1..2", "many", "1..", "2...8", ""])
def test_a_range_that_is_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        CountRange.parse(text)


def test_a_reversed_range_says_what_to_write() -> None:
    with pytest.raises(UsageError, match=r"8\.\.4 is reversed; write 4\.\.8"):
        CountRange.parse("8..4")
