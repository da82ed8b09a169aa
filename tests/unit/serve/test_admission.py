from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.inference.load import DutyCycle, Load
from heliostat.serve.admission import STANDING_S, STANDING_SERVICES, Admission
from heliostat.serve.scaling import BACKLOG, Demand, target_delay_s


def queue(waiting: int, *, running: int = 512, tokens_per_s: float = 3200.0) -> Load:
    """At this speed a text of 32 tokens takes 10 ms."""
    return Load(waiting_tokens=waiting, running_tokens=running, tokens_per_s=tokens_per_s)


def used_to_single_texts(max_queue_s: float = 5.0) -> Admission:
    admission = Admission(max_queue_s)
    admission.answered(32)
    admission.refusal(queue(0, running=0), now=0.0)
    return admission


LONG = 32 * (STANDING_SERVICES + 1)


def test_a_burst_is_let_in_whole() -> None:
    admission = used_to_single_texts()
    assert [admission.refusal(queue(32 * i), now=0.001 * i) for i in range(50)] == [None] * 50


def test_a_queue_that_stands_is_cut_to_what_is_ordinary() -> None:
    admission = used_to_single_texts()
    assert admission.refusal(queue(LONG), now=STANDING_S / 2) is None
    refusal = admission.refusal(queue(LONG), now=2 * STANDING_S)
    assert refusal is not None
    assert refusal.limit_s == pytest.approx(STANDING_SERVICES * 0.01)
    assert admission.refusal(queue(LONG - 64), now=2 * STANDING_S) is None


def test_a_batch_that_empties_the_queue_does_not_open_the_door() -> None:
    admission = used_to_single_texts()
    assert admission.refusal(queue(0), now=2 * STANDING_S) is None
    assert admission.refusal(queue(LONG), now=2 * STANDING_S + 0.001) is not None


def test_the_work_that_runs_does_not_count_as_standing() -> None:
    admission = used_to_single_texts()
    assert admission.refusal(queue(0, running=10_000), now=9.0) is None


def test_lists_may_queue_as_lists() -> None:
    admission = used_to_single_texts(max_queue_s=60)
    for _ in range(100):
        admission.answered(32 * 256)
    assert admission.refusal(queue(32 * 256 * 2), now=9.0) is None


def test_max_queue_holds_for_everybody() -> None:
    admission = used_to_single_texts(max_queue_s=1.0)
    refusal = admission.refusal(queue(3200), now=0.001, held=True)
    assert refusal is not None
    assert refusal.limit_s == 1.0


def test_those_who_waited_for_the_replica_are_not_refused_for_having_come_together() -> None:
    admission = used_to_single_texts()
    assert admission.refusal(queue(LONG), now=9.0, held=True) is None
    assert admission.refusal(queue(LONG), now=9.0) is not None


def test_nothing_is_refused_before_anything_was_measured() -> None:
    assert Admission(5.0).refusal(queue(10**6, tokens_per_s=0.0), now=1.0) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=30), st.floats(0.1, 5))
def test_a_duty_cycle_is_the_share_that_ran(steps: list[tuple[float, float]], window: float) -> None:
    duty, now, runs = DutyCycle(window), 0.0, []
    for idle, run in steps:
        now += idle
        duty.begin(now)
        duty.end(now + run)
        runs.append((now, now + run))
        now += run
    expected = sum(max(0.0, to - max(begin, now - window)) for begin, to in runs) / window
    assert duty.share(now) == pytest.approx(expected, abs=1e-9)


def test_what_runs_now_counts() -> None:
    duty = DutyCycle(2.0)
    duty.begin(10.0, share=0.5)
    assert duty.share(11.0) == pytest.approx(0.25)
    assert duty.share(20.0) == pytest.approx(0.5)


def test_refused_work_is_wanted_work() -> None:
    demand = Demand(window_s=2.0)
    assert demand.report(0.0, queued_s=0.1, busy=1.0, sheds=0, mean_request_s=0.01)[BACKLOG] == pytest.approx(0.1)
    assert demand.report(1.0, queued_s=0.1, busy=1.0, sheds=300, mean_request_s=0.01)[BACKLOG] == pytest.approx(3.1)
    assert demand.report(9.0, queued_s=0.0, busy=0.1, sheds=300, mean_request_s=0.01)[BACKLOG] == pytest.approx(0.0)


def test_replicas_are_added_well_before_requests_are_refused() -> None:
    assert target_delay_s(60) == 0.5
    assert target_delay_s(0.4) == pytest.approx(0.1)
