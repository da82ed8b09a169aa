"""Tokens into text as they come: whole characters alone, and nothing after a stop string. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
"""What a decoder shows for bytes that are not yet a whole character."""


class TextStream:
    """The text of one continuation, handed out in pieces that never change afterwards."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        # Token ids before `_shown` are out; decoding begins at `_start`, some tokens before, since a token's text may
        # depend on the one before it. So each piece costs the same, however long the text has become.
        self._start = 0
        self._shown = 0
        self._held = ""
        """Text that may turn out to begin a stop string."""
        self.stopped = False
        """A stop string was found; nothing comes after it."""

    def push(self, token: int) -> str:
        """Take one more token; the text that is certain now, "" where none is."""
        self._ids.append(token)
        return self._filter(self._decoded(last=False))

    def end(self) -> str:
        """What was held back; nothing follows."""
        out = self._filter(self._decoded(last=True)) + ("" if self.stopped else self._held)
        self._held = ""
        return out

    def _decoded(self, *, last: bool) -> str:
        before = self._decode(self._ids[self._start : self._shown])
        now = self._decode(self._ids[self._start :])
        if not last and now.endswith(_BROKEN):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return now[len(before) :]

    def _filter(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)], ""
            return out
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of the text that begins the stop string."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
