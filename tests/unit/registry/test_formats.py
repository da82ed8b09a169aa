"""What may be published: by content as well as by name."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from heliostat.errors import UnsafeArtifact
from heliostat.registry.formats import TensorFacts, check_content, check_name_is_safe, is_pickle


def safetensors(rows: dict[str, tuple[str, list[int], list[int]]], payload: int) -> bytes:
    header = json.dumps(
        {name: {"dtype": dtype, "shape": shape, "data_offsets": span} for name, (dtype, shape, span) in rows.items()}
    ).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * payload


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("pwned",)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Runs()))
    return buffer.getvalue()


PICKLES = {f"protocol {n}": pickle.dumps(_Runs(), protocol=n) for n in range(pickle.HIGHEST_PROTOCOL + 1)}


@pytest.mark.parametrize("data", [*PICKLES.values(), zipped()], ids=[*PICKLES, "torch.save's zip"])
@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "README.md", "w.safetensors"])
def test_a_pickle_is_refused_under_any_name(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    for content in (data, tmp_path / name):
        with pytest.raises(UnsafeArtifact, match=name):
            check_content(name, content)


def test_a_pickle_of_plain_data_is_one_too() -> None:
    assert is_pickle(pickle.dumps({"a": 1}))


@pytest.mark.parametrize("text", [b"", b".", b"N.", b"import os.", b"I am a text.\n", b'{"a": 1}', b"(a) b. c"])
def test_a_text_is_no_pickle(text: bytes) -> None:
    assert not is_pickle(text)
    assert check_content("a.txt", text) == ()


@pytest.mark.parametrize(
    "name", ["model.pkl", "pytorch_model.bin", "model.pt", "model.ckpt", "run.py", "model.onnx", "x.npy", "a", "w.JSON"]
)
def test_a_name_that_promises_anything_else_is_refused_with_the_way_to_leave_it_out(name: str) -> None:
    with pytest.raises(UnsafeArtifact, match="--exclude") as caught:
        check_name_is_safe(f"folder/{name}")
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "name", ["LICENSE", "NOTICE.txt", "merges.txt", "chat_template.jinja", "1_Pooling/config.json"]
)
def test_what_hugging_face_folders_hold_is_taken(name: str) -> None:
    check_name_is_safe(name)


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.json", b"{", "not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.txt", b"a\0b", "zero bytes"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.md", b"\x1f\x8b\x08\x00", "gzip"),
        ("a.txt", b"\x7fELF", "a program"),
    ],
)
def test_content_that_is_not_what_its_name_says_is_refused(name: str, data: bytes, told: str) -> None:
    with pytest.raises(UnsafeArtifact, match=told):
        check_content(name, data)


BROKEN = {
    "short": safetensors({"a": ("F32", [1], [0, 4]), "b": ("F32", [1], [4, 8])}, 7),
    "long": safetensors({"a": ("F32", [1], [0, 4])}, 5),
    "overlap": safetensors({"a": ("F32", [1], [0, 4]), "b": ("F32", [1], [2, 6])}, 6),
    "hole": safetensors({"a": ("F32", [1], [4, 8])}, 8),
    "no offsets": struct.pack("<Q", 2) + b"{}" + b"x",
    "another length than its shape": safetensors({"a": ("F32", [2], [0, 4])}, 4),
    "negative shape": safetensors({"a": ("F32", [-1], [0, 4])}, 4),
    "offsets that are no numbers": struct.pack("<Q", 51) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":"ab"}}',
    "huge header": struct.pack("<Q", 2**63) + b"{}",
    "deep header": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "empty": b"",
    "a list": struct.pack("<Q", 2) + b"[]",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_only_called_safetensors_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    for content in (data, tmp_path / "w.safetensors"):
        with pytest.raises(UnsafeArtifact, match=r"w\.safetensors"):
            check_content("w.safetensors", content)


def test_parameters_bytes_and_dtype_are_read_off_the_header() -> None:
    data = safetensors({"a": ("BF16", [3, 4], [0, 24]), "b": ("I64", [2], [24, 40])}, 40)
    facts = TensorFacts.of(check_content("w.safetensors", data))
    assert (facts.parameters, facts.bytes, facts.dtype) == (14, 40, "bfloat16")
    assert TensorFacts.of(()).dtype == ""
