"""MIG packing: 200 random instances against brute force, and 1,000 models over 200 cards.

    python tests/benchmarks/mig.py [instances]

Ends with one line of JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from heliostat.plan.mig import Card, Tenant, pack
from tests.unit.plan.test_mig import CATALOGUE, GIB, KINDS, Brute, case, check_legal


def against_brute_force(count: int) -> dict[str, float]:
    optimal = 0
    ours_s = brute_s = 0.0
    for seed in range(count):
        tenants, cards = case(seed)
        started = time.perf_counter()
        packing = pack(tenants, cards, CATALOGUE)
        middle = time.perf_counter()
        best = Brute(tenants, cards).best()
        brute_s += time.perf_counter() - middle
        ours_s += middle - started
        check_legal(packing, tenants, cards)
        same = (len(packing.unplaced) + len(packing.refused), packing.used) == best
        optimal += same and packing.optimal
        if not same:
            print(f"seed {seed}: {packing.used} cards, {len(packing.unplaced)} left, and brute force {best}")
    print(f"{optimal} of {count} optimal; ours {ours_s:.1f} s, brute force {brute_s:.1f} s in all")
    return {"instances": count, "optimal": optimal, "ours_s": round(ours_s, 2), "brute_s": round(brute_s, 2)}


def large(seed: int, *, share: float) -> dict[str, float]:
    """Every model with its own need: nothing is alike but by chance."""
    draw = random.Random(seed)
    cards = [Card(draw.choice(KINDS)) for _ in range(200)]
    tenants = [
        Tenant(
            f"m{i}",
            int(draw.uniform(0.5, 16) * GIB),
            draw.choice([0, 0.1, 0.2]),
            "shared" if draw.random() < share else "slice",
        )
        for i in range(1000)
    ]
    started = time.perf_counter()
    packing = pack(tenants, cards, CATALOGUE)
    took = time.perf_counter() - started
    check_legal(packing, tuple(tenants), tuple(cards))
    proof = "optimal" if packing.optimal else f"at least {packing.bound}"
    left = len(packing.unplaced) + len(packing.refused)
    print(f"1,000 models, {share:.0%} may share: {took:.2f} s, {packing.used} of 200 cards, {left} left, {proof}")
    return {
        "share": share,
        "seconds": round(took, 2),
        "cards": packing.used,
        "unplaced": len(packing.unplaced),
        "optimal": packing.optimal,
        "bound": packing.bound,
    }


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    small = against_brute_force(count)
    larger = [large(1, share=0.0), large(2, share=0.5)]
    print(json.dumps({"brute_force": small, "thousand": larger}))


if __name__ == "__main__":
    main()
