"""How often a group's nodes are taken, from how each of them ended."""

from __future__ import annotations

import pytest

from heliostat.train.reclaims import Life, Reclaims, count

HOUR = 3600.0


def test_nodes_that_were_scaled_down_count_for_their_hours_only() -> None:
    lives = [Life(HOUR, "released"), Life(2 * HOUR, "lives"), Life(HOUR, "unannounced"), Life(HOUR, "announced")]
    assert count(lives) == Reclaims(announced=1, unannounced=1, node_hours=5.0)


def test_what_was_seen_outweighs_the_prior_in_time() -> None:
    calm, wild = Reclaims(0, 0, 1000.0), Reclaims(10, 90, 100.0)
    assert calm.per_node_hour == pytest.approx(1 / 1008)
    assert wild.per_node_hour == pytest.approx(101 / 108)
    assert Reclaims().per_node_hour == pytest.approx(1 / 8)
    assert wild.unannounced_share == pytest.approx(91 / 102)
    assert Reclaims().unannounced_share == 0.5
    assert "90 of them without notice" in wild.line()
