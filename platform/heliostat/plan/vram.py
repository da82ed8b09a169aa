"""How much GPU memory a model takes, term by term, and whether it fits.

Pure arithmetic: a shape and a workload in, a `Need` out, in bytes of ONE GPU. Every term carries its formula, where the
formula comes from, and by how much it may be off. What is doubtful in sum decides between *fits*, *does not fit* and
*too close to call*.

Symbols: N parameters, T trainable ones, L layers, h hidden width, a heads, k KV heads, d width of a head, f width of
the feed-forward layer, V vocabulary, s context, b sequences a GPU works on at once, p GPUs that share the state,
t tensor parallel, P pipeline stages.

Training peaks in one of three moments, and the largest is the need: at the *loss* all activations and the logits are
alive; in the *backward pass* the logits are gone, and the gradients of a layer are there; in the *optimizer step* the
activations are gone too, and the optimizer's temporaries are there instead.

tests/benchmarks/vram.py holds all this against published measurements; docs/decisions/0006-gpu-memory.md says what
was tried. Not here: a model's shape (params.py), the workloads (workload.py), cards and prices (catalogue.py), speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from heliostat.errors import UsageError
from heliostat.plan.params import ModelShape
from heliostat.plan.workload import (
    BYTES_PER_WEIGHT,
    OPTIMIZER_BYTES,
    QUANTISED,
    Dtype,
    Loss,
    Recompute,
    Serving,
    Training,
)

__all__ = [
    "Change",
    "Fit",
    "ModelShape",
    "Need",
    "Serving",
    "Term",
    "Training",
    "cheapest_change",
    "fits",
    "inference_need",
    "training_need",
]

GIB = 2**30

Answer = Literal["fits", "does not fit", "too close to call"]

KV_BLOCK = 16
"""Tokens of a block of vLLM's paged cache; the last one of a sequence is held whole."""

LIVE_PARAMETERS = 10**9
"""DeepSpeed lets so many gathered parameters live before it frees some (stage3_max_live_parameters)."""


@dataclass(frozen=True)
class Overheads:
    """The constants that no formula gives; the benchmark fits them on some sources and tests them on the others."""

    context_bytes: int = int(1.2 * GIB)
    """Driver context, kernels and library workspaces of a process. Seen: 1.31 GiB (V100, Hugging Face's page on memory
    in training), 1.79 with communication (vLLM, an 80 GB card); 0.3 to 2 elsewhere."""
    communication_bytes: int = int(0.5 * GIB)
    """NCCL's buffers once a second GPU takes part: a few hundred MiB a communicator."""
    fragmentation: float = 0.08
    """Share of what comes and goes (activations, logits) that the caching allocator holds without using it."""
    logit_bytes: float = 12
    """A logit at the peak of cross-entropy's backward: the 16-bit logits and their gradient (2 + 2), log-softmax and
    its gradient in fp32 (4 + 4)."""


OVERHEADS = Overheads()

LOGIT_SHARE: dict[Loss, float] = {"full": 1, "upcast": 16 / 12, "half": 8 / 12, "fused": 0}
"""Of `Overheads.logit_bytes`. upcast: Hugging Face keeps an fp32 copy and its shifted copy. half: engines without
autocast compute the loss in 16 bits: logits, shifted copy, log-softmax, gradient. fused: by chunks, never whole."""


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
        return _sum(self.terms)

    @property
    def doubt(self) -> int:
        """Bytes the total may be off by: the terms' doubts are independent, so their squares add up."""
        return _doubt(self.terms)

    @property
    def ceiling(self) -> int:
        """Bytes that suffice beyond doubt, at whichever peak that is."""
        return max(_sum(terms) + _doubt(terms) for terms in (self.terms, *self.other_peaks))

    def term(self, name: str) -> int:
        """Bytes of the term, 0 if there is none of that name."""
        return _sum(tuple(term for term in self.terms if term.name == name))

    def without(self, *names: str) -> Need:
        """The same need less some terms: what a tool that does not see them would report."""

        def kept(terms: tuple[Term, ...]) -> tuple[Term, ...]:
            return tuple(term for term in terms if term.name not in names)

        return replace(self, terms=kept(self.terms), other_peaks=tuple(map(kept, self.other_peaks)))


def _sum(terms: tuple[Term, ...]) -> int:
    return sum(term.bytes for term in terms)


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


def fits(need: Need, memory_bytes: int) -> Fit:
    """Compare a need with what a card offers; within the need's own doubt the answer is *too close to call*."""
    margin = memory_bytes - need.total
    answer: Answer = "too close to call"
    if memory_bytes >= need.ceiling:
        answer = "fits"
    elif margin < -need.doubt:
        answer = "does not fit"
    return Fit(answer, need.total, memory_bytes, margin, need.doubt)


def _check_tensor(shape: ModelShape, degree: int) -> None:
    if shape.heads % degree:
        raise UsageError(
            f"{shape.heads} attention heads cannot be split over {degree} GPUs",
            do="use a number that divides the heads",
        )


# --- serving


def inference_need(shape: ModelShape, workload: Serving, overheads: Overheads = OVERHEADS) -> Need:
    """What one GPU holds while it serves, at full batch and full context. UsageError for heads that do not split."""
    _check_tensor(shape, workload.tensor)
    working = _prefill_bytes(shape, workload) + _sampling_bytes(shape, workload)
    terms = (
        _weights_term(shape, workload),
        Term(
            "KV cache",
            kv_cache_bytes(shape, workload),
            f"2 L k d x {BYTES_PER_WEIGHT[workload.kv_dtype]:g} B x s in blocks of 16 x b{_over(workload.tensor)}",
            "keys and values of every layer; vLLM's blocks",
            0.0,
        ),
        Term(
            "activations",
            round(working),
            f"prefill tokens x (8h + 6f) B{_over(workload.tensor)} + b x V x 10 B",
            "tensors of one layer and of sampling; checked on vLLM logs",
            0.30,
        ),
        _context_term(overheads),
        *_communication_terms(workload.tensor, overheads),
        _fragmentation_term(working, overheads),
    )
    return Need(tuple(term for term in terms if term.bytes), "prefill")


def weight_bytes(shape: ModelShape, dtype: Dtype) -> float:
    """All weights in a format; quantised formats leave embeddings and head in 16 bits."""
    rest = BYTES_PER_WEIGHT["bf16"] if dtype in QUANTISED else BYTES_PER_WEIGHT[dtype]
    return shape.block_params * BYTES_PER_WEIGHT[dtype] + (shape.embedding_params + shape.head_params) * rest


def kv_bytes_per_token(shape: ModelShape, workload: Serving) -> float:
    """2 L k d x bytes, of one GPU: KV heads are split over the GPUs while there are any, then copied."""
    if not shape.causal:
        return 0.0
    heads = math.ceil(shape.kv_heads / min(workload.tensor, shape.kv_heads))
    return 2 * shape.layers * heads * shape.head_dim * BYTES_PER_WEIGHT[workload.kv_dtype]


def kv_cache_bytes(shape: ModelShape, workload: Serving) -> int:
    """The cache of all sequences at full context."""
    tokens = math.ceil(workload.context / KV_BLOCK) * KV_BLOCK * workload.batch
    return round(kv_bytes_per_token(shape, workload) * tokens)


def kv_tokens(shape: ModelShape, workload: Serving, memory_bytes: int, overheads: Overheads = OVERHEADS) -> int | None:
    """Tokens of KV cache that the memory holds beside all else, in whole blocks; None for a model without one."""
    per_token = kv_bytes_per_token(shape, workload)
    if not per_token:
        return None
    room = memory_bytes - inference_need(shape, workload, overheads).without("KV cache").total
    return max(0, int(room // (per_token * KV_BLOCK))) * KV_BLOCK


def _weights_term(shape: ModelShape, workload: Serving) -> Term:
    quantised = " (embeddings and head 2 B)" if workload.dtype in QUANTISED else ""
    return Term(
        "weights",
        math.ceil(weight_bytes(shape, workload.dtype) / workload.tensor),
        f"N x {BYTES_PER_WEIGHT[workload.dtype]:g} B{quantised}{_over(workload.tensor)}",
        "count" if shape.exact else "typical shape of that size",
        _count_doubt(shape),
    )


def _prefill_bytes(shape: ModelShape, workload: Serving) -> float:
    """Residual, normed input, queries, keys, values and output of attention (8h), gate, up and product (6f)."""
    at_once = workload.context * (1 if shape.causal else workload.batch)  # an encoder takes its whole batch at once
    tokens = workload.prefill or at_once
    return tokens * (8 * shape.hidden + 6 * shape.ffn) / workload.tensor


def _sampling_bytes(shape: ModelShape, workload: Serving) -> float:
    return workload.batch * shape.vocab * 10 if shape.has_head else 0


# --- terms that both have


def _count_doubt(shape: ModelShape) -> float:
    return 0.02 if shape.exact else 0.05


def _over(parts: float) -> str:
    return ", on the host" if parts == math.inf else f" / {parts:g}" if parts > 1 else ""


def _context_term(overheads: Overheads) -> Term:
    return Term("CUDA context", overheads.context_bytes, "one process a GPU", "measured: 0.3 to 2 GiB", 0.40)


def _communication_terms(ranks: int, overheads: Overheads) -> list[Term]:
    if ranks == 1:
        return []
    return [Term("communication", overheads.communication_bytes, "NCCL buffers", "a few hundred MiB each", 0.50)]


def _fragmentation_term(moving: float, overheads: Overheads) -> Term:
    share = overheads.fragmentation
    return Term("fragmentation", round(share * moving), f"{share:.0%} of what comes and goes", "caching allocator", 1.0)


def _hole_term(logits: float) -> Term:
    """A loss in single operations makes blocks of all logits in fp32, gigabytes each, and the allocator finds room for
    one where none has been: seen 0.4 to 2.3 of them left over on an H100.
    """
    return Term("fragmentation", round(4 * logits), "s b V x 4 B: a block of logits", "caching allocator", 1.0)


# --- training: state


def training_need(shape: ModelShape, workload: Training, overheads: Overheads = OVERHEADS) -> Need:
    """What one GPU holds at the peak of a training step. Raises UsageError for heads that do not split."""
    _check_tensor(shape, workload.tensor)
    states = _full_states(shape, workload) if workload.method == "full" else _adapter_states(shape, workload)
    ranks = workload.gpus * workload.tensor * workload.pipeline
    fixed = [*states, _context_term(overheads), *_communication_terms(ranks, overheads)]
    peaks = {
        "loss": _terms(_without_gradients(fixed, workload), _loss_terms(shape, workload, overheads)),
        "backward pass": _terms(fixed, _backward_terms(shape, workload, overheads)),
        "optimizer step": _terms(fixed, _step_terms(shape, workload)),
    }
    peak = max(peaks, key=lambda name: _sum(peaks[name]))
    return Need(peaks[peak], peak, tuple(terms for name, terms in peaks.items() if name != peak))


def _terms(*parts: list[Term]) -> tuple[Term, ...]:
    return tuple(term for part in parts for term in part if term.bytes > 0)


def lora_params(shape: ModelShape, rank: int) -> int:
    """Parameters of adapters on every linear layer of the blocks: r x (in + out) each (arXiv:2106.09685)."""
    h, q, kv = shape.hidden, shape.attention_width, shape.kv_width
    attention = 2 * (h + q) + 2 * (h + kv)
    feed_forward = (h + shape.all_ffn) * (3 if shape.gated else 2)
    return shape.layers * rank * (attention + feed_forward)


@dataclass(frozen=True)
class _Parts:
    """Over how many GPUs each kind of state is spread: ZeRO's stages, arXiv:1910.02054. FSDP is stage 3."""

    weights: float
    gradients: float
    optimizer: float


def _parts(w: Training) -> _Parts:
    return _Parts(
        weights=math.inf if w.weights_on_host else w.gpus if w.shard == "zero3" else 1,
        gradients=w.gpus if w.shard in ("zero2", "zero3") else 1,
        optimizer=w.gpus if w.shard in ("zero1", "zero2", "zero3") else 1,
    )


def _stage_params(shape: ModelShape, w: Training) -> float:
    """Parameters of one GPU before sharding: the largest pipeline stage, which also holds an embedding or the head."""
    if w.pipeline == 1:
        return shape.params / w.tensor
    layers = math.ceil(shape.layers / w.pipeline)
    return (layers * _layer_params(shape) + max(shape.embedding_params, shape.head_params)) / w.tensor


def _layer_params(shape: ModelShape) -> float:
    return shape.block_params / shape.layers


def _full_states(shape: ModelShape, w: Training) -> list[Term]:
    """Weights, gradients and optimizer state where every weight learns."""
    n, parts, doubt = _stage_params(shape, w), _parts(w), _count_doubt(shape)
    stored, gradient, state = _bytes_a_parameter(w)
    gradients, how = n * gradient / parts.gradients, f"N x {gradient:g} B{_over(parts.gradients)}"
    state = 0 if w.cpu_offload else state
    if w.gradients_on_host:
        gradients = 0
    elif w.fused_backward:
        largest = max(_layer_params(shape), shape.head_params, shape.vocab * shape.hidden)
        gradients, how = min(gradients, largest * gradient), "of one layer: the step is fused into the backward pass"
    weights = f"N x {stored:g} B{_over(parts.weights)}"
    optimizer = f"N x {state:g} B{_over(parts.optimizer)}"
    return [
        Term("weights", round(n * stored / parts.weights), weights, "arXiv:1910.02054", doubt),
        Term("gradients", round(gradients), how, "arXiv:1910.02054", doubt),
        Term("optimizer state", round(n * state / parts.optimizer), optimizer, "arXiv:1910.02054, 2110.02861", doubt),
        *_sharing_terms(shape, w, stored=4 if w.precision == "fp32" else 2, gradient=gradient),
    ]


def _bytes_a_parameter(w: Training) -> tuple[float, float, float]:
    """Stored weight, gradient, and optimizer state with the fp32 copy, of a parameter that learns."""
    state = OPTIMIZER_BYTES[w.optimizer]
    if w.keeps_copy:
        return 2, 2, state + 4
    if w.precision == "bf16":
        return 2, 2, state / 2 if w.optimizer in ("adamw", "sgd") else state
    return 4, 4, state


def _sharing_terms(shape: ModelShape, w: Training, *, stored: float, gradient: float) -> list[Term]:
    """What sharded state needs whole for a moment; never more than sharding saved."""
    if w.shard not in ("zero2", "zero3") or (w.gpus == 1 and not w.gradients_on_host):
        return []
    saved = _stage_params(shape, w) * (1 if w.gradients_on_host else 1 - 1 / w.gpus)
    if w.pipeline > 1 and w.shard == "zero3":
        # Gathering again for every microbatch is too slow: the stage stays whole, its gradients add up in fp32.
        gathered, what = saved, "the whole stage"
        unreduced, parts = 2 * saved, "of the whole stage"
    else:
        layer, what, parts = (
            _layer_params(shape),
            "two layers, embedding and head",
            "of two layers, or of the embedding",
        )
        live = max(2 * layer, LIVE_PARAMETERS if w.weights_on_host else 0)
        gathered = min(saved, (live + _embeddings(shape)) / w.tensor)
        # Gradients are reduced layer by layer: one travels while the next is made.
        unreduced = min(saved, (layer + max(layer, shape.vocab * shape.hidden)) / w.tensor)
    if w.fused_backward:
        unreduced = 0  # each is used up as soon as it is there
    buckets = Term("gradient buckets", round(unreduced * gradient), parts, "ZeRO-2, ZeRO-3 reduce on the way", 0.5)
    if w.shard == "zero2":
        return [buckets]
    return [Term("gathered weights", round(gathered * stored), f"{what}, with prefetch", "ZeRO-3, FSDP", 0.5), buckets]


def _adapter_states(shape: ModelShape, w: Training) -> list[Term]:
    """Frozen weights; adapters in fp32 with gradients and moments; trained embeddings in the weights' own format."""
    parts, split = _parts(w), w.tensor * w.pipeline
    own = min(parts.weights, w.gpus)
    moments = 0 if w.cpu_offload else OPTIMIZER_BYTES[w.optimizer]
    each = BYTES_PER_WEIGHT[w.dtype]
    rest = f", embeddings and head {4 if w.upcasts else 2} B" if w.dtype in QUANTISED else ""
    terms = [
        Term(
            "weights",
            round(_frozen_bytes(shape, w) / split / parts.weights),
            f"N x {each:g} B{rest}{_over(parts.weights)}",
            "arXiv:2106.09685, 2305.14314",
            _count_doubt(shape),
        ),
        Term(
            "adapters",
            round(lora_params(shape, w.rank) / split * (4 / own + 4 / parts.gradients + moments / parts.optimizer)),
            f"rank {w.rank} on every linear layer: T x (4 + 4 + {moments:g}) B",
            "arXiv:2106.09685",
            0.4,  # some libraries keep them, or their moments, in fewer bits
        ),
    ]
    if w.train_embeddings:
        each = 2 / own + 2 / parts.gradients + moments / 2 / parts.optimizer
        trained = round(_embeddings(shape) / split * each)
        terms.append(Term("trained embeddings", trained, "embedding and head again: 2 + 2 + 4 B", "peft", 0.2))
    return [*terms, *_sharing_terms(shape, w, stored=BYTES_PER_WEIGHT[w.dtype], gradient=0)]


def _embeddings(shape: ModelShape) -> int:
    return shape.vocab * shape.hidden + shape.head_params


def _frozen_bytes(shape: ModelShape, w: Training) -> float:
    if not w.upcasts:
        return weight_bytes(shape, w.dtype)
    rest = (shape.embedding_params + shape.head_params) * BYTES_PER_WEIGHT["fp32"]
    return shape.block_params * BYTES_PER_WEIGHT[w.dtype] + rest


# --- training: the two peaks


def _step_terms(shape: ModelShape, w: Training) -> list[Term]:
    """The optimizer's temporaries: AdamW over all tensors at once copies what it updates. A fused step needs none, and
    SGD with momentum works in place.
    """
    if w.cpu_offload or w.optimizer != "adamw":
        return []
    parts, split = _parts(w).optimizer, w.tensor * w.pipeline
    if w.method == "full":
        each = 2 if w.precision == "bf16" else 4
        temporaries = _stage_params(shape, w) * each
    else:
        each = 4
        embeddings = _embeddings(shape) * 2 if w.train_embeddings else 0
        temporaries = (lora_params(shape, w.rank) * each + embeddings) / split
    source = "torch.optim foreach; DeepSpeed's fp32 gradients"
    return [Term("step temporaries", round(temporaries / parts), f"T x {each} B{_over(parts)}", source, 1.0)]


def _without_gradients(fixed: list[Term], w: Training) -> list[Term]:
    """At a loss nothing has gradients yet, save what earlier micro batches of the step have left."""
    return [term for term in fixed if w.accumulate or term.name != "gradients"]


def _loss_terms(shape: ModelShape, w: Training, overheads: Overheads) -> list[Term]:
    """All activations, logits and loss; of a pipeline, of the stage that needs most."""
    kept = _kept(shape, w)
    each = overheads.logit_bytes * LOGIT_SHARE[w.loss]
    count = shape.vocab * _in_flight(w) / w.tensor if shape.has_head and each else 0.0
    logits = count * each
    # One GPU alone has freed the logits when the first layer runs backward. Engines that share the work need more than
    # that at their peak, in every published measurement, so there the working layer is counted beside them.
    working = _working_bytes(shape, w) * _in_flight(w) if _is_shared(w) else 0.0
    if w.pipeline > 1:
        # The first stage keeps every microbatch; the last keeps one, and holds the logits.
        kept, logits = max((kept, 0.0), (kept / w.pipeline, logits), key=sum)
    return [
        *_activation_terms(shape, w, kept),
        Term("working layer", round(working), "one layer whole, and its gradients", "arXiv:2205.05198", 0.3),
        Term("logits and loss", round(logits), f"s b V x {each:g} B", "tensors of cross-entropy", 0.3),
        _hole_term(count) if w.kernels == "plain" else _fragmentation_term(kept + working + logits, overheads),
    ]


def _backward_terms(shape: ModelShape, w: Training, overheads: Overheads) -> list[Term]:
    """Activations kept, and the layer being worked on. Without accumulation they go as the gradients come."""
    kept = _kept(shape, w)
    if w.method == "full" and not w.accumulate:
        _, gradient, _ = _bytes_a_parameter(w)
        whole = _stage_params(shape, w) * gradient / _parts(w).gradients
        kept = max(0.0, kept + shape.vocab * shape.hidden * gradient - whole)
    working = _working_bytes(shape, w) * _in_flight(w)
    return [
        *_activation_terms(shape, w, kept),
        Term("working layer", round(working), "one layer whole, and its gradients", "arXiv:2205.05198", 0.3),
        _fragmentation_term(kept + working, overheads),
    ]


def _activation_terms(shape: ModelShape, w: Training, kept: float) -> list[Term]:
    autocast = w.method == "full" and w.precision == "mixed" and not w.keeps_copy
    cast = 2 * _stage_params(shape, w) if autocast else 0.0
    return [
        Term(
            "16-bit copies", round(cast), "N x 2 B: autocast keeps what it cast", "Hugging Face: memory anatomy", 0.05
        ),
        Term("activations kept", round(kept), _KEPT[w.recompute], "arXiv:2205.05198", 0.25),
    ]


def _is_shared(w: Training) -> bool:
    return w.shard != "none" or w.tensor * w.pipeline * w.context_parallel > 1


def _tokens(w: Training) -> float:
    return w.context * w.batch / w.context_parallel


def _in_flight(w: Training) -> float:
    """Tokens of one pipeline stage's microbatch."""
    return _tokens(w) / w.pipeline


def _kept(shape: ModelShape, w: Training) -> float:
    return _kept_bytes(shape, w) * math.ceil(shape.layers / w.pipeline) * _tokens(w) / w.tensor


_KEPT: dict[Recompute, str] = {
    "none": "every tensor of every layer",
    "selective": "layer inputs, attention's output and every other matmul",
    "full": "s b h a layer: its input alone",
    "offload": "two layer inputs, the others are on the host",
}


def _width(w: Training) -> int:
    """Bytes of an activation."""
    return 4 if w.precision == "fp32" and w.method == "full" else 2


def _layer_bytes(shape: ModelShape, w: Training) -> float:
    """Bytes a token of one whole layer: what the backward pass reads when nothing is recomputed.

    Queries and attention's output, keys and values; gate, up and product (3f), or input and output of a plain
    activation (2f); inputs of two norms, of attention and of the feed-forward layer (4h). Eager attention keeps its
    scores. Plain kernels keep more: `_plain_bytes`.
    """
    if w.kernels == "plain":
        return _plain_bytes(shape, w)
    elements = 4 * shape.hidden + 2 * shape.attention_width + 2 * shape.kv_width + (3 if shape.gated else 2) * shape.ffn
    return elements * _width(w) + _score_bytes(shape, w, each=2 * _width(w) + 1)


def _plain_bytes(shape: ModelShape, w: Training) -> float:
    """The same, operation by operation, as transformers has it: within 5 % on an H100 (docs/gpu.md).

    A gated layer keeps its activation as well (4f). RMSNorm keeps its input in fp32, the normalised and the output,
    LayerNorm, one kernel, input and output. Weights that do not learn need no input, but adapters copy theirs. Eager
    attention keeps its softmax in fp32 and a 16-bit copy.
    """
    h, f, width, learns = shape.hidden, shape.ffn, _width(w), w.method == "full"
    stream = 4 if learns and w.precision != "bf16" and not w.keeps_copy else 2  # bytes of what runs past the layers
    if learns:
        norm = 4 + stream + width if shape.gated else stream + width
        copies = 0
    else:
        norm = 4 if shape.gated else stream
        copies = 2 * ((5 if shape.gated else 2) * h + shape.attention_width + f)
    feed_forward = (3 if shape.gated else 1) + (1 if learns else 0)
    elements = 2 * shape.attention_width + 2 * shape.kv_width + feed_forward * f
    return elements * width + 2 * norm * h + copies + _score_bytes(shape, w, each=6 if width == 2 else 9)


def _score_bytes(shape: ModelShape, w: Training, *, each: int) -> int:
    return shape.heads * w.context * each if w.attention == "eager" else 0


def _kept_bytes(shape: ModelShape, w: Training) -> float:
    """Bytes a token and layer that stay from the forward to the backward pass."""
    if w.recompute == "none":
        return _layer_bytes(shape, w)
    if w.recompute == "selective":
        return (2 * shape.hidden + 2 * shape.attention_width + shape.kv_width + shape.ffn) * _width(w)
    if w.recompute == "offload":
        return 2 * shape.hidden * _width(w) / shape.layers
    return shape.hidden * _width(w)


def _working_bytes(shape: ModelShape, w: Training) -> float:
    """Bytes a token while one layer runs backward: the layer, if recomputed, and the gradients of its widest part."""
    recomputed = _layer_bytes(shape, w) if w.recompute != "none" else 0
    gradients = (3 if shape.gated else 2) * shape.ffn * _width(w)
    if w.attention == "eager":
        gradients += 2 * shape.heads * w.context * _width(w)
    # Sequence parallel: the inputs of attention and feed-forward are gathered whole, and so are their gradients.
    gathered = 2 * shape.hidden * _width(w) if w.tensor > 1 else 0
    return (recomputed + gradients) / w.tensor + gathered


# --- what to change


@dataclass(frozen=True)
class Change:
    """A workload that fits where the one asked for does not: what to do, and what that costs."""

    what: str
    costs: str
    workload: Serving | Training
    need: Need


def need_of(shape: ModelShape, workload: Serving | Training, overheads: Overheads = OVERHEADS) -> Need:
    """Of either kind of workload."""
    if isinstance(workload, Serving):
        return inference_need(shape, workload, overheads)
    return training_need(shape, workload, overheads)


def cheapest_change(shape: ModelShape, workload: Serving | Training, memory_bytes: int) -> Change | None:
    """What makes the workload fit beyond doubt; None where it fits already or nothing here helps.

    One change, if one is enough: those that cost time come before those that cost accuracy, then context, then more
    GPUs. Else several together, without those that turn out needless.
    """
    if _fits(shape, workload, memory_bytes):
        return None
    for option in (*_changes(shape, workload, memory_bytes), *_more_gpus(shape, workload)):
        changed = option.of(workload)
        if _fits(shape, changed, memory_bytes):
            return Change(option.what, option.costs, changed, need_of(shape, changed))
    return _together(shape, workload, memory_bytes)


class _Option(NamedTuple):
    """Values for some fields of the workload; a later option for the same fields takes the place of an earlier one."""

    what: str
    costs: str
    values: dict[str, Any]  # Any: whatever the fields hold

    def of(self, workload: Serving | Training) -> Serving | Training:
        return replace(workload, **self.values)


def _together(shape: ModelShape, workload: Serving | Training, memory_bytes: int) -> Change | None:
    """All that lowers the need, then as few GPUs as suffice, then without what was not needed."""
    done: dict[str, _Option] = {}
    changed = workload
    while not _fits(shape, changed, memory_bytes):
        option = _first_that_lowers(shape, changed, memory_bytes)
        if option is None:
            break
        done[next(iter(option.values))] = option
        changed = option.of(changed)
    if not _fits(shape, changed, memory_bytes):
        enough = (more for more in _more_gpus(shape, changed) if _fits(shape, more.of(changed), memory_bytes))
        more = next(enough, None)
        if more is None:
            return None
        done["gpus"], changed = more, more.of(changed)
    for field, option in list(done.items()):
        without = replace(changed, **{name: getattr(workload, name) for name in option.values})
        if _fits(shape, without, memory_bytes):
            changed = without
            del done[field]
    costs = ", ".join(dict.fromkeys(option.costs for option in done.values()))
    return Change(", ".join(option.what for option in done.values()), costs, changed, need_of(shape, changed))


def _first_that_lowers(shape: ModelShape, workload: Serving | Training, memory_bytes: int) -> _Option | None:
    """Of total or ceiling, whichever stands in the way."""
    need = need_of(shape, workload)
    for option in _changes(shape, workload, memory_bytes):
        lower = need_of(shape, option.of(workload))
        if lower.total < need.total or lower.ceiling < need.ceiling:
            return option
    return None


def _changes(shape: ModelShape, workload: Serving | Training, memory_bytes: int) -> Iterator[_Option]:
    if isinstance(workload, Serving):
        return _serving_changes(shape, workload, memory_bytes)
    return _training_changes(shape, workload, memory_bytes)


def _serving_changes(shape: ModelShape, w: Serving, memory_bytes: int) -> Iterator[_Option]:
    if w.batch > 1:
        batch = largest(w.batch - 1, lambda count: _fits(shape, replace(w, batch=count), memory_bytes))
        yield _Option(f"{batch} sequences at once", "throughput", {"batch": batch})
    if (w.prefill or w.context) > CHUNK:
        yield _Option(f"prefill in chunks of {CHUNK} tokens", "some latency", {"prefill": CHUNK})
    if shape.causal and w.kv_dtype in ("bf16", "fp16", "fp32"):
        yield _Option("KV cache in fp8", "some accuracy", {"kv_dtype": "fp8"})
    for dtype in _NARROWER:
        if BYTES_PER_WEIGHT[dtype] < BYTES_PER_WEIGHT[w.dtype]:
            yield _Option(f"weights in {dtype}", "some accuracy", {"dtype": dtype})
    context = _shorter(w.context, lambda count: _fits(shape, replace(w, context=count), memory_bytes))
    if context:
        yield _Option(f"context of {context} tokens", "longer texts", {"context": context})


def _training_changes(shape: ModelShape, w: Training, memory_bytes: int) -> Iterator[_Option]:
    if shape.has_head and w.loss != "fused":
        yield _Option("fused cross-entropy", "nothing but a library", {"loss": "fused"})
    if w.attention == "eager":
        yield _Option("flash attention", "nothing but a library", {"attention": "flash"})
    if w.recompute in ("none", "selective"):
        yield _Option("recomputed activations", "about a third more compute", {"recompute": "full"})
    if w.batch > 1:
        batch = largest(w.batch - 1, lambda count: _fits(shape, replace(w, batch=count), memory_bytes))
        yield _Option(f"micro batch of {batch} with accumulation", "speed", {"batch": batch})
    if w.optimizer == "adamw":
        yield _Option("8-bit AdamW", "little", {"optimizer": "adamw-8bit"})
    context = _shorter(w.context, lambda count: _fits(shape, replace(w, context=count), memory_bytes))
    if context:
        yield _Option(f"context of {context} tokens", "longer texts", {"context": context})
    if w.method == "full":
        yield _Option("LoRA", "some accuracy", {"method": "lora", "dtype": "bf16"})
    if w.method in ("full", "lora"):
        yield _Option("QLoRA (nf4)", "some accuracy and speed", {"method": "qlora", "dtype": "nf4"})


def _more_gpus(shape: ModelShape, workload: Serving | Training) -> Iterator[_Option]:
    if isinstance(workload, Serving):
        for degree in (2, 4, 8):
            if workload.tensor < degree and shape.heads % degree == 0:
                yield _Option(f"tensor parallel over {degree} GPUs", f"{degree} GPUs", {"tensor": degree})
        return
    for gpus in (2, 4, 8, 16, 32, 64):
        if gpus > workload.gpus or (gpus == workload.gpus and workload.shard != "zero3"):
            yield _Option(f"FSDP over {gpus} GPUs", f"{gpus} GPUs", {"gpus": gpus, "shard": "zero3"})


_NARROWER: tuple[Dtype, ...] = ("bf16", "int8", "int4")

CHUNK = 8192
"""Tokens of a chunk where prefill is cut into chunks."""


def _fits(shape: ModelShape, workload: Serving | Training, memory_bytes: int) -> bool:
    return fits(need_of(shape, workload), memory_bytes).answer == "fits"


CONTEXT_STEP = 256
"""Shorter contexts are offered in steps of so many tokens, down to half of what was asked: less is another task."""


def _shorter(context: int, suits: Callable[[int], bool]) -> int | None:
    steps = largest((context - 1) // CONTEXT_STEP, lambda count: suits(count * CONTEXT_STEP))
    found = steps * CONTEXT_STEP
    return found if context / 2 <= found < context and suits(found) else None


def largest(most: int, suits: Callable[[int], bool]) -> int:
    """The largest count from 1 to `most` that suits, where all smaller ones do; 1 if none does."""
    low, high = 1, max(1, most)
    while low < high:
        middle = (low + high + 1) // 2
        if suits(middle):
            low = middle
        else:
            high = middle - 1
    return low
