"""Constant concurrency over keep-alive connections: as little client as possible, so that its core is not the limit.

    python load.py URL CONNECTIONS WARM_S SECONDS SHAPE [HEADER]

SHAPE: single {"text"}, list:16 {"texts"}, infinity {"input", "model"}. Prints one JSON line. Bounded in time; a
connection that breaks counts as a failed request and is opened again.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent))
from corpus import texts


def bodies(shape: str, sample: list[str]) -> list[bytes]:
    if shape.startswith("list:"):
        size = int(shape.split(":")[1])
        return [json.dumps({"texts": sample[i : i + size]}).encode() for i in range(0, len(sample) - size, size)]
    if shape == "infinity":
        return [
            json.dumps({"input": [text], "model": "bench", "encoding_format": "base64"}).encode() for text in sample
        ]
    return [json.dumps({"text": text}).encode() for text in sample]


class Load:
    def __init__(self, url: str, shape: str, header: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n{header}"
        self.requests = [
            f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies(shape, texts()[:4000])
        ]
        self.next = 0
        self.done: list[tuple[float, float]] = []  # (when it was answered, seconds it took)
        self.failed = 0
        self.reasons: dict[str, int] = {}

    async def connection(self, until: float) -> None:
        reader = writer = None
        while time.perf_counter() < until:
            request = self.requests[self.next % len(self.requests)]
            self.next += 1
            begun = time.perf_counter()
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection(self.host, self.port)
                writer.write(request)
                status = await asyncio.wait_for(_answer(reader), 60)
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
                status, writer = type(error).__name__, None
            if status == "200":
                self.done.append((time.perf_counter(), time.perf_counter() - begun))
            else:
                self.failed += 1
                self.reasons[status] = self.reasons.get(status, 0) + 1
                await asyncio.sleep(0.05)


async def _answer(reader: asyncio.StreamReader) -> str:
    """The status; the body is read and dropped."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"transfer-encoding: chunked" in head:
        while (size := int(await reader.readline(), 16)) > 0:
            await reader.readexactly(size + 2)
        await reader.readline()
    else:
        length = head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]
        await reader.readexactly(int(length))
    return head.split(b" ", 2)[1].decode()


async def main() -> None:
    url, connections, warm, seconds, shape = sys.argv[1:6]
    header = f"{sys.argv[6]}\r\n" if len(sys.argv) > 6 else ""
    load = Load(url, shape, header)
    begun = time.perf_counter()
    until = begun + float(warm) + float(seconds)
    print("warm", flush=True)

    async def mark() -> None:
        await asyncio.sleep(float(warm))
        print("start", flush=True)
        await asyncio.sleep(float(seconds))
        print("stop", flush=True)

    await asyncio.gather(mark(), *(load.connection(until) for _ in range(int(connections))))
    took = sorted(t for at, t in load.done if begun + float(warm) <= at <= until)
    print(
        json.dumps(
            {
                "requests": len(took),
                "per_s": len(took) / float(seconds),
                "p50_ms": 1000 * took[len(took) // 2] if took else None,
                "p99_ms": 1000 * took[int(len(took) * 0.99)] if took else None,
                "failed": load.failed,
                "reasons": load.reasons,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    asyncio.run(main())
