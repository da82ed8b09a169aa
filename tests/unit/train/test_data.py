"""Streaming data: every sample exactly once, also over a resume with other workers. Against a real S3 server."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heliostat.errors import ObjectExists, UsageError
from heliostat.store import Store
from heliostat.train.data import Stream, write_samples

pytestmark = pytest.mark.real


def samples(count: int) -> list[bytes]:
    return [b"sample %d" % number * (1 + number % 3) for number in range(count)]


def epoch_of(streams: list[Stream]) -> list[list[bytes]]:
    """The global batches of one epoch, put together from every rank's share."""
    epoch, batches = streams[0].epoch, []
    while streams[0].epoch == epoch:
        batches.append([sample for stream in streams for sample in stream.next_batch()])
    return batches


@given(
    count=st.integers(1, 90),
    shard=st.integers(1, 20),
    batch=st.integers(1, 17),
    window=st.integers(1, 4),
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    cut=st.integers(0, 20),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_sample_comes_once_an_epoch_over_a_resume_with_another_number_of_workers(
    store: Store, count: int, shard: int, batch: int, window: int, worlds: tuple[int, int], cut: int
) -> None:
    prefix = f"data/{time.monotonic_ns()}"
    write_samples(store, prefix, samples(count), shard_samples=shard)

    def streams(world: int) -> list[Stream]:
        options = {"batch_size": batch, "seed": 5, "world": world, "window": window}
        return [Stream(store, prefix, rank=rank, **options) for rank in range(world)]  # type: ignore[arg-type]

    whole = epoch_of(streams(1))
    first = streams(worlds[0])
    taken = [[sample for stream in first for sample in stream.next_batch()] for _ in range(min(cut, len(whole) - 1))]
    second = streams(worlds[1])
    for stream in second:
        stream.load_state_dict(first[0].state_dict())
    taken += epoch_of(second)
    assert [Counter(part) for part in taken] == [Counter(part) for part in whole]
    assert Counter(sample for part in taken for sample in part) == Counter(samples(count))


def test_epochs_and_seeds_have_orders_of_their_own(store: Store) -> None:
    write_samples(store, "data/x", samples(200), shard_samples=16)
    stream = Stream(store, "data/x", batch_size=10, seed=1)
    first, second = epoch_of([stream]), epoch_of([stream])
    assert first != second
    assert first != epoch_of([Stream(store, "data/x", batch_size=10, seed=2)])
    assert first == epoch_of([Stream(store, "data/x", batch_size=10, seed=1)])


def test_a_position_of_another_data_set_is_refused(store: Store) -> None:
    write_samples(store, "data/a", samples(20))
    write_samples(store, "data/b", samples(20))
    with pytest.raises(ObjectExists):
        write_samples(store, "data/a", samples(3))
    state = Stream(store, "data/a", batch_size=4, seed=0).state_dict()
    with pytest.raises(UsageError, match="data position is for data"):
        Stream(store, "data/b", batch_size=4, seed=0).load_state_dict(state)
    with pytest.raises(UsageError, match="batch_size 4, this run has 5"):
        Stream(store, "data/a", batch_size=5, seed=0).load_state_dict(state)
    with pytest.raises(UsageError, match="no data set"):
        Stream(store, "data/none", batch_size=5, seed=0)
    write_samples(store, "data/empty", [])
    with pytest.raises(UsageError, match="has no samples"):
        Stream(store, "data/empty", batch_size=5, seed=0)


def test_the_cache_serves_without_the_store_and_a_damaged_file_of_it_is_read_anew(store: Store, tmp_path: Path) -> None:
    write_samples(store, "data/c", samples(64), shard_samples=16)
    epoch_of([Stream(store, "data/c", batch_size=8, seed=0, cache=tmp_path)])
    cached = sorted(tmp_path.glob("*.shard"))
    assert len(cached) == 4
    cached[0].write_bytes(b"damaged")
    again = epoch_of([Stream(store, "data/c", batch_size=8, seed=0, cache=tmp_path)])
    assert Counter(s for part in again for s in part) == Counter(samples(64))


def test_data_is_there_before_it_is_asked_for(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Device wait share, steps of 5 ms over shards of 128 kB."""
    write_samples(store, "data/w", (bytes(1024) for _ in range(4000)), shard_samples=128)
    stream = Stream(store, "data/w", batch_size=16, seed=0)
    begun = time.monotonic()
    for _ in range(stream.batches_per_epoch):
        stream.next_batch()
        time.sleep(0.005)
    share = stream.waited_s / (time.monotonic() - begun)
    with capsys.disabled():
        print(f"\ndevice wait share {share:.1%}")  # noqa: T201  # the figure that the test is for
    assert stream.gave == 250
    assert share < 0.5  # loose: the machine may be busy


def test_what_was_waited_is_told_once(store: Store) -> None:
    write_samples(store, "data/wait", [b"sample"] * 40, shard_samples=10)
    stream = Stream(store, "data/wait", batch_size=8, seed=0)
    for _ in range(3):
        stream.next_batch()
    assert stream.take_waited() == stream.waited_s > 0
    assert stream.take_waited() == 0
