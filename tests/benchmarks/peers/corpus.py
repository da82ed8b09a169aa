"""The texts of the serving benchmark: paragraphs of the docstrings in Python's own standard library.

Real prose of mixed length that every machine has: half the paragraphs have fewer than 20 tokens, one in ten more than
65, a few are cut at 256. The order is drawn once from the seed.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from pathlib import Path

NAME = "docstring paragraphs of the Python standard library"


def texts(seed: int = 0) -> list[str]:
    """Every paragraph of three words or more, in an order given by the seed."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = [paragraph for path in sorted(root.glob("*.py")) for paragraph in _paragraphs(path)]
    random.Random(seed).shuffle(found)
    return found


def _paragraphs(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    paragraphs = [" ".join(part.split()) for docstring in docstrings for part in docstring.split("\n\n")]
    return [paragraph for paragraph in paragraphs if len(paragraph.split()) >= 3]
