"""What the registry's tests publish, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from heliostat.registry import Alias, Artifact, ArtifactMetadata, Lineage, move_alias, publish
from heliostat.store import Store

MODEL = "model"
META = ArtifactMetadata(
    framework="torch",
    metrics={"accuracy": 0.9},
    lineage=Lineage(job="job", code_version="abc", dataset_digest="sha256:0", gpu_seconds=12.5, hardware="1 x A100"),
    licence="Apache-2.0",
)


def weights(value: float) -> bytes:
    import safetensors.torch
    import torch

    return bytes(safetensors.torch.save({"w": torch.full((2, 2), float(value))}))


def put(store: Store, number: int, **more: Any) -> Artifact:
    """Version `number`, if called in order."""
    return publish(store, name=MODEL, files={"config.json": b"%d" % number, **more}, metadata=META)


def point(store: Store, version: int, expected: int | None, *, who: str = "ann", alias: str = "production") -> Alias:
    return move_alias(
        store, name=MODEL, alias=alias, to_version=version, expected_version=expected, who=who, why="test"
    )


def flip(store: Store, key: str, at: int) -> None:
    """Change one byte at rest."""
    data = bytearray(store.get(key).data)
    data[at] ^= 1
    store.put(key, bytes(data))


def hugging_face_folder(folder: Path, *, files: int = 200) -> Path:
    """As `save_pretrained` and the hub leave one: a sharded index, tokenizer files, an own folder, hidden files."""
    import json

    import safetensors.torch
    import torch

    folder.mkdir(parents=True)
    weight_map = {}
    small = {
        "config.json": '{"architectures": ["BertModel"]}',
        "README.md": "---\nlicense: apache-2.0\n---\n# A model\n",
        "LICENSE": "Apache License\n",
        "vocab.txt": "[PAD]\n[UNK]\n",
        "merges.txt": "#version: 0.2\na b\n",
        "tokenizer.json": '{"version": "1.0"}',
        "special_tokens_map.json": "{}",
        "chat_template.jinja": "{{ messages }}\n",
        "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
        ".gitattributes": "*.safetensors filter=lfs\n",
    }
    shards = files - (len(small) - 1) - 1  # the hidden one is not published; the index is
    for number in range(1, shards + 1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        tensors = {f"layer.{number}.weight": torch.full((4, 8), float(number), dtype=torch.bfloat16)}
        safetensors.torch.save_file(tensors, folder / name)
        weight_map.update(dict.fromkeys(tensors, name))
    small["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map})
    for path, text in small.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    return folder
