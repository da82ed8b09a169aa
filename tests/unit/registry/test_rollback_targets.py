"""Which versions a rollback leads to, by the history alone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from heliostat.registry.aliases import Alias, AliasMove, rollback_targets

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def alias(*moves: int) -> Alias:
    """Positive numbers are moves to that version, negative ones rollbacks to it."""
    history, before = [], None
    for move in moves:
        history.append(AliasMove(at=NOW, who="a", why="b", from_version=before, to_version=abs(move), back=move < 0))
        before = abs(move)
    return Alias(name="m", alias="production", version=before or 1, generation=len(moves), history=tuple(history))


@pytest.mark.parametrize(
    ("moves", "targets"),
    [
        ((1,), []),
        ((1, 2, 3), [2, 1]),
        ((1, 2, 3, -2), [1]),
        ((1, 2, 3, -1), []),
        ((1, 2, -1, 3), [1]),
        ((1, 2, 1), [2, 1]),
        ((1, 2, 1, -2), [1]),
        ((2, 2, -2), []),
        ((-1,), []),  # written by nobody, and still no crash
    ],
)
def test_a_rollback_undoes_moves_and_never_goes_forward(moves: tuple[int, ...], targets: list[int]) -> None:
    assert rollback_targets(alias(*moves)) == targets
