"""What a duty of the controller is, and what it acts with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from heliostat.events import Spool
from heliostat.serve.client import ServeClient
from heliostat.settings import Settings
from heliostat.store import Store


@dataclass(frozen=True)
class World:
    """What a duty reads and acts through."""

    settings: Settings
    store: Store
    serve: ServeClient
    spool: Spool


class Duty(Protocol):
    """One thing the controller sees to. It must be safe to repeat, and return within a second or so: what takes longer
    belongs in a thread or process of its own that the duty looks after.
    """

    period_s: float
    """Seconds from one call to the next, at least."""

    def act(self, world: World, now: float) -> None:
        """Make the world as it should be. `now` is in seconds since the epoch. May raise: the next call tries again."""

    def forget(self) -> None:
        """Another controller may have acted since: hold nothing for known that is not read anew."""
