"""32 publishers and 32 promoters of one model at once, on an S3 server of the benchmark's own.

python tests/benchmarks/registry_contention.py [rounds]

Checks that versions have no gap and no duplicate, and that each round of promoters has one winner and 31 who are told
who it was. Beside it, in turns: publishers that come back at once after losing a number (the way it was). The last line
is JSON: seconds by round, `pause_ratio` (with the pause over without), conflicts named.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from heliostat.errors import AliasMoved
from heliostat.registry import artifacts, list_versions, move_alias, must_get_alias, publish
from heliostat.store import Store
from tests.benchmarks.registry_faults import own_store
from tests.faults.kill_points import META, small

WRITERS = 32


def publish_at_once(store: Store, *, pause_s: float) -> float:
    """Seconds until all have their version."""
    model, before = f"m-{uuid.uuid4().hex[:12]}", artifacts.LONGEST_CLAIM_PAUSE_S
    artifacts.LONGEST_CLAIM_PAUSE_S = pause_s
    begun = time.monotonic()
    try:
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda n: publish(store, name=model, files=small(n), metadata=META), range(WRITERS)))
    finally:
        artifacts.LONGEST_CLAIM_PAUSE_S = before
    took_s = time.monotonic() - begun
    versions = list_versions(store, model)
    numbers, digests = [each.version for each in versions], {each.digest for each in versions}
    if numbers != list(range(1, WRITERS + 1)) or len(digests) != WRITERS:
        raise SystemExit(f"a gap or a duplicate: {numbers}")
    return took_s


def promote_at_once(store: Store, rounds: int) -> tuple[list[float], int]:
    """(seconds by round, conflicts that named the winner)"""
    model, named, seconds = f"m-{uuid.uuid4().hex[:12]}", 0, []
    for number in (1, 2):
        publish(store, name=model, files=small(number), metadata=META)
    move_alias(store, name=model, alias="production", to_version=1, expected_version=None, who="nobody", why="start")
    for round_number in range(rounds):
        current = must_get_alias(store, model, "production").version

        def promote(n: int, current: int = current, r: int = round_number) -> str:
            who = f"p-{r}-{n}"
            try:
                move_alias(
                    store,
                    name=model,
                    alias="production",
                    to_version=3 - current,
                    expected_version=current,
                    who=who,
                    why="race",
                )
            except AliasMoved as error:
                return str(error)
            return "won"

        begun = time.monotonic()
        with ThreadPoolExecutor(WRITERS) as pool:
            told = list(pool.map(promote, range(WRITERS)))
        seconds.append(time.monotonic() - begun)
        winner = must_get_alias(store, model, "production").history[-1].who
        losers = [text for text in told if text != "won"]
        if len(losers) != WRITERS - 1 or not all(f"{winner} moved it" in text for text in losers):
            raise SystemExit(f"round {round_number}: {told}")
        named += len(losers)
    return seconds, named


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with own_store() as store:
        at_once, paused = [], []
        for _ in range(rounds):
            at_once.append(publish_at_once(store, pause_s=0.0))
            paused.append(publish_at_once(store, pause_s=artifacts.LONGEST_CLAIM_PAUSE_S))
            print(f"32 publishers: back at once {at_once[-1]:.1f} s, after a pause {paused[-1]:.1f} s")
        seconds, named = promote_at_once(store, rounds)
    print(f"32 promoters: {statistics.median(seconds):.1f} s a round, {named} conflicts named")
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    ratios = sorted(after / before for before, after in zip(at_once, paused, strict=True))
    print(
        json.dumps(
            {
                "publishers": WRITERS,
                "rounds": rounds,
                "publish_s": [round(value, 2) for value in paused],
                "publish_back_at_once_s": [round(value, 2) for value in at_once],
                "pause_ratio": round(statistics.median(ratios), 2),
                "pause_ratio_spread": [round(ratios[0], 2), round(ratios[-1], 2)],
                "promote_s": [round(value, 2) for value in seconds],
                "conflicts_named": named,
                "conflicts_expected": rounds * (WRITERS - 1),
            }
        )
    )


if __name__ == "__main__":
    main()
