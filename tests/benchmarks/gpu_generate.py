"""`gpu.py generate`: continuous batching over slots beside transformers' own generate, greedy, on random weights.

Right, in fp32: every text's tokens beside generate's for that prompt alone. Fast, in bf16 on a model of 1.2 billion
parameters: tokens a second over all streams, each stream a prompt of 128 tokens and 128 new ones; generate gets the
same prompts as one batch, which suits it, as all begin and end together.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from heliostat.inference.causal import SlotModel
from heliostat.inference.generate import Sampling, TokenRunner
from tests.benchmarks.gpu_vram import SIZES, Case, Sizes, build, serve

PROMPT = MADE = 128
STREAMS = (1, 8, 32)
GREEDY = Sampling(max_tokens=1, temperature=0)
DRAWN = Sampling(max_tokens=1, temperature=1.0, top_p=0.9, seed=7)
SMALL = Sizes(8, 512, 8, 4, 1408, 4096)


def run(options: argparse.Namespace) -> dict[str, Any]:
    from transformers.utils import logging

    logging.set_verbosity_error()
    device = options.device
    SIZES["small"] = SMALL
    right = check(device, options.tiny)
    case = serve("tiny" if options.tiny else "1B", 512, 1)
    model = build(case, device, torch.bfloat16).eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None  # every text has its full length
    rows = {}
    made = 8 if options.tiny else MADE
    print(f"\n{'streams':<9}{'ours tokens/s':>15}{'ms/step':>9}{'generate tokens/s':>19}{'ratio':>7}")
    for streams in STREAMS:
        rows[str(streams)] = row = race(model, streams, made, options.tiny)
        print(
            f"{streams:<9}{row['tokens_per_s']:>15,.0f}{row['ms_per_step']:>9.2f}{row['generate_tokens_per_s']:>19,.0f}"
            f"{row['ratio']:>7.2f}",
            flush=True,
        )
    spent = {str(streams): where_time_goes(model, streams) for streams in (1, 32)} if device == "cuda" else {}
    return {**right, "speed": rows, "spent": spent}


def prompts(count: int, vocab: int, *, longest: int, shortest: int | None = None) -> list[list[int]]:
    chance = torch.Generator().manual_seed(count)
    lengths = torch.randint(shortest or longest, longest + 1, (count,), generator=chance).tolist()
    return [torch.randint(3, vocab, (length,), generator=chance).tolist() for length in lengths]


def ours(
    model: Any, texts: Sequence[Sequence[int]], made: int, slots: int, sampling: Sampling = GREEDY
) -> list[list[int]]:
    """All at once into the runner; it admits as many as it has slots."""
    runner = TokenRunner(SlotModel(model, slots=slots, max_length=512))

    async def one(prompt: Sequence[int]) -> list[int]:
        steps = runner.stream(prompt, replace(sampling, max_tokens=made), wait_until_s=math.inf)
        return [step.token async for step in steps]

    async def everyone() -> list[list[int]]:
        return list(await asyncio.gather(*map(one, texts)))

    try:
        return asyncio.run(everyone())
    finally:
        runner.close()


def theirs(model: Any, texts: Sequence[Sequence[int]], made: int) -> list[list[int]]:
    """Prompts of one length, as one batch."""
    ids = torch.tensor(texts, device=model.device)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=made, min_new_tokens=made, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    found: list[list[int]] = out[:, ids.shape[1] :].tolist()
    return found


def check(device: str, tiny: bool) -> dict[str, Any]:
    model = build(Case("tiny" if tiny else "small", serve("tiny", 512, 1).work), device, torch.float32).eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    texts = prompts(24, model.config.vocab_size, longest=100, shortest=5)
    made = 8 if tiny else 64
    found = ours(model, texts, made, slots=8)
    same = [mine == theirs(model, [text], made)[0] for mine, text in zip(found, texts, strict=True)]
    print(f"{sum(same)} of {len(same)} texts are token for token those of generate, fp32, 8 slots, {made} tokens each")
    drawn = [ours(model, texts, made, slots=8, sampling=DRAWN) for _ in range(2)]
    again = sum(one == other for one, other in zip(*drawn, strict=True))
    print(f"{again} of {len(texts)} texts that were drawn from a seed came out the same twice")
    return {"texts": len(same), "equal_texts": sum(same), "drawn_alike": again}


def race(model: Any, streams: int, made: int, tiny: bool) -> dict[str, Any]:
    texts = prompts(streams, model.config.vocab_size, longest=16 if tiny else PROMPT)
    mine, other = [], []
    for number in range(3):
        begun = time.perf_counter()
        ours(model, texts, made, slots=streams)
        middle = time.perf_counter()
        theirs(model, texts, made)
        if number:  # the first warms up
            mine.append(middle - begun)
            other.append(time.perf_counter() - middle)
    took, took_them = statistics.median(mine), statistics.median(other)
    return {
        "tokens_per_s": round(streams * made / took),
        "ms_per_step": round(took / made * 1e3, 3),
        "spread": [round(streams * made / value) for value in (max(mine), min(mine))],
        "generate_tokens_per_s": round(streams * made / took_them),
        "ratio": round(took_them / took, 3),
    }


def timed(work: Callable[[], object]) -> float:
    spans = []
    for _ in range(5):
        begun = time.perf_counter()
        work()
        torch.cuda.synchronize()
        spans.append((time.perf_counter() - begun) * 1e3)
    return round(statistics.median(spans), 3)


def where_time_goes(model: Any, streams: int) -> dict[str, float]:
    """Of one step of so many streams: until it returns, of that on the card, and choosing tokens on the CPU."""
    from heliostat.inference.generate import choose_all

    slots = SlotModel(model, slots=streams, max_length=512)
    found = {"prefill_ms": timed(lambda: slots.prefill(0, list(range(3, 103))).sum().item())}
    for slot in range(streams):
        slots.prefill(slot, list(range(3, 103)))
    spans: dict[str, list[float]] = {"step_ms": [], "card_ms": [], "choose_ms": []}
    for number in range(20):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun = time.perf_counter()
        first.record()
        logits = slots.step(list(range(streams)), [5] * streams, [100 + number] * streams)
        last.record()
        stepped = time.perf_counter()
        choose_all(logits, [(GREEDY, torch.Generator())] * streams)
        ended = time.perf_counter()
        last.synchronize()
        if number >= 5:
            spans["step_ms"].append((stepped - begun) * 1e3)
            spans["card_ms"].append(first.elapsed_time(last))
            spans["choose_ms"].append((ended - stepped) * 1e3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        slots.step(list(range(streams)), [5] * streams, [121] * streams)
    events = profile.key_averages()
    found |= {name: round(statistics.median(values), 3) for name, values in spans.items()}
    slots._records = False
    found["unrecorded_ms"] = timed(lambda: slots.step(list(range(streams)), [5] * streams, [120] * streams))
    found["kernels_ms"] = round(sum(event.self_device_time_total for event in events) / 1e3, 3)
    found["kernels"] = float(sum(event.count for event in events))
    print(f"\na step of {streams}: {found}")
    return found
