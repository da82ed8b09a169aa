"""A YAML file as documents whose every value knows its path and line. Mistakes in it are UsageErrors with the line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliostat.errors import UsageError

_SUFFIXES = {
    "": 1.0,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
    "Pi": 2.0**50,
}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([0-9]{1,2}))?\s*(m|k|[KMGTP]i|[MGTP])?\s*")


@dataclass(frozen=True)
class Document:
    """One document of a file: its value, and the line (from 1) of each path in it.

    `lines` grows where YAML within a text is read (`Field.embedded`), so that findings in it have theirs.
    """

    value: Any  # Any: YAML
    lines: dict[str, int]
    file: str
    blocks: frozenset[str] = frozenset()
    """Paths of texts written as they are (|), so that their own lines are lines of the file."""

    @property
    def root(self) -> Field:
        return Field(self.value, "", self)

    def line(self, path: str) -> int:
        """Of the path, or of the nearest thing above it that is written."""
        while path and path not in self.lines:
            path = _above(path)
        return self.lines.get(path, 1)

    def lines_above(self, path: str) -> set[int]:
        """The lines of the path and of all that it lies in."""
        found = {self.line(path)}
        while path:
            path = _above(path)
            found.add(self.line(path))
        return found


@dataclass(frozen=True)
class Field:
    """One value. Each getter gives None or nothing where it is missing, and a UsageError where its type is wrong."""

    value: Any  # Any: YAML
    path: str
    document: Document

    def __getitem__(self, key: str) -> Field:
        if self.value is None:
            return Field(None, _join(self.path, key), self.document)
        if not isinstance(self.value, dict):
            raise self.wrong("a mapping")
        return Field(self.value.get(key), _join(self.path, key), self.document)

    def __bool__(self) -> bool:
        return self.value is not None

    def names(self) -> list[str]:
        if self.value is None:
            return []
        if not isinstance(self.value, dict):
            raise self.wrong("a mapping")
        return [str(key) for key in self.value]

    def items(self) -> Iterator[Field]:
        if self.value is None:
            return
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        for index, value in enumerate(self.value):
            yield Field(value, f"{self.path}[{index}]", self.document)

    def texts(self) -> dict[str, str]:
        """A mapping of plain values, as text."""
        return {key: text for key in self.names() if (text := self[key].text()) is not None}

    def text(self) -> str | None:
        if self.value is None:
            return None
        if isinstance(self.value, bool):
            return str(self.value).lower()
        if isinstance(self.value, str | int | float):
            return str(self.value)
        raise self.wrong("text")

    def number(self) -> float | None:
        """A number, or a Kubernetes quantity such as 500m or 16Gi."""
        if self.value is None:
            return None
        found = _QUANTITY.fullmatch(str(self.value)) if isinstance(self.value, str | int | float) else None
        if found is None or isinstance(self.value, bool):
            raise self.wrong("a number or a quantity such as 500m or 16Gi")
        return float(found[1]) * 10.0 ** int(found[2] or 0) * _SUFFIXES[found[3] or ""]

    def count(self) -> int | None:
        number = self.number()
        if number is not None and number != int(number):
            raise self.wrong("a whole number")
        return None if number is None else int(number)

    def flag(self) -> bool:
        if self.value is None:
            return False
        if isinstance(self.value, bool):
            return self.value
        raise self.wrong("true or false")

    def embedded(self) -> Field:
        """YAML or JSON that stands in a text, such as serveConfigV2, with lines of the file that it stands in."""
        text = self.text()
        if text is None:
            return self
        try:
            value, lines = _parse_one(text)
        except UsageError as error:
            raise UsageError(f"{self.path} holds {error.what}", where=self._where(), do=error.do) from error
        if self.path in self.document.blocks:
            first = self.document.line(self.path)  # the text begins on the line below its key
            inner = {f"{self.path}.{path}": line + first for path, line in lines.items() if path}
            self.document.lines.update(inner)
        return Field(value, self.path, self.document)

    def wrong(self, wanted: str) -> UsageError:
        return UsageError(
            f"{self.path or 'the document'} is {_short(self.value)}", where=self._where(), do=f"write {wanted}"
        )

    def _where(self) -> str:
        return f"{self.document.file}, line {self.document.line(self.path)}"


def read_documents(text: str, file: str) -> list[Document]:
    """Every document of the text that holds a mapping. Raises UsageError for what is not YAML."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from heliostat.definition.yaml_size import PARSER_ERRORS, is_too_deep, is_too_large

    if re.search(r"^\s*\{\{", text, re.MULTILINE):
        raise UsageError("this is a Helm template, not yet YAML", where=file, do="check what helm template prints")
    if is_too_deep(text):
        raise UsageError("it is nested too deep, or refers to itself", where=file, do="write it out")
    try:
        nodes = list(YAML(typ="rt", pure=True).compose_all(text))
        if any(is_too_large(node) for node in nodes):
            raise UsageError(
                "its aliases stand for too many values, or it refers to itself", where=file, do="write it out"
            )
        values = list(YAML(typ="safe", pure=True).load_all(text))
        return [
            Document(value, dict(_lines(node, "")), file, frozenset(_blocks(node, "")))
            for value, node in zip(values, nodes, strict=False)
            if isinstance(value, dict)
        ]
    except RecursionError as error:
        raise UsageError("it is nested too deep, or refers to itself", where=file, do="write it out") from error
    except UsageError:
        raise
    except (YAMLError, *PARSER_ERRORS) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}, line {mark.line + 1}" if mark else file
        raise UsageError(f"not YAML: {getattr(error, 'problem', None) or error}", where=place, do="mend it") from error


def read_text(path: Path) -> str:
    """The file's text. Raises UsageError for none, and for one that is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError("there is no such file", where=str(path), do="give the path of one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"it cannot be read: {error}", where=str(path), do="give a YAML file") from error


def _parse_one(text: str) -> tuple[Any, dict[str, int]]:  # Any: YAML
    documents = read_documents(text, "text")
    if not documents:
        return None, {}
    return documents[0].value, dict(documents[0].lines)


def _lines(node: Any, path: str) -> Iterator[tuple[str, int]]:  # Any: ruamel's nodes
    if not path and node is not None:
        yield "", node.start_mark.line + 1
    for here, line, value in _entries(node, path):
        yield here, line
        yield from _lines(value, here)


def _blocks(node: Any, path: str) -> Iterator[str]:  # Any: ruamel's nodes
    if getattr(node, "style", None) == "|":
        yield path
    for here, _, value in _entries(node, path):
        yield from _blocks(value, here)


def _entries(node: Any, path: str) -> Iterator[tuple[str, int, Any]]:  # Any: ruamel's nodes
    """(path, line, node) of what lies in a mapping or a list."""
    kind = getattr(node, "id", "")
    if kind == "mapping":
        for key, value in node.value:
            yield _join(path, str(key.value)), key.start_mark.line + 1, value
    elif kind == "sequence":
        for index, value in enumerate(node.value):
            yield f"{path}[{index}]", value.start_mark.line + 1, value


def _join(path: str, key: str) -> str:
    name = key if re.fullmatch(r"[\w-]+", key) else f'["{key}"]'
    return f"{path}{name}" if name.startswith("[") or not path else f"{path}.{name}"


def _above(path: str) -> str:
    if path.endswith('"]'):
        return path[: path.rindex('["')]
    return path[: max(path.rfind("."), path.rfind("["), 0)]


def _short(value: Any) -> str:  # Any: YAML
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
