"""Sizes, durations and counts as types: read from what people write, printed back as they wrote it.

GiB is 2**30 and GB is 10**9, always. A value made from a string keeps the string; a computed one prints in the
largest unit that shows it exactly. Parsing what is printed gives an equal value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from heliostat.errors import UsageError

BYTE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KiB": 2**10,
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
    "TB": 10**12,
    "TiB": 2**40,
}
MILLISECONDS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}

_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|d|h|m|s)")
_RANGE = re.compile(r"(-?[0-9]+)(?:\.\.(-?[0-9]+))?")


class _Unit:
    """What the three types share: how pydantic reads, writes and describes them."""

    json_pattern: ClassVar[str]
    example: ClassVar[str]

    @classmethod
    def parse(cls, value: object) -> Self:
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema(when_used="always")
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {
            "anyOf": [{"type": "string", "pattern": cls.json_pattern}, {"type": "number", "minimum": 0}],
            "examples": [cls.example],
        }


@dataclass(frozen=True, order=True)
class Bytes(_Unit):
    """A size in bytes: `Bytes.parse("24GiB")`. A bare number counts bytes."""

    bytes: int
    text: str = field(default="", compare=False, repr=False)

    json_pattern: ClassVar[str] = r"^\s*[0-9]+(\.[0-9]+)?\s*(B|kB|KiB|MB|MiB|GB|GiB|TB|TiB)?\s*$"
    example: ClassVar[str] = "24GiB"

    def __post_init__(self) -> None:
        if self.bytes < 0:
            raise UsageError(f"{self.bytes} bytes is negative", do="write a size of 0 or more")

    def __str__(self) -> str:
        return self.text or _exact_bytes(self.bytes)

    @property
    def gib(self) -> float:
        """In units of 2**30 bytes."""
        return self.bytes / 2**30

    @classmethod
    def parse(cls, value: object) -> Self:
        """From "24GiB", "1.5GB", "512" or a number of bytes. Raises UsageError."""
        if isinstance(value, cls):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(value)
        match = _BYTES.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise UsageError(f"{value!r} is not a size", do="write a number and a unit, such as 24GiB or 1.5GB")
        number, unit = Decimal(match[1]), match[2] or "B"
        if unit not in BYTE_UNITS:
            raise UsageError(f"{value!r} has the unit {unit!r}", do=f"write {_known_unit(unit)}")
        if unit == "B" and number != number.to_integral_value():
            raise UsageError(f"{value!r} is not a whole number of bytes", do="write a whole number")
        return cls(int((number * BYTE_UNITS[unit]).to_integral_value()), str(value).strip())


@dataclass(frozen=True, order=True)
class Duration(_Unit):
    """A length of time, to the millisecond: `Duration.parse("1h30m")`. A bare number counts seconds."""

    milliseconds: int
    text: str = field(default="", compare=False, repr=False)

    json_pattern: ClassVar[str] = r"^\s*([0-9]+(\.[0-9]+)?|([0-9]+(\.[0-9]+)?(d|h|m|s|ms))+)\s*$"
    example: ClassVar[str] = "5m"

    def __post_init__(self) -> None:
        if self.milliseconds < 0:
            raise UsageError(f"{self.milliseconds / 1000:g}s is negative", do="write a duration of 0s or more")

    def __str__(self) -> str:
        return self.text or _exact_duration(self.milliseconds)

    @property
    def seconds(self) -> float:
        return self.milliseconds / 1000

    @classmethod
    def parse(cls, value: object) -> Self:
        """From "5m", "1h30m", "250ms", "90" or a number of seconds. Raises UsageError."""
        if isinstance(value, cls):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return cls._from_seconds(value)
        if isinstance(value, str):
            text = value.strip()
            if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
                return cls(int(Decimal(text) * 1000), text)
            return cls(_parse_duration(text), text)
        raise _not_a_duration(value)

    @classmethod
    def _from_seconds(cls, value: float) -> Self:
        if value != value or value in (float("inf"), float("-inf")):
            raise _not_a_duration(value)
        return cls(round(value * 1000))


@dataclass(frozen=True)
class CountRange(_Unit):
    """How many at least and at most, both included: `CountRange.parse("2..8")`; "3" is 3..3."""

    low: int
    high: int

    json_pattern: ClassVar[str] = r"^\s*[0-9]+(\.\.[0-9]+)?\s*$"
    example: ClassVar[str] = "2..8"

    def __post_init__(self) -> None:
        if self.low < 0 or self.high < 0:
            raise UsageError(
                f"{self} counts below zero", do=f"write {max(0, min(self.low, self.high))}..{max(0, self.high)}"
            )
        if self.low > self.high:
            raise UsageError(f"{self} is reversed", do=f"write {self.high}..{self.low}")

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"

    def __contains__(self, count: int) -> bool:
        return self.low <= count <= self.high

    def clamp(self, count: int) -> int:
        """The nearest count within the range."""
        return min(max(count, self.low), self.high)

    @classmethod
    def parse(cls, value: object) -> Self:
        """From "2..8", "3" or 3. Raises UsageError, for a reversed or negative range with the one to write."""
        if isinstance(value, cls):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(value, value)
        match = _RANGE.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise UsageError(f"{value!r} is not a count or a range of counts", do="write 2..8, or 3 for exactly three")
        low = int(match[1])
        return cls(low, low if match[2] is None else int(match[2]))


def human_bytes(count: float) -> str:
    """For reading, not for parsing: 25_769_803_776 -> "24.0 GiB"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if abs(count) >= BYTE_UNITS[unit]:
            return f"{count / BYTE_UNITS[unit]:.1f} {unit}"
    return f"{count:.0f} B"


def human_seconds(seconds: float) -> str:
    """For reading, not for parsing: 5400 -> "1h 30m", 12.34 -> "12.3s", 0.012 -> "12ms"."""
    if seconds < 0:
        return f"-{human_seconds(-seconds)}"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"


def _known_unit(unit: str) -> str:
    close = [known for known in BYTE_UNITS if known.lower() == unit.lower()]
    return close[0] if close else "one of " + ", ".join(BYTE_UNITS)


def _exact_bytes(count: int) -> str:
    for unit, size in sorted(BYTE_UNITS.items(), key=lambda entry: -entry[1]):
        # Thousandths at most: an exact value of many digits reads worse than a smaller unit.
        if count >= size and count * 1000 % size == 0:
            return f"{(Decimal(count) / size).normalize():f}{unit}"
    return f"{count}B"


def _parse_duration(text: str) -> int:
    total, position, last = Decimal(0), 0, len(MILLISECONDS)
    order = list(MILLISECONDS)
    while position < len(text):
        match = _DURATION_PART.match(text, position)
        if match is None:
            raise _not_a_duration(text)
        rank = order.index(match[2])
        if position and rank <= last:
            raise UsageError(f"{text!r} has its units out of order", do="write larger units first, such as 1h30m")
        total += Decimal(match[1]) * MILLISECONDS[match[2]]
        position, last = match.end(), rank
    if not text or total != total.to_integral_value():
        raise _not_a_duration(text)
    return int(total)


def _not_a_duration(value: object) -> UsageError:
    return UsageError(f"{value!r} is not a duration", do="write such as 5m, 30s, 1h30m or 250ms")


def _exact_duration(milliseconds: int) -> str:
    parts = []
    for unit, size in MILLISECONDS.items():
        count, milliseconds = divmod(milliseconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
