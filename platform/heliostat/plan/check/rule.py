"""What a rule is, and what it finds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from heliostat.plan.check.model import Cluster

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Hit:
    """One place where a rule fires. `at`: its path in the file. `severity`: where it differs from the rule's.
    `line`: where it is not that of the path.
    """

    at: str
    what: str
    do: str
    severity: Severity | None = None
    line: int | None = None


@dataclass(frozen=True)
class Rule:
    """`reason`: why it matters, `cure`: what to do in general; a hit says what to do here."""

    id: str
    severity: Severity
    title: str
    reason: str
    cure: str
    find: Callable[[Cluster], Iterator[Hit]]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]+(-[a-z]+)*", self.id):
            raise ValueError(f"{self.id!r} is not a rule's id")
