"""Continuous batching: one thread that owns a causal language model and gives every running text its next token.

Texts join and leave between two steps, so a short one never waits for a long one to end. Memory is bounded before the
first request: the model has a fixed number of slots of a fixed length for keys and values, a text holds one slot while
it runs, and the others wait in order of arrival.

A model here is anything that fills slots (`TokenModel`); causal.py makes one of a Hugging Face checkpoint. Not here:
text, stop words, HTTP.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from heliostat.inference.load import DutyCycle, Load
from heliostat.inference.runner import Closed, Expired

if TYPE_CHECKING:
    import torch

Finish = Literal["stop", "length"]

GREEDY_BELOW = 1e-3
"""Temperatures below this take the most probable token: dividing by them would overflow."""
PREFILL_TOKENS = 512
"""Prompt tokens that may be read between two steps (one whole prompt at least): longer makes the running texts wait."""
_MEMORY = 0.98
"""Weight of the past in the measured speed and length: about the last fifty steps, or texts, count."""


class Full(RuntimeError):
    """So many texts wait that another would not be reached in time."""


class TooLong(ValueError):
    """A prompt and the tokens asked for do not fit a slot."""


@dataclass(frozen=True)
class Sampling:
    """How the next tokens are chosen, and how many."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    """Only the most probable tokens that together reach this probability are drawn from."""
    seed: int | None = None


@dataclass(frozen=True)
class Step:
    """One token of a text; `finish` says why it is the last one. After "stop" the token is the end mark itself."""

    token: int
    finish: Finish | None


class Engine(Protocol):
    """What generates: this file's TokenRunner, or another engine with the same promises."""

    @property
    def max_length(self) -> int:
        """Tokens of a prompt and its continuation together."""

    @property
    def queued_tokens(self) -> int: ...

    @property
    def queued_seconds(self) -> float: ...

    @property
    def load(self) -> Load: ...

    def stream(
        self, prompt: Sequence[int], sampling: Sampling, *, wait_until_s: float, end_by_s: float = math.inf
    ) -> AsyncIterator[Step]: ...

    def warm_up(self, prompt: Sequence[int]) -> None: ...

    def close(self, *, drain: bool = False) -> None: ...


class TokenModel(Protocol):
    """A causal model with a fixed number of slots that remember what each text has said."""

    @property
    def slots(self) -> int: ...

    @property
    def max_length(self) -> int:
        """Tokens that one slot holds."""

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text."""

    def prefill(self, slot: int, prompt: Sequence[int]) -> torch.Tensor:
        """Forget what the slot held, read a prompt into it; [vocabulary] logits of the token after it."""

    def step(self, slots: Sequence[int], tokens: Sequence[int], places: Sequence[int]) -> torch.Tensor:
        """Give each slot its newest token, which stands at that place of its text; [B, vocabulary] logits of the
        tokens after them. They may lie on the CPU or a device: that is where the next tokens are chosen.
        """


@dataclass(eq=False)
class _Text:
    """One request on its way."""

    prompt: Sequence[int]
    sampling: Sampling
    wait_until_s: float
    end_by_s: float
    loop: asyncio.AbstractEventLoop
    steps: asyncio.Queue[Step | Exception]
    slot: int = -1
    token: int = -1
    """The newest one."""
    made: int = 0
    left: bool = False
    """Nobody reads it any more."""
    random: torch.Generator | None = field(default=None, repr=False)

    @property
    def place(self) -> int:
        """Where the newest token stands in the text, from 0."""
        return len(self.prompt) + self.made - 1


class TokenRunner:
    """A queue, a thread and a model with slots. Close it when done; a thread left open ends with the process."""

    def __init__(
        self, model: TokenModel, *, max_waiting: int = 256, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model = model
        self._max_waiting = max_waiting
        self._clock = clock
        self._waiting: deque[_Text] = deque()
        self._running: list[_Text] = []
        self._free = list(range(model.slots))
        self._changed = threading.Condition()  # guards every field of this object
        self._closed: Literal["", "drain", "now"] = ""
        self._busy_s = 0.0
        self._done_tokens = 0.0
        self._mean_made = 0.0
        self._duty = DutyCycle()
        self._sums = Load()
        self._thread = threading.Thread(target=self._work, name="heliostat-tokens", daemon=True)
        self._thread.start()

    @property
    def max_length(self) -> int:
        return self._model.max_length

    async def stream(
        self, prompt: Sequence[int], sampling: Sampling, *, wait_until_s: float, end_by_s: float = math.inf
    ) -> AsyncIterator[Step]:
        """The continuation of a prompt, token by token; to be read in an event loop.

        Both moments are on the runner's clock (time.monotonic unless given): the text is dropped if it still waits at
        the one, and cut at the other. Raises TooLong, Full, Closed, Expired, or whatever the model raised for this
        very text, also after some tokens. Whoever stops reading (aclose, a cancelled task) frees the slot at the next
        step.
        """
        self._check(prompt, sampling)
        loop = asyncio.get_running_loop()
        text = _Text(prompt, sampling, wait_until_s, end_by_s, loop, asyncio.Queue())
        with self._changed:
            if self._closed:
                raise Closed("this runner is closed; send the request to another replica")
            if len(self._waiting) >= self._max_waiting:
                raise Full(f"{len(self._waiting)} texts wait, the most that may; try again later")
            self._waiting.append(text)
            self._changed.notify()
        try:
            while True:
                step = await text.steps.get()
                if isinstance(step, Exception):
                    raise step
                yield step
                if step.finish is not None:
                    return
        finally:
            with self._changed:
                text.left = True
                self._changed.notify()

    def warm_up(self, prompt: Sequence[int]) -> None:
        """Run the model once and wait for it, in or out of an event loop. Raises what it raises."""

        async def two_tokens() -> None:
            sampling = Sampling(max_tokens=2, temperature=0)
            async for _ in self.stream(prompt, sampling, wait_until_s=math.inf):
                pass

        # A replica is made inside Serve's event loop, so this has one of its own, in a thread of its own.
        with ThreadPoolExecutor(max_workers=1) as alone:
            alone.submit(lambda: asyncio.run(two_tokens())).result()

    def close(self, *, drain: bool = False, timeout_s: float = 30.0) -> None:
        """Refuse new texts. With `drain` what waits and runs goes on to its end and this returns at once; else all of
        it ends with Closed, and this waits for the running step.
        """
        with self._changed:
            self._closed = "drain" if drain and self._closed != "now" else "now"
            self._changed.notify()
        if not drain:
            self._thread.join(timeout_s)

    @property
    def running(self) -> int:
        """Texts that hold a slot."""
        with self._changed:
            return len(self._running)

    @property
    def queued_tokens(self) -> int:
        """Tokens still to be read and made for what waits or runs, by the mean length of what ended."""
        with self._changed:
            return self._waiting_tokens() + self._running_tokens()

    @property
    def tokens_per_s(self) -> float:
        """Measured speed over all slots together, read and made; 0.0 before the first."""
        with self._changed:
            return self._done_tokens / self._busy_s if self._busy_s > 0 else 0.0

    @property
    def queued_seconds(self) -> float:
        """Seconds of work before a new text, by the measured speed; 0.0 before anything was measured."""
        speed = self.tokens_per_s
        return self.queued_tokens / speed if speed else 0.0

    @property
    def load(self) -> Load:
        """All of it at one moment; `busy` is the share of the slots."""
        speed = self.tokens_per_s
        with self._changed:
            return replace(
                self._sums,
                waiting_tokens=self._waiting_tokens(),
                waiting_items=len(self._waiting),
                running_tokens=self._running_tokens(),
                tokens_per_s=speed,
                busy=self._duty.share(self._clock()),
            )

    def _waiting_tokens(self) -> int:
        return sum(len(text.prompt) + self._expected(text) for text in self._waiting if not text.left)

    def _running_tokens(self) -> int:
        return sum(max(1, self._expected(text) - text.made) for text in self._running)

    def _expected(self, text: _Text) -> int:
        return min(text.sampling.max_tokens, math.ceil(self._mean_made) or text.sampling.max_tokens)

    def _check(self, prompt: Sequence[int], sampling: Sampling) -> None:
        if not prompt or sampling.max_tokens < 1:
            raise ValueError(f"{len(prompt)} prompt tokens and {sampling.max_tokens} new ones; both must be 1 or more")
        if len(prompt) + sampling.max_tokens > self.max_length:
            raise TooLong(
                f"{len(prompt)} prompt tokens and {sampling.max_tokens} new ones are more than {self.max_length}; "
                "shorten the prompt, or ask for fewer"
            )

    def _work(self) -> None:
        """The thread: one boundary and one step after another until closed."""
        while self._wait_for_work():
            began = self._clock()
            tokens = 0
            for text in self._admit():
                tokens += len(text.prompt)
                self._read_prompt(text)
            running = self._still_wanted()
            if running:
                tokens += len(running)
                with self._changed:
                    self._duty.begin(began, len(running) / self._model.slots)
                self._step(running)
            self._measure(tokens, began, self._clock())

    def _wait_for_work(self) -> bool:
        """False once closed, and with nothing left to drain."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._running)
            if self._closed == "now":
                left = [*self._waiting, *self._running]
                self._waiting.clear()
                self._running.clear()
            elif self._closed == "drain" and not (self._waiting or self._running):
                left = []
            else:
                return True
        for text in left:
            _deliver(text, Closed("this replica ended before the text did; send the request again"))
        return False

    def _admit(self) -> list[_Text]:
        """The texts that take a slot now, in order of arrival; what is late or unwanted leaves the queue."""
        now = self._clock()
        admitted: list[_Text] = []
        late: list[_Text] = []
        with self._changed:
            still: deque[_Text] = deque()
            room = PREFILL_TOKENS
            for text in self._waiting:
                if text.left:
                    continue
                if text.wait_until_s < now:
                    late.append(text)
                elif not still and self._free and (not admitted or len(text.prompt) <= room):
                    text.slot = self._free.pop()
                    room -= len(text.prompt)
                    admitted.append(text)
                else:
                    still.append(text)
            self._waiting = still
            self._running += admitted
        for text in late:
            _deliver(text, Expired("the deadline passed while the text waited; allow more time, or ask for less"))
        return admitted

    def _read_prompt(self, text: _Text) -> None:
        try:
            logits = self._model.prefill(text.slot, text.prompt)
            self._take(text, choose(logits, text.sampling, self._random(text, logits)))
        except Exception as problem:  # noqa: BLE001 the model is the user's: whatever it raises belongs to this text
            self._end(text, problem)

    def _still_wanted(self) -> list[_Text]:
        """What runs on after nobody's text has left and no deadline has passed."""
        now = self._clock()
        with self._changed:
            running = list(self._running)
        for text in running:
            if text.left:
                self._end(text, None)
            elif text.end_by_s < now:
                self._end(text, Expired(f"the deadline passed after {text.made} tokens"))
        with self._changed:
            return list(self._running)

    def _step(self, running: list[_Text]) -> None:
        try:
            logits = self._model.step(
                [text.slot for text in running], [text.token for text in running], [text.place for text in running]
            )
        except Exception as problem:  # noqa: BLE001 as above; each then runs alone, so that a bad one fails alone
            if len(running) == 1:
                self._end(running[0], problem)
            else:
                for text in running:
                    self._step([text])
            return
        wanted = [(text.sampling, self._random(text, logits)) for text in running]
        for text, token in zip(running, choose_all(logits, wanted), strict=True):
            if isinstance(token, ValueError):
                self._end(text, token)
            else:
                self._take(text, token)

    def _take(self, text: _Text, token: int) -> None:
        """The text's next token, delivered."""
        with self._changed:  # others read `made` as they count what is left to do
            text.token, text.made = token, text.made + 1
        finish: Finish | None = None
        if token in self._model.end_ids:
            finish = "stop"
        elif text.made == text.sampling.max_tokens:
            finish = "length"
        if finish is not None:  # first, so that the slot is free and counted when the reader knows
            self._end(text, None, finished=True)
        _deliver(text, Step(token, finish))

    def _random(self, text: _Text, logits: torch.Tensor) -> torch.Generator:
        import torch

        if text.random is None:
            text.random = torch.Generator(logits.device)
            if text.sampling.seed is None:
                text.random.seed()
            else:
                text.random.manual_seed(text.sampling.seed)
        return text.random

    def _end(self, text: _Text, problem: Exception | None, *, finished: bool = False) -> None:
        """Free the slot; a problem is told to whoever reads."""
        with self._changed:
            if text not in self._running:
                return
            self._running.remove(text)
            self._free.append(text.slot)
            if finished:
                self._mean_made = self._mean_made * 0.9 + text.made * 0.1 if self._mean_made else float(text.made)
        if problem is not None:
            _deliver(text, problem)

    def _measure(self, tokens: int, began: float, ended: float) -> None:
        with self._changed:
            self._duty.end(ended)
            if not tokens:
                return
            self._done_tokens = self._done_tokens * _MEMORY + tokens
            self._busy_s = self._busy_s * _MEMORY + ended - began
            self._sums = replace(
                self._sums,
                tokens=self._sums.tokens + tokens,
                batches=self._sums.batches + 1,
                forward_s=self._sums.forward_s + ended - began,
            )


def choose(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """[vocabulary] -> a token id. Raises ValueError where the logits are not numbers."""
    token = choose_all(logits[None], [(sampling, random)])[0]
    if isinstance(token, ValueError):
        raise token
    return token


def choose_all(logits: torch.Tensor, wanted: Sequence[tuple[Sampling, torch.Generator]]) -> list[int | ValueError]:
    """[B, vocabulary], and how each row is sampled -> token ids; ValueError for rows that are not numbers.

    A device is waited for twice at most, however many rows there are; the logits are not fetched from it.
    """
    import torch

    rows = logits.float()
    finite, best = torch.stack([torch.isfinite(rows).all(-1).long(), rows.argmax(-1)]).tolist()
    # A row with NaN must not be drawn from: on CUDA that ends the process's use of the device.
    drawn = {
        index: _draw(rows[index], sampling, random)
        for index, (sampling, random) in enumerate(wanted)
        if finite[index] and sampling.temperature >= GREEDY_BELOW
    }
    found = dict(zip(drawn, torch.stack(list(drawn.values())).tolist(), strict=True)) if drawn else {}
    return [
        found.get(index, best[index]) if finite[index] else ValueError("the model's logits hold NaN or infinity")
        for index in range(len(wanted))
    ]


def _draw(row: torch.Tensor, sampling: Sampling, random: torch.Generator) -> torch.Tensor:
    """[vocabulary] -> [], a token id on the same device."""
    import torch

    chances = torch.softmax(row / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = chances.sort(descending=True)
        # A token stays while those before it have not reached top_p, so the most probable one always stays.
        ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0.0
        ordered[:1].clamp_(min=1e-9)
        return order[torch.multinomial(ordered, 1, generator=random)][0]
    return torch.multinomial(chances, 1, generator=random)[0]


def _deliver(text: _Text, step: Step | Exception) -> None:
    try:
        text.loop.call_soon_threadsafe(text.steps.put_nowait, step)
    except RuntimeError:
        # The loop has been closed, so nobody reads; the thread goes on for the others.
        text.left = True
