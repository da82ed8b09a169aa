"""The in-process limit: the same model and texts with no server at all. Asked over standard input, one line a pass.

    packed 5     tokens of whole batches in one flat list, in order of arrival
    sorted 5     padded batches of 32, sorted by length: the best that padding can do with the future known
    one 5        one text at a time

Answers one JSON line: texts per second, of wall time and of CPU time.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator

from corpus import texts
from model import Classifier

BUDGET_TOKENS = 512


def main() -> None:
    classifier, sample = Classifier(), texts()[:2000]
    lengths = [len(ids) for ids in classifier.tokenise(sample)]
    batches = {
        "packed": list(_by_budget(sample, lengths)),
        "sorted": [
            [sample[i] for i in chunk] for chunk in _chunks(sorted(range(len(sample)), key=lengths.__getitem__), 32)
        ],
        "one": [[text] for text in sample],
    }
    # Whichever part of the sample the time allows has the same mix of lengths.
    random.Random(0).shuffle(batches["sorted"])
    runs = {"packed": classifier.packed, "sorted": classifier.many, "one": lambda batch: [classifier.one(batch[0])]}
    places = dict.fromkeys(batches, 0)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        name, seconds = line.split()
        done, wall, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < float(seconds):
            batch = batches[name][places[name] % len(batches[name])]
            places[name] += 1
            json.dumps(runs[name](batch))
            done += len(batch)
        print(
            json.dumps({"per_s": done / (time.perf_counter() - wall), "per_cpu_s": done / (time.process_time() - cpu)}),
            flush=True,
        )


def _by_budget(sample: list[str], lengths: list[int]) -> Iterator[list[str]]:
    batch: list[str] = []
    room = BUDGET_TOKENS
    for text, length in zip(sample, lengths, strict=True):
        if batch and length > room:
            yield batch
            batch, room = [], BUDGET_TOKENS
        batch.append(text)
        room -= length
    if batch:
        yield batch


def _chunks(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


if __name__ == "__main__":
    main()
