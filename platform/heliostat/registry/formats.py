"""What the registry takes: safetensors, JSON and plain text, by content as well as by name. Pickles are refused.

A pickle runs code when it is loaded, whatever its file is called: so the content is looked at, not the name alone,
when a version is published and again when a file of it is read.
"""

from __future__ import annotations

import json
import math
import pickletools
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heliostat.errors import UnsafeArtifact

TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".toml", ".jinja")
TEXT_NAMES = ("LICENSE", "LICENCE", "NOTICE", "README", "USE_POLICY")
SAFE_SUFFIXES = (".safetensors", ".json", *TEXT_SUFFIXES)
# JSON and text are read whole: the largest tokenizers have 40 MB.
MOST_TEXT_BYTES = 256 * 2**20
MOST_HEADER_BYTES = 100 * 2**20  # safetensors' own limit

_MAGIC = {
    b"PK\x03\x04": "a zip archive, such as torch.save writes",
    b"PK\x05\x06": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x93NUMPY": "a NumPy file, which may hold pickles",
    b"\x89HDF": "an HDF5 file",
    b"\x7fELF": "a program",
}
_RUNS_CODE = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "EXT1", "EXT2", "EXT4"}
_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6,
    "F4": 4, "C64": 64, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One row of a safetensors header. `bytes` of payload."""

    name: str
    dtype: str  # as safetensors writes it: F32, BF16, ...
    shape: tuple[int, ...]
    bytes: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorFacts:
    """What the headers of a version's safetensors say together."""

    parameters: int = 0
    bytes: int = 0
    by_dtype: dict[str, int] = field(default_factory=dict)  # parameters

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> TensorFacts:
        found, by_dtype = list(tensors), dict[str, int]()
        for tensor in found:
            by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + tensor.parameters
        return cls(sum(by_dtype.values()), sum(tensor.bytes for tensor in found), by_dtype)

    @property
    def dtype(self) -> str:
        """Of most parameters, by torch's name; "" where there is no tensor."""
        if not self.by_dtype:
            return ""
        most = max(self.by_dtype, key=lambda dtype: self.by_dtype[dtype])
        return _DTYPES.get(most, most)


def check_name_is_safe(path: str) -> None:
    """Raises UnsafeArtifact for a file that is neither safetensors nor JSON nor text by its name."""
    name = path.rpartition("/")[2]
    if not name.endswith(SAFE_SUFFIXES) and name.partition(".")[0] not in TEXT_NAMES:
        raise UnsafeArtifact(
            f"{path} is not taken: only safetensors, JSON and plain text ({', '.join(SAFE_SUFFIXES)}) are loaded here",
            do="save weights with safetensors, since pickles run code when they are loaded; or leave it out: "
            f"--exclude '{name}'",
        )


def check_content(path: str, content: Path | bytes) -> tuple[Tensor, ...]:
    """Raises UnsafeArtifact where the content is not what the name says. Returns the tensors of safetensors."""
    check_name_is_safe(path)
    if path.endswith(".safetensors"):
        head, size = _head(content)
        return read_header(path, head, size)
    data = content if isinstance(content, bytes) else _text(path, content)
    _refuse_disguised(path, data)
    if path.endswith(".json"):
        try:
            json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UnsafeArtifact(f"{path} is not JSON: {error}", do="mend it, or leave it out") from error
    return ()


def read_header(path: str, head: bytes, size: int) -> tuple[Tensor, ...]:
    """The tensors by a safetensors header; `head` starts the file, `size` is that of the whole file in bytes.

    The tensors must lie end to end up to the last byte, as the format demands, and be as long as dtype and shape say.
    """
    try:
        (length,) = struct.unpack("<Q", head[:8])
        if length > MOST_HEADER_BYTES:
            raise ValueError(f"its header has {length} bytes")
        header = json.loads(head[8 : 8 + length])
        found = [(_span(entry), name, entry) for name, entry in header.items() if name != "__metadata__"]
        found.sort(key=lambda row: row[0])
        end = 0
        for (begin, after), _, _ in found:
            if begin != end or after < begin:
                raise ValueError(f"a tensor lies at {begin}..{after}, where the one before ends at {end}")
            end = after
        tensors = tuple(_tensor(name, entry, after - begin) for (begin, after), name, entry in found)
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnsafeArtifact(f"{path} is not safetensors: {error}", do="save it with safetensors") from error
    if end + 8 + length != size:
        raise UnsafeArtifact(f"{path} is cut off: its header promises more or fewer bytes", do="save it again")
    return tensors


def _span(entry: Any) -> tuple[int, int]:  # Any: JSON, checked here
    begin, after = entry["data_offsets"]
    if type(begin) is not int or type(after) is not int:
        raise ValueError("an offset is not a whole number")
    return begin, after


def _tensor(name: str, entry: Any, length: int) -> Tensor:  # Any: JSON, checked here
    dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
    if not all(type(extent) is int and extent >= 0 for extent in shape):
        raise ValueError(f"the shape of {name!r} is {shape}")
    bits = _BITS.get(dtype)  # None: a dtype newer than this file; its length is taken as it is
    if bits is not None and math.prod(shape) * bits != length * 8:
        raise ValueError(f"{name!r} is {dtype} {list(shape)}, which is not {length} bytes")
    return Tensor(name, dtype, shape, length)


def _head(content: Path | bytes) -> tuple[bytes, int]:
    """(what starts the file up to the end of its header, the file's size)"""
    if isinstance(content, bytes):
        return content, len(content)
    with content.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        return start + file.read(min(length, MOST_HEADER_BYTES)), content.stat().st_size


def _text(path: str, content: Path) -> bytes:
    size = content.stat().st_size
    if size > MOST_TEXT_BYTES:
        raise UnsafeArtifact(f"{path} has {size:,} bytes, too many for JSON or text", do="save it as safetensors")
    return content.read_bytes()


def _refuse_disguised(path: str, data: bytes) -> None:
    kind = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
    if kind is None and is_pickle(data):
        kind = "a pickle"
    if kind is None:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            kind = f"no text: byte {error.start} is not UTF-8"
        else:
            kind = "no text: it holds zero bytes" if b"\0" in data else None
    if kind is not None:
        raise UnsafeArtifact(
            f"{path} is {kind}, whatever its name says",
            do="save weights with safetensors, the rest as JSON or text",
        )


def is_pickle(data: bytes) -> bool:
    """By its opcodes: a frame of protocol 2 or later, or a text pickle (0, 1) that makes or calls something."""
    if data[:1] == b"\x80" and data[1:2] and data[1] <= 5:
        return True
    try:
        # The first words of a text are no opcodes: this ends at once for what is none.
        return any(opcode.name in _RUNS_CODE for opcode, _, _ in list(pickletools.genops(data)))
    except Exception:  # noqa: BLE001  # genops raises whatever its argument readers raise
        return False
