"""Clients that mean harm or are very slow, over plain sockets. Each returns what the server told it, as counts.

Each is a crowd: it opens its connections, does its worst until `until` (on the loop's clock) or until the server ends
it, and closes them. 'open' is a connection that the server had left open by then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

Told = Counter[str]
Crowd = Callable[[int, str, float], Awaitable[Told]]
"""(port, path, until) -> what the server said to each connection."""

BYTE_EVERY_S = 1.0


async def _crowd(one: Callable[[], Awaitable[str]], number: int) -> Told:
    return Counter(await asyncio.gather(*(one() for _ in range(number))))


async def _converse(port: int, parts: Iterable[bytes], until: float, *, half_close: bool = False) -> str:
    """Send `parts`, one each BYTE_EVERY_S after the first, and tell the status, or 'closed', or 'open'."""
    clock = asyncio.get_running_loop().time
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return "refused"

    async def send() -> None:
        with contextlib.suppress(OSError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                if half_close:
                    writer.write_eof()
                await asyncio.sleep(BYTE_EVERY_S)
        await asyncio.sleep(max(0.0, until - clock()))

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(until - clock()):
            line = await reader.readline()
            return line.split()[1].decode() if line.startswith(b"HTTP/1.1 ") else "closed"
    except TimeoutError:
        return "open"
    except OSError:
        return "closed"
    finally:
        sending.cancel()
        writer.transport.abort()


def _drops(text: bytes) -> Iterable[bytes]:
    for byte in text:
        yield bytes([byte])


def _slowly(first: bytes, rest: bytes) -> Iterable[bytes]:
    yield first
    yield from _drops(rest)


async def slow_headers(port: int, path: str, until: float) -> Told:
    first = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Slow: ".encode()
    return await _crowd(lambda: _converse(port, _slowly(first, b"a" * 3600), until), 200)


async def slow_bodies(port: int, path: str, until: float) -> Told:
    first = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 3600\r\n\r\n".encode()
    return await _crowd(lambda: _converse(port, _slowly(first, b"a" * 3600), until), 100)


async def slow_large_bodies(port: int, path: str, until: float) -> Told:
    """More than any buffer on the way at once, and then as good as nothing."""
    first = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n".encode() + b"a" * 200_000
    return await _crowd(lambda: _converse(port, _slowly(first, b"a" * 3600), until), 20)


async def huge_headers(port: int, path: str, until: float) -> Told:
    lines = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 1000) for number in range(1000))
    sent = [f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode() + lines + b"\r\n"]
    return await _crowd(lambda: _converse(port, sent, until), 20)


async def garbage(port: int, _: str, until: float) -> Told:
    """Ten thousand lines that are no HTTP, on each connection."""
    return await _crowd(lambda: _converse(port, [b"\x00garbage of some length\r\n" * 10_000], until), 20)


async def half_closed(port: int, path: str, until: float) -> Told:
    """Half of them have asked all that they will, half have not; none of them says goodbye."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n".encode()
    told: Told = Counter()
    for sent in (head + b"a" * 10, head + b"a"):
        told += await _crowd(lambda sent=sent: _converse(port, [sent], until, half_close=True), 50)  # type: ignore[misc]
    return told


CROWDS: tuple[Crowd, ...] = (slow_headers, slow_bodies, slow_large_bodies, huge_headers, garbage, half_closed)
