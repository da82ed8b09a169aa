"""How much GPU memory a model takes, term by term, and whether it fits.

Pure arithmetic: a shape (params.py) and a workload in, a `Need` out, in bytes for ONE GPU. Every term carries its
formula and where the formula comes from, and how far it may be off; what is doubtful in sum decides between *fits*,
*does not fit* and *too close to call*.

Symbols: N parameters, T trainable ones, L layers, h hidden width, a heads, k KV heads, d width of a head, f width of the
feed-forward layer, V vocabulary, s context, b sequences a GPU works on at once, p GPUs that share the state (data
parallel x context parallel), t tensor parallel, P pipeline stages.

Training peaks in one of two moments, and the larger is the need: in the *backward pass* the activations and the logits
are alive; in the *optimizer step* they are gone, and the optimizer's temporaries are there instead.

Not here: what a model's shape is (params.py), what cards there are and what they cost (catalogue.py), speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from heliostat.errors import UsageError
from heliostat.plan.params import ModelShape

GIB = 2**30

Dtype = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "nf4"]
Method = Literal["full", "lora", "qlora"]
Precision = Literal["fp32", "mixed", "bf16"]
Optimizer = Literal["adamw", "adamw-8bit", "paged-adamw-8bit", "adafactor", "sgd"]
Checkpointing = Literal["none", "selective", "full", "offload"]
Attention = Literal["flash", "eager"]
Loss = Literal["full", "upcast", "half", "fused"]
Shard = Literal["none", "ddp", "zero1", "zero2", "zero3"]
Answer = Literal["fits", "does not fit", "too close to call"]

BYTES_PER_WEIGHT: dict[Dtype, float] = {
    "fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "int4": 0.5 + 0.03, "nf4": 0.5 + 0.016,
}  # fmt: skip
"""int4: groups of 128 with a 16-bit scale and zero point. nf4: blocks of 64, double quantised (arXiv:2305.14314)."""

QUANTISED: tuple[Dtype, ...] = ("fp8", "int8", "int4", "nf4")
"""Formats of the linear layers alone: embeddings, head and norms stay in 16 bits."""

@dataclass(frozen=True)
class Overheads:
    """The constants that no formula gives. tests/benchmarks/vram.py fits them on some sources and tests on the others."""

    context_bytes: int = int(1.2 * GIB)
    """Driver context, kernels and library workspaces of a process. Seen: 1.31 GiB (V100, Hugging Face's page on training
    memory), 1.79 with communication (vLLM, an 80 GB card); 0.3 to 2 elsewhere."""
    communication_bytes: int = int(0.5 * GIB)
    """NCCL's buffers once a second GPU takes part: a few hundred MiB a communicator."""
    fragmentation: float = 0.08
    """Share of what comes and goes (activations, logits) that the caching allocator holds without using it."""
    logit_bytes: float = 12
    """A logit at the peak of cross-entropy's backward: the 16-bit logits and their gradient (2 + 2), log-softmax and its
    gradient in fp32 (4 + 4)."""


OVERHEADS = Overheads()

LOGIT_RATIO: dict[Loss, float] = {"full": 1, "upcast": 16 / 12, "half": 8 / 12, "fused": 0}
"""Against `Overheads.logit_bytes`. upcast: Hugging Face keeps an fp32 copy and its shifted copy. half: engines without
autocast compute the loss in 16 bits: logits, shifted copy, log-softmax, gradient. fused: by chunks, never whole."""

OPTIMIZER_BYTES: dict[Optimizer, float] = {
    "adamw": 8, "adamw-8bit": 2, "paged-adamw-8bit": 0, "adafactor": 0.1, "sgd": 4,
}  # fmt: skip
"""fp32 state a trainable parameter. Paged state moves to the host when the GPU needs the room."""


@dataclass(frozen=True)
class Term:
    """One part of a need. `doubt` is the share of it that it may be off by, either way."""

    name: str
    bytes: int
    formula: str
    source: str
    doubt: float


@dataclass(frozen=True)
class Need:
    """What one GPU must hold at the peak, and the terms of the moments that came out lower."""

    terms: tuple[Term, ...]
    peak: str
    other_peaks: tuple[tuple[Term, ...], ...] = ()

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(term.bytes for term in self.terms)

    @property
    def doubt(self) -> int:
        """Bytes the total may be off by: the terms' doubts are independent, so their squares add up."""
        return _doubt(self.terms)

    @property
    def ceiling(self) -> int:
        """Bytes that suffice beyond doubt, at whichever peak that is."""
        return max(sum(term.bytes for term in terms) + _doubt(terms) for terms in (self.terms, *self.other_peaks))

    def term(self, name: str) -> int:
        """Bytes of the term, 0 if there is none of that name."""
        return sum(term.bytes for term in self.terms if term.name == name)

    def without(self, *names: str) -> Need:
        """The same need less some terms: what a tool that does not see them would report."""

        def kept(terms: tuple[Term, ...]) -> tuple[Term, ...]:
            return tuple(term for term in terms if term.name not in names)

        return replace(self, terms=kept(self.terms), other_peaks=tuple(map(kept, self.other_peaks)))


def _doubt(terms: tuple[Term, ...]) -> int:
    return round(math.sqrt(sum((term.bytes * term.doubt) ** 2 for term in terms)))


@dataclass(frozen=True)
class Fit:
    """Whether a need goes into a memory. `margin` is what is left (below zero: what is missing), in bytes."""

    answer: Answer
    need: int
    memory: int
    margin: int
    doubt: int


@dataclass(frozen=True)
class Serving:
    """How a model is served. `context` tokens a sequence at most, `batch` sequences at once."""

    dtype: Dtype = "bf16"
    kv_dtype: Dtype = "bf16"
    context: int = 4096
    batch: int = 1
    prefill: int | None = None
    tensor: int = 1

    def __post_init__(self) -> None:
        _positive(context=self.context, batch=self.batch, tensor=self.tensor, prefill=self.prefill or 1)


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    `batch` is the micro batch of one GPU. `precision` is that of the weights that learn: `mixed` keeps an fp32 copy,
    `bf16` trains the 16-bit weights themselves. `dtype` is what frozen weights are stored in (LoRA), `nf4` or `int4`
    for QLoRA. `gpus` share the state by `shard`, besides `tensor` and `pipeline`. `unquantised_fp32`: the parts that
    QLoRA leaves unquantised are cast to fp32, as peft's `prepare_model_for_kbit_training` does. `cpu_offload` keeps
    gradients and optimizer state on the host, with `zero3` the weights too.
    """

    method: Method = "full"
    precision: Precision = "mixed"
    dtype: Dtype = "bf16"
    optimizer: Optimizer = "adamw"
    context: int = 4096
    batch: int = 1
    checkpointing: Checkpointing = "full"
    attention: Attention = "flash"
    loss: Loss = "full"
    rank: int = 16
    train_embeddings: bool = False
    unquantised_fp32: bool = True
    fused_backward: bool = False
    shard: Shard = "none"
    gpus: int = 1
    tensor: int = 1
    pipeline: int = 1
    context_parallel: int = 1
    cpu_offload: bool = False

    def __post_init__(self) -> None:
        _positive(
            context=self.context, batch=self.batch, rank=self.rank, gpus=self.gpus, tensor=self.tensor,
            pipeline=self.pipeline, context_parallel=self.context_parallel,
        )  # fmt: skip


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"{name} is {value}", do="write a whole number of 1 or more")


def inference_need(shape: ModelShape, workload: Serving, overheads: Overheads = OVERHEADS) -> Need:
    """What one GPU holds while it serves the model, at full batch and full context.

    Raises UsageError when the weights cannot be split as asked.
    """
    degree = workload.tensor
    _check_tensor(shape, degree)
    kv = kv_cache_bytes(shape, workload)
    prefill = workload.prefill or workload.context
    working = _prefill_bytes(shape, prefill) / degree + _sampling_bytes(shape, workload.batch)
    terms = [
        _weights_term(shape, workload.dtype, degree),
        Term(
            "KV cache",
            kv,
            "2 L k d x bytes x context (blocks of 16) x batch / min(t, k)",
            "transformer inference arithmetic; vLLM's blocks",
            0.0,
        ),
        Term(
            "activations",
            round(working),
            "prefill tokens x (8h + 6f) / t + batch x V x 10",
            "tensors of one layer; checked on vLLM logs",
            0.30,
        ),
        _context_term(overheads),
        *_communication_terms(degree, overheads),
        _fragmentation_term(working, overheads),
    ]
    return Need(tuple(term for term in terms if term.bytes), "prefill")


def kv_bytes_per_token(shape: ModelShape, kv_dtype: Dtype = "bf16", tensor: int = 1) -> float:
    """2 L k d x bytes, for one GPU of `tensor`: KV heads are split while there are any, then copied."""
    if not shape.causal:
        return 0.0
    width = math.ceil(shape.kv_heads / min(tensor, shape.kv_heads)) * shape.head_dim
    return 2 * shape.layers * width * BYTES_PER_WEIGHT[kv_dtype]


def kv_cache_bytes(shape: ModelShape, workload: Serving) -> int:
    """The cache of all sequences at full context, in whole blocks of 16 tokens."""
    blocks = math.ceil(workload.context / KV_BLOCK)
    return round(
        kv_bytes_per_token(shape, workload.kv_dtype, workload.tensor) * blocks * KV_BLOCK * workload.batch
    )


def kv_tokens_left(
    shape: ModelShape, workload: Serving, memory_bytes: int, overheads: Overheads = OVERHEADS
) -> int | None:
    """Tokens of KV cache that the memory holds beside everything else; 0 where nothing is left, None without a cache."""
    per_token = kv_bytes_per_token(shape, workload.kv_dtype, workload.tensor)
    if not per_token:
        return None
    room = memory_bytes - inference_need(shape, workload, overheads).without("KV cache").total
    return max(0, int(room // (per_token * KV_BLOCK))) * KV_BLOCK


def weight_bytes(shape: ModelShape, dtype: Dtype) -> float:
    """All weights in a format; quantised formats leave embeddings, head and norms in 16 bits."""
    rest = BYTES_PER_WEIGHT["bf16"] if dtype in QUANTISED else BYTES_PER_WEIGHT[dtype]
    return shape.block_params * BYTES_PER_WEIGHT[dtype] + (shape.embedding_params + shape.head_params) * rest


def training_need(shape: ModelShape, workload: Training, overheads: Overheads = OVERHEADS) -> Need:
    """What one GPU holds at the peak of a training step. Raises UsageError when the model cannot be split as asked."""
    _check_tensor(shape, workload.tensor)
    states = _state_terms(shape, workload)
    backward = [*states, *_backward_terms(shape, workload, overheads)]
    step = [*states, *_step_terms(shape, workload)]
    fixed = [_context_term(overheads), *_communication_terms(workload.gpus * workload.tensor * workload.pipeline, overheads)]
    peaks = {"backward pass": backward, "optimizer step": step}
    peaks_terms = {name: tuple(term for term in [*terms, *fixed] if term.bytes > 0) for name, terms in peaks.items()}
    peak = max(peaks_terms, key=lambda name: sum(term.bytes for term in peaks_terms[name]))
    return Need(peaks_terms[peak], peak, tuple(terms for name, terms in peaks_terms.items() if name != peak))


def lora_params(shape: ModelShape, rank: int) -> int:
    """Parameters of adapters on every linear layer of the blocks: r x (in + out) each (arXiv:2106.09685)."""
    h, q, kv, f = shape.hidden, shape.attention_width, shape.kv_width, shape.all_ffn
    attention = (h + q) * 2 + (h + kv) * 2
    feed_forward = (h + f) * (3 if shape.gated else 2)
    return shape.layers * rank * (attention + feed_forward)


def fits(need: Need, memory_bytes: int) -> Fit:
    """Compare a need with what a card offers; within the need's own doubt the answer is *too close to call*."""
    margin = memory_bytes - need.total
    answer: Answer = "too close to call"
    if memory_bytes >= need.ceiling:
        answer = "fits"
    elif margin < -need.doubt:
        answer = "does not fit"
    return Fit(answer, need.total, memory_bytes, margin, need.doubt)


# --- terms


def _weights_term(shape: ModelShape, dtype: Dtype, degree: int) -> Term:
    return Term(
        "weights",
        math.ceil(weight_bytes(shape, dtype) / degree),
        f"N x {BYTES_PER_WEIGHT[dtype]:g} B" + (" (embeddings and head 2 B)" if dtype in QUANTISED else "")
        + (f" / {degree}" if degree > 1 else ""),
        "exact count" if shape.exact else "typical shape of that size",
        0.01 if shape.exact else 0.05,
    )  # fmt: skip


def _context_term(overheads: Overheads) -> Term:
    return Term("CUDA context", overheads.context_bytes, "one process a GPU", "measured: 0.3 to 2 GiB", 0.40)


def _communication_terms(ranks: int, overheads: Overheads) -> list[Term]:
    if ranks == 1:
        return []
    return [Term("communication", overheads.communication_bytes, "NCCL buffers", "a few hundred MiB a communicator", 0.50)]


def _fragmentation_term(moving: float, overheads: Overheads) -> Term:
    return Term("fragmentation", round(overheads.fragmentation * moving),
                f"{overheads.fragmentation:.0%} of what comes and goes", "caching allocator: 5 to 10 %", 1.0)  # fmt: skip


def _prefill_bytes(shape: ModelShape, tokens: int) -> float:
    """Residual, normed input, queries, keys, values and output of attention (8h), gate, up and product (3f), 16-bit."""
    return tokens * (8 * shape.hidden + 6 * shape.ffn)


def _sampling_bytes(shape: ModelShape, batch: int) -> float:
    return batch * shape.vocab * 10 if shape.has_head else 0


KV_BLOCK = 16
"""Tokens of a block of vLLM's paged cache; the last one of a sequence is held whole."""


def _check_tensor(shape: ModelShape, degree: int) -> None:
    if shape.heads % degree:
        raise UsageError(
            f"{shape.heads} attention heads cannot be split over {degree} GPUs", do="use a divisor of the heads"
        )


def _state_terms(shape: ModelShape, w: Training) -> list[Term]:
    """Weights, gradients and optimizer state."""
    return _full_states(shape, w) if w.method == "full" else _adapter_states(shape, w)


def _full_states(shape: ModelShape, w: Training) -> list[Term]:
    n = _stage_params(shape, w)
    stored, gradient, moments = _bytes_a_parameter(w)
    master = 4 if _engine_keeps_copy(w) else 0
    parts = _shares(w)
    gradients = n * gradient / parts.gradients
    if w.fused_backward:
        gradients = min(gradients, _largest_unit(shape) * gradient)
    if w.cpu_offload:
        master = moments = gradients = 0
    return [
        Term("weights", round(n * stored / parts.weights), f"N x {stored:g} B{parts.text(parts.weights)}",
             "arXiv:1910.02054", _n_doubt(shape)),
        Term("gradients", round(gradients),
             "of one layer: the step is fused into the backward pass" if w.fused_backward
             else f"N x {gradient:g} B{parts.text(parts.gradients)}", "arXiv:1910.02054", _n_doubt(shape)),
        Term("optimizer state", round(n * (master + moments) / parts.optimizer),
             f"N x {master + moments:g} B{parts.text(parts.optimizer)}", "arXiv:1910.02054; arXiv:2110.02861",
             _n_doubt(shape)),
        *_sharing_terms(shape, w, stored=2, gradient=gradient),
    ]  # fmt: skip


def _stage_params(shape: ModelShape, w: Training) -> float:
    """Parameters of one GPU before sharding: the largest pipeline stage, which also holds an embedding or the head."""
    if w.pipeline == 1:
        return shape.params / w.tensor
    layers = math.ceil(shape.layers / w.pipeline)
    return (layers * _layer_params(shape) + max(shape.embedding_params, shape.head_params)) / w.tensor


def _n_doubt(shape: ModelShape) -> float:
    return 0.02 if shape.exact else 0.05


def _bytes_a_parameter(w: Training) -> tuple[float, float, float]:
    """Stored weight, gradient and moments of a parameter that learns."""
    moments = OPTIMIZER_BYTES[w.optimizer]
    if w.precision == "fp32":
        return 4, 4, moments
    if _engine_keeps_copy(w):
        return 2, 2, moments
    if w.precision == "mixed":
        return 4, 4, moments
    return 2, 2, moments / 2 if w.optimizer in ("adamw", "sgd") else moments


def _engine_keeps_copy(w: Training) -> bool:
    """Sharding engines train 16-bit weights beside an fp32 copy; one GPU and DDP autocast fp32 weights instead."""
    return w.precision == "mixed" and w.shard in ("zero1", "zero2", "zero3")


@dataclass(frozen=True)
class _Shares:
    weights: float
    gradients: float
    optimizer: float

    def text(self, parts: float) -> str:
        return ", on the host" if parts == math.inf else f" / {parts:g}" if parts > 1 else ""


def _weights_on_host(w: Training) -> bool:
    return w.cpu_offload and w.shard == "zero3"


def _shares(w: Training) -> _Shares:
    """Over how many GPUs each kind of state is spread (ZeRO's stages; FSDP is stage 3)."""
    p = w.gpus
    return _Shares(
        weights=math.inf if _weights_on_host(w) else p if w.shard == "zero3" else 1,
        gradients=p if w.shard in ("zero2", "zero3") else 1,
        optimizer=p if w.shard in ("zero1", "zero2", "zero3") else 1,
    )


def _layer_params(shape: ModelShape) -> float:
    return shape.block_params / shape.layers


def _largest_unit(shape: ModelShape) -> float:
    """The largest piece that is gathered at once: a layer, or the embedding or head matrix."""
    return max(_layer_params(shape), shape.head_params, shape.vocab * shape.hidden)


LIVE_PARAMETERS = 10**9
"""DeepSpeed keeps up to so many gathered parameters before it lets them go (stage3_max_live_parameters)."""


def _sharing_terms(shape: ModelShape, w: Training, *, stored: float, gradient: float) -> list[Term]:
    """What sharded state needs whole for a moment. Never more than what sharding saved."""
    on_host = _weights_on_host(w)
    if (w.gpus == 1 and not on_host) or w.shard in ("none", "ddp", "zero1"):
        return []
    saved = _stage_params(shape, w) * (1 if on_host else 1 - 1 / w.gpus)
    if w.pipeline > 1 and w.shard == "zero3":
        # Gathering again for every microbatch is too slow: the stage stays whole for the step.
        gathered, unreduced = saved, saved * 2
    else:
        layers = max(2 * _layer_params(shape), LIVE_PARAMETERS if on_host else 0)
        unit = (layers + shape.vocab * shape.hidden + shape.head_params) / w.tensor
        gathered = unreduced = min(unit, saved)
    terms = []
    if w.shard == "zero3":
        terms.append(Term("gathered layers", round(gathered * stored),
                          "two layers, embedding and head whole" if w.pipeline == 1 else "the stage, whole",
                          "ZeRO-3 and FSDP gather with prefetch", 0.5))  # fmt: skip
    terms.append(Term("gradient buckets", round(unreduced * gradient), "gradients not yet reduced",
                      "ZeRO-2 and -3 reduce in buckets", 0.5))  # fmt: skip
    return terms


def _adapter_states(shape: ModelShape, w: Training) -> list[Term]:
    """Frozen weights; adapters in fp32 with their gradients and moments; trained embeddings in the weights' dtype."""
    parts = _shares(w)
    split = w.tensor * w.pipeline
    adapters = lora_params(shape, w.rank) / split
    moments = 0 if w.cpu_offload else OPTIMIZER_BYTES[w.optimizer]
    terms = [
        Term("weights", round(_frozen_bytes(shape, w) / split / parts.weights),
             f"N x {BYTES_PER_WEIGHT[w.dtype]:g} B{parts.text(parts.weights)}, embeddings and head "
             f"{4 if _upcasts(w) else 2} B" if w.method == "qlora"
             else f"N x {BYTES_PER_WEIGHT[w.dtype]:g} B{parts.text(parts.weights)}",
             "arXiv:2106.09685; arXiv:2305.14314", _n_doubt(shape)),
        Term("adapters", round(adapters * (4 / min(parts.weights, w.gpus) + 4 / parts.gradients + moments / parts.optimizer)),
             f"r = {w.rank} on every linear layer: T x (4 + 4 + {moments:g}) B", "arXiv:2106.09685", 0.3),
    ]  # fmt: skip
    if w.train_embeddings:
        trained = (shape.vocab * shape.hidden + shape.head_params) / split
        each = 2 / min(parts.weights, w.gpus) + 2 / parts.gradients + moments / 2 / parts.optimizer
        terms.append(Term("trained embeddings", round(trained * each), "embedding and head again, 2 + 2 + 4 B",
                          "peft's modules_to_save keeps the frozen original", 0.2))  # fmt: skip
    return [*terms, *_sharing_terms(shape, w, stored=BYTES_PER_WEIGHT[w.dtype], gradient=0)]


def _upcasts(w: Training) -> bool:
    """Only bitsandbytes' formats are prepared that way; GPTQ's int4 keeps its 16-bit parts."""
    return w.method == "qlora" and w.unquantised_fp32 and w.dtype in ("nf4", "int8")


def _frozen_bytes(shape: ModelShape, w: Training) -> float:
    if _upcasts(w):
        rest = (shape.embedding_params + shape.head_params) * BYTES_PER_WEIGHT["fp32"]
        return shape.block_params * BYTES_PER_WEIGHT[w.dtype] + rest
    return weight_bytes(shape, w.dtype)


def _step_terms(shape: ModelShape, w: Training) -> list[Term]:
    """The optimizer's temporaries: PyTorch's fused-over-tensors step (foreach) copies what it updates."""
    if w.cpu_offload or w.optimizer not in ("adamw", "sgd"):
        return []
    parts = _shares(w).optimizer
    if w.method == "full":
        count = _stage_params(shape, w) / parts
        each = 2 if w.precision == "bf16" else 4
    else:
        count = lora_params(shape, w.rank) / (w.tensor * w.pipeline) / parts
        each = 4
    terms = [Term("step temporaries", round(count * each), f"T x {each} B", "torch.optim foreach; DeepSpeed fp32 copy",
                  1.0)]  # fmt: skip
    if w.train_embeddings and w.method != "full":
        trained = (shape.vocab * shape.hidden + shape.head_params) / (w.tensor * w.pipeline) / parts
        terms.append(Term("step temporaries of embeddings", round(trained * 2), "2 B each", "torch.optim foreach", 0.5))
    return terms


def _backward_terms(shape: ModelShape, w: Training, overheads: Overheads) -> list[Term]:
    """Activations kept, the layer being worked on, logits and loss."""
    tokens = w.context * w.batch / w.context_parallel
    width = 4 if w.precision == "fp32" and w.method == "full" else 2
    whole = _layer_bytes(shape, w, width)
    kept = _kept_bytes(shape, w, width, whole) * math.ceil(shape.layers / w.pipeline) * tokens / w.tensor
    in_flight = tokens / w.pipeline if w.pipeline > 1 else tokens
    working = (whole * (w.checkpointing != "none") + _gradient_width(shape, w, width)) * in_flight / w.tensor
    if w.tensor > 1:
        # Sequence parallel: the inputs of attention and feed-forward are gathered whole, and so are their gradients.
        working += 2 * shape.hidden * width * in_flight
    each = overheads.logit_bytes * LOGIT_RATIO[w.loss]
    logits = (shape.vocab * each if shape.has_head else 0.0) * in_flight / w.tensor
    if w.pipeline > 1:
        # The first stage keeps every microbatch, the last one keeps one and holds the logits.
        kept, logits = (kept, 0.0) if kept - kept / w.pipeline > logits else (kept / w.pipeline, logits)
    cast = 2 * shape.params / w.tensor if w.method == "full" and w.precision == "mixed" and not _engine_keeps_copy(w) else 0
    return [
        Term("16-bit copies", round(cast), "N x 2 B: autocast keeps what it cast", "Hugging Face: memory anatomy", 0.05),
        Term("activations kept", round(kept), _kept_text(w), "arXiv:2205.05198", 0.25),
        Term("working layer", round(working), "one layer recomputed, and its gradients", "arXiv:2205.05198", 0.3),
        Term("logits and loss", round(logits), f"s b V x {each:g} B", "tensors of cross-entropy", 0.3),
        _fragmentation_term(kept + working + logits, overheads),
    ]


def _kept_text(w: Training) -> str:
    return {
        "none": "every tensor of every layer",
        "selective": "layer inputs, attention output and every other matmul",
        "full": "s b h a layer: its input alone",
        "offload": "two layer inputs: the others are on the host",
    }[w.checkpointing]


def _layer_bytes(shape: ModelShape, w: Training, width: int) -> float:
    """Bytes a token of one whole layer: what backward needs when nothing is recomputed.

    Norm inputs 2h, attention's input and output, the feed-forward's input, q, k and v; gated: gate, up and product;
    otherwise input and output of the activation. Eager attention keeps the scores: a s (softmax, its dropout).
    """
    h, f = shape.hidden, shape.ffn
    elements = 4 * h + 2 * shape.attention_width + 2 * shape.kv_width + (3 if shape.gated else 2) * f
    scores = shape.heads * w.context * (2 * width + 1) if w.attention == "eager" else 0
    return elements * width + scores


def _kept_bytes(shape: ModelShape, w: Training, width: int, whole: float) -> float:
    """Bytes a token and layer that stay from the forward to the backward pass."""
    if w.checkpointing == "none":
        return whole
    if w.checkpointing == "selective":
        matmuls = shape.attention_width + shape.kv_width + shape.ffn + shape.hidden
        return (shape.hidden + shape.attention_width + matmuls) * width
    if w.checkpointing == "offload":
        return 2 * shape.hidden * width / shape.layers
    return shape.hidden * width


def _gradient_width(shape: ModelShape, w: Training, width: int) -> float:
    """Bytes a token of the gradients alive while one layer runs backward: the feed-forward's, or the scores'."""
    f = shape.ffn
    return (3 if shape.gated else 2) * f * width + (2 * shape.heads * w.context * width if w.attention == "eager" else 0)

