"""What a model is to do: be served, or be trained. Plain values, whose words the command line and the tables share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from heliostat.errors import UsageError

Dtype = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "nf4"]
Method = Literal["full", "lora", "qlora"]
Precision = Literal["fp32", "mixed", "bf16"]
Optimizer = Literal["adamw", "adamw-8bit", "paged-adamw-8bit", "adafactor", "sgd"]
Recompute = Literal["none", "selective", "full", "offload"]
Attention = Literal["flash", "eager"]
Loss = Literal["full", "upcast", "half", "fused"]
Kernels = Literal["fused", "plain"]
Shard = Literal["none", "ddp", "zero1", "zero2", "zero3"]

BYTES_PER_WEIGHT: dict[Dtype, float] = {
    "fp32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
    "int4": 0.53,
    "nf4": 0.516,
}
"""int4: groups of 128 with a 16-bit scale and a zero point. nf4: blocks of 64, scales quantised (arXiv:2305.14314)."""

QUANTISED: tuple[Dtype, ...] = ("fp8", "int8", "int4", "nf4")
"""Formats of the linear layers alone: embeddings and head stay in 16 bits."""

OPTIMIZER_BYTES: dict[Optimizer, float] = {
    "adamw": 8,
    "adamw-8bit": 2,
    "paged-adamw-8bit": 0,
    "adafactor": 0.1,
    "sgd": 4,
}
"""State of a trainable parameter. Paged state moves to the host while the GPU needs the room."""


@dataclass(frozen=True)
class Serving:
    """How a model is served: `batch` sequences at once, of `context` tokens at most, on `tensor` GPUs.

    `prefill`: tokens that one forward pass works on at most; where it is not given, one whole context, and
    of an encoder the whole batch.
    """

    dtype: Dtype = "bf16"
    kv_dtype: Dtype = "bf16"
    context: int = 4096
    batch: int = 1
    prefill: int | None = None
    tensor: int = 1

    def __post_init__(self) -> None:
        _check_positive(context=self.context, batch=self.batch, tensor=self.tensor, prefill=self.prefill or 1)


@dataclass(frozen=True)
class Training:
    """How a model is trained. `batch` is the micro batch of one GPU.

    `precision`, of weights that learn: `mixed` keeps fp32 weights beside 16-bit ones, `bf16` has the 16-bit ones alone.
    `dtype`, of weights that do not (LoRA): `nf4` or `int4` for QLoRA.
    `recompute`, of activations: `offload` moves each layer's input to the host; `selective` keeps every other matmul.
    `unquantised_fp32`: embeddings and head in fp32, as peft prepares bitsandbytes models for training.
    `gpus` share the state by `shard` (FSDP is zero3), besides `tensor` and `pipeline`. `cpu_offload` keeps optimizer
    state on the host, with zero2 the gradients too, with zero3 the weights as well.
    `kernels`: `plain` runs norms and activations operation by operation and adapters on copies of their inputs, as
    transformers and peft do uncompiled; `fused` is torch.compile, torchtune, Unsloth and the like.
    `accumulate`: a step adds up several micro batches, so the gradients of one are there while the next one's loss is.
    """

    method: Method = "full"
    precision: Precision = "mixed"
    dtype: Dtype = "bf16"
    optimizer: Optimizer = "adamw"
    context: int = 4096
    batch: int = 1
    recompute: Recompute = "full"
    attention: Attention = "flash"
    loss: Loss = "full"
    kernels: Kernels = "fused"
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
    accumulate: bool = True

    def __post_init__(self) -> None:
        _check_positive(context=self.context, batch=self.batch, rank=self.rank, gpus=self.gpus, tensor=self.tensor)
        _check_positive(pipeline=self.pipeline, context_parallel=self.context_parallel)

    @property
    def keeps_copy(self) -> bool:
        """Sharding engines train 16-bit weights beside an fp32 copy; one GPU and DDP autocast fp32 weights instead."""
        return self.precision == "mixed" and self.shard in ("zero1", "zero2", "zero3")

    @property
    def gradients_on_host(self) -> bool:
        return self.cpu_offload and self.shard in ("zero2", "zero3")

    @property
    def weights_on_host(self) -> bool:
        return self.cpu_offload and self.shard == "zero3"

    @property
    def upcasts(self) -> bool:
        """bitsandbytes' formats alone are prepared with fp32 embeddings; GPTQ's int4 keeps its 16-bit parts."""
        return self.method == "qlora" and self.unquantised_fp32 and self.dtype in ("nf4", "int8")


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"{name} is {value}", do="write a whole number of 1 or more")
