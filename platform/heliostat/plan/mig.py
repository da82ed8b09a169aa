"""Many small models on few cards: MIG slices with their exact places, and sharing where no isolation is asked for.

A card in MIG mode offers slices; each takes memory slices from one of its legal starts on, none may overlap, and the
compute slices in use may not exceed the card's (`MigProfile`). A card without MIG is one place that several models
may share, in memory and in share of compute; so is a slice.

The optimum is found in two steps, both exact:
1. *Layouts* (`layouts`): every maximal set of slices that a card can still take, found by search. A card has a few
   dozen, however many models there are; what is the same for the models is one layout.
2. *Choice* (`pack`): how many cards of a kind take each layout, and which class of models goes to which kind of
   place: an integer program of a few dozen variables, solved by HiGHS (scipy's `milp`). Models with equal wants are
   one class, so a thousand models are no harder than ten. Places that are shared are filled by *fillings*, generated
   as in Gilmore and Gomory (1961); where the program over the fillings found is as good as the bound that its
   relaxation proves, the answer is optimal, else `Packing.bound` says how far off it may be.

Pure, and deterministic: the same models and cards give the same plan. Needs scipy, imported when it runs.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from heliostat.errors import UsageError
from heliostat.plan.catalogue import Catalogue, MigProfile

Isolation = Literal["slice", "shared"]

WHOLE = "whole"
"""The name of the place that a card without MIG is."""


@dataclass(frozen=True)
class Tenant:
    """A small model: bytes that its process needs, its share of a whole card's compute (0: any will do).

    isolation: `slice`, a MIG instance (or a whole card) of its own; `shared`, beside others that share too.
    """

    name: str
    memory: int
    compute: float = 0.0
    isolation: Isolation = "slice"

    def __post_init__(self) -> None:
        if self.memory < 1 or not 0 <= self.compute <= 1:
            raise UsageError(
                f"{self.name} needs {self.memory} bytes and {self.compute:g} of a card",
                do="memory above 0, compute from 0 to 1 of a whole card",
            )


@dataclass(frozen=True)
class Card:
    """A card that is there or may be rented: its kind, and slices that exist already and stay: (start, profile)."""

    accelerator: str
    taken: tuple[tuple[int, str], ...] = ()
    mig: bool = True


@dataclass(frozen=True)
class Place:
    """A slice to be made, or the whole card (`profile` is WHOLE), and who goes into it."""

    start: int
    profile: str
    tenants: tuple[str, ...]


@dataclass(frozen=True)
class PackedCard:
    """`places` in the order in which they are to be made: the largest first, then by start.

    With the starts given every order is legal. Without them the driver chooses, and a small slice in the wrong place
    keeps a large one out: so the commands name them.
    """

    index: int
    card: Card
    places: tuple[Place, ...]

    @property
    def commands(self) -> tuple[str, ...]:
        """What makes the slices by hand, on the card's own machine; nothing for a whole card."""
        made = [f"{place.profile}:{place.start}" for place in self.places if place.profile != WHOLE]
        if not made:
            return ()
        return (f"nvidia-smi -i {self.index} -mig 1", f"nvidia-smi mig -i {self.index} -cgi {','.join(made)} -C")


@dataclass(frozen=True)
class Packing:
    """`unplaced` models found no place; `refused` fit on no place of any card, with the reason.

    `optimal`: no plan places more models, nor as many on fewer cards. `bound`: cards that are needed at least.
    """

    cards: tuple[PackedCard, ...]
    unplaced: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    optimal: bool
    bound: int

    @property
    def used(self) -> int:
        return len(self.cards)


# --- step 1: what a card can take


@dataclass(frozen=True)
class Shape:
    """What one kind of card can be cut into: profiles by name, and the card's own size."""

    profiles: tuple[MigProfile, ...]
    compute: int
    memory: int

    def profile(self, name: str) -> MigProfile:
        for profile in self.profiles:
            if profile.profile == name:
                return profile
        known = ", ".join(profile.profile for profile in self.profiles)
        raise UsageError(f"{name!r} is no MIG profile of that card", do=f"one of: {known}" if known else "it has none")


Slices = tuple[tuple[int, str], ...]
"""(start, profile) of each slice, by start."""


@lru_cache(maxsize=512)
def layouts(shape: Shape, taken: Slices = ()) -> tuple[Slices, ...]:
    """Every set of slices that a card can take beside those that it has, and to which none can be added.

    Of several that offer the same profiles one stays. A card without profiles has none. Raises UsageError where the
    slices that are there already break the card's rules.
    """
    used, compute = _occupied(shape, taken)
    found: dict[tuple[str, ...], Slices] = {}
    places = [
        (start, profile)
        for profile in sorted(shape.profiles, key=lambda p: (-p.memory_slices, -p.compute_slices, p.profile))
        for start in profile.starts
    ]

    def grow(first: int, chosen: Slices, used: int, compute: int, counts: Counter[str]) -> None:
        open_ = False
        for index, (start, profile) in enumerate(places):
            mask = _mask(start, profile)
            if used & mask or compute + profile.compute_slices > shape.compute:
                continue
            if counts[profile.profile] >= profile.most:
                continue
            open_ = True
            if index < first:
                continue
            more = Counter(counts)
            more[profile.profile] += 1
            grow(index + 1, (*chosen, (start, profile.profile)), used | mask, compute + profile.compute_slices, more)
        if not open_ and chosen:
            found.setdefault(tuple(sorted(name for _, name in chosen)), tuple(sorted(chosen)))

    grow(0, (), used, compute, Counter(name for _, name in taken))
    return tuple(found.values())


def _occupied(shape: Shape, taken: Slices) -> tuple[int, int]:
    """Memory slices in use as bits, and compute slices in use."""
    used = compute = 0
    for start, name in taken:
        profile = shape.profile(name)
        mask = _mask(start, profile)
        if start not in profile.starts or used & mask:
            raise UsageError(
                f"{name} at {start} does not fit beside the others", do="give slices as nvidia-smi shows them"
            )
        used, compute = used | mask, compute + profile.compute_slices
    if compute > shape.compute:
        raise UsageError(
            f"{compute} compute slices are taken of {shape.compute}", do="give slices as nvidia-smi shows them"
        )
    return used, compute


def _mask(start: int, profile: MigProfile) -> int:
    return ((1 << profile.memory_slices) - 1) << start


# --- step 2: which layouts, and who goes where


@dataclass(frozen=True)
class _Room:
    """A kind of place: a profile of a kind of card, or a whole one. Capacity in bytes and in shares of that card."""

    accelerator: str
    profile: str
    memory: int
    compute: float

    def takes(self, tenant: Tenant) -> bool:
        return tenant.memory <= self.memory and tenant.compute <= self.compute + 1e-9


@dataclass(frozen=True)
class _Pattern:
    """One way to use one card of a class: how many rooms of each kind it gives."""

    klass: int
    slices: Slices
    rooms: tuple[tuple[_Room, int], ...]


def pack(tenants: Sequence[Tenant], cards: Sequence[Card], catalogue: Catalogue, *, limit_s: float = 20.0) -> Packing:
    """Places as many models as can be on the cards given, on as few cards as that takes, in the smallest slices.

    limit_s: for the solver, in sum; past it the best plan found is given, not `optimal`. Raises UsageError for cards
    that the catalogue does not know, and for two models of one name.
    """
    names = Counter(tenant.name for tenant in tenants)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UsageError(f"{len(twice)} names are there twice, such as {twice[0]!r}", do="give each model its own name")
    classes = _card_classes(cards)
    patterns = [pattern for index, card in enumerate(classes) for pattern in _patterns(index, card, catalogue)]
    rooms = sorted(
        {room for pattern in patterns for room, _ in pattern.rooms},
        key=lambda r: (r.memory, r.compute, r.accelerator, r.profile),
    )
    refused = tuple((t.name, _why_not(t, rooms)) for t in tenants if not any(room.takes(t) for room in rooms))
    out = {name for name, _ in refused}
    rest = [tenant for tenant in tenants if tenant.name not in out]
    if not rest:
        return Packing((), (), refused, True, 0)
    program = _Program(rest, patterns, rooms, [len(members) for members in classes.values()], limit_s)
    return program.solve(list(classes.values()), cards, refused)


def _card_classes(cards: Sequence[Card]) -> dict[Card, list[int]]:
    """Cards that are alike, with their indices."""
    classes: dict[Card, list[int]] = {}
    for index, card in enumerate(cards):
        alike = Card(card.accelerator, tuple(sorted(card.taken)), card.mig)
        classes.setdefault(alike, []).append(index)
    return classes


def shape_of(catalogue: Catalogue, accelerator: str) -> Shape:
    """Without profiles where the card has no MIG."""
    profiles = catalogue.slices(accelerator)
    if not profiles:
        return Shape((), 0, 0)
    return Shape(profiles, profiles[0].gpu_compute_slices, profiles[0].gpu_memory_slices)


def _patterns(klass: int, card: Card, catalogue: Catalogue) -> Iterable[_Pattern]:
    device = catalogue.accelerator(card.accelerator)
    shape = shape_of(catalogue, device.name)
    if not card.taken:
        yield _Pattern(klass, (), ((_Room(device.name, WHOLE, device.usable_bytes, 1.0), 1),))
    if not card.mig and not card.taken:
        return
    for slices in layouts(shape, card.taken):
        counts = Counter(name for _, name in slices)
        rooms = tuple((_room(shape.profile(name), catalogue), count) for name, count in sorted(counts.items()))
        yield _Pattern(klass, slices, rooms)


def _room(profile: MigProfile, catalogue: Catalogue) -> _Room:
    device = catalogue.accelerator(profile.accelerator)
    share = profile.compute_slices / profile.gpu_compute_slices
    return _Room(device.name, profile.profile, profile.usable_bytes(device), share)


def _why_not(tenant: Tenant, rooms: Sequence[_Room]) -> str:
    if not rooms:
        return "there is no card with a free place"
    most = max(room.memory for room in rooms)
    if tenant.memory > most:
        return f"{tenant.memory / 2**30:.1f} GiB are more than the largest place has ({most / 2**30:.1f} GiB)"
    return f"no place has {tenant.compute:.0%} of a card's compute and {tenant.memory / 2**30:.1f} GiB"


@dataclass(frozen=True)
class _Filling:
    """Shared tenants in one room: how many of each class."""

    room: int
    counts: tuple[tuple[int, int], ...]


class _Program:
    """The integer program. Variables: x (cards that take a pattern), y (tenants of a class alone in a kind of room),
    z (rooms filled with a filling).

    Rows: no more patterns than cards of a class; no more rooms used than patterns give; no tenant twice.
    First the most tenants placed, then the fewest cards, then the least memory set aside.
    """

    def __init__(
        self, tenants: Sequence[Tenant], patterns: Sequence[_Pattern], rooms: Sequence[_Room], cards: Sequence[int],
        limit_s: float,
    ) -> None:  # fmt: skip
        self.patterns, self.rooms, self.cards, self.limit_s = patterns, rooms, cards, limit_s
        self.alone = _classes([t for t in tenants if t.isolation == "slice"], rooms)
        self.sharing = _classes([t for t in tenants if t.isolation == "shared"], rooms)
        self.fillings = [
            filling
            for index, (want, members) in enumerate(self.sharing)
            for room, place in enumerate(rooms)
            if place.takes(want) and (filling := _greedy(room, place, [(index, want, len(members))])) is not None
        ]
        self.fillings += _first_fit(self.sharing, rooms)
        self.fillings = list(dict.fromkeys(self.fillings))

    # Columns: x, then y (class by room), then z, then u (tenants of a class that are left out).

    def solve(self, members: list[list[int]], cards: Sequence[Card], refused: tuple[tuple[str, str], ...]) -> Packing:
        bound, proved = self._generate()
        values, optimal, used = self._integers()
        packing = self._read(values, members, cards)
        enough = not packing.unplaced and packing.used <= bound if self.sharing else optimal
        exact = optimal and (enough or proved)
        return Packing(packing.cards, packing.unplaced, refused, exact, max(bound, used if exact else 0))

    def _columns(self) -> tuple[int, int, int, int]:
        x, y = len(self.patterns), len(self.alone) * len(self.rooms)
        return x, y, len(self.fillings), len(self.alone) + len(self.sharing)

    def _rows(self) -> tuple[Any, Any, Any]:  # Any: scipy's arrays
        """A x <= b for cards and rooms; = for tenants (placed or left out)."""
        import numpy as np
        from scipy.sparse import lil_matrix

        x, y, z, u = self._columns()
        room_index = {room: index for index, room in enumerate(self.rooms)}
        rows = lil_matrix((len(self.cards) + len(self.rooms) + u, x + y + z + u))
        low, high = np.full(rows.shape[0], -np.inf), np.zeros(rows.shape[0])
        for column, pattern in enumerate(self.patterns):
            rows[pattern.klass, column] = 1
            for place, count in pattern.rooms:
                rows[len(self.cards) + room_index[place], column] = -count
        high[: len(self.cards)] = self.cards
        base = len(self.cards) + len(self.rooms)
        for index in range(len(self.alone)):
            for room in range(len(self.rooms)):
                rows[len(self.cards) + room, x + index * len(self.rooms) + room] = 1
                rows[base + index, x + index * len(self.rooms) + room] = 1
        for index, filling in enumerate(self.fillings):
            rows[len(self.cards) + filling.room, x + y + index] = 1
            for klass, count in filling.counts:
                rows[base + len(self.alone) + klass, x + y + index] = count
        for index, (_, members) in enumerate((*self.alone, *self.sharing)):
            rows[base + index, x + y + z + index] = 1
            low[base + index] = high[base + index] = len(members)
        # A filling may hold more than there are: what is over is no tenant.
        low[base + len(self.alone) :] = [len(m) for _, m in self.sharing]
        high[base + len(self.alone) :] = np.inf
        return rows.tocsr(), low, high

    def _upper(self) -> Any:  # Any: an array
        import numpy as np

        x, y, z, u = self._columns()
        upper = np.full(x + y + z + u, np.inf)
        for column, pattern in enumerate(self.patterns):
            upper[column] = self.cards[pattern.klass]
        for index, (want, members) in enumerate(self.alone):
            for room, place in enumerate(self.rooms):
                upper[x + index * len(self.rooms) + room] = len(members) if place.takes(want) else 0
        for index, (_, members) in enumerate((*self.alone, *self.sharing)):
            upper[x + y + z + index] = len(members)
        return upper

    def _costs(self, *, left: float, card: float, memory: float) -> Any:  # Any: an array
        import numpy as np

        x, y, z, u = self._columns()
        sizes = [room.memory / 2**30 for room in self.rooms]
        costs = np.zeros(x + y + z + u)
        costs[:x] = card
        costs[x : x + y] = [memory * sizes[room] for _ in self.alone for room in range(len(self.rooms))]
        costs[x + y : x + y + z] = [memory * sizes[filling.room] for filling in self.fillings]
        costs[x + y + z :] = left
        return costs

    def _generate(self) -> tuple[int, bool]:
        """Adds fillings until none lowers the relaxation; gives the cards that are needed at least, and whether every
        filling that matters is there (True without sharing: then the integer program is the whole problem)."""
        if not self.sharing:
            return 0, True
        import numpy as np
        from scipy.optimize import linprog
        from scipy.sparse import vstack

        started, known = time.monotonic(), set(self.fillings)
        left = 10.0 * (sum(self.cards) + 1)
        while True:
            rows, low, high = self._rows()
            upper_rows = [i for i in range(rows.shape[0]) if math.isinf(low[i])]
            tenant_rows = [i for i in range(rows.shape[0]) if not math.isinf(low[i])]
            equal = [i for i in tenant_rows if low[i] == high[i]]
            covered = [i for i in tenant_rows if low[i] != high[i]]
            a_ub = vstack([rows[upper_rows], -rows[covered]]) if covered else rows[upper_rows]
            b_ub = np.concatenate([high[upper_rows], -low[covered]])
            found = linprog(
                self._costs(left=left, card=1.0, memory=0.0), A_ub=a_ub, b_ub=b_ub,
                A_eq=rows[equal] if equal else None, b_eq=low[equal] if equal else None,
                bounds=[(0, bound) for bound in self._upper()], method="highs",
            )  # fmt: skip
            duals = found.ineqlin.marginals
            room_prices = [-duals[upper_rows.index(len(self.cards) + room)] for room in range(len(self.rooms))]
            base = len(self.cards) + len(self.rooms) + len(self.alone)
            worth = [-duals[len(upper_rows) + covered.index(base + klass)] for klass in range(len(self.sharing))]
            fresh = [f for f in self._better(worth, room_prices) if f not in known]
            unplaced = sum(found.x[-(len(self.alone) + len(self.sharing)) :])
            if fresh and time.monotonic() - started > self.limit_s / 2:
                return self._by_volume(), False  # the relaxation proves nothing until no filling is missing
            if not fresh:
                cards = found.fun - left * unplaced
                return math.ceil(cards - 1e-6) if unplaced < 1e-6 else 0, False
            known.update(fresh)
            self.fillings += fresh

    def _by_volume(self) -> int:
        """Cards that are needed for their memory alone, the largest first."""
        rest = sum(member.memory for _, members in (*self.alone, *self.sharing) for member in members)
        sizes = [
            max(room.memory for room, _ in pattern.rooms)
            for klass, count in enumerate(self.cards)
            for pattern in [next(p for p in self.patterns if p.klass == klass)]
            for _ in range(count)
        ]
        needed = 0
        for size in sorted(sizes, reverse=True):
            if rest <= 0:
                break
            rest, needed = rest - size, needed + 1
        return needed

    def _better(self, worth: Sequence[float], room_prices: Sequence[float]) -> list[_Filling]:
        """For each kind of room the filling of the most worth, where that is more than the room costs."""
        found = []
        for room, place in enumerate(self.rooms):
            fits = [
                (klass, want, min(len(members), _most_in(place, want)), worth[klass])
                for klass, (want, members) in enumerate(self.sharing)
                if worth[klass] > 1e-9 and place.takes(want)
            ]
            if not fits:
                continue
            counts, value = _knapsack(place, fits)
            if value > room_prices[room] + 1e-7 and counts:
                found.append(_Filling(room, counts))
        return found

    def _integers(self) -> tuple[Any, bool, int]:  # Any: an array of whole numbers
        """The three aims, one after the other: each holds the ones before it."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint

        rows, low, high = self._rows()
        x, y, z, u = self._columns()
        upper = self._upper()
        whole = np.ones(x + y + z + u)
        aims = (
            self._costs(left=1.0, card=0.0, memory=0.0),
            self._costs(left=0.0, card=1.0, memory=0.0),
            self._costs(left=0.0, card=0.0, memory=1.0),
        )[: 2 if self.sharing else 3]  # with fillings the last aim is slow, and decides nothing that is paid for
        constraints = [LinearConstraint(rows, low, high)]
        optimal, values, used = True, None, 0
        for index, aim in enumerate(aims):
            found = _milp(
                aim, constraints=constraints, bounds=Bounds(np.zeros_like(upper), upper), integrality=whole,
                options={"time_limit": self.limit_s / 4, "mip_rel_gap": 0.0},
            )  # fmt: skip
            if found.x is None:
                optimal = False
                break
            optimal = optimal and (found.status == 0 or index == 2)  # the third aim is a nicety
            values = np.rint(found.x).astype(int)
            reached = float(aim @ values)
            used = int(reached) if index == 1 else used
            constraints.append(LinearConstraint(aim[np.newaxis, :], -np.inf, reached + 1e-6))
        assert values is not None  # leaving everything out is always a plan  # noqa: S101
        return values, optimal, used

    def _read(self, values: Any, members: list[list[int]], cards: Sequence[Card]) -> Packing:
        """From counts to names: models of a class are alike, and so are cards of a class."""
        x, y, _z, _ = self._columns()
        waiting = [list(tenants) for _, tenants in self.alone]
        sharers = [list(tenants) for _, tenants in self.sharing]
        content: dict[_Room, list[tuple[str, ...]]] = {room: [] for room in self.rooms}
        for index in range(len(self.alone)):
            for room, place in enumerate(self.rooms):
                for _ in range(values[x + index * len(self.rooms) + room]):
                    content[place].append((waiting[index].pop(0).name,))
        for index, filling in enumerate(self.fillings):
            for _ in range(values[x + y + index]):
                group = [
                    sharers[k].pop(0).name for k, count in filling.counts for _ in range(min(count, len(sharers[k])))
                ]
                if group:
                    content[self.rooms[filling.room]].append(tuple(group))
        free = [list(indices) for indices in members]
        packed = []
        for column, pattern in enumerate(self.patterns):
            for _ in range(values[column]):
                index = free[pattern.klass].pop(0)
                if places := _places(pattern, self.rooms, content):
                    packed.append(PackedCard(index, cards[index], places))
        left = tuple(t.name for group in (*waiting, *sharers) for t in group)
        return Packing(tuple(sorted(packed, key=lambda card: card.index)), left, (), False, 0)


def _milp(*args: Any, **options: Any) -> Any:  # Any: scipy's own
    """scipy's `milp`, with the lines that HiGHS writes to the process's standard output sent to standard error: results
    go to standard output, and JSON must stay whole."""
    from scipy.optimize import milp

    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        return milp(*args, **options)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _places(
    pattern: _Pattern, rooms: Sequence[_Room], content: Mapping[_Room, list[tuple[str, ...]]]
) -> tuple[Place, ...]:
    """Fills the pattern's rooms with what waits for them; rooms for which nobody waits are not made."""
    if not pattern.slices:
        room = pattern.rooms[0][0]
        return (Place(0, WHOLE, content[room].pop(0)),) if content[room] else ()
    by_name = {room.profile: room for room, _ in pattern.rooms}
    made = [
        Place(start, name, content[by_name[name]].pop(0)) for start, name in pattern.slices if content[by_name[name]]
    ]
    size = {room.profile: room.memory for room in rooms}
    return tuple(sorted(made, key=lambda place: (-size[place.profile], place.start)))


def _classes(tenants: Sequence[Tenant], rooms: Sequence[_Room]) -> list[tuple[Tenant, list[Tenant]]]:
    """Tenants whose wants are the same; those alone in a slice are the same where the same rooms suit."""
    groups: dict[object, list[Tenant]] = {}
    for tenant in tenants:
        same: object = (tenant.memory, tenant.compute)
        if tenant.isolation == "slice":
            same = tuple(room.takes(tenant) for room in rooms)
        groups.setdefault(same, []).append(tenant)
    return [(members[0], members) for members in groups.values()]


def _most_in(place: _Room, want: Tenant) -> int:
    by_compute = math.floor(place.compute / want.compute + 1e-9) if want.compute else 10**9
    return min(place.memory // want.memory, by_compute)


def _greedy(room: int, place: _Room, wants: Sequence[tuple[int, Tenant, int]]) -> _Filling | None:
    memory, compute, counts = place.memory, place.compute, []
    for klass, want, count in wants:
        left = _Room(place.accelerator, place.profile, memory, compute)
        fits = min(count, _most_in(left, want))
        if fits > 0:
            counts.append((klass, fits))
            memory, compute = memory - fits * want.memory, compute - fits * want.compute
    return _Filling(room, tuple(counts)) if counts else None


def _first_fit(sharing: Sequence[tuple[Tenant, list[Tenant]]], rooms: Sequence[_Room]) -> list[_Filling]:
    """For each kind of room the fillings of first fit by decreasing size: a plan to begin with."""
    found = []
    for room, place in enumerate(rooms):
        left = [(klass, want, len(members)) for klass, (want, members) in enumerate(sharing) if place.takes(want)]
        left.sort(key=lambda entry: (-_bulk(place, entry[1]), entry[0]))
        while any(count for *_, count in left):
            filling = _greedy(room, place, [(k, w, c) for k, w, c in left if c])
            if filling is None:
                break
            found.append(filling)
            taken = dict(filling.counts)
            left = [(k, w, c - taken.get(k, 0)) for k, w, c in left]
    return found


def _bulk(place: _Room, want: Tenant) -> float:
    """The larger of its two shares of the place."""
    return max(want.memory / place.memory, want.compute / place.compute)


def _knapsack(
    place: _Room, fits: Sequence[tuple[int, Tenant, int, float]]
) -> tuple[tuple[tuple[int, int], ...], float]:
    """The filling of the most worth, within memory and compute: an integer program of two rows."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint

    memory = np.array(
        [[want.memory / place.memory for _, want, _, _ in fits], [want.compute for _, want, _, _ in fits]]
    )
    worth = np.array([value for *_, value in fits])
    most = np.array([count for _, _, count, _ in fits])
    found = _milp(
        -worth,
        constraints=[LinearConstraint(memory, -np.inf, [1.0, place.compute + 1e-9])],
        bounds=Bounds(np.zeros(len(fits)), most),
        integrality=np.ones(len(fits)),
        options={"mip_rel_gap": 0.0, "time_limit": 5.0},
    )
    if found.x is None:
        return (), 0.0
    counts = np.rint(found.x).astype(int)
    while sum(int(c) * f[1].memory for c, f in zip(counts, fits, strict=True)) > place.memory:
        counts[int(np.argmax(counts))] -= 1  # rounding of a float that stood for bytes
    chosen = tuple((f[0], int(c)) for c, f in zip(counts, fits, strict=True) if c)
    return chosen, float(sum(c * f[3] for c, f in zip(counts, fits, strict=True)))


# --- into a definition


def groups_of(packing: Packing, catalogue: Catalogue, *, instance: str | None = None) -> dict[str, dict[str, object]]:
    """Worker groups that hold the packing, as a definition writes them: one for each kind of card and of place.

    A group has one MIG profile, so a node of it is one slice; a card cut into several kinds needs the `mixed` strategy
    of NVIDIA's device plugin, and its groups then share the machine. CPUs and memory are a start, to be changed.
    """
    kinds: dict[tuple[str, str], list[Place]] = {}
    for card in packing.cards:
        for place in card.places:
            kinds.setdefault((card.card.accelerator, place.profile), []).append(place)
    groups: dict[str, dict[str, object]] = {}
    for (accelerator, profile), places in sorted(kinds.items()):
        device = catalogue.accelerator(accelerator)
        group: dict[str, object] = {"role": "serving", "market": "on-demand"}
        group |= {"instance": instance} if instance else {}
        group |= {"accelerator": device.name, "cpus": 2, "memory": "8GiB", "gpus": 1, "nodes": len(places)}
        if profile != WHOLE:
            group["mig"] = profile
        groups[f"{device.name}-{profile}".lower().replace(".", "-")] = group
    return groups


def share_of(packing: Packing) -> dict[str, float]:
    """Of each model its `gpus_per_replica`: 1 where it is alone in its place, else its part of it, rounded down."""
    return {
        tenant: math.floor(1000 / len(place.tenants)) / 1000
        for card in packing.cards
        for place in card.places
        for tenant in place.tenants
    }
