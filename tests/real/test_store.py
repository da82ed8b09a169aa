"""The store against a real S3 server: what the conditional writes promise, and how it fails."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr

from heliostat.cluster import embedded, ports, store_server
from heliostat.errors import (
    ClusterError,
    ObjectExists,
    ObjectMissing,
    SettingsError,
    StoreError,
    StoreUnreachable,
    SwapLost,
)
from heliostat.settings import Settings, StoreSettings
from heliostat.store import Store

pytestmark = pytest.mark.real
WRITERS = 16


def winners(writers: int, write: Callable[[int], str], lost: type[StoreError]) -> list[int]:
    """Which of the concurrent writers got through; each of the others must have been told `lost`."""

    def attempt(number: int) -> int | None:
        try:
            write(number)
        except lost:
            return None
        return number

    with ThreadPoolExecutor(writers) as pool:
        return [number for number in pool.map(attempt, range(writers)) if number is not None]


def test_what_is_put_is_what_is_read(store: Store) -> None:
    tag = store.put("a/b", b"hello")
    blob = store.get("a/b")
    assert (blob.data, blob.etag) == (b"hello", tag)
    info = store.head("a/b")
    assert (info.key, info.size, info.etag) == ("a/b", 5, tag)
    assert store.get_range("a/b", 1, 3) == b"ell"
    assert store.get_range("a/b", 3, 100) == b"lo"
    assert store.get_range("a/b", 0, 0) == b""


def test_memory_is_put_as_it_lies_in_one_request_or_in_parts(store: Store) -> None:
    for size in (3, 20_000_000):
        memory = memoryview(bytearray(b"x" * size))[1:]
        store.put("memory", memory)
        assert store.get("memory").data == memory


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put("empty", b"")
    assert store.get("empty").data == b""


def test_a_large_file_goes_up_in_parts_and_comes_back_whole(store: Store, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(bytes(range(256)) * 80_000)  # 20 MB: several parts
    store.put("large", source)
    store.download("large", back)
    assert back.read_bytes() == source.read_bytes()
    assert store.abort_uploads(older_than=timedelta(0)) == 0


def test_an_upload_that_was_never_finished_is_found_and_dropped_by_age_and_prefix(store: Store) -> None:
    for key in ("models/m/w", "other/w"):
        store._boto.create_multipart_upload(Bucket=store.settings.bucket, Key=key)
    assert store.unfinished_uploads(older_than=timedelta(hours=1)) == ()
    assert [upload.key for upload in store.unfinished_uploads("models/", older_than=timedelta(0))] == ["models/m/w"]
    assert store.abort_uploads("models/", older_than=timedelta(0)) == 1
    assert [upload.key for upload in store.unfinished_uploads(older_than=timedelta(0))] == ["other/w"]


def test_an_embedded_store_drops_at_its_start_what_killed_writers_left(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        cluster="test",
        dashboard_url="http://127.0.0.1:1",
        gcs_address="127.0.0.1:1",
        serve_url="http://127.0.0.1:1",
        store=store.settings,
        spool=tmp_path,
    )
    store._boto.create_multipart_upload(Bucket=store.settings.bucket, Key="models/m/w")
    embedded._ensure_bucket(settings)
    assert len(store.unfinished_uploads(older_than=timedelta(0))) == 1  # its writer may live
    monkeypatch.setattr(embedded, "ABANDONED", timedelta(0))
    embedded._ensure_bucket(settings)
    assert store.unfinished_uploads(older_than=timedelta(0)) == ()


def test_keys_that_are_not_given_come_from_the_aws_chain(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = store.settings.secret_access_key
    assert secret is not None
    for name, key in (("default", "nobody"), ("team", store.settings.access_key_id)):
        with (tmp_path / "credentials").open("a") as file:
            file.write(f"[{name}]\naws_access_key_id={key}\naws_secret_access_key={secret.get_secret_value()}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    bare = store.settings.model_copy(update={"access_key_id": None, "secret_access_key": None})
    with pytest.raises(StoreError, match="access key"):
        Store.connect(bare).put("a", b"x")
    by_setting = Store.connect(bare.model_copy(update={"profile": "team"}))
    by_setting.put("a", b"x")
    by_setting.ensure_bucket()
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert Store.connect(bare).get("a").data == b"x"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")  # the chain's order: the environment comes first
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.delenv("AWS_PROFILE")
    with pytest.raises(StoreError, match="access key"):
        Store.connect(bare).get("a")


def test_no_keys_anywhere_are_told_with_the_ways_to_get_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    settings = StoreSettings(endpoint="https://127.0.0.1:1", bucket="abc")
    with pytest.raises(SettingsError, match="aws sso login"):
        Store.connect(settings)
    with pytest.raises(SettingsError, match="no profile 'team'"):
        Store.connect(settings.model_copy(update={"profile": "team"}))


def test_a_prefix_lists_whole_segments_only(store: Store) -> None:
    for key in ("a/1", "a/b/2", "ab/3"):
        store.put(key, b"x")
    assert [info.key for info in store.list("a")] == ["a/1", "a/b/2"]
    assert [info.key for info in store.list("a/")] == ["a/1", "a/b/2"]
    assert [info.key for info in store.list("")] == ["a/1", "a/b/2", "ab/3"]
    assert store.list("nothing") == []


def test_more_objects_than_one_page_are_all_listed(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.put(f"many/{n:04d}", b""), range(1100)))
    assert [info.key for info in store.list("many")] == [f"many/{n:04d}" for n in range(1100)]


def test_deleting_twice_is_deleting_once(store: Store) -> None:
    store.put("a", b"x")
    store.delete("a")
    store.delete("a")
    with pytest.raises(ObjectMissing, match="'a'"):
        store.get("a")


@pytest.mark.parametrize("ask", [Store.get, Store.head], ids=["get", "head"])
def test_a_missing_object_is_named(store: Store, ask: Callable[[Store, str], object]) -> None:
    with pytest.raises(ObjectMissing, match=r"no object 'not/here'.*127\.0\.0\.1"):
        ask(store, "not/here")


def _create_numbered(store: Store, key: str, number: int) -> str:
    return store.create(key, b"%d" % number)


def _swap_numbered(store: Store, tag: str, number: int) -> str:
    return store.swap("swap", b"%d by %s" % (number, tag.encode()), tag)


def test_of_16_creators_exactly_one_wins(store: Store) -> None:
    for round_number in range(10):
        key = f"create/{round_number}"
        won = winners(WRITERS, partial(_create_numbered, store, key), ObjectExists)
        assert len(won) == 1
        assert store.get(key).data == b"%d" % won[0]


def test_of_16_swappers_exactly_one_wins(store: Store) -> None:
    tag = store.create("swap", b"start")
    for _ in range(10):
        won = winners(WRITERS, partial(_swap_numbered, store, tag), SwapLost)
        assert len(won) == 1
        blob = store.get("swap")
        assert blob.data.startswith(b"%d by" % won[0])
        tag = blob.etag


def test_counting_by_swaps_loses_no_count(store: Store) -> None:
    store.create_json("count", 0)

    def increment(_: int) -> None:
        while True:
            value, tag = store.get_json("count")
            try:
                store.swap_json("count", value + 1, tag)
            except SwapLost:
                continue
            return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(increment, range(64)))
    assert store.get_json("count")[0] == 64


def test_a_swap_of_what_is_not_there_is_lost(store: Store) -> None:
    tag = store.put("other", b"x")
    with pytest.raises(SwapLost):
        store.swap("absent", b"x", tag)


def test_an_object_that_is_not_json_is_named(store: Store) -> None:
    store.put("x.json", b"{")
    with pytest.raises(StoreError, match=r"'x\.json' is not JSON"):
        store.get_json("x.json")


@pytest.mark.parametrize(
    ("field", "value"), [("secret_access_key", SecretStr("wrong")), ("access_key_id", "nobody")], ids=["secret", "id"]
)
def test_wrong_keys_are_refused_and_not_shown(store: Store, field: str, value: object) -> None:
    store.put("kept", b"x")
    intruder = Store.connect(store.settings.model_copy(update={field: value}))
    for ask in (lambda: intruder.get("kept"), lambda: intruder.put("kept", b"y"), intruder.ensure_bucket):
        with pytest.raises(StoreError, match="access key") as caught:
            ask()
        assert "wrong" not in str(caught.value)
    assert store.get("kept").data == b"x"


def test_a_missing_bucket_is_named_as_such(store: Store) -> None:
    elsewhere = Store.connect(store.settings.model_copy(update={"bucket": "no-such-bucket"}))
    with pytest.raises(StoreError, match="no bucket 'no-such-bucket'"):
        elsewhere.get("a")


def test_ensuring_a_bucket_twice_is_harmless(store: Store) -> None:
    store.put("a", b"x")
    store.ensure_bucket()
    assert store.get("a").data == b"x"


def test_an_endpoint_where_nothing_listens_is_reported_within_five_seconds() -> None:
    port = ports.choose("auto", preferred=None, field="test", taken=set())
    store = Store.connect(
        StoreSettings(
            endpoint=f"http://127.0.0.1:{port}", bucket="abc", access_key_id="k", secret_access_key=SecretStr("s")
        )
    )
    for ask in (lambda: store.get("a"), lambda: store.create("a", b""), lambda: store.list("a")):
        begun = time.monotonic()
        with pytest.raises(StoreUnreachable, match=rf"127\.0\.0\.1:{port}.*heliostat up"):
            ask()
        assert time.monotonic() - begun < 5.5


def test_plain_http_is_for_loopback_only() -> None:
    with pytest.raises(SettingsError, match="https"):
        Store.connect(StoreSettings(endpoint="http://198.51.100.7:9000", bucket="abc"))


def test_two_servers_stand_side_by_side_on_loopback_and_keep_what_they_hold(tmp_path: Path) -> None:
    if store_server.binary() is None:
        pytest.skip("weed is not installed")
    taken: set[int] = set()
    for again in (False, True):  # the second time at other ports, after a kill: the data must still be there
        running = []
        try:
            for name in ("one", "two"):
                port = ports.choose("auto", preferred=None, field=name, taken=taken)
                log = tmp_path / name / "log" / "store.log"
                process = store_server.start(
                    tmp_path / name, port=port, access_key=name, secret_key=f"secret-{name}", log=log
                )
                running.append(process)
                store_server.wait_ready(process, port=port, log=log)
                store = Store.connect(
                    StoreSettings(
                        endpoint=f"http://127.0.0.1:{port}",
                        bucket="abc",
                        access_key_id=name,
                        secret_access_key=SecretStr(f"secret-{name}"),
                    )
                )
                store.ensure_bucket()
                if not again:
                    store.put("whose", name.encode())
                assert store.get("whose").data == name.encode()
            for process in running:
                listening = _listeners(process.pid)
                assert len(listening) >= 8
                assert all(address.startswith("127.0.0.1:") for address in listening), listening
        finally:
            for process in running:
                process.kill()
                process.wait()


def test_a_server_that_cannot_start_says_why(tmp_path: Path, store: Store) -> None:
    port = int((store.settings.endpoint or "").rpartition(":")[2])
    log = tmp_path / "store.log"
    process = store_server.start(tmp_path, port=port, access_key="a", secret_key="b", log=log)
    try:
        process.wait(20)
        with pytest.raises(ClusterError, match=r"did not start.*store\.log"):
            store_server.wait_ready(process, port=port, log=log)
    finally:
        store_server.stop(process)


def _listeners(pid: int) -> list[str]:
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line.split()[3] for line in lines if f"pid={pid}," in line]
