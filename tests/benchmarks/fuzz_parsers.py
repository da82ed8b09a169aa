"""Broken bytes at everything that Heliostat reads: each parser with input that was good and has been spoilt.

    python tests/benchmarks/fuzz_parsers.py [--inputs 100000] [--seed 0] [--only definition,events]

An input starts as one that is read and is then spoilt a few times: a node of its JSON or a line of its YAML replaced
by something nasty (bombs of aliases, tags, depth, numbers without end), bytes flipped, parts doubled, cut off. A crash
is any exception that is no HeliostatError, more than LIMIT_S of time, or more memory than MEMORY_BYTES: whoever can
write a file or an object must not be able to end or hang who reads it. tests/benchmarks/fuzz_apps.py does the same to
the HTTP applications.

Prints a table and an input for each kind of crash, then one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
LIMIT_S = 5.0
MEMORY_BYTES = 6 * 2**30
"""Of address space, so that a bomb is a MemoryError here and not the end of the machine."""


class Hang(BaseException):
    """Not an Exception, so that nobody on the way swallows it."""


@dataclass(frozen=True)
class Target:
    """`read` takes the bytes; `seeds` are what it reads well; `share` of all inputs."""

    name: str
    read: Callable[[bytes], object]
    seeds: Sequence[bytes]
    share: float
    kind: str  # json | yaml | text | binary


@dataclass
class Tally:
    inputs: int = 0
    taken: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    crashes: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By what happened and where: how often, and the first input that shows it."""

    @property
    def crashed(self) -> int:
        return sum(count for count, _ in self.crashes.values())


# ---- spoiling -------------------------------------------------------------------------------------------------------

_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
_YAML_LINES = (
    _BOMB, "x: !!python/object/apply:os.system ['true']", "x: !!int nine", "x: !!timestamp 2026-13-45",
    "x: !!binary '*'",
    "x: !!float {}", "x: !!set {a, b}", "x: !!omap [a: 1]", "x: 2026-11-25", "x: 2026-99-99", "x: 0o99", "x: .inf",
    "x: &r [*r]", "<<: *nothing", "<<: {a: 1}", "<<: 5", "? [a, b]\n: 1", "? {a: b}\n: c", "---\nb: 1",
    "%YAML 9.9\n---",
    "x: " + "[" * 800 + "]" * 800, "x: " + "{a: " * 300 + "}" * 300, "x: " + "9" * 5000, "x: 1e9999", "x: '\\x00'",
    "extends: laptop.yaml", "extends: ../../../etc/passwd", "extends: 5", "extends: /dev/zero", "1: 2", "null: null",
    "~: x", "true: x", "!tag x: y", "x: !<tag:yaml.org,2002:python/name:os.system> y", "\ttab: 1", "- a", "...",
    "x: |\n  a: [", "x: >-\n\n\n", "x: 1:30:00", "x: 0x" + "f" * 400, "x: =", "=: x",
)  # fmt: skip
_NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, "", "x", "\x00", "../../etc/passwd", "/", ".",
    "é" * 300,
    "\ud800", "v1", "v0", "v" + "9" * 30, "sha256:" + "0" * 64, [], {}, [[]], {"": {}}, "1e999", "nan", "2026-01-01",
    "@@NaN", "@@Infinity", "@@-Infinity", "@@1e999", "@@huge", "@@deep", "@@objects",
)  # fmt: skip
_RAW = {
    "@@NaN": "NaN", "@@Infinity": "Infinity", "@@-Infinity": "-Infinity", "@@1e999": "1e999", "@@huge": "9" * 5000,
    "@@deep": "[" * 20000 + "]" * 20000, "@@objects": '{"a":' * 3000 + "1" + "}" * 3000,
}  # fmt: skip


def spoil(data: bytes, kind: str, random: Random) -> bytes:
    """A few changes to what was good."""
    for _ in range(1 + int(random.random() ** 2 * 4)):
        choice = random.random()
        if kind == "json" and choice < 0.7:
            data = _spoil_json(data, random)
        elif kind == "yaml" and choice < 0.7:
            data = _spoil_lines(data, random)
        else:
            data = _spoil_bytes(data, random)
    return data[: 2**20]


def _spoil_json(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    index = random.randrange(len(lines)) if len(lines) > 1 and _is_lines(lines) else None
    try:
        tree = json.loads(data if index is None else lines[index])
    except (ValueError, RecursionError):
        return _spoil_bytes(data, random)
    places = list(_places(tree))
    nasty = random.choice(_NASTY)
    if not places or random.random() < 0.03:
        tree = nasty
    else:
        holder, key = random.choice(places)
        what = random.random()
        if what < 0.15:
            del holder[key]
        elif what < 0.25 and isinstance(holder, dict):
            holder[random.choice(["", "x", "deleted", "__proto__", "kind", "version"])] = nasty
        elif what < 0.32 and isinstance(holder, list):
            holder *= 2 + random.randrange(3)
        else:
            holder[key] = nasty
    try:
        made = json.dumps(tree).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):
        return data
    for mark, raw in _RAW.items():
        made = made.replace(f'"{mark}"'.encode(), raw.encode(), 1)
    if index is None:
        return made
    return b"\n".join([*lines[:index], made, *lines[index + 1 :]])


def _is_lines(lines: Sequence[bytes]) -> bool:
    return lines[0].startswith(b"{") and lines[0].endswith(b"}")


def _places(tree: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    if depth > 30 or not isinstance(tree, dict | list):
        return
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        yield from _places(tree[key], depth + 1)


def _spoil_lines(data: bytes, random: Random) -> bytes:
    lines = data.decode("utf-8", "replace").split("\n")
    at = random.randrange(len(lines) + 1)
    what = random.random()
    indent = " " * random.choice([0, 0, 2, 4, 6])
    if what < 0.4:
        lines.insert(at, "\n".join(indent + line for line in random.choice(_YAML_LINES).split("\n")))
    elif what < 0.7 and lines:
        at = min(at, len(lines) - 1)
        key, colon, _ = lines[at].partition(":")
        value = random.choice(_YAML_LINES).partition(": ")[2] or json.dumps(str(random.choice(_NASTY)))
        lines[at] = f"{key}: {value}" if colon else value
    elif what < 0.85 and lines:
        lines.insert(at, lines[random.randrange(len(lines))])
    elif lines:
        del lines[min(at, len(lines) - 1)]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _spoil_bytes(data: bytes, random: Random) -> bytes:
    made = bytearray(data)
    at = random.randrange(len(made) + 1)
    to = min(len(made), at + random.choice([1, 1, 2, 4, 8, 64]))
    what = random.randrange(7)
    if what == 0 and at < len(made):
        made[at] ^= 1 << random.randrange(8)
    elif what == 1:
        del made[at:to]
    elif what == 2:
        made[at:at] = random.randbytes(random.choice([1, 2, 8, 32]))
    elif what == 3:
        made[at:at] = made[at:to] * random.choice([1, 2, 50])
    elif what == 4:
        del made[at:]
    elif what == 5:
        made[at:to] = random.choice(
            [b"\x00", b"\xff" * 8, b"\n", b'"', b"{", b"[", b",", b":", b"-", b"9" * 30, b"\xf0\x28"]
        )
    else:
        made[:0] = random.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\x80\x04\x95", b"PK\x03\x04", b" " * 50, b"\n" * 50])
    return bytes(made)


# ---- what is read ---------------------------------------------------------------------------------------------------


class Objects:
    """As much of a store as reading asks for: the bytes under test by key, whatever real S3 would give."""

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self._objects = dict(objects)

    def get(self, key: str) -> Any:
        from heliostat.errors import ObjectMissing
        from heliostat.store import Blob

        if key not in self._objects:
            raise ObjectMissing("there is no object", where=key)
        return Blob(self._objects[key], "tag")

    def folders(self, prefix: str) -> set[str]:
        parts = [key.removeprefix(f"{prefix}/").split("/") for key in self._objects if key.startswith(f"{prefix}/")]
        return {part[0] for part in parts if len(part) > 1}

    def list(self, prefix: str) -> list[Any]:
        from heliostat.store import ObjectInfo

        now = datetime.now(UTC)
        return [ObjectInfo(k, len(v), "tag", now) for k, v in sorted(self._objects.items()) if k.startswith(prefix)]


def _manifest(files: Mapping[str, bytes], prefix: str, body: str) -> bytes:
    from heliostat.commit import SCHEMA_VERSION, Manifest, describe

    entries = {path: describe(data) for path, data in files.items()}
    return Manifest(
        schema_version=SCHEMA_VERSION, prefix=prefix, attempt="a" * 12, files=entries, body=body
    ).model_dump_json().encode()  # fmt: skip


def artifact_manifest() -> bytes:
    from heliostat.commit import describe
    from heliostat.registry.artifacts import artifact_digest

    files = {"config.json": b"{}", "model.safetensors": safetensors()}
    body = {
        "name": "m", "version": 1, "digest": artifact_digest({p: describe(d) for p, d in files.items()}),
        "metadata": {"framework": "torch", "licence": "MIT", "metrics": {"accuracy": 0.9},
                     "lineage": {"job": "j", "code_version": "c", "dataset_digest": "d"}},
    }  # fmt: skip
    return _manifest(files, "models/m/files", json.dumps(body))


def safetensors() -> bytes:
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
         "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]}, "__metadata__": {"format": "pt"}}
    ).encode()  # fmt: skip
    return struct.pack("<Q", len(header)) + header + bytes(24)


def events() -> bytes:
    envelope = {"schema": 1, "time_s": 1.79e9, "monotonic_s": 5.0, "source": "s"}
    node = {"node_id": "n", "group": "train", "role": "training", "market": "spot", "gpus": 1, "started_at": 1.79e9,
            "ready_at": 1.79e9, "ended_at": 1.79e9 + 9, "instance": "g5.xlarge", "zone": "z"}  # fmt: skip
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("node_started", node), ("node_ready", node), ("node_ended", node),
        ("worker_started", {"run": "r", "attempt": "a", "rank": 0, "node": "n", "gpus": 1, "job": "j"}),
        ("step", {"run": "r", "attempt": "a", "rank": 0, "step": 3, "seconds": 0.5}),
        ("checkpoint", {"run": "r", "attempt": "a", "step": 3, "seconds": 0.5, "bytes": 5}),
        ("worker_ended", {"run": "r", "attempt": "a", "rank": 0, "node": "n"}),
        ("train_resumed", {"run": "r", "attempt": "a", "step": 3}),
        ("replica_ready", {"app": "a", "replica": "r", "node": "n", "gpus": 1, "seconds": {}, "version": 1}),
        ("team_use", {"app": "a", "replica": "r", "team": "t", "seconds": 0.5, "requests": 5}),
        ("replica_ended", {"app": "a", "replica": "r", "node": "n", "busy_s": 5.0}),
    ]  # fmt: skip
    lines = [{"id": f"{i:032x}", "kind": kind, **envelope, **fields} for i, (kind, fields) in enumerate(kinds)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def targets(folder: Path) -> list[Target]:
    """Everything that is read, with what it reads well."""
    from pydantic import SecretStr

    from heliostat import units
    from heliostat.cluster.kubernetes.objects import load as load_objects
    from heliostat.commit import newest_complete
    from heliostat.definition import load
    from heliostat.events import read_events, read_spool
    from heliostat.meter.facts import facts_of
    from heliostat.meter.prices import read_prices
    from heliostat.plan.check.report import check_file
    from heliostat.plan.policy.traces import read_trace
    from heliostat.promote.flows import read_flow
    from heliostat.promote.gate import last_verdict
    from heliostat.promote.records import read_release
    from heliostat.registry import Deleted, get_alias, get_version, list_aliases, list_models, resolve, scan
    from heliostat.registry.formats import check_content, read_header
    from heliostat.serve.desired import read_desired
    from heliostat.serve.keys import list_keys
    from heliostat.serve.reports import read_reports
    from heliostat.settings import Settings, StoreSettings, save
    from heliostat.simulate.traffic import read_traffic
    from heliostat.train.queued import queue_rows

    def file(name: str, data: bytes) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    def spool(data: bytes) -> object:
        (folder / "spool").mkdir(exist_ok=True)
        (folder / "spool" / "s.jsonl").write_bytes(data)
        return facts_of(read_spool(folder / "spool"))

    def settings(data: bytes) -> object:
        from heliostat.settings import _read

        return _read(file("settings.json", data))

    def version(data: bytes) -> object:
        store: Any = Objects({"models/m/v1/manifest.json": data})
        found, _ = scan(store, "m"), list_models(store)  # neither may raise for a damaged one
        if isinstance(found[1], Deleted):
            return found
        return get_version(store, "m", 1)

    def alias(data: bytes) -> object:
        store: Any = Objects({"models/m/aliases/production.json": data})
        list_aliases(store, "m")
        return get_alias(store, "m", "production")

    def words(data: bytes) -> object:
        text = data.decode("utf-8", "replace")
        found = []
        store: Any = Objects({})
        parsers: list[Callable[[str], object]] = [units.Duration.parse, units.Bytes.parse, units.CountRange.parse]
        parsers.append(lambda text: resolve(store, text))
        refusals = []
        for parse in parsers:
            try:
                found.append(parse(text))
            except _heliostat_error() as error:
                refusals.append(error)
        if not found:
            raise refusals[0]
        return found

    def at(key: str, read: Callable[[Any], object]) -> Callable[[bytes], object]:
        return lambda data: read(Objects({key: data}))

    kept = folder / "kept.json"
    save(
        Settings(
            cluster="c", dashboard_url="u", gcs_address="g", serve_url="s", spool=folder, api_key=SecretStr("k"),
            store=StoreSettings(bucket="b", secret_access_key=SecretStr("x")),
        ),
        kept,
    )  # fmt: skip
    small = (
        b"name: c\nhead: {cpus: 2}\ngroups:\n  serve:\n    role: serving\n    market: on-demand\n    cpus: 1\n"
        b"    gpus: 1\n    nodes: 0..2\n    idle_timeout: 10m\n"
        b"  train: {role: training, market: spot, cpus: 1, gpus: 1, nodes: 0..2}\n"
        b"store: {kind: embedded, bucket: heliostat}\n"
        b"applications:\n  a:\n    recipe: m:C\n    model: a@production\n    group: serve\n    route: /a\n"
        b"    replicas: 0..2\njobs:\n  j:\n    entrypoint: python x.py\n    group: train\n    publishes: a\n"
        b"tags: {team: t, project: p}\n"
    )
    manifests = [path.read_bytes() for path in sorted((ROOT / "tests" / "manifests").glob("*.yaml"))]
    golden = (ROOT / "tests" / "golden" / "aws.yaml").read_bytes()
    release = {
        "id": "r", "app": "a", "model": "m", "state": "shadow", "stable": 1, "candidate": 2, "generation": 1,
        "since": 1.0,
        "history": [{"at": 1.0, "state": "proposed", "who": "w", "why": "y", "release": "r", "from_version": 1,
                     "to_version": 2, "numbers": {"p99": 1.0}}],
    }  # fmt: skip
    desired = {"name": "a", "package": "file:///x.zip", "spec": {"recipe": "a:B", "model": "a@production",
               "group": "serve", "route": "/a", "replicas": "1..1"}}  # fmt: skip
    report = {"app": "a", "replica": "r", "node": "n", "version": 1, "digest": "d", "loaded_at": 1.0, "requests": 1,
              "last_request_at": 1.0, "queued_tokens": 0, "reported_at": 1.0}  # fmt: skip
    moved = {"name": "m", "alias": "production", "version": 1, "generation": 1, "history": [
        {"at": "2026-01-01T00:00:00Z", "who": "w", "why": "y", "from_version": None, "to_version": 1}]}  # fmt: skip
    key = {"name": "k", "sha256": "0" * 64, "team": "t", "applications": ["a"]}
    queued = {"job_id": "j", "run": "r", "job": "n", "team": "t", "group": "g", "nodes": 1, "gpus_per_node": 1.0,
              "priority": 0, "submitted_at": 1.0, "request": {"entrypoint": "python x.py"}}  # fmt: skip
    trace = {"metadata": {"gap_seconds": 600}, "data": [0, 1, 1, 0] * 20}
    checkpoint = _manifest({"state.safetensors": safetensors()}, "checkpoints/r/000001", "{}")
    reason = {"rule": "r", "passed": True, "value": 1.0, "limit": 0.5, "text": "t"}
    verdict = {"passed": True, "reasons": [reason]}
    flow = {"app": "a", "id": "i", "job": "j", "run": "r", "who": "w", "why": "y",
            "done": [{"step": "train", "at": 1.0, "what": "w"}]}  # fmt: skip

    prices = b"instance,market,zone,since,usd_per_gpu_hour,source,date\ng5.xlarge,spot,z,2026-01-01,1.5,me,2026-01-01\n"

    def js(value: Any) -> bytes:
        return json.dumps(value).encode()

    return [
        Target("definition", lambda d: load(file("d.yaml", d)), [small], 6, "yaml"),
        Target("check", lambda d: check_file(file("c.yaml", d)), [*manifests, small], 3, "yaml"),
        Target(
            "manifests to apply", lambda d: load_objects([file("m.yaml", d)]), [golden[:3000], *manifests], 3, "yaml"
        ),
        Target("events", spool, [events()], 12, "json"),
        Target(
            "shipped events",
            at("events/2026-01-01/s/00000000.jsonl", lambda s: facts_of(read_events(s))),
            [events()],
            6,
            "json",
        ),
        Target("artifact manifest", version, [artifact_manifest()], 12, "json"),
        Target(
            "tombstone", version, [js({"deleted": {"at": "2026-01-01T00:00:00Z", "who": "w", "why": "y"}})], 2, "json"
        ),
        Target("alias", alias, [js(moved)], 6, "json"),
        Target(
            "checkpoint manifest",
            at("checkpoints/r/000001/manifest.json", lambda s: newest_complete(s, "checkpoints/r/")),
            [checkpoint],
            6,
            "json",
        ),
        Target("safetensors header", lambda d: read_header("x.safetensors", d, len(d)), [safetensors()], 10, "binary"),
        Target(
            "safetensors json",
            lambda d: read_header("x.safetensors", struct.pack("<Q", len(d)) + d + bytes(24), 32 + len(d)),
            [safetensors()[8:-24]],
            6,
            "json",
        ),
        Target(
            "file contents",
            lambda d: [check_content(n, d) for n in ("a.json",)],
            [js({"a": [1, {"b": None}]})],
            4,
            "json",
        ),
        Target("text contents", lambda d: check_content("README", d), [b"# Readme\n", b"\x80\x04\x95"], 2, "binary"),
        Target("release record", at("apps/a/release.json", lambda s: read_release(s, "a")), [js(release)], 5, "json"),
        Target("desired application", at("apps/a/desired.json", read_desired), [js(desired)], 4, "json"),
        Target("replica report", at("apps/a/replicas/r.json", lambda s: read_reports(s, "a")), [js(report)], 4, "json"),
        Target("key", at("keys/k.json", list_keys), [js(key)], 3, "json"),
        Target("queued job", at("queue/jobs/j.json", queue_rows), [js(queued)], 2, "json"),
        Target(
            "verdict", at("models/m/verdicts/v1/0001.json", lambda s: last_verdict(s, "m", 1)), [js(verdict)], 1, "json"
        ),
        Target("flow", at("apps/a/flow.json", lambda s: read_flow(s, "a")), [js(flow)], 1, "json"),
        Target("settings", settings, [kept.read_bytes()], 3, "json"),
        Target("spot trace", lambda d: read_trace(file("t.json", d)), [js(trace)], 4, "json"),
        Target("prices", lambda d: read_prices(file("p.csv", d)), [prices], 4, "text"),
        Target(
            "traffic",
            lambda d: read_traffic(file("q.csv", d), days=1, apps={"a"}),
            [b"at_s,app,work_s\n1,a,0.5\n2,a,1\n", b"minute,app,requests\n0,a,5\n7,a,9\n"],
            3,
            "text",
        ),
        Target("words", words, [b"10m", b"1.5 GiB", b"0..4", b"m@production", b"m:v3"], 3, "text"),
        Target("working folder zip", _unzip(folder), [_zip()], 2, "binary"),
    ]


def _zip() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("recipes/serve_apps/a.py", "x = 1\n")
        archive.writestr("recipes/../../escaped.py", "x = 1\n")
        archive.writestr("/tmp/heliostat-escaped.py", "x = 1\n")  # noqa: S108  # must not come to be
    return buffer.getvalue()


def _unzip(folder: Path) -> Callable[[bytes], object]:
    """As Ray unpacks the zip of a job's working folder. Nothing may come to lie beside the folder it is given."""
    import shutil

    def read(data: bytes) -> object:
        from ray._private.runtime_env.packaging import unzip_package

        path, into = folder / "w.zip", folder / "unzipped" / "inner"
        path.write_bytes(data)
        shutil.rmtree(folder / "unzipped", ignore_errors=True)
        into.mkdir(parents=True)
        try:
            unzip_package(str(path), str(into), remove_top_level_directory=False, unlink_zip=False)
        except (
            zipfile.BadZipFile,
            OSError,
            NotImplementedError,
            EOFError,
            ValueError,
            RuntimeError,
            struct.error,
        ) as error:
            raise _heliostat_error()(f"Ray refuses it: {type(error).__name__}") from None
        except Exception as error:
            if type(error).__module__ == "zlib":
                raise _heliostat_error()("Ray refuses it: zlib") from None
            raise
        beside = [p for p in (folder / "unzipped").iterdir() if p != into]
        if beside or Path("/tmp/heliostat-escaped.py").exists():  # noqa: S108
            raise AssertionError("the zip wrote outside its folder")
        return into

    return read


def _heliostat_error() -> Any:
    from heliostat.errors import HeliostatError

    return HeliostatError


# ---- running --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """A timer for each input ends in Hang."""

    def out_of_time(_: int, __: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, out_of_time)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def memory_limit() -> Iterator[None]:
    """Of the whole process, with all that it has mapped: only for one that does nothing else."""
    space = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, space[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, space)


def try_one(target: Target, data: bytes, tally: Tally) -> None:
    tally.inputs += 1
    begun = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        try:
            target.read(data)
            tally.taken += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _heliostat_error():
        tally.refused += 1
    except (Exception, Hang) as crash:  # noqa: BLE001  # what is looked for
        frames = traceback.extract_tb(crash.__traceback__)
        ours = [f for f in frames if "heliostat" in f.filename] or frames
        where = f"{type(crash).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno} ({str(crash)[:80]!r})"
        name = where.split(" (")[0]
        count, first = tally.crashes.get(name, (0, f"{where}: {data[:300]!r}"))
        tally.crashes[name] = (count + 1, first)
    tally.slowest_s = max(tally.slowest_s, time.perf_counter() - begun)


def fuzz(
    inputs: int, seed: int, *, only: Sequence[str] = (), progress: Callable[[str], None] = lambda _: None
) -> dict[str, Tally]:
    """Every target its share of the inputs. A seed that is refused is a mistake here, and raises."""
    found: dict[str, Tally] = {}
    fast = Path("/dev/shm")  # noqa: S108  # a folder of its own is made in it
    with tempfile.TemporaryDirectory(dir=fast if fast.is_dir() else None) as name, time_limit(), memory_limit():
        chosen = [target for target in targets(Path(name)) if not only or target.name in only]
        shares = sum(target.share for target in chosen)
        for target in chosen:
            random, tally = Random(f"{seed} {target.name}"), Tally()
            count = round(inputs * target.share / shares)
            for number in range(count):
                good = target.seeds[number % len(target.seeds)]
                try_one(target, good if number < len(target.seeds) else spoil(good, target.kind, random), tally)
            if not tally.taken:
                try:
                    target.read(target.seeds[0])
                except _heliostat_error() as error:
                    raise AssertionError(f"{target.name}: not even what is good is taken") from error
            found[target.name] = tally
            progress(f"{target.name}: {tally.inputs} inputs, {tally.crashed} crashes")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parsed = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    begun = time.monotonic()
    only = [name for name in parsed.only.split(",") if name]
    found = fuzz(parsed.inputs, parsed.seed, only=only, progress=lambda line: print(line, file=sys.stderr, flush=True))
    print(f"{'what is read':<22} {'inputs':>7} {'taken':>7} {'refused':>7} {'crashes':>7} {'slowest':>8}")
    for name, tally in found.items():
        print(
            f"{name:<22} {tally.inputs:>7} {tally.taken:>7} {tally.refused:>7} {tally.crashed:>7} "
            f"{tally.slowest_s * 1000:>6.0f}ms"
        )
    for name, tally in found.items():
        for count, first in tally.crashes.values():
            print(f"crash x{count} in {name}: {first}")
    total = sum(tally.inputs for tally in found.values())
    crashes = sum(tally.crashed for tally in found.values())
    line = {
        "benchmark": "fuzz_parsers", "inputs": total, "crashes": crashes, "targets": len(found), "seed": parsed.seed,
        "taken": sum(tally.taken for tally in found.values()),
        "refused": sum(tally.refused for tally in found.values()),
        "slowest_s": round(max(tally.slowest_s for tally in found.values()), 2),
        "seconds": round(time.monotonic() - begun, 1),
    }  # fmt: skip
    print(json.dumps(line))
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
