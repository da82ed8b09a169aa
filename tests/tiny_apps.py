"""Every serving recipe with a model of random weights that loads in milliseconds, and its HTTP without a cluster.

The files are what training publishes, only smaller; recipes, runners and endpoint are the ones that are deployed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from heliostat.inference.encoder import EncoderConfig, IntentClassifier, PackedEncoder, pretrained_folder
from heliostat.serve.api import Api, Loaded
from heliostat.serve.endpoint import Endpoint
from heliostat.serve.keys import KeyRing
from heliostat.serve.kinds import make_api, warm_up
from heliostat.serve.recipe import Recipe
from serve_apps.digits import DigitsApp
from serve_apps.embeddings import EmbeddingsApp
from serve_apps.generate import GenerateApp
from serve_apps.intent_classifier import IntentClassifierApp
from train_jobs.digits import model_files
from train_jobs.digits_model import DigitNet

TINY = EncoderConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)


@dataclass(frozen=True)
class TinyIdentity:
    """What an artifact says of itself."""

    name: str
    version: int = 1
    digest: str = "sha256:tiny"


@dataclass
class Served:
    """One application in this process."""

    name: str
    api: Api
    endpoint: Endpoint


def intent_files(seed: int = 0) -> dict[str, bytes]:
    torch.manual_seed(seed)
    model = IntentClassifier(PackedEncoder(TINY), classes=3)
    return {
        "model.safetensors": safetensors.torch.save(model.state_dict()),
        "labels.json": json.dumps(["off", "on", "dim"]).encode(),
        "config.json": json.dumps({"encoder": asdict(TINY)}).encode(),
        "tokenizer.json": (pretrained_folder() / "tokenizer.json").read_bytes(),
    }


def embeddings_files(seed: int = 0) -> dict[str, bytes]:
    torch.manual_seed(seed)
    config = {**asdict(TINY), "model_type": "bert", "hidden_act": "gelu"}
    return {
        "model.safetensors": safetensors.torch.save(PackedEncoder(TINY).state_dict()),
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": (pretrained_folder() / "tokenizer.json").read_bytes(),
    }


def digits_files(seed: int = 0) -> dict[str, bytes]:
    torch.manual_seed(seed)
    return model_files(DigitNet())


def language_files(seed: int = 0, *, template: str | None = None) -> dict[str, bytes]:
    """A Llama of two narrow layers over bytes; it knows no language, and says something else for every prompt."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    marks = ["<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*marks, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(marks)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # at the usual scale a model of random weights says one token for ever
    with tempfile.TemporaryDirectory() as name:
        model.save_pretrained(name)
        files = {path.name: path.read_bytes() for path in Path(name).iterdir()}
    words: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    if template is not None:
        words["chat_template"] = template
    return {
        **files,
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(words).encode(),
    }


RECIPES: dict[str, tuple[type[Recipe], Callable[[], dict[str, bytes]]]] = {
    "intent-classifier": (IntentClassifierApp, intent_files),
    "embeddings": (EmbeddingsApp, embeddings_files),
    "digits": (DigitsApp, digits_files),
    "generate": (GenerateApp, language_files),
}


def load_recipe(name: str, *, version: int = 1, files: dict[str, bytes] | None = None) -> Loaded[Any]:
    recipe, make = RECIPES[name]
    model = recipe.load(files or make(), torch.device("cpu"))
    warm_up(model)
    return Loaded(TinyIdentity(name, version), model)


def serve_recipe(name: str, *, keys: KeyRing | None = None, max_queue_s: float = 30, **options: Any) -> Served:
    """The application as a replica would hold it. Close `api` when done."""
    api = make_api(load_recipe(name, **options), app=name, budget_tokens=512)
    ring = keys or KeyRing(app=name)
    return Served(name, api, Endpoint(api, app=name, keys=lambda: ring, max_queue_s=max_queue_s))
