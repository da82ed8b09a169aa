"""How fast a card serves or trains a model, at most about: from its compute and its memory bandwidth.

A forward pass is bound by whichever takes longer, arithmetic or reading memory (the roofline model: Williams,
Waterman and Patterson, 2009). What no data sheet tells is what share of each limit real kernels reach; `Shares` holds
these assumptions, and `Calibration` scales the answer by what the user has measured. Estimates without calibration
are for choosing what to try first: off by a factor of two at worst is what to expect.

Symbols: N weights that take part in matrix products, L layers, h hidden width, p prompt and o output tokens, B
sequences at once, t cards that share the model.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from heliostat.errors import UsageError
from heliostat.plan.catalogue import Accelerator
from heliostat.plan.params import ModelShape
from heliostat.plan.vram import inference_need, kv_bytes_per_token, kv_tokens, largest, weight_bytes
from heliostat.plan.workload import Serving, Training


@dataclass(frozen=True)
class Shares:
    """What is reached of the data sheet. Not measured by us: replace them by a calibration of your own."""

    prefill: float = 0.5
    """Of dense peak arithmetic, in prefill and encoders."""
    decode_bandwidth: float = 0.7
    """Of memory bandwidth, while tokens are generated."""
    training: float = 0.40
    """Of dense peak arithmetic on one card or over NVLink (model flops utilisation)."""
    training_pcie: float = 0.28
    """The same where cards of a machine talk over PCIe."""
    training_nodes: float = 0.35
    """The same over several machines with a fabric for collectives."""
    link_latency_s: float = 10e-6
    """Of one all-reduce within a machine, beside its bytes."""
    pcie_gb_s: float = 25.0
    """Of a card without NVLink, both directions."""
    busy: float = 0.7
    """Of its throughput that a replica is planned to run at: beyond it, waiting grows without bound."""


SHARES = Shares()
MOST_SEQUENCES = 256
"""At once in one replica: the default of vLLM (max_num_seqs)."""


@dataclass(frozen=True)
class Calibration:
    """measured / estimated. A measurement holds for its card; on others it is taken to be off by as much."""

    ratio: float = 1.0
    source: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ratio) and self.ratio > 0):
            raise UsageError(f"calibration of {self.ratio}", do="give measured / estimated, a number above 0")


def rate_tflops(card: Accelerator, dtype: str) -> float | None:
    """Dense peak for weights of that format. Formats narrower than the card computes in are widened: 16-bit rates."""
    wide = card.bf16_tflops or card.fp16_tflops
    if dtype == "fp8":
        return card.fp8_tflops or wide
    return wide


def matmul_params(shape: ModelShape) -> int:
    """Weights that a token is multiplied with: active experts and the head; looking up an embedding costs nothing."""
    idle = shape.layers * (3 if shape.gated else 2) * shape.hidden * (shape.all_ffn - shape.ffn)
    head = (shape.head_params or shape.vocab * shape.hidden) if shape.has_head else 0
    return shape.block_params - idle + head


def forward_flops(shape: ModelShape, tokens: int, *, context: float) -> float:
    """2 N a token, and 4 s h a layer for attention over `context` tokens on average (arXiv:2001.08361, section 2.1)."""
    return tokens * (2.0 * matmul_params(shape) + 4.0 * shape.layers * context * shape.attention_width)


@dataclass(frozen=True)
class Replica:
    """One copy of a model on `gpus` cards of a kind, at its best batch.

    `requests_per_s` is its throughput at saturation; `first_token_s` and `token_s` are those of a request among
    `sequences` others, without waiting for a seat.
    """

    card: Accelerator
    gpus: int
    sequences: int
    requests_per_s: float
    first_token_s: float
    token_s: float
    latency_s: float
    bound: str
    assumptions: tuple[str, ...]

    def planned(self, shares: Shares = SHARES) -> float:
        """Requests a second that it is planned for."""
        return self.requests_per_s * shares.busy


@dataclass(frozen=True)
class Traffic:
    """What is asked of an endpoint. `output` is 0 for an encoder; `latency_s`, of a whole request, None: no target."""

    requests_per_s: float
    prompt: int = 512
    output: int = 128
    latency_s: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.requests_per_s) and self.requests_per_s > 0):
            raise UsageError(f"{self.requests_per_s} requests a second", do="give a number above 0")
        if self.prompt < 1 or self.output < 0:
            raise UsageError(f"{self.prompt} tokens in and {self.output} out", do="at least 1 in and 0 out")
        if self.latency_s is not None and self.latency_s <= 0:
            raise UsageError(f"latency of {self.latency_s} s", do="give seconds above 0")


@lru_cache(maxsize=1024)
def replica_on(
    shape: ModelShape,
    dtype: Serving,
    traffic: Traffic,
    card: Accelerator,
    *,
    gpus: int = 1,
    memory_bytes: int | None = None,
    compute_share: float = 1.0,
    calibration: Calibration | None = None,
    shares: Shares = SHARES,
) -> Replica | str:
    """The fastest replica within the latency target on `gpus` cards, or on a slice; else why there is none.

    memory_bytes: what a program sees of one card or slice; compute_share: of the card's arithmetic and bandwidth.
    """
    peak = rate_tflops(card, dtype.dtype)
    if peak is None or card.bandwidth_gb_s is None:
        return "its speed is not known"
    if shape.heads % gpus:
        return f"{shape.heads} attention heads cannot be split over {gpus} cards"
    speed = _Speed(
        flops=peak * 1e12 * shares.prefill * gpus * compute_share,
        bytes_s=card.bandwidth_gb_s * 1e9 * shares.decode_bandwidth * gpus * compute_share,
        link=((card.nvlink_gb_s or 0) or shares.pcie_gb_s) * 1e9,
        latency_s=shares.link_latency_s,
        gpus=gpus,
        scale=(calibration or Calibration()).ratio,
    )
    memory = card.usable_bytes if memory_bytes is None else memory_bytes
    words = _assumptions(card, peak, shares, calibration)
    if not shape.causal or not traffic.output:
        return _encoder(shape, replace(dtype, tensor=gpus), traffic, card, memory, speed, words)
    return _decoder(shape, replace(dtype, tensor=gpus), traffic, card, memory, speed, words)


@dataclass(frozen=True)
class _Speed:
    """Of all cards together: flop/s and bytes/s; `link` bytes/s of one card; `scale` measured over estimated."""

    flops: float
    bytes_s: float
    link: float
    latency_s: float
    gpus: int
    scale: float

    def reduce_s(self, shape: ModelShape, tokens: float) -> float:
        """Two all-reduces a layer: each card sends 2 (t - 1) / t of the activations (ring)."""
        if self.gpus == 1:
            return 0.0
        sent = 2 * (self.gpus - 1) / self.gpus * tokens * shape.hidden * 2
        return 2 * shape.layers * (sent / self.link + self.latency_s)


def _decoder(
    shape: ModelShape,
    workload: Serving,
    traffic: Traffic,
    card: Accelerator,
    memory: int,
    speed: _Speed,
    words: tuple[str, ...],
) -> Replica | str:
    length = traffic.prompt + traffic.output
    one = replace(workload, context=length, batch=1)
    if inference_need(shape, one).ceiling > memory:
        return f"it does not hold the model in {workload.dtype} with {length} tokens"
    room = kv_tokens(shape, one, memory)
    assert room is not None  # a decoder has a cache  # noqa: S101
    most = max(1, min(MOST_SEQUENCES, room // length))
    prefill_s = _prefill_s(shape, traffic.prompt, speed)

    def timed(sequences: int) -> tuple[float, float]:
        """Time between two tokens of a sequence, others' prefills within it; and requests a second."""
        step = _decode_step_s(shape, workload, sequences, traffic, speed)
        between = step + sequences * prefill_s / traffic.output
        return between, sequences / (traffic.output * between)

    def latency(sequences: int) -> float:
        return prefill_s + traffic.output * timed(sequences)[0]

    if traffic.latency_s is not None and latency(1) > traffic.latency_s:
        return f"one request alone takes about {latency(1):.1f} s, and {traffic.latency_s:g} s is the target"
    target = traffic.latency_s or math.inf
    best = largest(most, lambda count: latency(count) <= target)
    between, rate = timed(best)
    reading = _reading_s(shape, workload, best, traffic, speed) >= _computing_s(shape, best, traffic, speed)
    held_by = (
        "memory for the KV cache" if best == most < MOST_SEQUENCES else "memory bandwidth" if reading else "compute"
    )
    return Replica(
        card, speed.gpus, best, rate, prefill_s + between, between, latency(best), held_by,
        (*words, f"{traffic.prompt} tokens in, {traffic.output} out, {best} sequences at once"),
    )  # fmt: skip


def _prefill_s(shape: ModelShape, prompt: int, speed: _Speed) -> float:
    flops = forward_flops(shape, prompt, context=prompt / 2)
    return (flops / speed.flops + speed.reduce_s(shape, prompt)) / speed.scale


def _reading_s(shape: ModelShape, workload: Serving, sequences: int, traffic: Traffic, speed: _Speed) -> float:
    cached = kv_bytes_per_token(shape, replace(workload, tensor=1)) * sequences * (traffic.prompt + traffic.output / 2)
    return (weight_bytes(shape, workload.dtype) + cached) / speed.bytes_s


def _computing_s(shape: ModelShape, sequences: int, traffic: Traffic, speed: _Speed) -> float:
    return forward_flops(shape, sequences, context=traffic.prompt + traffic.output / 2) / speed.flops


def _decode_step_s(shape: ModelShape, workload: Serving, sequences: int, traffic: Traffic, speed: _Speed) -> float:
    """All weights and all caches are read once for one token of every sequence."""
    slower = max(_reading_s(shape, workload, sequences, traffic, speed), _computing_s(shape, sequences, traffic, speed))
    return (slower + speed.reduce_s(shape, sequences)) / speed.scale


def _encoder(
    shape: ModelShape,
    workload: Serving,
    traffic: Traffic,
    card: Accelerator,
    memory: int,
    speed: _Speed,
    words: tuple[str, ...],
) -> Replica | str:
    """A batch is one forward pass; it is as large as memory and the latency target let it be."""

    def pass_s(batch: int) -> float:
        flops = forward_flops(shape, batch * traffic.prompt, context=traffic.prompt)
        reading = weight_bytes(shape, workload.dtype) / speed.bytes_s
        return (max(flops / speed.flops, reading) + speed.reduce_s(shape, batch * traffic.prompt)) / speed.scale

    def suits(batch: int) -> bool:
        need = inference_need(shape, replace(workload, context=traffic.prompt, batch=batch))
        # A request waits for the pass before its own.
        return need.ceiling <= memory and (traffic.latency_s is None or 2 * pass_s(batch) <= traffic.latency_s)

    if not suits(1):
        return "it does not hold the model, or one pass takes longer than the latency target"
    batch = largest(MOST_SEQUENCES, suits)
    took = pass_s(batch)
    return Replica(
        card, speed.gpus, batch, batch / took, took, 0.0, 2 * took, "compute",
        (*words, f"{traffic.prompt} tokens a request, {batch} requests in one pass"),
    )  # fmt: skip


def _assumptions(card: Accelerator, peak: float, shares: Shares, calibration: Calibration | None) -> tuple[str, ...]:
    words = (
        f"{card.name}: {peak:g} TFLOP/s dense, of which {shares.prefill:.0%} in prefill; {card.bandwidth_gb_s:g} GB/s, "
        f"of which {shares.decode_bandwidth:.0%} in decode ({card.source})"
    )
    if calibration is None or calibration.ratio == 1.0:
        return (words, "not calibrated: give --calibrate with a measurement of your own")
    return (words, f"scaled by {calibration.ratio:.2f}: {calibration.source}")


# --- training


@dataclass(frozen=True)
class Pace:
    """Tokens a second of all cards together, and why."""

    tokens_per_s: float
    utilisation: float
    assumptions: tuple[str, ...]


def training_flops_per_token(shape: ModelShape, workload: Training) -> float:
    """6 N for forward and backward (arXiv:2001.08361); frozen weights need no gradient: 4 N; 2 N more to recompute."""
    weights = 2.0 * matmul_params(shape) + 4.0 * shape.layers * (workload.context / 2) * shape.attention_width
    passes = 3 if workload.method == "full" else 2
    again = 1 if workload.recompute in ("full", "offload") else 0
    return weights * (passes + again)


def training_pace(
    shape: ModelShape,
    workload: Training,
    card: Accelerator,
    *,
    gpus: int,
    machines: int,
    calibration: Calibration | None = None,
    shares: Shares = SHARES,
) -> Pace | str:
    """Of a training over so many cards on so many machines; else why it cannot be said."""
    peak = card.bf16_tflops or card.fp16_tflops
    if peak is None:
        return "its speed is not known"
    share, how = shares.training, "on one card or over NVLink"
    if machines > 1:
        share, how = shares.training_nodes, f"over {machines} machines"
    elif gpus > 1 and not card.nvlink_gb_s:
        share, how = shares.training_pcie, "over PCIe"
    ratio = (calibration or Calibration()).ratio
    rate = peak * 1e12 * share * gpus * ratio / training_flops_per_token(shape, workload)
    scaled = f"scaled by {ratio:.2f}: {calibration.source}" if calibration and ratio != 1.0 else "not calibrated"
    words = (
        f"{card.name}: {peak:g} TFLOP/s dense, of which {share:.0%} {how} ({card.source})",
        f"{training_flops_per_token(shape, workload) / 1e9:,.0f} GFLOP a token; {scaled}",
    )
    return Pace(rate, share, words)


# --- calibration


def read_calibration(text: str) -> tuple[float | None, dict[str, object], str]:
    """From a ratio ("0.8"), or a JSON file with `accelerator` and `requests_per_s` or `tokens_per_s` as measured.

    Gives (ratio, the file's values, where from). A file of several lines is read from its last: benchmarks end so.
    """
    try:
        return Calibration(float(text), "given on the command line").ratio, {}, "given on the command line"
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
    path = Path(text)
    try:
        content = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UsageError(
            f"{text!r} is neither a number nor a file that can be read", do="give 0.8 or a JSON file"
        ) from error
    values = _json_of(content, text)
    if not isinstance(values.get("accelerator"), str) or not ({"requests_per_s", "tokens_per_s"} & values.keys()):
        raise UsageError(
            "a calibration without accelerator, or without requests_per_s or tokens_per_s",
            where=text,
            do='write {"accelerator": "L4", "requests_per_s": 7.5}, measured with this model and traffic',
        )
    return None, values, text


def _json_of(content: str, where: str) -> dict[str, object]:
    for candidate in (content, content.splitlines()[-1] if content else ""):
        try:
            values = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(values, dict):
            return values
    raise UsageError("not a JSON object, nor lines that end with one", where=where, do="give a benchmark's JSON")


def ratio_of(values: dict[str, object], *, estimated: float, key: str, where: str) -> Calibration:
    """measured / estimated of the card that was measured."""
    measured = values.get(key)
    if not isinstance(measured, int | float) or measured <= 0:
        raise UsageError(f"{key} is {measured!r}", where=where, do=f"give {key} as measured, a number above 0")
    return Calibration(
        measured / estimated,
        f"{measured:g} {key.replace('_per_s', '/s')} on {values['accelerator']} measured ({where})",
    )
