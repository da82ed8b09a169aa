"""`gpu.py encoder`: the packed encoder beside padded batches of transformers' BertModel, on the same weights and texts.

Right: every text's embedding beside BertModel in fp32, padded, on the same device; and no text changes to the last bit
when its neighbours in the batch are replaced. Fast: texts in arrival order, from lists of token ids to vectors on the
CPU, so that packing and copies count. Packed batches are cut by a budget of tokens, padded ones hold 32 or 64 texts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from heliostat.inference.batching import Item, TokenBatcher
from heliostat.inference.encoder import load_pretrained, load_tokenizer, pack, pretrained_folder

BUDGETS = (512, 2048, 8192, 32768)
PADDED = (32, 64, 256)
Tokens = Sequence[Sequence[int]]
Vectors = Callable[[Tokens], Tensor]
"""Token ids of one batch's texts -> [S, hidden] on the device."""


def run(options: argparse.Namespace) -> dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = False
    device, folder = torch.device(options.device), options.weights or pretrained_folder()
    tokens = read_tokens(options, folder)
    with torch.inference_mode():
        right = check(folder, tokens[: 24 if options.tiny else 1000], device)
        rows = race(folder, tokens, device, options)
        spent = where_time_goes(folder, tokens, device) if device.type == "cuda" else {}
    return {"texts": len(tokens), "tokens": sum(map(len, tokens)), **right, "speed": rows, "spent": spent}


def read_tokens(options: argparse.Namespace, folder: Path) -> list[list[int]]:
    if options.tokens:
        found: list[list[int]] = json.loads(options.tokens.read_text())
    else:
        from tests.benchmarks.packed_equals_padded import draw

        found = load_tokenizer(folder)(draw(64 if options.tiny else 8000, 0))
    return found[:64] if options.tiny else found


def batches(tokens: Tokens, budget: int) -> list[list[int]]:
    """Indices of the texts, batch by batch, as the runner would take them."""
    queue = TokenBatcher(budget, 1024)
    for index, ids in enumerate(tokens):
        queue.add(Item(index, len(ids), 0.0, 1.0))
    found = []
    while len(queue):
        found.append([int(str(item.id)) for item in queue.take(0.0).items])
    return found


# --- right


def check(folder: Path, tokens: Tokens, device: torch.device) -> dict[str, Any]:
    reference = run_all(padded(folder, device, torch.float32), tokens, cut(len(tokens), 32))
    found: dict[str, Any] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        encoder = packed(folder, device, dtype)
        groups = batches(tokens, 2048)
        ours = run_all(encoder, tokens, groups)
        cosine = functional.cosine_similarity(ours, reference)
        found[name] = {
            "cosine_min": float(cosine.min()),
            "cosine_mean": float(cosine.mean()),
            "max_difference": float((ours - reference).abs().max()),
            "changed_by_neighbours": mixed(encoder, tokens, groups, ours),
            "changed_between_runs": int((run_all(encoder, tokens, groups) != ours).any(-1).sum()),
        }
    theirs = run_all(padded(folder, device, torch.bfloat16), tokens, cut(len(tokens), 32))
    cosine = functional.cosine_similarity(theirs, reference)
    found["padded bf16"] = {
        "cosine_min": float(cosine.min()),
        "cosine_mean": float(cosine.mean()),
        "max_difference": float((theirs - reference).abs().max()),
    }
    print(f"{'against BertModel, fp32':<26}{'cosine min':>12}{'mean':>12}{'max diff':>10}  changed by neighbours")
    for name, row in found.items():
        print(
            f"{name:<26}{row['cosine_min']:12.7f}{row['cosine_mean']:12.7f}{row['max_difference']:10.2e}"
            f"  {row.get('changed_by_neighbours', '')}"
        )
    return found


def mixed(encoder: Vectors, tokens: Tokens, groups: list[list[int]], before: Tensor) -> int:
    """How many texts change when every second of their batch is replaced by one of the same length."""
    changed, kept = [list(ids) for ids in tokens], []
    for group in groups:
        for place, index in enumerate(group):
            if place % 2:
                changed[index] = [ids + 1 if 1000 < ids < 30000 else ids for ids in tokens[index]]
            else:
                kept.append(index)
    after = run_all(encoder, changed, groups)
    return int((after[kept] != before[kept]).any(-1).sum())


# --- the ways


def packed(folder: Path, device: torch.device, dtype: torch.dtype) -> Vectors:
    encoder = load_pretrained(folder, dtype=dtype).to(device).eval()

    def vectors(texts: Tokens) -> Tensor:
        flat, lengths = pack(texts)
        out: Tensor = encoder(flat, lengths)
        return out

    return vectors


def without_recordings(folder: Path, device: torch.device) -> Vectors:
    """The same, kernel by kernel: what a CUDA graph saves."""
    encoder = load_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    return lambda texts: encoder._by_offsets(*pack(texts))


def before(path: Path, folder: Path, device: torch.device) -> Vectors:
    """An older encoder.py."""
    import sys

    spec = importlib.util.spec_from_file_location("encoder_before", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["encoder_before"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    encoder = module.load_pretrained(folder, dtype=torch.bfloat16).to(device).eval()

    def vectors(texts: Tokens) -> Tensor:
        flat, lengths = module.pack(texts)
        out: Tensor = encoder(flat.to(device), lengths)
        return out

    return vectors


def padded(folder: Path, device: torch.device, dtype: torch.dtype) -> Vectors:
    from transformers import BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model: Any = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa", dtype=dtype)
    model = model.to(device).eval()

    def vectors(texts: Tokens) -> Tensor:
        longest = max(map(len, texts))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in texts]).to(device)  # [B, longest]
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in texts]).to(device)
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        weights = mask[..., None].float()
        out: Tensor = (hidden * weights).sum(1) / weights.sum(1)
        return out

    return vectors


def cut(count: int, size: int) -> list[list[int]]:
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def run_all(vectors: Vectors, tokens: Tokens, groups: list[list[int]]) -> Tensor:
    """[all texts, hidden] on the CPU; each batch's vectors are fetched before the next is begun, as an answer needs."""
    out = [vectors([tokens[index] for index in group]).float().cpu() for group in groups]
    return torch.cat(out)[torch.tensor([index for group in groups for index in group]).argsort()]


# --- fast


def race(folder: Path, tokens: Tokens, device: torch.device, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    ours = packed(folder, device, torch.bfloat16)
    by_kernel = without_recordings(folder, device) if device.type == "cuda" else ours
    theirs = padded(folder, device, torch.bfloat16)
    fp32 = packed(folder, device, torch.float32)
    ways: dict[str, tuple[Vectors, list[list[int]]]] = {}
    for size in PADDED:
        ways[f"padded, {size} texts"] = (theirs, cut(len(tokens), size))
    by_length = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    ways["padded, 64, sorted first"] = (theirs, [[by_length[i] for i in group] for group in cut(len(tokens), 64)])
    for budget in BUDGETS:
        groups = batches(tokens, budget)
        if options.before:
            ways[f"before, {budget}"] = (before(options.before, folder, device), groups)
        ways[f"kernel by kernel, {budget}"] = (by_kernel, groups)
        ways[f"packed, {budget}"] = (ours, groups)
    ways["packed fp32, 8192"] = (fp32, batches(tokens, 8192))
    return measure(ways, tokens, rounds=1 if options.tiny else 5, limit_s=12.0)


def measure(
    ways: dict[str, tuple[Vectors, list[list[int]]]], tokens: Tokens, *, rounds: int, limit_s: float
) -> dict[str, dict[str, Any]]:
    """One way after another, round after round. A slow way does fewer batches, in arrival order."""
    total, begun = sum(map(len, tokens)), time.perf_counter()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        if number > 2 and time.perf_counter() - begun > limit_s:
            break
        for name, (vectors, groups) in ways.items():
            started = time.perf_counter()
            run_all(vectors, tokens, groups)
            if number:  # the first warms up: libraries, recordings
                taken[name].append(time.perf_counter() - started)
    print(f"\n{'way, budget':<28}{'batches':>8}{'texts/s':>10}{'tokens/s':>12}  best to worst    ms/batch")
    rows = {}
    for name, seconds in taken.items():
        middle, batches_ = statistics.median(seconds), len(ways[name][1])
        rows[name] = {
            "batches": batches_,
            "texts_per_s": round(len(tokens) / middle),
            "tokens_per_s": round(total / middle),
            "spread": [round(total / max(seconds)), round(total / min(seconds))],
            "ms_per_batch": round(middle / batches_ * 1e3, 3),
        }
        low, high = rows[name]["spread"]
        print(
            f"{name:<28}{batches_:>8}{len(tokens) / middle:>10,.0f}{total / middle:>12,.0f}"
            f"  {low / 1e6:.2f} to {high / 1e6:.2f} M{rows[name]['ms_per_batch']:>10.3f}"
        )
    return rows


def where_time_goes(folder: Path, tokens: Tokens, device: torch.device) -> dict[str, Any]:
    """Of one batch: the host's share (packing), the copy in, the card's own time, the fetch."""
    encoder = load_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    found: dict[str, Any] = {}
    print(f"\n{'a batch of':<12}{'pack ms':>9}{'enqueue ms':>12}{'card ms':>9}{'all ms':>8}")
    for budget in BUDGETS:
        texts = [tokens[index] for index in batches(tokens, budget)[1]]
        found[str(budget)] = row = one_batch(encoder, texts)
        print(
            f"{budget:<12}{row['pack_ms']:>9.3f}{row['enqueue_ms']:>12.3f}{row['card_ms']:>9.3f}{row['all_ms']:>8.3f}"
        )
    print_kernels(encoder, [tokens[index] for index in batches(tokens, 512)[1]])
    print_kernels(encoder, [tokens[index] for index in batches(tokens, 8192)[1]])
    return found


def print_kernels(encoder: Any, texts: Tokens) -> None:
    flat, lengths = pack(texts)
    encoder(flat, lengths)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(10):
            encoder(flat, lengths)
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    count = sum(event.count for event in events)
    print(f"\n{flat.numel()} tokens of {len(lengths)} texts: {count / 10:.0f} kernels, {total / 10:.0f} us")
    for event in events[:8]:
        print(f"{event.self_device_time_total / 10:>8.1f} us {event.count / 10:>6.1f} x {event.key[:80]}")


def one_batch(encoder: Any, texts: Tokens) -> dict[str, float]:
    spans: dict[str, list[float]] = {"pack_ms": [], "enqueue_ms": [], "card_ms": [], "all_ms": []}
    for number in range(40):
        torch.cuda.synchronize()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun = time.perf_counter()
        flat, lengths = pack(texts)
        packed_at = time.perf_counter()
        first.record()
        out = encoder(flat, lengths)
        last.record()
        enqueued = time.perf_counter()
        out.float().cpu()
        ended = time.perf_counter()
        if number >= 5:
            spans["pack_ms"].append((packed_at - begun) * 1e3)
            spans["enqueue_ms"].append((enqueued - packed_at) * 1e3)
            spans["card_ms"].append(first.elapsed_time(last))
            spans["all_ms"].append((ended - begun) * 1e3)
    return {name: round(statistics.median(values), 4) for name, values in spans.items()}
