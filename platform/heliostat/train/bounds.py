"""What controller and driver say to each other about a run: how many nodes it may hold, and how many it does.

    gangs/<run>/held.json          by the driver: what it holds, every few seconds
    gangs/<run>/bounds/<duty>.json by a duty of the controller: hold so many at most. The least of all counts
    supply/<group>.json            by the controller: when the group's market last refused a node
    placing/<group>.json           the lease of the one gang that may hold a part of itself while it waits for the rest

Nodes are counted, as the cluster has and pays for them; the driver turns them into workers, one for each GPU of a node.
A driver obeys at a checkpoint's boundary. Bounds below what it needs to train at all mean: leave, hold nothing, wait.
A driver that cannot reach the store goes on with what it knew.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from heliostat.errors import HeliostatError, ObjectExists, ObjectMissing, StoreError, SwapLost
from heliostat.names import check_name
from heliostat.plan.fallback import Supply
from heliostat.store import Store

Kind = TypeVar("Kind", bound=BaseModel)
LOOK_S = 1.0
TELL_S = 5.0
_ONE: Mapping[str, int] = MappingProxyType({})
HELD_LIFE_S = 30.0
"""What a driver has not said again for so long, it holds no more."""
LEASE_S = 15.0


class Held(BaseModel):
    """What a gang holds. `low` and `high`: the nodes that it needs and wants; `nodes`: those that it has."""

    model_config = ConfigDict(frozen=True)

    run: str
    group: str
    home: str
    """The group that it belongs on; `group` is the fallback while it is away."""
    nodes: int
    low: int
    high: int
    at: float
    step_s: dict[str, float] = {}
    """Seconds of a step's own work, by Ray's id of the worker's node; see heliostat.plan.sick."""
    losses: dict[str, int] = {}
    """Workers lost, by Ray's id of their node."""
    node: str = ""
    """Ray's id of the node that it has a part of."""
    job_id: str = ""
    """The queue's job that it belongs to: its own, or the sweep's whose trial it is."""


class Bound(BaseModel):
    model_config = ConfigDict(frozen=True)

    nodes: int
    why: str


@dataclass(frozen=True)
class _Known:
    """What was last read."""

    most: int | None = None
    why: str = ""
    supply: Supply | None = None


class Reins:
    """The driver's end, in workers. Reading and telling is done by a thread, so that a slow store holds no training up.

    `a_node`: workers on one node of a group; 1 where it is not told.
    """

    def __init__(
        self, store: Store, run: str, home: str, low: int, high: int, *, a_node: Mapping[str, int] = _ONE,
        job_id: str = "",
    ) -> None:  # fmt: skip
        self._store, self._run, self._home, self._low, self._high = store, run, home, low, high
        self._a_node, self._job_id = a_node, job_id
        self._known = _Known()
        self._held = (home, 0, "")
        self._step_s: dict[str, float] = {}
        self._losses: dict[str, int] = {}
        self._told: tuple[object, float] = (None, 0.0)
        self._placing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="reins")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The driver ends: nothing is held from here on."""
        self._stop.set()
        self.release()
        _quietly(lambda: self._store.delete(f"gangs/{self._run}/held.json"))

    @property
    def most(self) -> int:
        """How many workers it may have; 0 where that is fewer than it needs."""
        nodes = self._known.most
        most = None if nodes is None else nodes * self._a_node.get(self._held[0], 1)
        if most is None or most >= self._high:
            return self._high
        return most if most >= self._low else 0

    @property
    def why(self) -> str:
        return self._known.why

    def is_dry(self) -> bool:
        """Whether its own group's market refuses nodes now."""
        return self._known.supply is not None and self._known.supply.is_dry(time.time())

    def hold(self, group: str, workers: int, node: str = "") -> None:
        """Say what is held, and of which node it is a part; it is told within a second."""
        self._held = (group, workers, node)

    def lost(self, node: str) -> None:
        """A worker was lost on that node."""
        self._losses[node] = self._losses.get(node, 0) + 1

    def paced(self, step_s: dict[str, float]) -> None:
        """What a step's own work takes on each node."""
        self._step_s = step_s

    def may_place(self) -> bool:
        """Whether this gang may hold a part of itself while it waits for the rest: one of a group may.

        Two that each held a half would wait for each other for ever.
        """
        if not self._placing:
            try:
                self._placing = _take(self._store, self._home, self._run, time.time())
            except StoreError:
                return True  # as without a store that answers nothing would begin
        return self._placing

    def release(self) -> None:
        if self._placing:
            self._placing = False
            _quietly(lambda: _give(self._store, self._home, self._run))

    def _follow(self) -> None:
        while True:
            self._look()
            if self._stop.wait(LOOK_S):
                return

    def _look(self) -> None:
        _quietly(self._read)
        _quietly(self._tell)
        if self._placing:
            _quietly(lambda: _take(self._store, self._home, self._run, time.time()))

    def _read(self) -> None:
        bounds = read_bounds(self._store, self._run)
        least = min(bounds.values(), key=lambda bound: bound.nodes, default=None)
        supply = read_supply(self._store, self._home)
        self._known = _Known(least.nodes if least else None, least.why if least else "", supply)

    def _tell(self) -> None:
        if self._stop.is_set():
            return
        group, workers, node = self._held
        now = (group, workers, dict(self._step_s), dict(self._losses), node)
        if now == self._told[0] and time.monotonic() - self._told[1] < TELL_S:
            return
        held = Held(
            run=self._run, group=group, home=self._home, nodes=self._nodes(workers), low=self._nodes(self._low),
            high=self._nodes(self._high), at=time.time(), step_s=now[2], losses=now[3], node=node,
            job_id=self._job_id,
        )  # fmt: skip
        self._store.put(f"gangs/{self._run}/held.json", held.model_dump_json().encode())
        self._told = (now, time.monotonic())

    def _nodes(self, workers: int) -> int:
        return math.ceil(workers / self._a_node.get(self._held[0], 1))


# --- the controller's end


def read_held(store: Store, now: float) -> dict[str, Held]:
    """What each living gang holds, by run."""
    found = {}
    for info in store.list("gangs/"):
        if info.key.endswith("/held.json"):
            held = _read(store, info.key, Held)
            if held is not None and now - held.at < HELD_LIFE_S:
                found[held.run] = held
    return found


def read_bounds(store: Store, run: str) -> dict[str, Bound]:
    """By the duty that set it."""
    found = {}
    for info in store.list(f"gangs/{run}/bounds/"):
        bound = _read(store, info.key, Bound)
        if bound is not None:
            found[info.key.rsplit("/", 1)[1].removesuffix(".json")] = bound
    return found


def bind(store: Store, run: str, duty: str, nodes: int | None, why: str = "") -> None:
    """Let the run hold so many nodes at most, for this duty's part; None lifts it. Safe to repeat."""
    key = f"gangs/{run}/bounds/{check_name(duty, what='duty')}.json"
    if nodes is None:
        store.delete(key)
    else:
        store.put(key, Bound(nodes=nodes, why=why).model_dump_json().encode())


def forget(store: Store, run: str) -> None:
    """The run has ended: nothing of it is left."""
    for info in store.list(f"gangs/{run}/"):
        store.delete(info.key)


class _Supply(BaseModel):
    refused_at: float
    why: str = ""


def read_supply(store: Store, group: str) -> Supply | None:
    found = _read(store, f"supply/{group}.json", _Supply)
    return None if found is None else Supply(found.refused_at, found.why)


def write_supply(store: Store, group: str, supply: Supply) -> None:
    store.put(f"supply/{group}.json", _Supply(refused_at=supply.refused_at, why=supply.why).model_dump_json().encode())


# --- small parts


class _Placing(BaseModel):
    run: str
    expires_at: float


def _take(store: Store, group: str, run: str, now: float) -> bool:
    """Hold the group's lease, or renew it. One swap."""
    key = f"placing/{group}.json"
    mine = _Placing(run=run, expires_at=now + LEASE_S).model_dump_json().encode()
    try:
        blob = store.get(key)
    except ObjectMissing:
        try:
            store.create(key, mine)
        except ObjectExists:
            return False
        return True
    try:
        other = _Placing.model_validate_json(blob.data)
    except ValidationError:
        other = _Placing(run="", expires_at=0.0)
    if other.run != run and other.expires_at > now:
        return False
    try:
        store.swap(key, mine, blob.etag)
    except SwapLost:
        return False
    return True


def _give(store: Store, group: str, run: str) -> None:
    key = f"placing/{group}.json"
    try:
        blob = store.get(key)
        if _Placing.model_validate_json(blob.data).run == run:
            store.swap(key, _Placing(run="", expires_at=0.0).model_dump_json().encode(), blob.etag)
    except (ObjectMissing, SwapLost, ValidationError):
        return


def _read(store: Store, key: str, kind: type[Kind]) -> Kind | None:
    """None for what is not there, or was written by another version."""
    try:
        return kind.model_validate_json(store.get(key).data)
    except (ObjectMissing, ValidationError):
        return None


def _quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except HeliostatError:
        return
