"""The packed encoder beside the padded one of Hugging Face, on the same texts and weights.

    python tests/benchmarks/packed_equals_padded.py [--texts 1000] [--threads 2]

The texts are the intents' sentences, alone and joined, so that their lengths lie between 3 and the 256 tokens that are
kept. Packed: in arrival order, cut by the token budget that serving uses. Padded: transformers' BertModel in batches
of 32, with its attention mask and a mean over the real tokens. Then one text of every pair is replaced by another, and
the embedding of its neighbour in the same batch must be the same to the last bit: packing mixes no two texts.

Prints the differences and the time of each (not a claim), then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from random import Random

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # the recipes are files, not an installed package

from heliostat.inference.batching import Item, TokenBatcher
from heliostat.inference.encoder import PackedEncoder, load_pretrained, load_tokenizer, pack, pretrained_folder
from train_jobs.intents import sample

BUDGET = 512
PADDED_BATCH = 32


def draw(count: int, seed: int) -> list[str]:
    """Texts of mixed lengths: most are one sentence, some are many."""
    random = Random(seed)
    sentences = [example.text for example in sample(per_intent=30, seed=seed)]
    lengths = random.choices([1, 2, 5, 12, 40], [60, 20, 12, 6, 2], k=count)
    return [" ".join(random.choices(sentences, k=length)) for length in lengths]


def batches(tokens: list[list[int]]) -> list[list[int]]:
    """Indices of the texts, batch by batch, as the runner would take them."""
    queue = TokenBatcher(BUDGET, 256)
    for index, ids in enumerate(tokens):
        queue.add(Item(index, len(ids), 0.0, 1.0))
    found = []
    while len(queue):
        found.append([int(str(item.id)) for item in queue.take(0.0).items])
    return found


@torch.inference_mode()
def packed(encoder: PackedEncoder, tokens: list[list[int]], groups: list[list[int]]) -> Tensor:
    """[S, hidden]"""
    out = torch.empty(len(tokens), encoder.config.hidden_size)
    for group in groups:
        out[group] = encoder(*pack([tokens[index] for index in group]))
    return out


@torch.inference_mode()
def padded(tokens: list[list[int]]) -> Tensor:
    """[S, hidden]"""
    from transformers import BertModel

    model = BertModel.from_pretrained(pretrained_folder(), add_pooling_layer=False).eval()
    parts = []
    for start in range(0, len(tokens), PADDED_BATCH):
        rows = tokens[start : start + PADDED_BATCH]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])  # [B, longest]
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].float()
        parts.append((hidden * weights).sum(1) / weights.sum(1))
    return torch.cat(parts)


def mixed_texts(encoder: PackedEncoder, tokens: list[list[int]], groups: list[list[int]], before: Tensor) -> int:
    """How many texts change when their neighbours in the batch are replaced by others of the same length."""
    changed = [list(ids) for ids in tokens]
    kept = []
    for group in groups:
        for place, index in enumerate(group):
            if place % 2:
                changed[index] = [ids + 1 if 1000 < ids < 30000 else ids for ids in tokens[index]]
            else:
                kept.append(index)
    after = packed(encoder, changed, groups)
    return int((after[kept] != before[kept]).any(-1).sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    encoder = load_pretrained(pretrained_folder()).eval()
    tokens = load_tokenizer(pretrained_folder())(draw(parsed.texts, parsed.seed))
    groups = batches(tokens)
    began = time.perf_counter()
    ours = packed(encoder, tokens, groups)
    packed_s = time.perf_counter() - began
    began = time.perf_counter()
    theirs = padded(tokens)
    padded_s = time.perf_counter() - began
    difference = float((ours - theirs).abs().max())
    cosine = float(torch.nn.functional.cosine_similarity(ours, theirs).min())
    mixed = mixed_texts(encoder, tokens, groups, ours)
    lengths = sorted(map(len, tokens))
    print(f"{len(tokens)} texts of {lengths[0]} to {lengths[-1]} tokens in {len(groups)} packed batches")
    print(f"largest difference {difference:.2e}, smallest cosine {cosine:.8f}, texts changed by neighbours {mixed}")
    print(f"packed {packed_s:.1f} s, padded {padded_s:.1f} s")
    result = {
        "benchmark": "packed_equals_padded",
        "texts": len(tokens),
        "max_difference": difference,
        "min_cosine": cosine,
        "mixed_texts": mixed,
        "mean_tokens": round(sum(lengths) / len(lengths), 1),
        "max_tokens": lengths[-1],
        "threads": parsed.threads,
        "seed": parsed.seed,
    }
    print(json.dumps(result))
    return 0 if difference < 1e-4 and mixed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
