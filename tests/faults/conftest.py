"""What several of the fault tests start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.front import Front


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    made = Front(tmp_path_factory.mktemp("f"))
    try:
        made.start()
        yield made
    finally:
        made.end()
