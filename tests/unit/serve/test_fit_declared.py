"""What a group declares for a replica, in bytes."""

from __future__ import annotations

import pytest

from heliostat.definition import WorkerGroup
from heliostat.plan import catalogue
from heliostat.serve.fit import declared_limit


def group(accelerator: str | None) -> WorkerGroup:
    about = {"role": "serving", "market": "on-demand", "cpus": 1, "gpus": 1, "nodes": 1, "accelerator": accelerator}
    return WorkerGroup.model_validate(about)


def test_it_is_the_replicas_share_of_the_smallest_accelerator() -> None:
    l4, t4 = (catalogue.load().accelerator(name).usable_bytes for name in ("L4", "T4"))
    assert t4 < l4
    assert declared_limit([group("L4")], gpus=1) == l4
    assert declared_limit([group("L4"), group("T4")], gpus=1) == t4
    assert declared_limit([group("L4")], gpus=0.5) == pytest.approx(l4 / 2, abs=1)


def test_where_no_accelerator_is_named_or_no_gpu_is_used_nothing_is_declared() -> None:
    assert declared_limit([group("L4"), group(None)], gpus=1) is None
    assert declared_limit([group("L4")], gpus=0) is None
    assert declared_limit([], gpus=1) is None
