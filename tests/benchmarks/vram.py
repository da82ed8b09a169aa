"""Published measurements of GPU memory against `heliostat.plan.vram`.

    python tests/benchmarks/vram.py --cases FILE

FILE is a CSV, one measurement a row: model shape, method, sharding, GPU, what was measured and where. Labels are read
as people write them ("full (assumed)", "fsdp 4 x context-parallel 2"); what a source leaves open takes the choice that
needs more, and a row that cannot be scored is listed with the reason.

Scored are rows of kind `measured` that give a GPU's whole memory. Rows of one series (same model, method, recipe, GPU
and source; many lengths) count once: a series' error is the mean of its rows' absolute errors, so that errors do not
cancel. The confusion table asks of every measurement and every GPU of the file whether it fits there; to a figure of
PyTorch's allocator our own estimate of what it does not see is added. GB is 1e9, GiB is 2**30.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from heliostat.errors import HeliostatError
from heliostat.plan.params import ModelShape
from heliostat.plan.vram import (
    GIB,
    KV_BLOCK,
    OVERHEADS,
    Need,
    Overheads,
    fits,
    kv_tokens,
    need_of,
    weight_bytes,
)
from heliostat.plan.workload import Dtype, Loss, Optimizer, Precision, Recompute, Serving, Shard, Training

Row = Mapping[str, str]

DEFAULT_CASES = Path(__file__).parents[3] / "shared" / "facts" / "vram_cases.csv"
UNITS = {"gb": 10**9, "gib": 2**30, "mb": 10**6, "mib": 2**20, "tb": 10**12, "tib": 2**40, "bytes": 1, "b": 1}
VISIBLE = 0.985
"""Of a card's nominal GiB, what a program sees: 79.2 of 80, 23.6 of 24."""
CARDS_GIB = {
    "4090": 24, "3090": 24, "5090": 32, "3080": 10, "3060": 12, "4070": 12, "4080": 16, "2080": 11, "titan": 24,
    "a4000": 16, "a5000": 24, "a6000": 48, "6000 ada": 48, "p100": 16, "v100": 16, "t4": 15, "a10": 24, "a10g": 22.7,
    "a40": 45, "l4": 22.7, "l40": 45.4, "a100": 40, "h100": 80, "h200": 141, "b200": 180, "mi300x": 192,
}  # fmt: skip
"""For names that do not say their size; the longest that matches."""
SEEN_LESS = ("t4", "a10g", "l4", "l40")
"""Cards that show less than their name says: 15 of 16, 22.7 of 24, 45.4 of 48 GiB."""
PARTS = ("model states", "activation", "weights", "non-torch", "kv cache", "gradients", "optimizer state")
UNSEEN = ("CUDA context", "communication")
"""Terms that a report of PyTorch's allocator leaves out."""
UNSTATED_RANK = 64
"""Of LoRA, where a source does not say: the larger of those in common use."""
LEAN = ("torchtune", "unsloth", "chunked", "fused cross", "fused loss", "liger", "litgpt", "lit-gpt")
"""Stacks and words that mean: logits are never whole, and QLoRA leaves embeddings in 16 bits."""
STATE_OFFLOAD = re.compile(r"(?:cpu|optimi[sz]er|param\w*|weights?|states?)\s+(?:is |are )?off-?load")
"""In a note: state on the host. Off-loaded activations or checkpoints are another thing."""
GRID = (
    [round(x * GIB) for x in (0.6, 0.9, 1.2, 1.5, 1.8)],
    (0.0, 0.04, 0.08, 0.12),
    (8.0, 10.0, 12.0, 14.0, 16.0),
)
"""Context bytes, fragmentation and bytes a logit to fit over."""


class Skip(Exception):
    """The row cannot be scored; the message says why."""


@dataclass(frozen=True)
class Case:
    """One row read: what to estimate and what was measured, in bytes of one GPU unless `unit` says tokens."""

    row: Row
    series: str
    source: str
    shape: ModelShape
    workload: Training | Serving
    quantity: str  # total | part:<name> | kv tokens | longest | out of memory
    measured: float
    card: float | None
    seen: str  # device | reserved | allocated

    @property
    def case_id(self) -> str:
        return self.row.get("case_id", "?")

    def need(self, overheads: Overheads, context: int | None = None) -> Need:
        """The estimate of the whole device, at another context if given."""
        workload = self.workload if context is None else replace(self.workload, context=context)
        return need_of(self.shape, workload, overheads)

    def answer(self, card: float, context: int | None = None) -> str:
        """Three-way; a source that does not say what is recomputed is judged both ways, and both must agree."""
        answers = {fits(self.need(OVERHEADS, context), round(card)).answer}
        if isinstance(self.workload, Training) and self.row["checkpointing"].lower() in ("", "unknown", "not stated"):
            lower = replace(
                self,
                workload=replace(self.workload, recompute="full", fused_backward="8bit" in self.workload.optimizer),
            )
            answers.add(fits(lower.need(OVERHEADS, context), round(card)).answer)
        return answers.pop() if len(answers) == 1 else "too close to call"

    def predicted(self, overheads: Overheads) -> float:
        """The estimate of what was measured."""
        need = self.need(overheads)
        hidden = {"device": (), "reserved": UNSEEN, "allocated": (*UNSEEN, "fragmentation")}[self.seen]
        return need.without(*hidden).total

    def error(self, overheads: Overheads) -> float:
        """Signed, relative: below zero is an under-estimate."""
        return self.predicted(overheads) / self.measured - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=DEFAULT_CASES, help="the table of measurements")
    options = parser.parse_args()
    if not options.cases.is_file():
        parser.error(f"{options.cases} is not there; give --cases FILE")
    cases, skipped = read_cases(options.cases)
    memory = [case for case in cases if case.quantity == "total"]
    print_series(memory)
    others = [case for case in cases if case.quantity not in ("total", "longest", "out of memory")]
    print_other_quantities(others)
    table = confusion(cases)
    print_confusion(table)
    print_lengths(cases)
    left_out = leave_one_source_out(memory)
    print_left_out(left_out)
    print_skipped(skipped)
    print(json.dumps(summary(memory, table, left_out, cases, skipped)))


# --- reading


def read_cases(path: Path) -> tuple[list[Case], list[tuple[str, str]]]:
    """Every row that can be used, and (id, reason) of those that cannot."""
    cases, skipped = [], []
    with path.open(encoding="utf-8-sig", newline="") as file:
        for index, raw in enumerate(csv.DictReader(file), start=1):
            row = defaultdict(str, {str(k).strip(): str(v or "").strip() for k, v in raw.items() if k})
            try:
                case = read_case(row)
                case.need(OVERHEADS)  # a shape that cannot be split as the row says is told here
                cases.append(case)
            except (Skip, HeliostatError, ValueError, ArithmeticError) as reason:
                skipped.append((row["case_id"] or f"row {index}", str(reason)))
    return cases, skipped


def read_case(row: Row) -> Case:
    """Raises Skip with the reason."""
    if not row["kind"].lower().startswith("measured"):
        raise Skip(f"kind is {row['kind'] or 'empty'}, not measured")
    shape = read_shape(row)
    serving = not row["phase"].lower().startswith(("train", "fine"))
    workload = read_serving(row) if serving else read_training(row)
    quantity, measured = read_measured(row, serving)
    recipe = workload.shard if isinstance(workload, Training) else f"tp{workload.tensor}"
    series = " ".join(
        filter(None, (row["model"], row["method"] if not serving else "serving", short(row["weight_dtype"]),
                      short(row["optimizer"]) if not serving else "", recipe, f"x{gpus_of(row)}", row["gpu"]))
    )  # fmt: skip
    return Case(row, series, source_of(row["url"]), shape, workload, quantity, measured, card_bytes(row["gpu"]),
                seen_by(row["quantity"]))  # fmt: skip


def read_measured(row: Row, serving: bool) -> tuple[str, float]:
    """What kind of quantity, and its value in bytes of one GPU, or tokens."""
    quantity, unit, note = row["quantity"].lower(), row["unit"].lower(), row["measured"].lower()
    value = number(row["measured"])
    if value is None:
        if "oom" in note or "out of memory" in note:
            return "out of memory", 0.0
        raise Skip(f"measured is {row['measured']!r}")
    if value == 0 and not (unit.startswith("token") and not serving):
        raise Skip("measured is 0")
    if unit.startswith("token"):
        # No token at all is the table's way to say that the card is too small.
        return ("kv tokens" if serving else "longest" if value else "out of memory"), value
    if unit.startswith("block"):
        return "kv tokens", value * (number(unit) or KV_BLOCK)
    if unit not in UNITS:
        raise Skip(f"unit {row['unit']!r}")
    value *= UNITS[unit]
    if "sum" in row["scope"].lower():
        value /= gpus_of(row)
    part = next((part for part in PARTS if part in quantity), None)
    if "upper bound" in quantity:
        raise Skip("an upper bound, not a measurement")
    return (f"part:{part}" if part else "total"), value


def read_shape(row: Row) -> ModelShape:
    """The shape; what the table does not say (gated? tied? head width?) is what comes nearest to the count given."""
    total = number(row["params_b"])
    sizes = {key: number(row[key]) for key in ("hidden", "heads", "ffn", "vocab")}
    missing = [key for key, value in sizes.items() if value is None]
    if total is None or missing or not re.search(r"\d", row["layers"]):
        raise Skip(f"no {', '.join(missing) or 'layers or parameters'}")
    depth = sum(int(part) for part in re.findall(r"\d+", row["layers"]))
    h, a, f, v = (int(sizes[key] or 0) for key in ("hidden", "heads", "ffn", "vocab"))
    k = int(number(row["kv_heads"]) or a)
    encoder = re.search(r"bert|encoder", row["model"].lower()) is not None
    experts = read_experts(row["model"])
    params = round(total * 1e9)

    def off(gated: bool, tied: bool, d: int) -> float:
        feed_forward = (3 if gated else 2) * h * f * experts[0]
        count = depth * (2 * h * a * d + 2 * h * k * d + feed_forward) + v * h * (1 if tied else 2)
        return abs(count / params - 1) + (0.01 if d != h // a else 0)

    choices = [(False, True)] if encoder else list(product((True, False), (False, True)))
    options = [(g, t, d) for g, t in choices for d in dict.fromkeys((h // a, 128, 256, 64))]
    gated, tied, d = min(options, key=lambda option: off(*option))
    return ModelShape(
        name=row["model"], params=params, layers=depth, hidden=h, heads=a, kv_heads=k, head_dim=d,
        ffn=f * experts[1], vocab=v, embedding_params=v * h, head_params=0 if tied else v * h, gated=gated,
        causal=not encoder, has_head=not encoder, stored_ffn=f * experts[0],
    )  # fmt: skip


def read_experts(model: str) -> tuple[int, int]:
    """(experts, active) where the name says it, such as Mixtral-8x7B."""
    match = re.search(r"\b(\d+)x\d", model)
    return (int(match[1]), 2) if match else (1, 1)


def read_training(row: Row) -> Training:
    text = " ".join(row[key] for key in ("method", "checkpointing", "attention", "optimizer", "note", "url")).lower()
    method = row["method"].lower()
    lean = any(word in text for word in LEAN) and "hugging face" not in text
    rank = re.search(r"\br(?:ank)?\s*=?\s*(\d+)", f"{method} {row['note'].lower()}")
    optimizer = read_optimizer(row["optimizer"])
    return Training(
        method="qlora" if "qlora" in method or "4bit" in method else "lora" if "lora" in method else "full",
        precision=read_precision(row["weight_dtype"], optimizer, text),
        dtype=read_dtype(row["weight_dtype"]),
        optimizer=optimizer,
        context=whole(row["seq_len"], default=512),
        batch=whole(row["micro_batch"], default=1),
        recompute=read_recompute(row["checkpointing"]),
        attention="eager" if "eager" in row["attention"].lower() else "flash",
        loss=read_loss(row, text, lean),
        rank=int(rank[1]) if rank else UNSTATED_RANK,
        train_embeddings="emb" in method,
        unquantised_fp32=not lean,
        fused_backward="into backward" in text or "in backward" in text,
        cpu_offload="off-load" in row["sharding"] or "offload" in row["sharding"] or bool(STATE_OFFLOAD.search(text)),
        **read_sharding(row["sharding"], gpus_of(row)),
    )


def read_loss(row: Row, text: str, lean: bool) -> Loss:
    if lean:
        return "fused"
    if "+ fp16" in row["weight_dtype"] or "+fp16" in row["weight_dtype"]:
        return "half"
    return "upcast" if "hugging face" in text or "transformers" in text or "/peft" in text else "full"


def read_precision(weights: str, optimizer: Optimizer, text: str) -> Precision:
    """Of what learns. 8-bit optimizers, and torchtune's recipes, work on 16-bit weights without a copy."""
    weights = weights.lower()
    if weights.startswith("fp32") and "bf16" not in weights and "16" not in weights:
        return "fp32"
    pure = "8bit" in optimizer or "torchtune" in text or "pure" in weights
    return "bf16" if pure and "mixed" not in weights and not weights.startswith("fp32") else "mixed"


def read_dtype(text: str) -> Dtype:
    text = text.lower()
    for mark, dtype in (("nf4", "nf4"), ("int4", "int4"), ("4-bit", "int4"), ("4bit", "int4"), ("awq", "int4"),
                        ("gptq", "int4"), ("int8", "int8"), ("8-bit", "int8"), ("8bit", "int8")):  # fmt: skip
        if mark in text:
            return dtype  # type: ignore[return-value]  # the literals of the table above
    if text.startswith(("fp8", "float8")):
        return "fp8"
    return "fp32" if text.startswith(("fp32", "float32")) else "fp16" if text.startswith("fp16") else "bf16"


def read_optimizer(text: str) -> Optimizer:
    text = text.lower()
    eight = "8bit" in text.replace("-", "").replace(" ", "") or "int8" in text
    if "paged" in text:
        return "paged-adamw-8bit"
    if eight:
        return "adamw-8bit"
    return "adafactor" if "adafactor" in text else "sgd" if "sgd" in text else "adamw"


def read_recompute(text: str) -> Recompute:
    """What a source leaves open is taken as none, the larger need."""
    text = text.lower()
    if "off-load" in text or "offload" in text:
        return "offload"
    if "selective" in text:
        return "selective"
    return "full" if text.startswith(("full", "yes", "on", "true")) else "none"


def read_sharding(text: str, gpus: int) -> dict[str, object]:
    text = text.lower()

    def degree(*names: str) -> int:
        match = re.search(rf"\b(?:{'|'.join(names)})[\s=_-]*(\d+)", text)
        return int(match[1]) if match else 1

    tensor, pipeline = degree("tp", "tensor[- ]parallel"), degree("pp", "pipeline[- ]parallel")
    context = degree("cp", "context[- ]parallel")
    stage = re.search(r"(?:zero|stage)[\s_-]*([123])", text)
    shard: Shard = f"zero{stage[1]}" if stage else "zero3" if "fsdp" in text else "none"  # type: ignore[assignment]
    if shard == "none" and gpus > tensor * pipeline:
        shard = "ddp"
    return {"shard": shard, "tensor": tensor, "pipeline": pipeline, "context_parallel": context,
            "gpus": max(1, gpus // (tensor * pipeline))}  # fmt: skip


def read_serving(row: Row) -> Serving:
    sharding = read_sharding(row["sharding"], gpus_of(row))
    tensor = max(int(str(sharding["tensor"])), gpus_of(row))
    return Serving(dtype=read_dtype(row["weight_dtype"]), context=whole(row["seq_len"], default=2048),
                   batch=whole(row["micro_batch"], default=1), tensor=tensor)  # fmt: skip


def number(text: str) -> float | None:
    match = re.search(r"\d[\d,]*(?:\.\d+)?", text)
    return float(match[0].replace(",", "")) if match else None


def whole(text: str, *, default: int) -> int:
    value = number(text)
    return max(1, int(value)) if value else default


def gpus_of(row: Row) -> int:
    return whole(row["gpus"], default=1)


def short(text: str) -> str:
    return re.sub(r"\s*\(.*?\)", "", text)


def source_of(url: str) -> str:
    """github.com/owner/repository, or the host."""
    parts = re.sub(r"^https?://", "", url).split("/")
    return "/".join(parts[1:3]) if parts[0] == "github.com" else parts[0] or "unknown"


def seen_by(quantity: str) -> str:
    quantity = quantity.lower()
    if "allocated" in quantity:
        return "allocated"
    return "reserved" if "reserved" in quantity or "peak memory" in quantity else "device"


def card_bytes(text: str) -> float | None:
    """What a program sees of the GPU a row names, or None."""
    visible = re.search(r"([\d.]+)\s*GiB visible", text)
    if visible:
        return float(visible[1]) * GIB
    named = re.search(r"(\d+)\s*(?:GB|GiB|G\b)", text)
    known = max((name for name in CARDS_GIB if name in text.lower()), key=len, default="")
    size = float(named[1]) if named and known not in SEEN_LESS else CARDS_GIB.get(known)
    return size * VISIBLE * GIB if size else None


# --- scores


def by_series(cases: Iterable[Case]) -> dict[str, list[Case]]:
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[f"{case.series} | {case.source}"].append(case)
    return groups


def series_errors(cases: Iterable[Case], overheads: Overheads = OVERHEADS) -> dict[str, float]:
    """Of each series the mean absolute error."""
    return {
        name: statistics.fmean(abs(case.error(overheads)) for case in rows) for name, rows in by_series(cases).items()
    }


@dataclass(frozen=True)
class Call:
    """One answer on one card: `true` says whether it fitted."""

    case: Case
    card: float
    answer: str
    true: bool


def confusion(cases: Sequence[Case]) -> list[Call]:
    """Every measured need on every card of the file; every longest context on its own card, there and 10 % above."""
    cards = sorted({round(case.card) for case in cases if case.card})
    calls = []
    for case in cases:
        if case.quantity == "total":
            unseen = sum(case.need(OVERHEADS).term(name) for name in UNSEEN if case.seen != "device")
            calls += [Call(case, card, case.answer(card), case.measured + unseen <= card) for card in cards]
        elif case.quantity == "out of memory" and case.card:
            calls.append(Call(case, case.card, case.answer(case.card), False))
        elif case.quantity == "longest" and case.card:
            for share, true in ((1.0, True), (1.1, False)):
                calls.append(Call(case, case.card, case.answer(case.card, round(case.measured * share)), true))
    return calls


def leave_one_source_out(cases: Sequence[Case]) -> dict[str, tuple[Overheads, dict[str, float]]]:
    """For each source: the constants that suit all the others best, and with them the errors on this one."""
    sources = sorted({case.source for case in cases})
    result = {}
    for left in sources if len(sources) > 1 else []:
        rest = [case for case in cases if case.source != left]
        fitted = min(candidates(), key=lambda overheads: loss_of(rest, overheads))
        result[left] = (fitted, series_errors([case for case in cases if case.source == left], fitted))
    return result


def candidates() -> Iterator[Overheads]:
    for context, fragmentation, logit in product(*GRID):
        yield replace(OVERHEADS, context_bytes=context, fragmentation=fragmentation, logit_bytes=logit)


def loss_of(cases: Sequence[Case], overheads: Overheads) -> float:
    """Mean over sources of the mean over series. An under-estimate counts half more: a crash against a bill."""
    per_source: dict[str, list[float]] = defaultdict(list)
    for rows in by_series(cases).values():
        errors = [case.error(overheads) for case in rows]
        per_source[rows[0].source].append(statistics.fmean(-1.5 * e if e < 0 else e for e in errors))
    return statistics.fmean(statistics.fmean(values) for values in per_source.values())


def covered(cases: Sequence[Case]) -> float:
    """Share of measurements that lie within the doubt the estimate admits."""
    within = [abs(case.predicted(OVERHEADS) - case.measured) <= case.need(OVERHEADS).doubt for case in cases]
    return statistics.fmean(within) if within else 0.0


# --- printing


def print_series(cases: Sequence[Case]) -> None:
    print("signed error by series: mean, mean absolute, rows; worst row")
    for name, rows in sorted(by_series(cases).items()):
        errors = [case.error(OVERHEADS) for case in rows]
        worst = max(rows, key=lambda case: abs(case.error(OVERHEADS)))
        print(
            f"{statistics.fmean(errors):+7.1%} {statistics.fmean(map(abs, errors)):6.1%} {len(rows):3d}  {name}; "
            f"{worst.case_id} {worst.error(OVERHEADS):+.1%} ({worst.measured / GIB:.1f} GiB measured)"
        )


def print_other_quantities(cases: Sequence[Case]) -> None:
    if cases:
        print("\nother quantities: measured, estimated, error")
    for case in cases:
        value = other_quantity(case)
        unit, scale = ("tokens", 1.0) if case.quantity == "kv tokens" else ("GiB", GIB)
        print(
            f"{case.measured / scale:12,.2f} {value / scale:12,.2f} {unit:6} {value / case.measured - 1:+7.1%}  "
            f"{case.case_id} {case.row['model']}: {case.row['quantity']}"
        )


def other_quantity(case: Case) -> float:
    """The estimate of a part of the memory, or of the KV cache's capacity."""
    need, name = case.need(OVERHEADS), case.quantity.removeprefix("part:")
    if isinstance(case.workload, Serving) and name in ("kv cache", "kv tokens"):
        memory = (case.card or 0) * utilisation(f"{case.row['quantity']} {case.row['note']}")
        if name == "kv cache":
            return memory - need.without("KV cache").total
        tokens = kv_tokens(case.shape, case.workload, round(memory), OVERHEADS)
        return tokens or 0
    if name == "weights":
        return weight_bytes(case.shape, case.workload.dtype) if isinstance(case.workload, Serving) else need.term(name)
    moving = ("activations", "activations kept", "working layer", "logits and loss", "fragmentation")
    terms = {
        "non-torch": UNSEEN,
        "activation": moving,
        "model states": ("weights", "gradients", "optimizer state", "adapters", "trained embeddings"),
    }.get(name, (name,))
    return sum(need.term(term) for term in terms)


def utilisation(text: str) -> float:
    """vLLM's gpu_memory_utilization where the text names it, else its long-standing default of 0.9."""
    found = number(text.lower().partition("utilization")[2][:12]) or 0.9
    return found / 100 if found > 1 else found


def print_confusion(calls: Sequence[Call]) -> None:
    print("\nfits or not, every measurement on every GPU of the file")
    counts = Counter((call.true, call.answer) for call in calls)
    print(f"{'':14}{'fits':>10}{'too close':>12}{'does not fit':>14}")
    for true in (True, False):
        row = [counts[true, answer] for answer in ("fits", "too close to call", "does not fit")]
        print(f"{'it fitted' if true else 'it did not':14}{row[0]:>10}{row[1]:>12}{row[2]:>14}")
    for call in wrong(calls):
        print(f"  wrong: {call.case.case_id} {call.case.series}: {call.answer} on {call.card / GIB:.1f} GiB")


def wrong(calls: Sequence[Call]) -> list[Call]:
    return [call for call in calls if call.answer == ("does not fit" if call.true else "fits")]


def print_lengths(cases: Sequence[Case]) -> None:
    longest = [case for case in cases if case.quantity == "longest" and case.card]
    if longest:
        print("\nlongest context that fits: need there against the card, and doubt")
    for case in longest:
        need, card = case.need(OVERHEADS, round(case.measured)), case.card or 0.0
        print(
            f"{need.total / card - 1:+7.1%} +- {need.doubt / GIB:5.1f} GiB of {card / GIB:5.1f}  "
            f"{case.case_id} {case.measured:,.0f} tokens, {case.row['checkpointing']}"
        )


def print_left_out(left_out: Mapping[str, tuple[Overheads, Mapping[str, float]]]) -> None:
    if left_out:
        print("\nfitted on all other sources, tested on the one named: context GiB, fragmentation, bytes a logit")
    for source, (overheads, errors) in left_out.items():
        median, worst = statistics.median(errors.values()), max(errors.values())
        fitted = f"{overheads.context_bytes / GIB:.1f}, {overheads.fragmentation:.2f}, {overheads.logit_bytes:g}"
        print(f"{median:6.1%} median, {worst:6.1%} worst of {len(errors)} series  {source}  ({fitted})")


def print_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    print(f"\n{len(skipped)} rows not scored")
    for reason, count in Counter(reason for _, reason in skipped).items():
        names = [name for name, why in skipped if why == reason]
        print(f"  {count:3d}  {reason}: {', '.join(names)}")


def summary(
    memory: Sequence[Case],
    calls: Sequence[Call],
    left_out: Mapping[str, tuple[Overheads, Mapping[str, float]]],
    cases: Sequence[Case],
    skipped: Sequence[tuple[str, str]],
) -> dict[str, object]:
    """The last line. Errors are shares: 0.05 is 5 %."""
    errors = series_errors(memory)
    rows = [case.error(OVERHEADS) for case in memory]
    held_out = [error for _, found in left_out.values() for error in found.values()]
    return {
        "benchmark": "vram",
        "n": len(memory),
        "series": len(errors),
        "median_rel_error": round(statistics.median(errors.values()), 4) if errors else None,
        "mean_rel_error": round(statistics.fmean(errors.values()), 4) if errors else None,
        "worst": round(max(map(abs, rows)), 4) if rows else None,
        "worst_series": round(max(errors.values()), 4) if errors else None,
        "false_fits": sum(call.answer == "fits" and not call.true for call in calls),
        "false_refusals": sum(call.answer == "does not fit" and call.true for call in calls),
        "too_close": sum(call.answer == "too close to call" for call in calls),
        "calls": len(calls),
        "within_doubt": round(covered(memory), 3),
        "left_out_median": round(statistics.median(held_out), 4) if held_out else None,
        "left_out_worst_series": round(max(held_out), 4) if held_out else None,
        "rows": len(cases) + len(skipped),
        "not_scored": len(skipped),
    }


if __name__ == "__main__":
    main()
