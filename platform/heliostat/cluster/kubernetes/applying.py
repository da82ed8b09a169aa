"""Plan, apply, remove.

The order of an apply: every object is checked by the server in a dry run before the first is written (those in a
namespace that does not exist yet, right after it was made); then they go in by rank; then what we own and no longer
render goes out. Each step may be repeated, and nothing is remembered, so an apply that was killed anywhere is finished
by the next one.

What is not ours is never changed or deleted: an object that exists without our labels stops the plan, a namespace that
was there before us is used as it is. Volume claims stay unless `with_data` says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from heliostat.clock import Clock, SystemClock
from heliostat.cluster.kubernetes import refusal
from heliostat.cluster.kubernetes.api import Api, Conflicted, Resource, WriteRaced
from heliostat.cluster.kubernetes.diff import Change, Ownership, compare
from heliostat.cluster.kubernetes.leftovers import identity, leftovers
from heliostat.cluster.kubernetes.objects import (
    FIELD_MANAGER,
    Object,
    Ref,
    check_objects,
    home_of,
    in_order,
    is_ours,
    is_whole,
    namespaces_of,
    owner_of,
    rank,
    ref_of,
    stamped,
)
from heliostat.cluster.kubernetes.scale import autoscaler_only, only_hold_differs, with_live_scale
from heliostat.errors import ClusterError, FieldConflict, KubernetesError, NotOurs, UsageError

Progress = Callable[[str], None]

RACES = 10  # re-reads when others write at the same time, before it is called a failure
GONE_LIMIT_S = 300.0
NEW_NAMESPACE = "checked by the server once its namespace is there"


@dataclass(frozen=True)
class Step:
    """One object of a plan. `wanted` is what to apply: None for what is deleted or kept."""

    change: Change
    wanted: Object | None = None

    @property
    def unchecked(self) -> bool:
        return self.change.note == NEW_NAMESPACE


@dataclass(frozen=True)
class Plan:
    """What would happen, in the order in which it would. `notes` say what could not be looked at."""

    cluster: str
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    take_over: bool = False

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(step.change for step in self.steps)

    @property
    def pending(self) -> int:
        """How many objects would be written or deleted."""
        return sum(change.verb in ("create", "change", "delete") for change in self.changes)

    def conflict(self, *, outcome: str = "nothing was changed") -> FieldConflict | None:
        """All fields of all objects that others hold, as the error to raise; None where there is none."""
        held = [(str(change.ref), owned) for change in self.changes for owned in change.conflicts]
        return refusal.field_conflict(held, outcome=outcome) if held else None


def plan(
    api: Api, manifests: Sequence[Object], *, cluster: str, take_over: bool = False, with_data: bool = False
) -> Plan:
    """What applying `manifests` would do. Changes nothing: reads, and dry runs on the server.

    Raises UsageError, KindMissing with all the kinds, NotOurs with all the objects, Forbidden, AdmissionRefused.
    Conflicts over fields are in the plan, with what `take_over` would make of them.
    """
    home = next(iter(namespaces_of(_checked(api, manifests, cluster))), "")
    objects = in_order([stamped(thing, cluster, home) for thing in manifests])
    new_namespaces = _new_namespaces(api, objects)
    steps, strangers = [], []
    for thing in objects:
        try:
            steps.append(_step(api, thing, cluster, new_namespaces=new_namespaces, take_over=take_over))
        except NotOurs as error:
            strangers.append(error)
    if strangers:
        raise _all_not_ours(strangers)
    if not is_whole(objects):
        return Plan(
            cluster, tuple(steps), ("without its RayCluster this is a part: nothing else is deleted",), take_over
        )
    rest, notes = leftovers(api, cluster, objects, keep=objects, with_data=with_data)
    return Plan(cluster, (*steps, *map(Step, rest)), tuple(notes), take_over)


def apply(api: Api, planned: Plan, *, progress: Progress = lambda _: None) -> None:
    """Do what the plan says. May be repeated, and finishes an apply that was killed.

    Raises FieldConflict before anything is changed where the plan has conflicts.
    """
    if conflict := planned.conflict():
        raise conflict
    writes = [step for step in planned.steps if step.wanted is not None and step.change.verb in ("create", "change")]
    spaces = [step for step in writes if step.change.ref.kind == "Namespace"]
    rest = [step for step in writes if step.change.ref.kind != "Namespace"]
    done = _Count(progress, planned.pending)
    for step in spaces:
        _put(api, step, planned)
        done("made" if step.change.verb == "create" else "changed", step.change.ref)
    for step in rest:
        if step.unchecked:
            _attempt(api, _wanted(step), step.change.ref, planned.cluster, take_over=planned.take_over, dry_run=True)
    for step in rest:
        _put(api, step, planned)
        done("made" if step.change.verb == "create" else "changed", step.change.ref)
    for step in planned.steps:
        if step.change.verb == "delete":
            _delete(api, step.change.ref, planned.cluster)
            done("deleted", step.change.ref)


def plan_removal(api: Api, manifests: Sequence[Object], *, cluster: str, with_data: bool = False) -> Plan:
    """What taking the cluster down would delete: all that we own in the manifests' namespaces, workloads first.

    Manifests that are a part of a cluster, without its RayCluster, take themselves down and nothing else.
    """
    objects = check_objects(manifests)
    changes, notes = leftovers(api, cluster, objects, keep=(), with_data=with_data, removal=True)
    if not is_whole(objects):
        named = {identity(ref_of(thing)) for thing in objects}
        changes = [change for change in changes if identity(change.ref) in named]
    seen = {identity(change.ref) for change in changes}
    for thing in in_order(objects):
        ref = ref_of(thing)
        if identity(ref) in seen or api.resource(ref.api_version, ref.kind) is None:
            continue
        if api.get(ref) is not None:
            changes.append(Change("keep", ref, note=f"not applied by {FIELD_MANAGER} for {cluster}"))
    return Plan(cluster, tuple(map(Step, changes)), tuple(notes))


def remove(
    api: Api,
    planned: Plan,
    *,
    progress: Progress = lambda _: None,
    limit_s: float = GONE_LIMIT_S,
    clock: Clock | None = None,
) -> None:
    """Delete what the plan says, workloads first, and wait until it is gone. May be repeated.

    Raises ClusterError with what is left, and with what it waits for, after `limit_s` seconds.
    """
    clock = clock or SystemClock()
    deadline = clock.monotonic() + limit_s
    refs = [step.change.ref for step in planned.steps if step.change.verb == "delete"]
    done = _Count(progress, len(refs))
    for ranks in (True, False):  # what the pods use stays until they are gone
        tier = [ref for ref in refs if (rank(ref.kind) >= rank("Deployment")) is ranks]
        uids = {ref: _delete(api, ref, planned.cluster) for ref in tier}
        for ref in _wait_gone(api, uids, deadline, clock, progress):
            done("deleted", ref)


def _checked(api: Api, manifests: Sequence[Object], cluster: str) -> list[Object]:
    """All that can be said without a write: names, owners, kinds that the server has, namespaces where they belong."""
    objects = check_objects(manifests)
    kinds = {
        (thing["apiVersion"], thing["kind"]): api.resource(thing["apiVersion"], thing["kind"]) for thing in objects
    }
    if missing := [kind for kind, resource in kinds.items() if resource is None]:
        raise refusal.kinds_missing(missing, where=api.where)
    mistakes = [m for thing in objects if (m := _misplaced(thing, kinds[thing["apiVersion"], thing["kind"]], cluster))]
    if mistakes:
        raise UsageError("; ".join(mistakes), where="manifests", do="render the manifests again: heliostat render")
    return objects


def _misplaced(thing: Object, resource: Resource | None, cluster: str) -> str:
    ref, owner = ref_of(thing), owner_of(thing)
    if owner not in (None, cluster):
        return f"{ref} is labelled as the cluster {owner}'s, not {cluster}'s"
    if resource is not None and resource.namespaced and not ref.namespace:
        return f"{ref} has no metadata.namespace"
    if resource is not None and not resource.namespaced and ref.namespace:
        return f"{ref} belongs to no namespace: leave metadata.namespace out"
    return ""


def _new_namespaces(api: Api, objects: Iterable[Object]) -> frozenset[str]:
    """Namespaces that the apply itself will make. Any other that is missing is refused in the dry run."""
    objects = list(objects)
    made_here = {thing["metadata"]["name"] for thing in objects if thing["kind"] == "Namespace"}
    new = set()
    for name in namespaces_of(objects):
        if name in made_here and api.get(Ref("v1", "Namespace", "", name)) is None:
            new.add(name)
    return frozenset(new)


def _step(api: Api, thing: Object, cluster: str, *, new_namespaces: frozenset[str], take_over: bool) -> Step:
    ref = ref_of(thing)
    if ref.namespace in new_namespaces:
        return Step(Change("create", ref, note=NEW_NAMESPACE), thing)
    tried = _attempt(api, thing, ref, cluster, take_over=take_over, dry_run=True)
    if tried.kept:
        return Step(Change("keep", ref, note="it was there before us: used as it is"))
    if tried.live is None:
        return Step(Change("create", ref), thing)
    change = compare(ref, tried.live, tried.result)
    if change.verb == "same" and tried.conflicts:
        change = replace(change, verb="change")
    elif not change.fields and not tried.conflicts and only_hold_differs(tried.live, tried.result):
        change = Change("same", ref)
    return Step(replace(change, conflicts=tried.conflicts), thing)


@dataclass(frozen=True)
class _Tried:
    """`live` is what was there before, None where nothing was; `kept` marks a namespace that is not ours to change."""

    live: Object | None
    result: Object
    conflicts: tuple[Ownership, ...] = ()
    kept: bool = False


def _attempt(api: Api, thing: Object, ref: Ref, cluster: str, *, take_over: bool, dry_run: bool) -> _Tried:
    """One apply, decided on what is there now; decided again when somebody else writes in between.

    A dry run goes on in spite of conflicts and reports them. Otherwise they are raised as FieldConflict.
    """
    raced: WriteRaced | None = None
    for count in range(RACES):
        if raced is not None:
            api.pause(count)
        live = api.get(ref)
        if live is not None and ref.kind == "Namespace" and owner_of(live) is None:
            return _Tried(live, live, kept=True)
        if live is not None:
            _refuse_strangers(live, thing, cluster, take_over=take_over)
            if live["metadata"].get("deletionTimestamp"):  # what is written to it now would go with it
                raise KubernetesError("it is being deleted", where=str(ref), do="wait until it is gone, then run again")
        wanted = with_live_scale(thing, live)
        conflicts: tuple[Ownership, ...] = ()
        try:
            try:
                result = api.apply(wanted, ref, force=take_over, dry_run=dry_run)
            except Conflicted as error:
                if not autoscaler_only(wanted, error.owners):
                    if not dry_run:
                        held = [(str(ref), owned) for owned in error.owners]
                        raise refusal.field_conflict(
                            held, outcome="it came in between; what stood before it is applied"
                        ) from error
                    conflicts = error.owners
                result = api.apply(wanted, ref, force=True, dry_run=dry_run)
        except WriteRaced as error:
            raced = error
            continue
        return _Tried(live, result, conflicts)
    raise raced or WriteRaced("it changes faster than it can be written", where=str(ref))


def _refuse_strangers(live: Object, wanted: Object, cluster: str, *, take_over: bool) -> None:
    ref, owner = ref_of(wanted), owner_of(live)
    if owner == cluster and home_of(live) != home_of(wanted):
        place = f"of the same name in namespace {home_of(live)}"
        raise NotOurs(f"{ref} belongs to the cluster {place}", do="give this cluster another name")
    if owner == cluster or (owner is None and take_over):
        return
    if owner is None:
        raise NotOurs(f"{ref} exists and is not {cluster}'s", do="rename the cluster, or take it over: --take-over")
    raise NotOurs(f"{ref} belongs to the cluster {owner}, not to {cluster}", do="give this cluster another name")


def _all_not_ours(errors: Sequence[NotOurs]) -> NotOurs:
    return NotOurs("; ".join(error.what for error in errors), do=" or ".join(dict.fromkeys(e.do for e in errors)))


def _put(api: Api, step: Step, planned: Plan) -> None:
    _attempt(api, _wanted(step), step.change.ref, planned.cluster, take_over=planned.take_over, dry_run=False)


def _wanted(step: Step) -> Object:
    if step.wanted is None:
        raise ValueError(f"{step.change.ref} is not to be applied")
    return step.wanted


def _delete(api: Api, ref: Ref, cluster: str) -> str | None:
    """Delete the object if it is still ours. Returns its uid; None where there was nothing to delete."""
    raced: WriteRaced | None = None
    for count in range(RACES):
        if raced is not None:
            api.pause(count)
        live = api.get(ref)
        if live is None or not is_ours(live, cluster):
            return None
        uid: str = live["metadata"]["uid"]
        if live["metadata"].get("deletionTimestamp"):
            return uid
        try:
            api.delete(live, ref)
        except WriteRaced as error:
            raced = error
            continue
        return uid
    raise raced or WriteRaced("it changes faster than it can be deleted", where=str(ref))


def _wait_gone(
    api: Api, uids: dict[Ref, str | None], deadline: float, clock: Clock, progress: Progress
) -> Iterator[Ref]:
    waiting = {ref: uid for ref, uid in uids.items() if uid is not None}
    yield from (ref for ref in uids if ref not in waiting)
    told = 0
    for count in range(1, 10**6):
        left: dict[Ref, Object] = {}
        for ref, uid in waiting.items():
            live = api.get(ref)
            if live is None or live["metadata"]["uid"] != uid:
                yield ref
            else:
                left[ref] = live
        if not left:
            return
        if clock.monotonic() > deadline:
            raise _still_there(left)
        if len(left) != told:
            told = len(left)
            progress(f"waiting for {told} to go: {', '.join(map(str, left))}")
        waiting = {ref: uid for ref, uid in waiting.items() if ref in left}
        api.pause(count)


def _still_there(left: dict[Ref, Object]) -> ClusterError:
    held = []
    for ref, live in left.items():
        finalizers = ", ".join(live["metadata"].get("finalizers") or []) or "no finalizer"
        held.append(f"{ref} ({finalizers})")
    return ClusterError(
        f"still there: {'; '.join(held)}",
        do="see that the controllers which own these finalizers run, then run it again",
    )


class _Count:
    """Says how far it is."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, what: str, ref: Ref) -> None:
        self._done += 1
        self._progress(f"{what} {ref} ({self._done} of {self._total})")
