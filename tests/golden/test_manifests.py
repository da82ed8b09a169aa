"""What the four examples render to, word for word. After a wanted change: python -m tests.golden.test_manifests"""

from __future__ import annotations

from pathlib import Path

import pytest

from heliostat.cli.render import as_yaml, chosen
from heliostat.definition import load

ROOT = Path(__file__).parents[2]
EXAMPLES = ("aws", "gcp", "azure", "onprem")


def rendered(example: str) -> str:
    definition = load(ROOT / "cluster" / f"{example}.yaml")
    return as_yaml([*chosen(definition, "all"), *chosen(definition, "rayservice"), *chosen(definition, "rayjob")])


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_example_renders_as_before(example: str) -> None:
    assert rendered(example) == (Path(__file__).parent / f"{example}.yaml").read_text()


if __name__ == "__main__":
    for name in EXAMPLES:
        (Path(__file__).parent / f"{name}.yaml").write_text(rendered(name))
