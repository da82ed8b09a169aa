"""Broken requests at every application, straight at the ASGI app with the real recipes and runners in this process.

    python tests/benchmarks/fuzz_apps.py [--inputs 10000] [--seed 0]

A request starts as one that is answered and is then broken: a node of its JSON replaced by something nasty, bytes
flipped, cut off, wrapped in the wrong type, sent in chunks, left half-way, or cancelled. Every twentieth is whole and
its answer is known. A failure is an exception out of the app, a 5xx that is not a 503 with Retry-After, a response that
is not the JSON it says or not in the form of errors.py, or a wrong answer to a whole request.

Prints a table and, for each kind of failure, one request that shows it; then one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # recipes and tests are files, not installed packages

from tests.tiny_apps import RECIPES, Served, serve_recipe

AT_ONCE = 24
WHOLE_EVERY = 20
LIMIT_S = 60.0
# Beside json.dumps: what it cannot write, put in as it is. Each is longer than any real value that means the same.
RAW = {
    "@@NaN": "NaN",
    "@@-Infinity": "-Infinity",
    "@@1e999": "1e999",
    "@@huge": "1" * 4000,
    "@@deep": "[" * 900 + "]" * 900,
}


@dataclass(frozen=True)
class Request:
    """One request as the app is given it."""

    app: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    chunks: tuple[bytes, ...]
    leaves: bool = False
    """The client goes before its body is whole."""
    cancelled: bool = False
    """The server cancels it after a moment, as Serve does when a client goes."""
    whole: bool = False


@dataclass
class Tally:
    """What came of all of them."""

    inputs: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    bad_5xx: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        return [*self.crashes, *self.bad_5xx, *self.malformed, *self.wrong]


def picture(random: Random) -> bytes:
    from PIL import Image

    image = Image.frombytes("L", (16, 16), random.randbytes(256))
    out = io.BytesIO()
    image.save(out, random.choice(["PNG", "JPEG"]))
    return out.getvalue()


def _rows(random: Random) -> Any:
    return [[random.randint(0, 16) for _ in range(8)] for _ in range(8)]


def _chat(random: Random) -> Any:
    message = {"role": random.choice(["user", "system", "assistant"]), "content": "Hello"}
    return {"model": "generate", "messages": [message], "max_tokens": random.randint(1, 6)}


def _completion(random: Random) -> Any:
    body: dict[str, Any] = {"model": "generate", "prompt": "Once", "max_tokens": random.randint(1, 6)}
    extra = {"temperature": 0.7, "top_p": 0.5, "seed": 3, "stop": ["ab", "c"], "stream": True, "n": 1, "user": "me"}
    body.update({key: value for key, value in extra.items() if random.random() < 0.4})
    return body


VALID: dict[str, list[tuple[str, Callable[[Random], Any]]]] = {
    "intent-classifier": [
        ("/", lambda r: {"text": "turn on the light"}),
        ("/", lambda r: {"texts": ["hello", "lights off please"] * r.randint(1, 4)}),
    ],
    "embeddings": [
        ("/v1/embeddings", lambda r: {"model": "embeddings", "input": "hello"}),
        (
            "/v1/embeddings",
            lambda r: {"model": "embeddings", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 8},
        ),
    ],
    "digits": [
        ("/", lambda r: {"image": _rows(r)}),
        ("/", lambda r: {"images": [_rows(r), base64.b64encode(picture(r)).decode()]}),
    ],
    "generate": [("/v1/completions", _completion), ("/v1/chat/completions", _chat)],
}

NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 0.1, -0.0, 1e308, "", " ", "x", "\x00", "\ud800", "\u202e",
    "💥" * 50,    "x" * 20_000, "a " * 6000, [], {}, [[]], [None], {"a": {"b": []}}, ["x"] * 300, [1, 2, 3], [[1], [2]],
    "data:image/png;base64,AAAA", "AAAA", "true", "1", "assistant", "{{ 1/0 }}", "../../etc/passwd", *RAW,
]  # fmt: skip


def make(number: int, random: Random) -> Request:
    app = random.choice(sorted(RECIPES))
    path, valid = random.choice(VALID[app])
    headers = [("content-type", "application/json")]
    if number % WHOLE_EVERY == 0:
        body = {"model": app, "prompt": "Once", "max_tokens": 5, "temperature": 0} if app == "generate" else None
        path, sent = (path, valid(Random(7))) if body is None else ("/v1/completions", body)
        return Request(app, "POST", path, tuple(headers), (json.dumps(sent).encode(),), whole=True)
    body_bytes = _break(valid(random), random)
    method = (
        "POST" if random.random() < 0.95 else random.choice(["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "X"])
    )
    if random.random() < 0.04:
        path = random.choice(
            ["", "//", "/v1", "/v1/embeddings/", "/v1/models", "/../", "/%00", "/\n", "/é", "/" + "x" * 5000]
        )
    if app == "digits" and random.random() < 0.4:
        headers, body_bytes = _upload(random)
    headers += _headers(random)
    return Request(
        app,
        method,
        path,
        tuple(headers),
        tuple(_chunks(body_bytes, random)),
        leaves=random.random() < 0.02,
        cancelled=random.random() < 0.03,
    )


def _break(value: Any, random: Random) -> bytes:
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        value = _mutate(value, random)
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    data = text.encode()
    chance = random.random()
    if chance < 0.06:
        data = data[: random.randrange(len(data) + 1)]
    elif chance < 0.12:
        data = _flip(data, random)
    elif chance < 0.14:
        data = random.randbytes(random.randrange(300))
    elif chance < 0.15:
        data = text.encode(random.choice(["utf-16", "utf-32", "utf-8-sig"]))
    elif chance < 0.153:
        data = b'{"text": "' + b"x" * random.choice([1_000_000, 9_000_000]) + b'"}'
    return data


def _mutate(value: Any, random: Random) -> Any:
    """The value with one node replaced, removed, doubled or added."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(sorted(value))
        how = random.random()
        rest = {name: inner for name, inner in value.items() if name != key}
        if how < 0.1:
            return rest
        if how < 0.2:
            return {
                **value,
                random.choice(["x", "", "n", "stop", "stream", "dimensions", "texts"]): random.choice(NASTY),
            }
        return {**value, key: _mutate(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randrange(len(value))
        if random.random() < 0.1:
            return value * random.choice([0, 2, 200])
        return [*value[:at], _mutate(value[at], random), *value[at + 1 :]]
    return random.choice(NASTY)


def _flip(data: bytes, random: Random) -> bytes:
    broken = bytearray(data)
    for _ in range(random.randint(1, 8)):
        if broken:
            broken[random.randrange(len(broken))] = random.randrange(256)
    return bytes(broken)


def _upload(random: Random) -> tuple[list[tuple[str, str]], bytes]:
    """A picture, broken, as the body or in a form that may be broken too."""
    data = picture(random)
    if random.random() < 0.7:
        data = _flip(data, random) if random.random() < 0.7 else data[: random.randrange(len(data))]
    if random.random() < 0.5:
        return [("content-type", random.choice(["image/png", "image/jpeg", "IMAGE/PNG; q=1"]))], data
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    form = head + data + b"\r\n--B--\r\n"
    if random.random() < 0.3:
        form = _flip(form, random) if random.random() < 0.5 else form[: random.randrange(len(form))]
    kind = random.choice(
        ["multipart/form-data; boundary=B"] * 5 + ["multipart/form-data", "multipart/form-data; boundary="]
    )
    return [("content-type", kind)], form


def _headers(random: Random) -> list[tuple[str, str]]:
    offered = [
        ("x-request-id", random.choice(["fine", "", "bad id", "x" * 500, "\xff"])),
        # Deadlines that are whole are long: a short one is answered 504, which is tested by itself.
        ("x-deadline-ms", random.choice(["60000", "-1", "abc", "", "1e9", "999999999999", "\xb2"])),
        ("authorization", random.choice(["Bearer x", "Basic", "", "Bearer \xe9"])),
        ("content-length", random.choice(["-5", "abc", "99999999999", "0"])),
        ("content-encoding", "gzip"),
    ]
    return [header for header in offered if random.random() < 0.06]


def _chunks(data: bytes, random: Random) -> list[bytes]:
    if random.random() < 0.8 or len(data) < 2:
        return [data]
    at = random.randrange(len(data))
    return [data[:at], b"", data[at:]]


async def send(app: Any, request: Request) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body); status 0 where the app had nothing to say to a client that left."""
    waiting = list(request.chunks)
    ended = asyncio.Event()
    status, headers, body = 0, {}, bytearray()

    async def receive() -> dict[str, Any]:
        if request.leaves and len(waiting) <= 1:
            return {"type": "http.disconnect"}
        if waiting:
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}
        await ended.wait()
        return {"type": "http.disconnect"}

    async def deliver(message: Any) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        else:
            body.extend(message.get("body", b""))
            if not message.get("more_body"):
                ended.set()

    scope = {
        "type": "http",
        "method": request.method,
        "path": request.path,
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers],
    }
    await app(scope, receive, deliver)
    return status, headers, bytes(body)


async def judge(served: Served, request: Request, expected: bytes | None, tally: Tally) -> None:
    tally.inputs += 1
    try:
        async with asyncio.timeout(0.005 if request.cancelled else LIMIT_S):
            status, headers, body = await send(served.endpoint.asgi, request)
    except TimeoutError:
        tally.statuses["cancelled"] += 1
        if not request.cancelled:
            tally.crashes.append(f"no answer in {LIMIT_S} s: {_show(request)}")
        return
    except Exception as problem:  # noqa: BLE001  # a crash is what is looked for
        tally.crashes.append(f"{problem!r}: {_show(request)}")
        return
    tally.statuses[str(status)] += 1
    if status >= 500 and not (status == 503 and "retry-after" in headers):
        tally.bad_5xx.append(f"{status} {body[:200]!r}: {_show(request)}")
    if problem_found := _malformed(request, status, headers, body):
        tally.malformed.append(f"{problem_found}, {body[:200]!r}: {_show(request)}")
    if request.whole and (status != 200 or (expected is not None and not _same(body, expected))):
        tally.wrong.append(f"{status} {body[:200]!r}: {_show(request)}")


def _malformed(request: Request, status: int, headers: dict[str, str], body: bytes) -> str:
    """What is wrong with a response's form; "" where nothing is."""
    if request.leaves and status in (0, 499):
        return ""
    if "x-request-id" not in headers or "x-model-digest" not in headers:
        return "no id or digest"
    if headers.get("content-type", "").startswith(("text/event-stream", "text/html")):
        return ""
    try:
        answer = json.loads(body, parse_constant=_refuse)
    except ValueError as error:
        return f"not JSON: {error}"
    if status >= 400 and set(answer.get("error", {})) != {"type", "code", "message", "param", "request_id"}:
        return "an error in another form"
    return ""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _same(body: bytes, expected: bytes) -> bool:
    """Equal but for ids, times, and the last digits of numbers: batches of other sizes round otherwise."""

    def near(a: Any, b: Any) -> bool:
        if isinstance(a, float) or isinstance(b, float):
            return math.isclose(a, b, abs_tol=1e-4)
        if isinstance(a, dict):
            return set(a) == set(b) and all(near(a[k], b[k]) for k in a if k not in ("id", "created"))
        if isinstance(a, list):
            return len(a) == len(b) and all(near(x, y) for x, y in zip(a, b, strict=True))
        return bool(a == b) or (isinstance(a, str) and len(a) == len(b) > 40)  # base64 of rounded numbers

    return near(json.loads(body), json.loads(expected))


def _show(request: Request) -> str:
    body = b"".join(request.chunks)
    shown = body if len(body) < 300 else body[:150] + b"..." + body[-100:]
    return f"{request.app} {request.method} {request.path[:80]!r} {request.headers} {shown!r}"


async def fuzz(inputs: int, seed: int, progress: Callable[[str], None] = lambda _: None) -> Tally:
    """Serve every application, send it the requests, and see that each still answers at the end."""
    random = Random(seed)
    served = {name: serve_recipe(name, max_queue_s=5) for name in RECIPES}
    tally, expected = Tally(), dict[tuple[str, str, bytes], bytes]()
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(request: Request) -> None:
        async with slots:
            known = None
            if request.whole:
                known = expected[request.app, request.path, request.chunks[0]]
            await judge(served[request.app], request, known, tally)

    requests = [make(number, random) for number in range(inputs)]
    for request in (one for one in requests if one.whole):
        key = (request.app, request.path, request.chunks[0])
        if key not in expected:  # alone, before anything is broken
            expected[key] = (await send(served[request.app].endpoint.asgi, request))[2]
    try:
        for start in range(0, inputs, 500):
            await asyncio.gather(*(one(request) for request in requests[start : start + 500]))
            progress(f"{min(inputs, start + 500)} of {inputs}, {len(tally.failures)} failures")
        for key in expected:  # all are still alive
            request = next(r for r in requests if r.whole and (r.app, r.path, r.chunks[0]) == key)
            await judge(served[request.app], request, expected[key], tally)
            tally.inputs -= 1
    finally:
        for app in served.values():
            app.api.close()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    tally = asyncio.run(fuzz(parsed.inputs, parsed.seed, lambda line: print(line, file=sys.stderr, flush=True)))
    for status, count in sorted(tally.statuses.items()):
        print(f"{status:>10}  {count:6}")
    for name in ("crashes", "bad_5xx", "malformed", "wrong"):
        found = getattr(tally, name)
        for shown in found[:5]:
            print(f"{name}: {shown}")
    print(
        json.dumps(
            {
                "benchmark": "fuzz_apps",
                "inputs": tally.inputs,
                "crashes": len(tally.crashes),
                "bad_5xx": len(tally.bad_5xx),
                "malformed": len(tally.malformed),
                "wrong_answers": len(tally.wrong),
                "statuses": dict(sorted(tally.statuses.items())),
                "seconds": round(time.monotonic() - began, 1),
                "seed": parsed.seed,
            }
        )
    )
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
