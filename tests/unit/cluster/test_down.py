from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from heliostat.cluster import embedded
from heliostat.cluster.nodes import NodeRecord, read_nodes, write_node
from heliostat.errors import ClusterError
from heliostat.events import read_spool


@pytest.fixture
def folder(heliostat_home: Path, tmp_path: Path) -> Path:
    """Of a cluster whose processes are gone, as after a power cut, with one node that nobody has told the end of."""
    folder = heliostat_home / "clusters" / "gone"
    (folder / "spool").mkdir(parents=True)
    record = embedded.ClusterRecord(
        cluster_id="0" * 32, name="gone", phase="up", definition_path=str(tmp_path / "d.yaml"), definition_digest="",
        project_root=str(tmp_path), ports={}, temp_dir=str(tmp_path / "ray"), started_at=time.time() - 60,
    )  # fmt: skip
    (folder / "cluster.json").write_text(json.dumps(asdict(record)))
    write_node(folder, NodeRecord("train-1", "train", "training", "spot", 1.0, 1.0, 1, time.time() - 50))
    return folder


def test_a_node_is_marked_as_ended_once_its_end_is_told(folder: Path) -> None:
    embedded.down("gone")
    [event], [node] = read_spool(folder / "spool"), read_nodes(folder)
    assert (event.kind, event.fields["node"]) == ("node_ended", "train-1")
    assert node.ended_at == event.fields["ended_at"]
    embedded.down("gone")
    assert len(read_spool(folder / "spool")) == 1  # told once


def test_down_on_a_full_disk_says_what_to_do_and_can_be_run_again(folder: Path) -> None:
    (folder / "spool" / "down.jsonl").symlink_to("/dev/full")
    with pytest.raises(ClusterError, match="No space left") as told:
        embedded.down("gone")
    assert "make room" in str(told.value)
    assert read_nodes(folder)[0].ended_at is None
    (folder / "spool" / "down.jsonl").unlink()
    embedded.down("gone")
    assert {event.fields["node"] for event in read_spool(folder / "spool")} == {"train-1"}
    assert read_nodes(folder)[0].ended_at is not None
    record = embedded.read_record("gone")
    assert record is not None
    assert record.phase == "down"
