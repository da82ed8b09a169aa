"""What a definition does not say and a simulation needs: how long work and starts take, and how much there is.

A YAML file, every field with a default. The defaults are starting points, not facts: docs/simulate.md says how to
measure one's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from heliostat.definition.load import read
from heliostat.definition.model import Name, Part
from heliostat.errors import DefinitionError, Problem, UsageError
from heliostat.units import Duration

Positive = Annotated[float, Field(gt=0, le=1e7)]
PolicyName = Literal["forecast", "uniform progress", "greedy spot", "on-demand only"]


class Starts(Part):
    """Phases of a cold start, and of leaving."""

    node: Duration = Duration.parse("3m")
    """From asking for a node to Ray having it: machine, boot, image."""
    replica: Duration = Duration.parse("20s")
    """From a node with room to the first answer: process, imports, model."""
    drain: Duration = Duration.parse("30s")
    """A replica that is to go keeps its GPU at least so long, and until it has answered what it holds."""
    notice: Duration = Duration.parse("2m")
    """Before a spot node is taken. 0s: none."""


class AppWork(Part):
    """One application's work: `batch_seconds` of it go through the model together, each such pass with overhead."""

    seconds_per_item: Positive = 0.0095
    """Of model time, the mean; the default is a 22 M-parameter encoder on one core, 32 tokens."""
    variation: float = Field(default=0.5, ge=0, le=10)
    """Standard deviation of an item's time over its mean. 0: all alike, 1: exponential."""
    batch_seconds: float = Field(default=0.15, ge=0)
    """Work that one pass takes at most; 0 runs items one by one."""
    pass_overhead: float = Field(default=0.0, ge=0)
    """Seconds of each pass besides its items."""
    requests_per_second: Positive | None = None
    """The mean of what is drawn, where there is no trace of requests."""


class JobWork(Part):
    """Runs of a job of the definition, one `every` so often from the start."""

    work: Duration
    """Time of one run on its whole gang."""
    every: Duration | None = None
    """Once, if not given."""
    nodes: int = Field(default=1, ge=1)
    deadline: Duration | None = None
    """From each submission; then the policy moves it between spot and on-demand."""
    policy: PolicyName = "forecast"
    restart: Duration = Duration.parse("30s")
    """From the last node being there to the first step: processes and the checkpoint."""
    stall: float = Field(default=1.0, ge=0)
    """Seconds that the steps wait for one checkpoint."""
    team: Name | None = None
    """The definition's, if not given."""
    priority: int = 0


class Measured(Part):
    starts: Starts = Starts()
    autoscaler: Duration = Duration.parse("5s")
    """Between two looks of Ray's autoscaler."""
    groups: dict[Name, Starts] = Field(default_factory=dict)
    """Starts of single groups."""
    usd_per_node_hour: dict[Name, float] = Field(default_factory=dict)
    """By group; the catalogue's price of its instance otherwise."""
    applications: dict[Name, AppWork] = Field(default_factory=dict)
    jobs: dict[Name, JobWork] = Field(default_factory=dict)
    shares: dict[Name, float] = Field(default_factory=dict)
    """Of the training nodes, by team; 1 for those not named."""

    def starts_of(self, group: str) -> Starts:
        return self.groups.get(group, self.starts)

    def work_of(self, app: str) -> AppWork:
        return self.applications.get(app, AppWork())


def load_measured(path: Path) -> Measured:
    """The file's. Raises DefinitionError with every mistake in it."""
    source = read(path)
    try:
        found = Measured.model_validate(source.data)
    except ValidationError as error:
        raise DefinitionError(
            [Problem(".".join(map(str, one["loc"])), one["msg"], str(path)) for one in error.errors()]
        ) from error
    if source.problems:
        raise DefinitionError(list(source.problems))
    return found


def check_names(measured: Measured, *, groups: set[str], applications: set[str], jobs: set[str]) -> None:
    """What was measured must be of the definition: a misspelt name would be left out in silence. Raises UsageError."""
    for what, given, known in (
        ("group", {*measured.groups, *measured.usd_per_node_hour}, groups),
        ("application", {*measured.applications}, applications),
        ("job", {*measured.jobs}, jobs),
    ):
        for name in sorted(given - known):
            raise UsageError(
                f"the measurements name {what} {name!r}, which the definition has not",
                do=f"one of: {', '.join(sorted(known)) or 'none'}",
            )
