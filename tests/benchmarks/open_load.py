"""Open-loop load: requests leave at the moments of a seeded Poisson process, whether or not earlier ones are answered.

    python open_load.py SPEC.json      prints one JSON line: a list of [sent, took, status, retry_after, kind]

Where the status is 0, `retry_after` is what happened instead.
With `field` in a kind, a row ends with that field of the JSON answer.
Seconds since the load began; `took` counts from the moment at which the request was due, so a client that is late
makes nothing look faster. Status 0: no whole answer came back (the connection broke, or the time was up). For streams,
status 1: it was cut and said so with an error event, -1: it was cut and did not. Status -2: never sent.
Bounded: SPEC has `seconds`, `rate`, `most` (requests under way at a time) and `limit_s` (for one of them).
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Load:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.random = random.Random(spec["seed"])
        self.idle: dict[tuple[str, int], list[Connection]] = {}
        self.rows: list[list[Any]] = []
        self.under_way = 0

    async def run(self) -> None:
        kinds = self.spec["kinds"]  # [{name, url, share, bodies, header, stream}]
        begun = time.perf_counter()
        tasks: set[asyncio.Task[None]] = set()
        for due in arrivals(self.spec, self.random):
            kind = self.random.choices(kinds, [kind["share"] for kind in kinds])[0]
            body = self.random.choice(kind["bodies"])
            await asyncio.sleep(max(0.0, begun + due - time.perf_counter()))
            if self.under_way >= self.spec["most"]:
                self.rows.append([round(due, 4), 0.0, -2, None, kind["name"]])  # the client's own bound
                continue
            task = asyncio.create_task(self.one(kind, body, due, begun))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def one(self, kind: dict[str, Any], body: Any, due: float, begun: float) -> None:
        self.under_way += 1
        status, retry_after, field = 0, None, None
        try:
            async with asyncio.timeout(self.spec["limit_s"]):
                status, retry_after, text = await self.ask(kind, body)
            if status == 200 and "field" in kind:
                field = json.loads(text).get(kind["field"])
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, ValueError) as problem:
            retry_after = type(problem).__name__ + getattr(problem, "how", "")  # there is none: say what happened
            if kind.get("stream") and getattr(problem, "begun", False):
                status = -1
        finally:
            self.under_way -= 1
        took = round(time.perf_counter() - begun - due, 5)
        self.rows.append(
            [round(due, 4), took, status, retry_after, kind["name"], *([field] if "field" in kind else [])]
        )

    async def ask(self, kind: dict[str, Any], body: Any) -> tuple[int, str | None, str]:
        parts = urlsplit(kind["url"])
        where = (parts.hostname or "127.0.0.1", parts.port or 80)
        content = (body if isinstance(body, str) else made(body)).encode()
        head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {where[0]}\r\nContent-Type: application/json\r\n"
            f"{kind['header']}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        pool = self.idle.setdefault(where, [])
        used = bool(pool)
        reader, writer = pool.pop() if pool else await asyncio.open_connection(*where)
        try:
            writer.write(head.encode() + content)
            await writer.drain()
            status, headers, text = await answer(reader, stream=bool(kind.get("stream")))
        except BaseException as problem:
            problem.how = " on a used connection" if used else " on a new connection"  # type: ignore[attr-defined]
            if isinstance(problem, asyncio.IncompleteReadError):
                problem.how += f" after {bytes(problem.partial)[:60]!r}"  # type: ignore[attr-defined]
            writer.close()
            raise
        if headers.get("connection") == "close":
            writer.close()
        else:
            pool.append((reader, writer))
        if kind.get("stream") and status == 200 and "data: [DONE]" not in text:
            status = 1 if '"error"' in text else -1
        return status, headers.get("retry-after"), text


def arrivals(spec: dict[str, Any], draw: random.Random) -> Iterator[float]:
    """The moments of a Poisson process whose rate is `rate` times what `steps` say: [[from second, factor], ...]."""
    steps = spec.get("steps", [[0.0, 1.0]])
    most, due = max(factor for _, factor in steps), 0.0
    while True:
        due += draw.expovariate(spec["rate"] * most)
        if due > spec["seconds"]:
            return
        factor = next(factor for start, factor in reversed(steps) if start <= due)
        if draw.random() < factor / most:  # thinning
            yield due


def made(body: dict[str, Any]) -> str:
    """{"text": length} -> a text of so many characters: not in the specification, where it would be megabytes."""
    return json.dumps({"text": "x" * int(body["text"])})


async def answer(reader: asyncio.StreamReader, *, stream: bool) -> tuple[int, dict[str, str], str]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(lines[0].split(" ")[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if "chunked" not in headers.get("transfer-encoding", ""):
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return status, headers, body.decode(errors="replace")
    parts = []
    try:
        while (size := int(await reader.readline(), 16)) > 0:
            parts.append((await reader.readexactly(size + 2))[:-2])
        await reader.readline()
    except (OSError, asyncio.IncompleteReadError, ValueError) as problem:
        problem.begun = True  # type: ignore[union-attr]  # read above: a stream was cut without a word
        raise
    return status, headers, b"".join(parts).decode(errors="replace")


def main() -> None:
    load = Load(json.loads(Path(sys.argv[1]).read_text()))
    asyncio.run(load.run())
    print(json.dumps(load.rows))


if __name__ == "__main__":
    main()
