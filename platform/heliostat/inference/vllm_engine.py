"""vLLM as the engine of a generating replica, where a GPU and `ray[llm]` (which brings vLLM) are there.

It keeps the promises of TokenRunner (generate.py), so everything around it is the same with both. Never run by this
project's tests: no machine lent to them had a GPU with vLLM on it.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliostat.inference.generate import GREEDY_BELOW, Finish, Sampling, Step, TooLong
from heliostat.inference.load import Load
from heliostat.inference.runner import Closed, Expired

if TYPE_CHECKING:
    import torch


def is_available(device: torch.device) -> bool:
    return device.type == "cuda" and find_spec("vllm") is not None


class VllmEngine:
    """One vLLM engine. It batches, pages and bounds its own memory; this counts and translates."""

    def __init__(self, folder: Path, *, max_length: int | None = None, gpu_share: float = 0.9) -> None:
        """`gpu_share` of the GPU's memory is taken at once, weights and cache together."""
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(
            model=str(folder),
            max_model_len=max_length,
            gpu_memory_utilization=gpu_share,
            trust_remote_code=False,
        )
        self._engine: Any = AsyncLLM.from_engine_args(arguments)  # Any: vLLM is not there where types are checked
        self.max_length: int = self._engine.model_config.max_model_len
        self._left: dict[str, int] = {}
        """Tokens still to be read and made, by request; the event loop alone writes it."""
        self._closed = False
        self._done_tokens, self._busy_since, self._busy_s = 0, 0.0, 0.0

    @property
    def queued_tokens(self) -> int:
        return sum(self._left.values())

    @property
    def queued_seconds(self) -> float:
        busy_s = self._busy_s + (time.monotonic() - self._busy_since if self._left else 0.0)
        return self.queued_tokens * busy_s / self._done_tokens if self._done_tokens else 0.0

    @property
    def load(self) -> Load:
        """What is known from outside: everything counts as running, and the engine as full while it has anything."""
        busy_s = self._busy_s + (time.monotonic() - self._busy_since if self._left else 0.0)
        return Load(
            running_tokens=self.queued_tokens,
            tokens_per_s=self._done_tokens / busy_s if busy_s > 0 else 0.0,
            busy=1.0 if self._left else 0.0,
            tokens=self._done_tokens,
            forward_s=busy_s,
        )

    async def stream(
        self, prompt: Sequence[int], sampling: Sampling, *, wait_until_s: float, end_by_s: float = math.inf
    ) -> AsyncIterator[Step]:
        if self._closed:
            raise Closed("this engine is closed; send the request to another replica")
        if len(prompt) + sampling.max_tokens > self.max_length:
            raise TooLong(f"{len(prompt)} prompt tokens and {sampling.max_tokens} new ones exceed {self.max_length}")
        name = uuid.uuid4().hex
        if not self._left:
            self._busy_since = time.monotonic()
        self._left[name] = len(prompt) + sampling.max_tokens
        outputs = self._engine.generate(
            prompt={"prompt_token_ids": list(prompt)}, sampling_params=_parameters(sampling), request_id=name
        )
        try:
            limit_s = min(wait_until_s, end_by_s)
            while True:
                async with asyncio.timeout(None if math.isinf(limit_s) else max(0.0, limit_s - time.monotonic())):
                    output = (await anext(outputs)).outputs[0]
                limit_s = end_by_s  # the wait is over with the first token
                tokens = list(output.token_ids)
                self._done_tokens += len(tokens)
                self._left[name] = max(1, self._left[name] - len(tokens))
                for index, token in enumerate(tokens):
                    last = output.finish_reason is not None and index == len(tokens) - 1
                    yield Step(token, _finish(output.finish_reason) if last else None)
                if output.finish_reason is not None:
                    return
        except TimeoutError as late:
            raise Expired("the deadline passed; allow more time, or ask for less") from late
        finally:
            await outputs.aclose()  # vLLM aborts the request and frees its memory
            del self._left[name]
            if not self._left:
                self._busy_s += time.monotonic() - self._busy_since
                self._shut_down_if_drained()

    def _shut_down_if_drained(self) -> None:
        if self._closed and not self._left:
            self._engine.shutdown()

    def warm_up(self, prompt: Sequence[int]) -> None:
        """Nothing: vLLM runs and captures its model while it is made."""

    def close(self, *, drain: bool = False) -> None:
        """With `drain`, refuse new texts and let what runs end; else end the engine's processes now."""
        self._closed = True
        if not drain or not self._left:
            self._engine.shutdown()


def _parameters(sampling: Sampling) -> Any:  # Any: as above
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=0.0 if sampling.temperature < GREEDY_BELOW else sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _finish(reason: str) -> Finish:
    return "length" if reason == "length" else "stop"
