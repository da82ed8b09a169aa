"""The registry while its processes are killed, its store throttles, breaks connections, dies and comes back."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import SecretStr

from heliostat.cluster import ports, store_server
from heliostat.errors import ObjectExists, StoreError, SwapLost
from heliostat.registry import load_files, move_alias, pull, resolve, scan, verify
from heliostat.registry.artifacts import publish
from heliostat.settings import StoreSettings
from heliostat.store import Store
from tests.faults.kill_points import META, OPERATIONS, kill_at_every_request, large
from tests.faults.store_proxy import Action, Request, StoreProxy, upstream_of

pytestmark = pytest.mark.real
SAMPLE = {
    "publish": 4,
    "promote": 3,
    "sweep": 16,
    "release": 24,
    "roll-back": 24,
    "flow": 40,
}  # each so manieth point; the benchmark runs all of them


@contextmanager
def through_proxy(store: Store) -> Iterator[tuple[Store, StoreProxy]]:
    with StoreProxy(upstream_of(store.settings.endpoint)).running() as proxy:
        yield Store.connect(store.settings.model_copy(update={"endpoint": proxy.endpoint})), proxy


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_at_any_request_leaves_nothing_half_done(store: Store, operation: str) -> None:
    tally = kill_at_every_request(store, operation, every=SAMPLE[operation])
    assert tally.kill_points >= 4
    assert tally.failures == []


@dataclass
class Weather:
    """One request in five is throttled, some connections break at every stage. Seeded."""

    chance: random.Random = field(default_factory=lambda: random.Random(7))
    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: dict[Action, int] = field(default_factory=dict)

    def __call__(self, _: Request) -> Action:
        with self.lock:
            draw = self.chance.random()
            action = (
                Action.SLOW_DOWN
                if draw < 0.20
                else Action.RESET
                if draw < 0.23
                else Action.RESET_HALFWAY
                if draw < 0.25
                else Action.RESET_AFTER
                if draw < 0.28
                else Action.PASS
            )
            self.seen[action] = self.seen.get(action, 0) + 1
        return action


@pytest.mark.timeout(280)
def test_a_store_that_throttles_resets_and_is_killed_in_the_middle_ends_right(tmp_path: Path) -> None:
    if store_server.binary() is None:
        pytest.skip("weed is not installed")
    port = ports.choose("auto", preferred=None, field="test", taken=set())
    log = tmp_path / "store.log"

    def start() -> None:
        running.append(store_server.start(tmp_path, port=port, access_key="key", secret_key="secret", log=log))
        store_server.wait_ready(running[-1], port=port, log=log)

    def restart() -> None:
        running[-1].kill()
        running[-1].wait()
        start()

    running: list[object] = []  # type: ignore[no-redef]
    start()
    weather, killed = Weather(), []
    kill_at = {25, 90}

    def decide(request: Request) -> Action:
        if request.number in kill_at and len(killed) < 2:
            killed.append(request.number)
            restart()
            return Action.RESET
        return weather(request)

    try:
        with StoreProxy(("127.0.0.1", port)).running() as proxy:
            store = Store.connect(
                StoreSettings(
                    endpoint=proxy.endpoint, bucket="abc", access_key_id="key", secret_access_key=SecretStr("secret")
                )
            )
            store.ensure_bucket()
            proxy.forget()
            proxy.decide = decide
            files = {**large(2), **{f"shards/{n}.json": b"[%d]" % n for n in range(30)}}
            made = publish(store, name="model", files=files, metadata=META)
            move_alias(
                store, name="model", alias="production", to_version=1, expected_version=None, who="a", why="first"
            )
            assert load_files(store, resolve(store, "model@production")) == files
            assert verify(store, made) == []
            pull(store, made, tmp_path / "back")
            assert {path: (tmp_path / "back" / path).read_bytes() for path in files} == files
            assert publish(store, name="model", files=files, metadata=META) == made
            assert sorted(scan(store, "model")) == [1]
        assert len(killed) == 2
        assert proxy.errors == []
        assert all(weather.seen.get(action, 0) > 0 for action in Action)
        assert weather.seen[Action.SLOW_DOWN] > 0.1 * sum(weather.seen.values())
    finally:
        store_server.stop(running[-1])  # type: ignore[arg-type]


def test_a_store_that_names_a_wait_is_given_it(store: Store) -> None:
    store.put("a", b"x")
    with through_proxy(store) as (slow, proxy):
        proxy.retry_after_s = 3
        times: list[float] = []

        def decide(_: Request) -> Action:
            times.append(time.monotonic())
            return Action.SLOW_DOWN if times[-1] - times[0] < 2.5 else Action.PASS

        proxy.decide = decide
        assert slow.get("a").data == b"x"
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert max(pauses) > 2.0  # the client's own never exceed 1 s


def test_a_store_that_throttles_for_ever_is_given_up_on_with_its_word(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heliostat.store.ROUNDS", 2)
    with through_proxy(store) as (slow, proxy):
        proxy.decide = lambda _: Action.SLOW_DOWN
        with pytest.raises(StoreError, match="SlowDown"):
            slow.get("a")
        assert len(proxy.seen) <= 2 * 6 + 2  # bounded: two rounds of six, and one question for the wait


def test_a_reset_is_no_absent_server(store: Store) -> None:
    with through_proxy(store) as (weak, proxy):
        fallen: list[int] = []

        def decide(request: Request) -> Action:
            fallen.append(request.number)
            return Action.RESET if len(fallen) <= 2 else Action.PASS

        proxy.decide = decide
        weak.create("b", b"x")
    assert store.get("b").data == b"x"


@pytest.mark.parametrize("verb", ["create", "swap"])
def test_a_write_whose_answer_is_lost_is_done_and_told_as_lost(store: Store, verb: str) -> None:
    """What the registry's reading back is for."""
    tag = store.put("old", b"0")
    with through_proxy(store) as (deaf, proxy):
        proxy.decide = lambda request: Action.RESET_AFTER if request.number == 1 else Action.PASS
        if verb == "create":
            with pytest.raises(ObjectExists):
                deaf.create("new", b"1")
            assert store.get("new").data == b"1"
        else:
            with pytest.raises(SwapLost):
                deaf.swap("old", b"1", tag)
            assert store.get("old").data == b"1"


def test_asked_for_encryption_every_write_asks_the_store_for_it(store: Store, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(9 * 2**20))
    with StoreProxy(upstream_of(store.settings.endpoint)).running() as proxy:
        settings = store.settings.model_copy(update={"endpoint": proxy.endpoint, "encryption": "AES256"})
        ciphered = Store.connect(settings)
        ciphered.put("small", b"x")
        ciphered.put("large", tmp_path / "large")
        heads = [
            r.head.lower()
            for r in proxy.seen
            if (r.verb == "PUT" and "partNumber" not in r.path) or "uploads" in r.path
        ]
    assert len(heads) == 2
    assert all(b"x-amz-server-side-encryption: aes256" in head for head in heads)
    assert store.get("small").data == b"x"
