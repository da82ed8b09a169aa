"""A small language model through OpenAI's /v1/completions and /v1/chat/completions.

Any causal checkpoint with full attention that was saved with save_pretrained does: config.json, model.safetensors,
tokenizer.json and, for chats, a chat_template in tokenizer_config.json. On a GPU with `ray[llm]` installed vLLM runs
it, else the platform's own runner.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from heliostat.inference import vllm_engine
from heliostat.inference.generate import Engine, TokenRunner
from heliostat.serve.errors import RequestError
from heliostat.serve.recipe import TextGenerator

PLAIN_CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
"""For models that were never taught a form of conversation."""


class GenerateApp(TextGenerator):
    def __init__(self, engine: Engine, tokenizer: Tokenizer, words: Mapping[str, Any]) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self._words = {key: value for key, value in words.items() if isinstance(value, str)}
        self._has_template = "chat_template" in self._words
        # A template comes with the model and is not to be trusted: it can change nothing and reach nothing.
        sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        sandbox.globals["raise_exception"] = _refuse
        self._template = sandbox.from_string(self._words.get("chat_template", PLAIN_CHAT))

    @classmethod
    def load(cls, files: Mapping[str, bytes], device: torch.device) -> GenerateApp:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for path, data in files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data)
            engine = _engine(folder, device)
        tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(engine, tokenizer, json.loads(files.get("tokenizer_config.json", b"{}")))

    @property
    def engine(self) -> Engine:
        return self._engine

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, **self._special)
        except TemplateError as error:
            raise RequestError(
                400, "wrong_conversation", f"the model's chat template refuses this: {error}", param="messages"
            ) from error
        # A template writes the marks that begin a text itself.
        return list(self._tokenizer.encode(text, add_special_tokens=not self._has_template).ids)

    @property
    def _special(self) -> dict[str, str]:
        return {key: value for key, value in self._words.items() if key.endswith("_token")}


def _engine(folder: Path, device: torch.device) -> Engine:
    if vllm_engine.is_available(device):
        return vllm_engine.VllmEngine(folder)
    from heliostat.inference.causal import SlotModel, load_causal

    return TokenRunner(SlotModel(load_causal(folder, device)))


def _refuse(message: str) -> None:
    raise TemplateError(message)
