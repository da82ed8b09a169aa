"""Continuous batching with its real thread: a counting model for the order of things, transformers for the numbers."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from heliostat.inference import causal
from heliostat.inference.causal import SlotModel
from heliostat.inference.generate import Full, Sampling, Step, TokenRunner, TooLong, choose, choose_all
from heliostat.inference.runner import Closed, Expired

LIMIT_S = 10.0
END = 9
GREEDY = 0.0


class Counting:
    """Says the number after the last one, up to END; remembers what it was asked, and stops where a test holds it."""

    max_length = 64
    end_ids = frozenset([END])

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots
        self.calls: list[tuple[int, ...]] = []
        self.prompts: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()
        self.poison = -1

    def prefill(self, slot: int, prompt: Sequence[int]) -> Tensor:
        self.calls.append((len(prompt),))
        self.prompts.append(len(prompt))
        return self._after(prompt[-1:])[0]

    def step(self, slots: Sequence[int], tokens: Sequence[int], places: Sequence[int]) -> Tensor:
        self.calls.append(tuple(tokens))
        self.entered.set()
        assert self.free.wait(LIMIT_S)
        assert len(set(slots)) == len(slots)
        return self._after(tokens)

    def _after(self, tokens: Sequence[int]) -> Tensor:
        if self.poison in tokens:
            raise ValueError(f"{self.poison} is not a token")
        logits = torch.zeros(len(tokens), 12)
        for row, token in enumerate(tokens):
            logits[row, min(token + 1, END)] = 5.0
        return logits


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), LIMIT_S * 3))


def soon() -> float:
    return time.monotonic() + LIMIT_S


async def said(runner: TokenRunner, prompt: Sequence[int], tokens: int = 50, **options: Any) -> list[Step]:
    sampling = Sampling(tokens, GREEDY)
    return [step async for step in runner.stream(prompt, sampling, wait_until_s=options.pop("wait", soon()), **options)]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():
            await asyncio.sleep(0.001)


def test_a_text_goes_on_to_its_end_mark_or_its_limit() -> None:
    runner = TokenRunner(Counting())

    async def test() -> None:
        assert await said(runner, [6]) == [Step(7, None), Step(8, None), Step(END, "stop")]
        assert await said(runner, [1], tokens=2) == [Step(2, None), Step(3, "length")]
        assert await said(runner, [8], tokens=1) == [Step(END, "stop")]

    run(test)
    runner.close()


def test_a_short_text_joins_a_long_one_on_its_way_and_leaves_before_it() -> None:
    model = Counting()
    runner = TokenRunner(model)

    async def test() -> None:
        model.free.clear()
        long = asyncio.create_task(said(runner, [0]))
        await asyncio.to_thread(model.entered.wait, LIMIT_S)
        short = asyncio.create_task(said(runner, [7]))
        await until(lambda: len(runner._waiting) == 1)
        model.free.set()
        assert len(await short) == 2
        assert len(await long) == END

    run(test)
    runner.close()
    # The short one: read while the long one stands at 1, then both in one step, then the long one alone again.
    assert model.calls[:5] == [(1,), (1,), (1,), (2, 8), (3,)]


def test_no_more_run_than_there_are_slots_and_they_go_in_order_of_arrival() -> None:
    model = Counting(slots=2)
    runner = TokenRunner(model)

    async def test() -> None:
        model.free.clear()
        tasks = []
        for length in range(1, 7):
            tasks.append(asyncio.create_task(said(runner, [3] * length)))
            await asyncio.sleep(0)
        model.free.set()
        await asyncio.gather(*tasks)

    run(test)
    runner.close()
    assert max(len(call) for call in model.calls) == 2
    assert model.prompts == [1, 2, 3, 4, 5, 6]


def test_whoever_stops_reading_frees_the_slot_for_the_next() -> None:
    model = Counting(slots=1)
    runner = TokenRunner(model)

    async def test() -> None:
        model.free.clear()
        gone = asyncio.create_task(said(runner, [0]))
        await asyncio.to_thread(model.entered.wait, LIMIT_S)
        queued = asyncio.create_task(said(runner, [1]))
        await until(lambda: len(runner._waiting) == 1)
        gone.cancel()
        queued.cancel()
        last = asyncio.create_task(said(runner, [7]))
        await asyncio.sleep(0.01)
        model.free.set()
        assert [step.token for step in await last] == [8, END]

    run(test)
    assert runner.queued_tokens == 0
    runner.close()
    # One step of what was gone was under way; the text that was cancelled in the queue was never read.
    assert model.calls == [(1,), (1,), (1,), (8,)]


def test_a_bad_text_fails_alone_also_in_the_middle() -> None:
    model = Counting(slots=3)
    model.poison = 5
    runner = TokenRunner(model)

    async def test() -> None:
        found = await asyncio.gather(*(said(runner, [n]) for n in (3, 6, 5, 7)), return_exceptions=True)
        assert isinstance(found[0], ValueError)
        assert isinstance(found[2], ValueError)
        assert [step.token for step in found[1]] == [7, 8, END]  # type: ignore[union-attr]
        assert [step.token for step in found[3]] == [8, END]  # type: ignore[union-attr]

    run(test)
    assert (runner.running, runner.queued_tokens) == (0, 0)
    runner.close()


def test_a_text_whose_deadline_passes_in_the_queue_is_never_read() -> None:
    model = Counting(slots=1)
    runner = TokenRunner(model)

    async def test() -> None:
        model.free.clear()
        first = asyncio.create_task(said(runner, [6]))
        await asyncio.to_thread(model.entered.wait, LIMIT_S)
        late = asyncio.create_task(said(runner, [1, 1, 1], wait=time.monotonic() - 1))
        await until(lambda: len(runner._waiting) == 1)
        model.free.set()
        with pytest.raises(Expired):
            await late
        assert len(await first) == 3

    run(test)
    runner.close()
    assert (3,) not in model.calls


def test_a_text_is_cut_at_the_moment_it_had_to_end_by() -> None:
    model = Counting()
    runner = TokenRunner(model)

    async def test() -> None:
        with pytest.raises(Expired, match="after 1 tokens"):
            await said(runner, [0], end_by_s=time.monotonic() - 1)

    run(test)
    runner.close()


def test_what_does_not_fit_a_slot_or_the_queue_is_refused_at_once() -> None:
    model = Counting(slots=1)
    runner = TokenRunner(model, max_waiting=1)

    async def test() -> None:
        with pytest.raises(TooLong, match="60 prompt tokens and 5 new ones are more than 64"):
            await said(runner, [1] * 60, tokens=5)
        with pytest.raises(ValueError, match="must be 1 or more"):
            await said(runner, [])
        model.free.clear()
        tasks = [asyncio.create_task(said(runner, [0]))]
        await asyncio.to_thread(model.entered.wait, LIMIT_S)
        tasks.append(asyncio.create_task(said(runner, [0])))
        await until(lambda: len(runner._waiting) == 1)
        with pytest.raises(Full):
            await said(runner, [0])
        model.free.set()
        await asyncio.gather(*tasks)

    run(test)
    runner.close()


def test_closing_ends_everything_and_draining_lets_it_end_by_itself() -> None:
    for drain in (False, True):
        model = Counting(slots=1)
        runner = TokenRunner(model)

        async def test(model: Counting = model, runner: TokenRunner = runner, drain: bool = drain) -> None:
            model.free.clear()
            texts = [asyncio.create_task(said(runner, [5]))]
            await asyncio.to_thread(model.entered.wait, LIMIT_S)
            texts.append(asyncio.create_task(said(runner, [6])))
            await until(lambda: len(runner._waiting) == 1)
            closing = asyncio.create_task(asyncio.to_thread(runner.close, drain=drain))
            await until(lambda: runner._closed != "")
            with pytest.raises(Closed):
                await said(runner, [1])
            model.free.set()
            found = await asyncio.gather(*texts, return_exceptions=True)
            await closing
            if drain:
                assert [len(steps) for steps in found if isinstance(steps, list)] == [4, 3]
            else:
                assert [type(problem) for problem in found] == [Closed, Closed]

        run(test)
        runner._thread.join(LIMIT_S)
        assert not runner._thread.is_alive()


def test_the_work_ahead_is_measured_in_tokens_and_seconds() -> None:
    model = Counting(slots=1)
    runner = TokenRunner(model)
    assert (runner.queued_tokens, runner.queued_seconds) == (0, 0.0)

    async def test() -> None:
        await said(runner, [7])  # from now on a text is taken to be 2 tokens long
        model.free.clear()
        model.entered.clear()
        running = asyncio.create_task(said(runner, [0]))
        await asyncio.to_thread(model.entered.wait, LIMIT_S)
        waiting = asyncio.create_task(said(runner, [7] * 10))
        await until(lambda: len(runner._waiting) == 1)
        assert runner.queued_tokens == 1 + 10 + 2
        assert runner.queued_seconds > 0
        model.free.set()
        await asyncio.gather(running, waiting)

    run(test)
    runner.close()


@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=20),
    st.floats(0, 2),
    st.floats(0.01, 1),
    st.integers(0, 2**32),
)
def test_a_token_is_chosen_among_those_that_make_up_top_p(
    logits: list[float], temperature: float, top_p: float, seed: int
) -> None:
    row = torch.tensor(logits)
    token = choose(row, Sampling(1, temperature, top_p), torch.Generator().manual_seed(seed))
    if temperature < 1e-3:
        assert row[token] == row.max()
        return
    chances = torch.softmax(row / temperature, -1)
    before = chances[chances > chances[token]].sum()
    assert before < top_p + 1e-5


def test_logits_that_are_no_numbers_fail_their_text() -> None:
    with pytest.raises(ValueError, match="NaN"):
        choose(torch.tensor([1.0, math.nan]), Sampling(1), torch.Generator())


def _model(kind: str) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, **common,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    else:
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **common))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # else a model of random weights repeats one token
    return model.eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_texts_that_share_slots_say_what_transformers_says_of_each_alone(kind: str) -> None:
    model = _model(kind)
    slots = SlotModel(model, slots=3)
    runner = TokenRunner(slots)
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 97, (n,), generator=random).tolist() for n in (1, 5, 17, 30, 2, 9, 11, 1, 40)]

    async def test() -> None:
        found = await asyncio.gather(*(said(runner, p, tokens=10 + 3 * i) for i, p in enumerate(prompts)))
        for i, (prompt, steps) in enumerate(zip(prompts, found, strict=True)):
            alone = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt)),
                max_new_tokens=10 + 3 * i,
                do_sample=False,
                pad_token_id=0,
            )
            assert [step.token for step in steps] == alone[0, len(prompt) :].tolist()

    run(test)
    runner.close()
    # Bounded before the first request: 2 for keys and values, float32.
    heads = 2 if kind == "llama" else 4
    assert slots.kv_bytes == 2 * 2 * 3 * heads * 128 * 8 * 4


class Replayed(causal._Recorded):
    """A recording as on CUDA, with its room for more texts and tokens, and no graph: the work is done at each call."""

    def __init__(self, model: SlotModel, size: tuple[int, int, int], *_: Any) -> None:
        texts, queries, self._reach = size
        self._model = model
        self._host = torch.zeros(texts * (1 + 2 * queries), dtype=torch.long)
        self._there = torch.zeros_like(self._host)
        self._parts = causal._cut(self._host, texts, queries)

    def __call__(self, slots: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        self._fill(slots, tokens, places)
        there = causal._cut(self._there, *self._parts[1].shape)
        return self._model.forward(*there, self._reach)[: len(slots)].clone()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_room_left_over_in_a_recording_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "_Recorded", Replayed)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 1)
    model = _model(kind)
    plain, recorded = SlotModel(model, slots=5), SlotModel(model, slots=5)
    recorded._records = True
    prompts = {3: 17, 0: 2, 1: 30}
    for slot, length in prompts.items():
        prompt = list(range(3, 3 + length))
        torch.testing.assert_close(recorded.prefill(slot, prompt), plain.prefill(slot, prompt), atol=1e-4, rtol=0)
    for step in range(3):
        work = [3, 0, 1], [5, 6, 7], [prompts[slot] + step for slot in (3, 0, 1)]
        torch.testing.assert_close(recorded.step(*work), plain.step(*work), atol=1e-4, rtol=0)


def test_a_model_that_cannot_be_recorded_runs_kernel_by_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(causal, "_Recorded", refuse)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 1)
    slots = SlotModel(_model("llama"), slots=2)
    slots._records = True
    assert slots.prefill(0, [3, 4]).shape == (97,)
    assert not slots._records


def test_rows_that_are_no_numbers_are_told_apart_from_those_that_are() -> None:
    logits = torch.tensor([[0.0, 9.0], [math.nan, 1.0], [9.0, 0.0]])
    wanted = [(Sampling(1, temperature), torch.Generator().manual_seed(1)) for temperature in (0, 1.0, 0.01)]
    first, second, third = choose_all(logits, wanted)
    assert (first, third) == (1, 0)
    assert isinstance(second, ValueError)


def test_a_model_with_sliding_windows_is_refused() -> None:
    model = _model("llama")
    model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="sliding_attention"):
        SlotModel(model)
