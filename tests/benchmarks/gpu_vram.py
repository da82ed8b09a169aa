"""`gpu.py vram`: what plan/vram.py says beside what one card says, for models of random weights.

Each case runs in a process of its own, forked before CUDA began, so that the card's figure is that of one job:
*allocated* is the most that PyTorch's tensors took, *card* what the driver counts as used at the end, less what it
counted before the process began; the caching allocator gives nothing back meanwhile. The estimate is for the card;
less its own terms for context and fragmentation it is held against *allocated* too.

Each case then asks `fits` for cards of 16, 24, 40 and 80 GB. Out of memory counts as more than the card has.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from heliostat.plan.params import ModelShape, shape_from_config
from heliostat.plan.vram import GIB, Need, fits, need_of
from heliostat.plan.workload import Serving, Training

CARDS_GIB = {"16 GB": 15.6, "24 GB": 23.6, "40 GB": 39.4, "80 GB": 79.2}
"""What programs see of them."""
UNSEEN = ("CUDA context", "communication", "fragmentation")
LIMIT_S = 60.0


@dataclass(frozen=True)
class Sizes:
    """layers, hidden, heads, KV heads, feed-forward, vocabulary; `tied`: the head is the embedding."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    tied: bool = True

    def config(self, attention: str = "sdpa") -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(
            num_hidden_layers=self.layers, hidden_size=self.hidden, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, intermediate_size=self.ffn, vocab_size=self.vocab,
            tie_word_embeddings=self.tied, max_position_embeddings=32768, attn_implementation=attention,
        )  # fmt: skip


SIZES = {
    "0.5B": Sizes(24, 896, 14, 2, 4864, 151936),
    "1B": Sizes(16, 2048, 32, 8, 8192, 128256),
    "1.5B": Sizes(28, 1536, 12, 2, 8960, 151936),
    "3B": Sizes(28, 3072, 24, 8, 8192, 128256),
    "7B": Sizes(32, 4096, 32, 32, 11008, 32000, tied=False),
    "8B": Sizes(32, 4096, 32, 8, 14336, 128256, tied=False),
    "tiny": Sizes(2, 64, 4, 2, 128, 512),
}


@dataclass(frozen=True)
class Case:
    model: str
    work: Training | Serving
    runtime: str = "transformers"
    """transformers, or ours: inference/causal.py, train_jobs/language_model.py."""

    @property
    def name(self) -> str:
        w = self.work
        if isinstance(w, Serving):
            return f"{self.model} serve {self.runtime} b{w.batch} s{w.context}"
        kind = f"lora r{w.rank}" if w.method == "lora" else f"{w.precision} {w.optimizer}"
        recompute = {"none": "", "full": " recomputed"}[w.recompute]
        times = " x2" if w.accumulate else ""
        return f"{self.model} {kind}{recompute} {w.attention} b{w.batch} s{w.context}{times}"


def full(model: str, context: int, batch: int, **values: Any) -> Case:
    asked: dict[str, Any] = {
        "precision": "mixed",
        "recompute": "none",
        "kernels": "plain",
        "accumulate": False,
        **values,
    }
    return Case(model, Training(context=context, batch=batch, **asked))


def lora(model: str, context: int, batch: int, **values: Any) -> Case:
    return full(model, context, batch, method="lora", rank=16, **values)


def serve(model: str, context: int, batch: int, runtime: str = "ours") -> Case:
    prefill = context * batch if runtime == "transformers" else None
    return Case(model, Serving(context=context, batch=batch, prefill=prefill), runtime)


AGAIN, HALF = {"recompute": "full"}, {"precision": "bf16"}
CASES = [
    full("0.5B", 1024, 1),
    full("0.5B", 1024, 8),
    full("0.5B", 2048, 4, **AGAIN),
    full("0.5B", 1024, 2, attention="eager"),
    full("0.5B", 2048, 2, **HALF),
    full("0.5B", 2048, 2, optimizer="sgd"),
    full("1B", 1024, 1, **AGAIN),
    full("1B", 4096, 2, **AGAIN),
    full("1B", 1024, 4),
    full("1B", 8192, 1, **AGAIN, **HALF),
    full("1B", 2048, 2, **HALF, optimizer="sgd"),
    full("1B", 2048, 1, **HALF, attention="eager"),
    full("3B", 2048, 1, **AGAIN, **HALF),
    full("3B", 1024, 1, **AGAIN),
    full("7B", 1024, 1, **AGAIN, **HALF),
    full("8B", 1024, 1, **AGAIN, **HALF, optimizer="sgd"),
    lora("1B", 1024, 4),
    lora("3B", 4096, 2, **AGAIN),
    lora("8B", 2048, 1, **AGAIN),
    lora("8B", 8192, 1, **AGAIN),
    lora("8B", 2048, 1),
    lora("7B", 4096, 4, **AGAIN),
    serve("0.5B", 2048, 8),
    serve("1B", 4096, 32),
    serve("3B", 8192, 16),
    serve("7B", 4096, 4),
    serve("8B", 8192, 8),
    serve("1B", 2048, 8, "transformers"),
    serve("8B", 4096, 4, "transformers"),
]
HELD_OUT = [
    full("1.5B", 2048, 2),
    full("1.5B", 2048, 2, **HALF),
    full("1.5B", 4096, 2, **AGAIN, **HALF),
    full("1.5B", 1024, 4, attention="eager", **HALF),
    full("1B", 4096, 2, **HALF),
    full("1B", 2048, 4, **AGAIN, optimizer="sgd"),
    full("3B", 2048, 2, **HALF),
    full("3B", 4096, 2, **AGAIN, **HALF, optimizer="sgd"),
    lora("1.5B", 2048, 4),
    lora("3B", 2048, 2),
    lora("7B", 2048, 1),
    lora("8B", 4096, 2, **AGAIN),
    lora("1B", 1024, 2, attention="eager"),
    full("0.5B", 2048, 4, **AGAIN, accumulate=True),
    full("1B", 1024, 4, accumulate=True),
    full("1B", 8192, 1, **AGAIN, **HALF, accumulate=True),
    serve("1.5B", 4096, 16),
    serve("3B", 2048, 32, "transformers"),
    serve("8B", 8192, 4),
]
"""Measured after the formulas were corrected on the others."""
TINY = [
    full("tiny", 64, 2), full("tiny", 64, 2, **AGAIN, **HALF, optimizer="sgd"), lora("tiny", 64, 2, **AGAIN),
    lora("tiny", 64, 2, attention="eager"), serve("tiny", 64, 3), serve("tiny", 64, 3, "transformers"),
]  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """Bytes. `gone`: out of memory."""

    allocated: int = 0
    reserved: int = 0
    card: int = 0
    gone: bool = False
    seconds: float = 0.0


def run(options: argparse.Namespace) -> dict[str, Any]:
    import transformers  # noqa: F401  # once, before the forks
    from transformers.models.llama import modeling_llama  # noqa: F401

    gc.freeze()
    every = TINY if options.tiny else HELD_OUT if options.held_out else [*CASES, *own_recipe()]
    cases = [case for case in every if options.only in case.name]
    context = in_a_fork(context_alone, options.device)
    print(f"a process that has done one product: {context.card / GIB:.3f} GiB of the card\n")
    rows = []
    print(f"{'case':<44}{'alloc':>8}{'card':>8}{'estimate':>9}{'error':>7}{'alloc err':>10}  16 24 40 80 GB   s")
    for case in cases:
        seen = in_a_fork(measure, case, options.device)
        rows.append(row_of(case, seen))
        print(line_of(case, rows[-1]), flush=True)
    return summary(rows, context)


def in_a_fork(work: Callable[..., Seen], *arguments: Any) -> Seen:
    """The case's own process: forked, since importing everything again would take longer than the case."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)

    def child() -> None:
        try:
            theirs.send(work(*arguments))
        except torch.OutOfMemoryError:
            theirs.send(Seen(gone=True))
        except BaseException:
            theirs.send(traceback.format_exc(limit=-3))
            raise

    process = fork.Process(target=child)
    process.start()
    theirs.close()
    found: Any = None
    if ours.poll(LIMIT_S):
        try:
            found = ours.recv()
        except EOFError:
            found = "it ended without a word"
    process.join(10)
    if process.is_alive():
        process.kill()
        process.join()
    return found if isinstance(found, Seen) else failed(found)


def failed(why: Any) -> Seen:
    print(f"failed: {why or 'it took too long'}", flush=True)
    return Seen()


# --- what is estimated


def shape_of(case: Case) -> ModelShape:
    if case.model.startswith("bytes"):
        return own_shape(case.model)
    return shape_from_config(SIZES[case.model].config().to_dict(), name=case.model)


def row_of(case: Case, seen: Seen) -> dict[str, Any]:
    need = need_of(shape_of(case), case.work)
    bare = need.without(*UNSEEN).total
    row: dict[str, Any] = {
        "case": case.name, "allocated": seen.allocated, "reserved": seen.reserved, "card": seen.card,
        "out_of_memory": seen.gone, "estimate": need.total, "doubt": need.doubt, "peak": need.peak,
        "terms": {term.name: term.bytes for term in need.terms}, "seconds": round(seen.seconds, 1),
        "answers": answers(need, seen),
    }  # fmt: skip
    if seen.card:
        row["error"] = need.total / seen.card - 1
        row["allocated_error"] = bare / seen.allocated - 1 if seen.allocated else 0.0
    return row


def answers(need: Need, seen: Seen) -> dict[str, tuple[str, bool]]:
    """(what is said, whether it fitted), by card."""
    if not (seen.card or seen.gone):
        return {}
    true = {name: not seen.gone and seen.card <= gib * GIB for name, gib in CARDS_GIB.items()}
    return {name: (fits(need, round(gib * GIB)).answer, true[name]) for name, gib in CARDS_GIB.items()}


def line_of(case: Case, row: dict[str, Any]) -> str:
    marks = {("fits", True): "+", ("does not fit", False): "-", ("fits", False): "F", ("does not fit", True): "R"}
    said = "  ".join(marks.get(answer, "?") for answer in row["answers"].values())
    start = f"{case.name:<44}"
    if row["out_of_memory"]:
        return f"{start}{'out of memory':>16}{row['estimate'] / GIB:>9.2f}{'':>17}   {said}"
    if "error" not in row:
        return f"{start}{'failed':>16}{row['estimate'] / GIB:>9.2f}"
    return (
        f"{start}{row['allocated'] / GIB:>8.2f}{row['card'] / GIB:>8.2f}{row['estimate'] / GIB:>9.2f}"
        f"{row['error']:>+7.1%}{row['allocated_error']:>+10.1%}   {said}{row['seconds']:>9.1f}"
    )


def summary(rows: list[dict[str, Any]], context: Seen) -> dict[str, Any]:
    errors = [abs(row["error"]) for row in rows if "error" in row]
    counts = Counter(answer for row in rows for answer in row["answers"].values())
    within = [abs(row["estimate"] - row["card"]) <= row["doubt"] for row in rows if "error" in row]
    found = {
        "n": len(errors),
        "median_abs_error": round(statistics.median(errors), 4) if errors else None,
        "worst_abs_error": round(max(errors), 4) if errors else None,
        "within_doubt": round(statistics.fmean(within), 3) if within else None,
        "false_fits": counts["fits", False],
        "false_refusals": counts["does not fit", True],
        "too_close": sum(count for (said, _), count in counts.items() if said == "too close to call"),
        "calls": counts.total(),
        "context_gib": round(context.card / GIB, 3),
        "cases": rows,
    }
    print("\n+ rightly fits, - rightly not, ? too close, F wrongly fits, R wrongly refused")
    return found


# --- what is measured


def used(device: str) -> int:
    """What the driver counts as used on the whole card, without a CUDA context of this process."""
    if device == "cpu":
        return 0
    import pynvml

    pynvml.nvmlInit()
    found = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used
    pynvml.nvmlShutdown()
    return int(found)


def context_alone(device: str) -> Seen:
    before = used(device)
    a = torch.ones(64, 64, device=device)
    (a @ a).sum().item()
    return _seen(device, before, time.perf_counter())


def measure(case: Case, device: str) -> Seen:
    before, begun = used(device), time.perf_counter()
    if isinstance(case.work, Serving):
        serving(case, case.work, device)
    elif case.model.startswith("bytes"):
        own_training(case, case.work, device)
    else:
        training(case, case.work, device)
    return _seen(device, before, begun)


def _seen(device: str, before: int, begun: float) -> Seen:
    if device == "cpu":
        return Seen(1, 1, 1)
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated()
    return Seen(
        most, torch.cuda.max_memory_reserved(), used(device) - before, False, round(time.perf_counter() - begun, 2)
    )


def build(case: Case, device: str, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = AutoModelForCausalLM.from_config(SIZES[case.model].config(attention), dtype=dtype).to("meta")
    model = model.to_empty(device=device)
    model.tie_weights()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.02)
        for _, buffer in model.named_buffers():  # rotary frequencies
            buffer.uniform_(0, 1)
    return model


def training(case: Case, work: Training, device: str) -> None:
    mixed = work.precision == "mixed" and work.method == "full"
    model = build(
        case, device, torch.float32 if mixed else torch.bfloat16, "eager" if work.attention == "eager" else "sdpa"
    )
    if work.method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=work.rank, target_modules="all-linear"))
    if work.recompute == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.config.use_cache = False
    model.train()
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(learning, lr=1e-6, momentum=0.9) if work.optimizer == "sgd" else torch.optim.AdamW(learning)
    )
    autocast = mixed or work.method == "lora"
    for _ in range(3):
        for _ in range(2 if work.accumulate else 1):
            ids = torch.randint(0, SIZES[case.model].vocab, (work.batch, work.context), device=device)
            with torch.autocast(device, dtype=torch.bfloat16) if autocast else nullcontext():
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.inference_mode()
def serving(case: Case, work: Serving, device: str) -> None:
    model = build(case, device, torch.bfloat16).eval()
    vocab = SIZES[case.model].vocab
    if case.runtime == "transformers":
        from transformers import DynamicCache

        ids = torch.randint(0, vocab, (work.batch, work.context - 1), device=device)
        cache = DynamicCache(config=model.config)
        model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1)
        logits = model(input_ids=ids[:, :1], cache=cache, use_cache=True).logits[:, -1].float()
        torch.softmax(logits, -1).argmax(-1).cpu()
        return
    from heliostat.inference.causal import SlotModel

    slots = SlotModel(model, slots=work.batch, max_length=work.context)
    prompt = torch.randint(0, vocab, (work.context - 1,)).tolist()
    slots.prefill(0, [1])  # as a replica warms up: the room for keys and values is taken before activations are
    for slot in range(work.batch):
        slots.prefill(slot, prompt)
    slots.step(list(range(work.batch)), [1] * work.batch, [work.context - 1] * work.batch)


# --- the platform's own recipe


def own_recipe() -> list[Case]:
    """train_jobs/language_model.py: fp32 weights under autocast, AdamW, nothing recomputed."""
    work = Training(context=1024, batch=16, recompute="none", kernels="plain", accumulate=False)
    return [Case("bytes 1024x12", work, "ours"), Case("bytes 2048x24", replace(work, batch=4), "ours")]


def _own_config(model: str, work: Training) -> Any:
    from train_jobs.language_model import Config

    width, layers = map(int, model.removeprefix("bytes ").split("x"))
    return Config(width=width, layers=layers, heads=width // 64, context=work.context, batch=work.batch)


def own_shape(model: str) -> ModelShape:
    from train_jobs.language_model import BYTES, transformer

    config = _own_config(model, Training(context=1024))
    with torch.device("meta"):
        params = sum(weight.numel() for weight in transformer(config).parameters())
    return ModelShape(
        name=model, params=params, layers=config.layers, hidden=config.width, heads=config.heads,
        kv_heads=config.heads, head_dim=64, ffn=4 * config.width, vocab=BYTES,
        embedding_params=BYTES * config.width, head_params=BYTES * config.width, gated=False,
    )  # fmt: skip


def own_training(case: Case, work: Training, device: str) -> None:
    from types import SimpleNamespace

    from train_jobs import language_model

    config = _own_config(case.model, work)
    model = language_model.transformer(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    context: Any = SimpleNamespace(device=torch.device(device), world_size=1)
    corpus = torch.randint(0, 256, (100_000,))
    for step in range(3):
        language_model._step(
            model, optimizer, corpus, language_model.positions(len(corpus), config, step), config, context
        )
