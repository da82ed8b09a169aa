from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliostat.inference.load import DutyCycle, Load
from heliostat.serve.admission import ORDINARY_SERVICES, POOL, STANDING_S, Admission, Refusal
from heliostat.serve.scaling import BACKLOG, Demand, target_delay_s

SERVICE_S = 0.01
"""Of a text of 32 tokens, at the speed of `queue`."""
MANY = POOL + 1


def queue(waiting: int, *, running: int = 512, tokens_per_s: float = 3200.0) -> Load:
    return Load(waiting_tokens=waiting, running_tokens=running, tokens_per_s=tokens_per_s)


def used_to_single_texts(max_queue_s: float = 5.0) -> Admission:
    admission = Admission(max_queue_s)
    admission.answered(32)
    return admission


def arrivals(
    admission: Admission, load: Load, *, under_way: int, per_s: float, seconds: float, begin: float = 1.0
) -> list[Refusal | None]:
    return [admission.refusal(load, begin + i / per_s, under_way=under_way) for i in range(round(seconds * per_s))]


LONG = 32 * (ORDINARY_SERVICES + 1)


def test_a_burst_is_let_in_whole() -> None:
    admission = used_to_single_texts()
    admission.refusal(queue(0, running=0), 1.0, under_way=0)
    assert [admission.refusal(queue(32 * i), 1.0 + STANDING_S * i / 200, under_way=i) for i in range(200)] == [
        None
    ] * 200


def test_in_overload_the_queue_is_cut_to_what_is_ordinary() -> None:
    admission = used_to_single_texts()
    found = arrivals(admission, queue(LONG), under_way=MANY, per_s=400, seconds=1)
    assert found[:50] == [None] * 50  # not known for overload yet
    refusal = found[-1]
    assert refusal is not None
    assert refusal.limit_s == pytest.approx(ORDINARY_SERVICES * SERVICE_S)
    # It goes on while the queue is shorter, until less comes.
    assert admission.refusal(queue(LONG), 2.0, under_way=ORDINARY_SERVICES) is not None
    assert admission.refusal(queue(LONG - 64), 2.0, under_way=ORDINARY_SERVICES) is None
    assert admission.refusal(queue(LONG), 2.4, under_way=MANY) is None


def test_a_batch_that_empties_the_queue_does_not_open_the_door() -> None:
    admission = used_to_single_texts()
    arrivals(admission, queue(LONG), under_way=MANY, per_s=400, seconds=1)
    assert admission.refusal(queue(0), 2.0, under_way=0) is None
    assert admission.refusal(queue(LONG), 2.001, under_way=MANY) is not None


def test_a_pool_of_clients_that_wait_for_their_answers_is_never_refused() -> None:
    admission = used_to_single_texts(max_queue_s=60)
    for size in (1, 16):  # texts a request
        full = queue(32 * size * POOL)
        found = arrivals(admission, full, under_way=POOL - 1, per_s=100 / size, seconds=5, begin=10.0 * size)
        assert set(found) == {None}
        for _ in range(9):
            admission.answered(32 * size)


def test_what_piled_up_while_no_replica_was_there_refuses_nobody_who_comes_while_it_clears() -> None:
    admission = used_to_single_texts()
    held = [admission.refusal(queue(32 * i), 1.0 + i / 1e4, under_way=i, held=True) for i in range(300)]
    assert held == [None] * 300
    after = arrivals(admission, queue(32 * 200), under_way=200, per_s=60, seconds=2, begin=1.1)
    assert set(after) == {None}


def test_max_queue_holds_for_everybody() -> None:
    admission = used_to_single_texts(max_queue_s=1.0)
    refusal = admission.refusal(queue(3200), now=0.001, under_way=1, held=True)
    assert refusal is not None
    assert refusal.limit_s == 1.0


def test_those_who_waited_for_the_replica_are_not_refused_for_having_come_together() -> None:
    admission = used_to_single_texts()
    assert arrivals(admission, queue(LONG), under_way=MANY, per_s=400, seconds=1)[-1] is not None
    assert admission.refusal(queue(LONG), now=2.0, under_way=MANY, held=True) is None


def test_nothing_is_refused_before_anything_was_measured() -> None:
    unmeasured = queue(10**6, tokens_per_s=0.0)
    assert set(arrivals(Admission(5.0), unmeasured, under_way=MANY, per_s=1000, seconds=1)) == {None}


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
