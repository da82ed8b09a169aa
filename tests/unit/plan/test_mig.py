"""Packing against brute force: every place, every start, every order, on small cases."""

from __future__ import annotations

import random
from functools import cache
from itertools import permutations

import pytest

from heliostat.definition.model import WorkerGroup
from heliostat.errors import UsageError
from heliostat.plan.catalogue import load
from heliostat.plan.mig import WHOLE, Card, Packing, Shape, Tenant, groups_of, layouts, pack, shape_of, share_of

GIB = 2**30
KINDS = ("A100-40GB", "A100-80GB", "H100-80GB", "RTX-PRO-6000-BSE")
CATALOGUE = load()


# --- brute force: it knows the rules of a card, and nothing of layouts or programs


class Brute:
    """For each card and each set of models whether it goes onto the card, by trying every profile at every legal start
    for one model after the other; then every way to deal the models out over the cards."""

    def __init__(self, tenants: tuple[Tenant, ...], cards: tuple[Card, ...]) -> None:
        self.tenants, self.cards = tenants, cards

    def best(self) -> tuple[int, int]:
        """Models left out and cards used: the least of both, in that order."""
        everyone = (1 << len(self.tenants)) - 1
        fits = {card: [self.fits(card, some) for some in range(everyone + 1)] for card in set(self.cards)}

        @cache
        def deal(card: int, rest: int) -> tuple[int, int]:
            if card == len(self.cards):
                return rest.bit_count(), 0
            answers = [deal(card + 1, rest)]
            some = rest
            while some:  # every subset of the rest but the empty one
                if fits[self.cards[card]][some]:
                    out, used = deal(card + 1, rest & ~some)
                    answers.append((out, used + 1))
                some = (some - 1) & rest
            return min(answers)

        return deal(0, everyone)

    def fits(self, card: Card, some: int) -> bool:
        inside = [tenant for index, tenant in enumerate(self.tenants) if some >> index & 1]
        device, shape = CATALOGUE.accelerator(card.accelerator), shape_of(CATALOGUE, card.accelerator)
        if len(inside) == 1 and not card.taken and inside[0].memory <= device.usable_bytes:
            return True  # without MIG

        def place(index: int, mask: int, compute: int) -> bool:
            if index == len(inside):
                return True
            for profile in shape.profiles:
                share = profile.compute_slices / profile.gpu_compute_slices
                if inside[index].memory > profile.usable_bytes(device) or inside[index].compute > share + 1e-9:
                    continue
                if compute + profile.compute_slices > shape.compute:
                    continue
                for start in profile.starts:
                    bits = ((1 << profile.memory_slices) - 1) << start
                    if not mask & bits and place(index + 1, mask | bits, compute + profile.compute_slices):
                        return True
            return False

        return len(inside) <= shape.memory and place(0, *self.taken(card, shape))

    @staticmethod
    def taken(card: Card, shape: Shape) -> tuple[int, int]:
        """Memory slices in use as bits, and compute slices in use."""
        mask = compute = 0
        for start, name in card.taken:
            profile = shape.profile(name)
            mask |= ((1 << profile.memory_slices) - 1) << start
            compute += profile.compute_slices
        return mask, compute


def check_legal(packing: Packing, tenants: tuple[Tenant, ...], cards: tuple[Card, ...]) -> None:
    """Every slice at a legal start, none over another, in the order given; every tenant once, where it fits."""
    by_name = {tenant.name: tenant for tenant in tenants}
    placed = [name for card in packing.cards for place in card.places for name in place.tenants]
    assert sorted([*placed, *packing.unplaced, *(name for name, _ in packing.refused)]) == sorted(by_name)
    for card in packing.cards:
        shape, device = shape_of(CATALOGUE, card.card.accelerator), CATALOGUE.accelerator(card.card.accelerator)
        assert cards[card.index] == card.card
        mask, compute = Brute.taken(card.card, shape)
        for place in card.places:
            if place.profile == WHOLE:
                assert len(card.places) == 1
                assert not card.card.taken
                memory, share = device.usable_bytes, 1.0
            else:
                profile = shape.profile(place.profile)
                bits = ((1 << profile.memory_slices) - 1) << place.start
                assert place.start in profile.starts
                assert not mask & bits
                mask, compute = mask | bits, compute + profile.compute_slices
                assert compute <= shape.compute
                memory, share = profile.usable_bytes(device), profile.compute_slices / profile.gpu_compute_slices
            inside = [by_name[name] for name in place.tenants]
            assert sum(tenant.memory for tenant in inside) <= memory
            assert sum(tenant.compute for tenant in inside) <= share + 1e-6
            assert len(inside) == 1 or all(tenant.isolation == "shared" for tenant in inside)


def case(seed: int, *, most_cards: int = 4, most_tenants: int = 10) -> tuple[tuple[Tenant, ...], tuple[Card, ...]]:
    """Cards of one or two kinds, some with slices that stay; models from a sliver to a whole card."""
    draw = random.Random(seed)
    kinds = draw.sample(KINDS, draw.choice([1, 1, 2]))
    cards = []
    for _ in range(draw.randint(1, most_cards)):
        kind = draw.choice(kinds)
        taken: tuple[tuple[int, str], ...] = ()
        if draw.random() < 0.4:
            layout = draw.choice(layouts(shape_of(CATALOGUE, kind)))
            taken = tuple(sorted(draw.sample(layout, draw.randint(1, min(2, len(layout))))))
        cards.append(Card(kind, taken))
    size = max(CATALOGUE.accelerator(card.accelerator).usable_gib for card in cards)
    tenants = tuple(
        Tenant(
            f"m{i}",
            round(size * draw.choice([0.05, 0.1, 0.2, 0.24, 0.4, 0.48, 0.9]) * GIB),
            draw.choice([0, 0, 0.1, 0.25, 0.4, 0.55]),
        )
        for i in range(draw.randint(1, most_tenants))
    )
    return tenants, tuple(cards)


@pytest.mark.parametrize("seed", range(0, 200, 10))
def test_a_packing_is_as_good_as_the_best_that_brute_force_finds(seed: int) -> None:
    """A sample; tests/benchmarks/mig.py runs all 200."""
    tenants, cards = case(seed, most_cards=3, most_tenants=7)
    packing = pack(tenants, cards, CATALOGUE)
    check_legal(packing, tenants, cards)
    assert packing.optimal
    assert (len(packing.unplaced) + len(packing.refused), packing.used) == Brute(tenants, cards).best()


def test_a_slice_in_the_wrong_place_costs_a_larger_one() -> None:
    """A 1g at 0 blocks the 4g, which starts at 0 only."""
    tenants = (Tenant("large", 36 * GIB, 4 / 7),)
    clear = pack(tenants, (Card("A100-80GB", ((6, "1g.10gb"),)),), CATALOGUE)
    blocked = pack(tenants, (Card("A100-80GB", ((0, "1g.10gb"),)),), CATALOGUE)
    assert [place.profile for place in clear.cards[0].places] == ["4g.40gb"]
    assert blocked.unplaced == ()
    assert blocked.refused[0][0] == "large"


def test_slices_made_large_first_at_their_starts_each_fit_at_their_turn() -> None:
    for kind in KINDS:
        shape = shape_of(CATALOGUE, kind)
        for layout in layouts(shape):
            order = sorted(layout, key=lambda item: (-shape.profile(item[1]).memory_slices, item[0]))
            mask = 0
            for start, name in order:
                profile = shape.profile(name)
                bits = ((1 << profile.memory_slices) - 1) << start
                assert start in profile.starts
                assert not mask & bits
                mask |= bits


def test_layouts_are_all_that_search_in_any_order_finds() -> None:
    """Adding slices in every order and at every start ends in the same maximal sets of profiles."""
    for kind in ("A100-80GB", "RTX-PRO-6000-BSE"):
        shape = shape_of(CATALOGUE, kind)

        @cache
        def ends(mask: int, compute: int, shape: Shape = shape) -> frozenset[tuple[str, ...]]:
            found: set[tuple[str, ...]] = set()
            for profile in shape.profiles:
                for start in profile.starts:
                    bits = ((1 << profile.memory_slices) - 1) << start
                    if not mask & bits and compute + profile.compute_slices <= shape.compute:
                        after = ends(mask | bits, compute + profile.compute_slices)
                        found |= {tuple(sorted((*rest, profile.profile))) for rest in after}
            return frozenset(found or {()})

        every = ends(0, 0)
        ours = {tuple(sorted(name for _, name in layout)) for layout in layouts(shape)}
        assert {names for names in every if all(shape.profile(n).most >= names.count(n) for n in names)} == ours


def test_models_that_may_share_fill_whole_cards_and_nobody_isolated_is_among_them() -> None:
    tenants = (
        *(Tenant(f"e{i}", int(1.3 * GIB), 0.02, "shared") for i in range(20)),
        Tenant("own", 3 * GIB, 0.1, "slice"),
    )
    cards = (Card("L4"), Card("L4"), Card("A100-40GB"), Card("A100-40GB"))
    packing = pack(tenants, cards, CATALOGUE)
    check_legal(packing, tenants, cards)
    assert not packing.unplaced
    assert packing.used <= 2
    assert packing.optimal


def test_what_no_card_holds_is_refused_with_the_reason() -> None:
    packing = pack([Tenant("huge", 200 * GIB)], [Card("A100-80GB")], CATALOGUE)
    assert packing.refused == (("huge", "200.0 GiB are more than the largest place has (78.8 GiB)"),)
    assert packing.optimal


def test_equal_names_and_impossible_slices_are_refused() -> None:
    with pytest.raises(UsageError, match="twice"):
        pack([Tenant("a", GIB), Tenant("a", GIB)], [Card("L4")], CATALOGUE)
    with pytest.raises(UsageError, match="beside the others"):
        pack([Tenant("a", GIB)], [Card("A100-80GB", ((0, "4g.40gb"), (0, "1g.10gb")))], CATALOGUE)
    with pytest.raises(UsageError, match="no MIG profile"):
        pack([Tenant("a", GIB)], [Card("A100-80GB", ((0, "9g.90gb"),))], CATALOGUE)


def test_the_groups_of_a_packing_are_groups_of_a_definition() -> None:
    tenants = [Tenant(f"m{i}", 9 * GIB, 0.1) for i in range(9)]
    packing = pack(tenants, [Card("A100-80GB")] * 3, CATALOGUE)
    groups = groups_of(packing, CATALOGUE, instance="p4de.24xlarge")
    made = {name: WorkerGroup.model_validate(group) for name, group in groups.items()}
    assert sum(group.nodes.high for group in made.values()) == 9
    assert all(group.mig and group.gpus == 1 for group in made.values())
    assert set(share_of(packing).values()) == {1.0}


def test_a_packing_does_not_hang_on_the_order_of_its_models() -> None:
    tenants, cards = case(4, most_cards=2, most_tenants=4)
    answers = {
        (p.used, len(p.unplaced)) for order in permutations(tenants[:3]) for p in [pack(order, cards, CATALOGUE)]
    }
    assert len(answers) == 1
