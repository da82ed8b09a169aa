from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from heliostat.controller.lease import LEASE_KEY, LEASE_S, take_lease
from heliostat.store import Store

pytestmark = pytest.mark.real


def test_one_of_many_controllers_gets_the_lease(store: Store) -> None:
    with ThreadPoolExecutor(12) as pool:
        won = list(pool.map(lambda i: take_lease(store, f"c{i}", 100.0), range(12)))
    assert won.count(True) == 1


def test_a_lease_is_kept_by_renewing_and_taken_once_expired(store: Store) -> None:
    assert take_lease(store, "a", 100)
    assert take_lease(store, "a", 105)
    assert not take_lease(store, "b", 105 + LEASE_S - 0.1)
    assert take_lease(store, "b", 105 + LEASE_S + 0.1)
    assert not take_lease(store, "a", 105 + LEASE_S + 0.2)


def test_an_unreadable_lease_does_not_stop_the_platform_for_ever(store: Store) -> None:
    store.put(LEASE_KEY, b"{")
    assert take_lease(store, "a", 1)
