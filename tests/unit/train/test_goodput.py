"""Where GPU time went: the parts add up to what was held, and nothing is counted twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.train.goodput import Goodput, Span, reckon


def test_an_undisturbed_run_is_useful_but_for_its_start() -> None:
    made = reckon([Span(2, waited_s=5, began_at=0, ended_at=110, first_at=10, last_at=110, step=101, stall_s=4)])
    assert made == Goodput(useful=192, stall=8, startup=20, waiting=10, steps=101, attempts=1)
    assert made.held == 2 * 115
    assert made.share == pytest.approx(192 / 230)


def test_steps_that_a_loss_took_back_are_not_useful_a_second_time() -> None:
    first = Span(2, 0, began_at=0, ended_at=50, first_at=10, last_at=50, step=40)
    second = Span(2, 0, began_at=50, ended_at=100, first_at=60, last_at=100, from_step=30, step=70)
    made = reckon([first, second])
    assert (made.steps, made.steps_again, made.attempts) == (70, 10, 2)
    assert made.again == pytest.approx(2 * 40 * 10 / 40)


def test_an_attempt_that_never_made_a_step_is_all_start() -> None:
    made = reckon([Span(3, 1, began_at=0, ended_at=7)])
    assert (made.startup, made.waiting, made.useful, made.steps) == (21, 3, 0, 0)


@st.composite
def spans(draw: st.DrawFn) -> Span:
    began = draw(st.floats(0, 1e4))
    start, training, rest = (draw(st.floats(0, 1e3)) for _ in range(3))
    low = draw(st.integers(0, 50))
    return Span(
        workers=draw(st.integers(1, 8)),
        waited_s=draw(st.floats(0, 100)),
        began_at=began,
        ended_at=began + start + training + rest,
        first_at=began + start,
        last_at=began + start + training,
        from_step=low,
        step=low + draw(st.integers(1, 50)),
        stall_s=draw(st.floats(0, 2e3)),
        data_s=draw(st.floats(0, 2e3)),
    )


@given(st.lists(spans(), max_size=6))
def test_the_parts_add_up_to_what_was_held(attempts: list[Span]) -> None:
    made = reckon(attempts)
    held = sum((span.ended_at - span.began_at + span.waited_s) * span.workers for span in attempts)
    assert made.held == pytest.approx(held, abs=1e-3)
    assert min(made.useful, made.again, made.stall, made.data, made.startup, made.waiting) >= -1e-6
    assert made.steps == max((span.step for span in attempts), default=0)
    assert 0 <= made.share <= 1 + 1e-9
