"""A causal language model: a small transformer from scratch on Python's own source, or adapters for a larger one.

    heliostat job submit language-model -- --steps 200
    heliostat job submit language-model -- --steps 200 --sharding fsdp2
    python -m train_jobs.language_model --lora /models/base --text notes.txt --rank 8      (inside a cluster)

From scratch it reads bytes of the standard library's files, every tenth file held out. With --lora it takes any causal
model in Hugging Face's format from a local folder, leaves it as it is and trains low-rank adapters beside its linear
layers (Hu et al. 2021); what is handed in is the adapters alone, with the sha256 of the base they belong to.
Shapes: B sequences of T tokens, V tokens in the vocabulary, D wide.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from heliostat.errors import HeliostatError, UsageError
from heliostat.train.context import TrainContext
from heliostat.train.job import run

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BYTES = 256
HELD_OUT_EVERY = 10
LARGEST_CORPUS = 4 * 2**20
TEST_BATCHES = 8


@dataclass(frozen=True)
class Config:
    steps: int = 200
    batch: int = 32
    """Sequences per optimizer step, over all workers together."""
    accumulate: int = 1
    """Parts in which a worker takes its share of them, for want of memory."""
    context: int = 128
    width: int = 128
    layers: int = 4
    heads: int = 4
    rate: float = 1e-3
    seed: int = 0
    sharding: str = "ddp"
    """ddp: every worker holds the model; fsdp2: each holds its share of it."""
    lora: str | None = None
    """Folder of a causal model in Hugging Face's format."""
    rank: int = 8
    text: str | None = None
    """A text file to train on; the standard library's source where there is none."""


def train(context: TrainContext, config: Config) -> None:
    """One worker."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(config.seed)
    model, encode, held = _lora_model(config) if config.lora else _model(config)
    model.to(context.device)
    corpus, test = (torch.tensor(encode(part), dtype=torch.long) for part in corpus_of(config))
    _check_length(corpus, test, config)
    if config.sharding == "fsdp2" and context.world_size > 1:
        shard(model)
    optimizer = torch.optim.AdamW([p for p in held.parameters() if p.requires_grad], lr=config.rate, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.steps))
    done = context.restore(held, optimizer, scheduler=scheduler)
    sharded = config.sharding == "fsdp2" and context.world_size > 1
    parallel = model if sharded or context.world_size == 1 else DistributedDataParallel(model)
    for step in range(done, config.steps):
        model.train()
        share = positions(len(corpus), config, step)[context.rank :: context.world_size]
        loss = _step(parallel, optimizer, corpus, share, config, context)
        scheduler.step()
        context.step_done(step + 1, config.steps, loss=loss, tokens=config.batch * config.context)
    held_out = _test_loss(model, test, config, context)
    context.log(f"held out: {held_out:.4f} nats per token")
    files = _files(held, config)
    context.finish(files=files, metrics={"test_loss": held_out}, lineage=_lineage(held, config))


def positions(length: int, config: Config, step: int) -> list[int]:
    """Where the step's sequences begin; from seed and step alone, so that it resumes with any number of workers."""
    chance = Random(f"{config.seed}/{step}")
    return [chance.randrange(length - config.context - 1) for _ in range(config.batch)]


def corpus_of(config: Config) -> tuple[bytes, bytes]:
    """(training, held out) text."""
    if config.text:
        data = Path(config.text).read_bytes()
        cut = len(data) * (HELD_OUT_EVERY - 1) // HELD_OUT_EVERY
        return data[:cut], data[cut:]
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    parts = [path.read_bytes() for path in files]
    held_out = b"".join(parts[::HELD_OUT_EVERY])
    rest = b"".join(part for number, part in enumerate(parts) if number % HELD_OUT_EVERY)
    return rest[:LARGEST_CORPUS], held_out


def shard(model: nn.Module) -> None:
    """FSDP2: each block's parameters are gathered when it runs, and the rest with the model."""
    from torch.distributed.fsdp import fully_shard

    for block in getattr(model, "blocks", []):
        fully_shard(block)
    fully_shard(model)


def transformer(config: Config) -> nn.Module:
    """A causal transformer over bytes: tokens [B, T] -> logits [B, T, V]."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
            self.qkv = nn.Linear(config.width, 3 * config.width)
            self.out = nn.Linear(config.width, config.width)
            self.up, self.down = nn.Linear(config.width, 4 * config.width), nn.Linear(4 * config.width, config.width)

        def forward(self, x: Tensor) -> Tensor:  # [B, T, D]
            heads = [p.unflatten(-1, (config.heads, -1)).transpose(1, 2) for p in self.qkv(self.norm1(x)).chunk(3, -1)]
            mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)  # [B, heads, T, D / heads]
            x = x + self.out(mixed.transpose(1, 2).flatten(2))
            return x + self.down(functional.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(BYTES, config.width)
            self.places = nn.Embedding(config.context, config.width)
            self.blocks = nn.ModuleList(Block() for _ in range(config.layers))
            self.norm, self.head = nn.LayerNorm(config.width), nn.Linear(config.width, BYTES)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))  # type: ignore[no-any-return]

    return Transformer()


Encode = Callable[[bytes], list[int]]


def _model(config: Config) -> tuple[nn.Module, Encode, nn.Module]:
    """(the model, bytes to tokens, what is trained and checkpointed of it)."""
    model = transformer(config)
    return model, list, model


def _lora_model(config: Config) -> tuple[nn.Module, Encode, nn.Module]:
    """The same for a base with adapters. Its weights are read from safetensors only; no code of the folder is run."""
    from torch import nn
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"local_files_only": True, "trust_remote_code": False}
    base = AutoModelForCausalLM.from_pretrained(config.lora, use_safetensors=True, **options)
    tokenizer = AutoTokenizer.from_pretrained(config.lora, **options)
    base.requires_grad_(False)
    adapters = nn.ModuleDict()
    for name, layer in list(base.named_modules()):
        if _is_linear(layer) and "head" not in name:
            adapters[name.replace(".", "-")] = _adapt(layer, config.rank)

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.adapters = base, adapters

        def forward(self, tokens: Tensor) -> Tensor:
            return self.base(tokens).logits  # type: ignore[no-any-return]

    return Adapted(), lambda data: list(tokenizer(data.decode(errors="replace"))["input_ids"]), adapters


def _is_linear(layer: nn.Module) -> bool:
    """Linear layers, and GPT-2's Conv1D, which is one with its weight transposed."""
    return type(layer).__name__ in ("Linear", "Conv1D")


def _adapt(layer: nn.Module, rank: int) -> nn.Module:
    """Two thin matrices beside a layer; the second starts at zero, so that the model starts as it is."""
    import torch
    from torch import nn

    weight: Tensor = layer.weight  # type: ignore[assignment]
    wide_in, wide_out = weight.shape if type(layer).__name__ == "Conv1D" else (weight.shape[1], weight.shape[0])
    adapter = nn.Module()
    adapter.down = nn.Parameter(torch.randn(wide_in, rank) / math.sqrt(wide_in))
    adapter.up = nn.Parameter(torch.zeros(rank, wide_out))
    layer.register_forward_hook(lambda _, inputs, output: output + inputs[0] @ adapter.down @ adapter.up)
    return adapter


def _step(model: Any, optimizer: Any, corpus: Tensor, share: list[int], config: Config, context: TrainContext) -> float:
    import torch

    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for part in _parts(share, config.accumulate):
        # The mean over the global batch, whatever a worker's share of it is: DDP and FSDP average over the workers.
        weight = len(part) * context.world_size / config.batch
        with torch.autocast(context.device.type, dtype=torch.bfloat16, enabled=context.device.type == "cuda"):
            loss = _loss(model, corpus, part, config, context) * weight
        loss.backward()
        total += float(loss.detach())
    optimizer.step()
    return total


def _parts(share: list[int], count: int) -> Iterator[list[int]]:
    size = max(1, -(-len(share) // count))
    for start in range(0, len(share), size):
        yield share[start : start + size]


def _loss(model: Any, corpus: Tensor, starts: list[int], config: Config, context: TrainContext) -> Tensor:
    import torch
    from torch.nn import functional

    rows = torch.stack([corpus[start : start + config.context + 1] for start in starts]).to(context.device)
    logits = model(rows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def _test_loss(model: Any, test: Tensor, config: Config, context: TrainContext) -> float:
    """Mean loss on held-out text, in nats per token; the same sequences on every rank, as FSDP needs all of them."""
    import torch

    model.eval()
    chance = Random(0)
    losses = []
    with torch.no_grad():
        for _ in range(TEST_BATCHES):
            starts = [chance.randrange(len(test) - config.context - 1) for _ in range(16)]
            losses.append(float(_loss(model, test, starts, config, context)))
    return sum(losses) / len(losses)


def _rate(step: int, total: int) -> float:
    climb = max(1, total // 20)
    if step < climb:
        return (step + 1) / climb
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - climb) / max(1, total - climb)))


def _check_length(corpus: Tensor, test: Tensor, config: Config) -> None:
    short = min(len(corpus), len(test))
    if short < config.context + 2:
        raise UsageError(
            f"the text has {short} tokens where {config.context + 2} are the least",
            where=config.text or "the standard library",
            do="give a longer text, or a smaller --context",
        )


def _files(held: nn.Module, config: Config) -> dict[str, bytes]:
    import safetensors.torch

    weights = {name: _whole(value).cpu().contiguous() for name, value in held.state_dict().items()}
    name = "adapter.safetensors" if config.lora else "model.safetensors"
    about = {**dataclasses.asdict(config), "base_digest": base_digest(config)}
    return {name: safetensors.torch.save(weights), "config.json": json.dumps(about).encode()}


def _whole(value: torch.Tensor) -> torch.Tensor:
    gather = getattr(value, "full_tensor", None)  # FSDP2: every rank must ask
    found: torch.Tensor = value.detach() if gather is None else gather().detach()
    return found


def base_digest(config: Config) -> str | None:
    """sha256 over names and bytes of the base's weight files."""
    if not config.lora:
        return None
    digest = hashlib.sha256()
    for path in sorted(Path(config.lora).glob("*.safetensors")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _lineage(held: nn.Module, config: Config) -> dict[str, object]:
    import torch

    data = hashlib.sha256(b"\0".join(corpus_of(config)))
    code = hashlib.sha256(Path(__file__).read_bytes())
    return {
        "dataset_digest": f"sha256:{data.hexdigest()}",
        "code_version": f"train_jobs sha256:{code.hexdigest()[:16]}",
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu, declared as logical GPUs",
        "dtype": "float32",
        "parent": base_digest(config),
        "parameters": sum(parameter.numel() for parameter in held.parameters()),
        "recipe": dataclasses.asdict(config),
        "licence": "of the base" if config.lora else "PSF-2.0 text",
    }


def parse(arguments: list[str]) -> tuple[Config, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m train_jobs.language_model", description=__doc__.split("\n")[0])
    for field in dataclasses.fields(Config):
        kind = {"steps": int, "rate": float, "sharding": str, "lora": str, "text": str}.get(field.name, int)
        choices = ("ddp", "fsdp2") if field.name == "sharding" else None
        parser.add_argument(f"--{field.name}", type=kind, default=field.default, choices=choices)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--min-workers", type=int, help="go on with as few while the group has no more nodes")
    parser.add_argument(
        "--checkpoint-every", type=int, metavar="STEPS", help="instead of the interval that loses the least time"
    )
    parsed = parser.parse_args(arguments)
    config = Config(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(Config)})
    if config.lora and config.sharding != "ddp":
        raise UsageError("--lora goes with --sharding ddp: adapters are small", do="leave --sharding out")
    if config.lora and not Path(config.lora).is_dir():
        raise UsageError(f"there is no folder {config.lora!r}", where="--lora", do="give a folder with a model in it")
    if config.width % config.heads or min(config.steps, config.batch, config.accumulate, config.context) < 1:
        raise UsageError(
            f"width {config.width}, heads {config.heads}: the first must be a multiple of the second, counts from 1"
        )
    return config, parsed


def main(arguments: list[str]) -> int:
    try:
        config, parsed = parse(arguments)
        trained = run(
            train,
            config,
            name="language-model",
            workers=parsed.workers,
            min_workers=parsed.min_workers,
            checkpoint_every=parsed.checkpoint_every,
        )
    except (HeliostatError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"run": trained.run, "metrics": trained.metrics}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
