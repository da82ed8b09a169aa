"""How long the store is waited for: pure, drawn at random within bounds."""

from __future__ import annotations

import pytest

from heliostat.store import LONGEST_PAUSE_S, RESTART_S, ROUNDS, Trouble, pause_s


def pauses(trouble: Trouble, *, answered_before: bool = True, elapsed_s: float = RESTART_S) -> list[float | None]:
    return [
        pause_s(trouble, round_number=n, elapsed_s=elapsed_s, answered_before=answered_before)
        for n in range(ROUNDS + 1)
    ]


def test_what_cannot_change_is_not_asked_again() -> None:
    assert set(pauses(Trouble.FINAL)) == {None}


@pytest.mark.parametrize("trouble", [Trouble.THROTTLED, Trouble.BROKEN])
def test_temporary_trouble_is_bounded_in_rounds_and_pauses(trouble: Trouble) -> None:
    for _ in range(50):
        found = pauses(trouble)
        assert found[ROUNDS - 1 :] == [None, None]
        assert all(pause is not None and 0 <= pause <= LONGEST_PAUSE_S for pause in found[: ROUNDS - 1])


def test_connections_that_break_are_borne_for_as_long_as_a_restart_takes() -> None:
    """What a restart behind a load balancer looks like: it was given up after 2 s where every pause was drawn short."""
    assert None not in pauses(Trouble.BROKEN, elapsed_s=RESTART_S - 1)
    assert pauses(Trouble.BROKEN, elapsed_s=RESTART_S - 1, answered_before=False)[ROUNDS - 1 :] == [None, None]
    assert pauses(Trouble.THROTTLED, elapsed_s=RESTART_S - 1)[ROUNDS - 1 :] == [None, None]


def test_a_store_that_asks_for_less_is_never_asked_again_at_once() -> None:
    assert all(pause is None or pause >= 0.25 for _ in range(50) for pause in pauses(Trouble.THROTTLED))


def test_two_clients_do_not_come_back_at_the_same_moment() -> None:
    assert len({pause_s(Trouble.BROKEN, round_number=2, elapsed_s=0, answered_before=True) for _ in range(20)}) == 20


def test_a_store_that_never_answered_is_reported_at_once_and_one_that_did_is_waited_for() -> None:
    assert pause_s(Trouble.REFUSED, round_number=0, elapsed_s=0.0, answered_before=False) is None
    assert pause_s(Trouble.REFUSED, round_number=40, elapsed_s=RESTART_S - 1, answered_before=True) is not None
    assert pause_s(Trouble.REFUSED, round_number=40, elapsed_s=RESTART_S + 1, answered_before=True) is None
