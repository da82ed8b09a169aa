"""The record of a run from training to live: `apps/<app>/flow.json`, swapped if unchanged after each step.

`heliostat.flow.run` takes the steps; the controller reads here whether one is due.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.definition import Retrain
from heliostat.errors import CorruptArtifact, ObjectExists, ObjectMissing, ReleaseConflict, SwapLost
from heliostat.names import check_segment
from heliostat.store import Store

State = Literal["train", "publish", "judge", "release", "live", "done", "refused", "rolled_back"]
CONTROLLER = "controller"
"""Who begins what is due."""
OVER = ("done", "refused", "rolled_back")


class FlowStep(BaseModel):
    """One line of what was done."""

    model_config = ConfigDict(frozen=True)

    step: State
    at: float
    """When it was written down, in seconds since the epoch."""
    what: str


class Flow(BaseModel):
    """A run of the whole way; `state` is the step to be done next, or how it ended."""

    model_config = ConfigDict(frozen=True)

    app: str
    id: str
    job: str
    run: str
    arguments: tuple[str, ...] = ()
    who: str
    why: str
    force: str | None = None
    began_at: float = 0.0
    """In seconds since the epoch."""
    dataset: str = ""
    """Which version of the dataset it was begun with, where the definition names one."""
    state: State = "train"
    version: int | None = None
    release: str | None = None
    done: tuple[FlowStep, ...] = ()

    @property
    def is_over(self) -> bool:
        return self.state in OVER


def read_flow(store: Store, app: str) -> tuple[Flow, str] | None:
    """The last flow of the application and its tag."""
    try:
        blob = store.get(_key(app))
    except ObjectMissing:
        return None
    try:
        return Flow.model_validate_json(blob.data), blob.etag
    except ValidationError as error:
        raise CorruptArtifact("a flow cannot be read", where=_key(app), do="restore it, or delete it") from error


def dataset_tag(store: Store, retrain: Retrain) -> str:
    """Which version of the dataset is in the store; "" for none, or where none is named."""
    if retrain.dataset is None:
        return ""
    try:
        return store.head(retrain.dataset).etag
    except ObjectMissing:
        return ""


def due(flow: Flow | None, retrain: Retrain, *, dataset: str, now: float) -> str:
    """Why a flow is to begin or to go on now; "" where none is. Pure."""
    if flow is not None and not flow.is_over:
        return "it was left unfinished" if flow.who == CONTROLLER else ""  # somebody's own is theirs to go on with
    if dataset and (flow is None or flow.dataset != dataset):
        return f"a new version of {retrain.dataset}"
    if retrain.every is not None and (flow is None or now - flow.began_at >= retrain.every.seconds):
        return f"every {retrain.every}"
    return ""


def save_flow(store: Store, flow: Flow, etag: str | None) -> tuple[Flow, str]:
    """Raises ReleaseConflict where another process runs the same flow and was quicker."""
    data = flow.model_dump_json(indent=1).encode()
    try:
        tag = store.create(_key(flow.app), data) if etag is None else store.swap(_key(flow.app), data, etag)
    except (ObjectExists, SwapLost) as error:
        found = read_flow(store, flow.app)
        if found is not None and found[0] == flow:
            return found  # our own write, whose answer was lost
        raise ReleaseConflict(
            f"another process runs the flow of {flow.app}", do="let it, or run the same command again when it has ended"
        ) from error
    return flow, tag


def _key(app: str) -> str:
    return f"apps/{check_segment(app, what='application')}/flow.json"
