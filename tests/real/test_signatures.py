"""Signed versions: whoever has the store's key can write a manifest, and that alone no longer makes it loadable."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from heliostat.definition import GateRules
from heliostat.errors import UntrustedArtifact, UsageError
from heliostat.flow.steps import judge_candidate
from heliostat.registry import Artifact, ArtifactMetadata, Lineage, publish, resolve
from heliostat.registry.signatures import check_signed, make_key, sign, signers
from heliostat.store import Store

pytestmark = pytest.mark.real


def make(store: Store, words: bytes = b"words") -> Artifact:
    metadata = ArtifactMetadata(
        framework="torch", parameters=1, dtype="float32", licence="MIT",
        lineage=Lineage(job="j", code_version="c", dataset_digest="d"),
    )  # fmt: skip
    return publish(store, name="m", files={"words.txt": words}, metadata=metadata)


def test_a_version_is_trusted_once_a_trusted_key_has_signed_it(store: Store, tmp_path: Path) -> None:
    artifact = make(store)
    mine, others = make_key(tmp_path / "mine.pem"), make_key(tmp_path / "others.pem")
    assert stat.S_IMODE((tmp_path / "mine.pem").stat().st_mode) == 0o600
    check_signed(store, artifact, [])
    with pytest.raises(UntrustedArtifact, match="signed by none of the 1 keys"):
        check_signed(store, artifact, [mine])
    sign(store, artifact, tmp_path / "others.pem", who="eve")
    with pytest.raises(UntrustedArtifact):
        check_signed(store, artifact, [mine])
    sign(store, artifact, tmp_path / "mine.pem", who="ann")
    sign(store, artifact, tmp_path / "mine.pem", who="ann")
    check_signed(store, resolve(store, "m:v1"), [mine])
    assert signers(store, artifact, [mine, others]) == [mine, others]


def test_a_signature_holds_for_one_version_and_its_whole_manifest(store: Store, tmp_path: Path) -> None:
    mine = make_key(tmp_path / "mine.pem")
    first, second = make(store), make(store, b"other words")
    sign(store, first, tmp_path / "mine.pem", who="ann")
    [info] = store.list("models/m/signatures")
    store.put(info.key.replace("/v1/", "/v2/"), store.get(info.key).data)  # moved to another version
    with pytest.raises(UntrustedArtifact):
        check_signed(store, second, [mine])
    # The licence is in the manifest and not in the digest.
    key = "models/m/v1/manifest.json"
    manifest = json.loads(store.get(key).data)
    body = json.loads(manifest["body"])
    body["metadata"]["licence"] = "anything"
    store.put(key, json.dumps({**manifest, "body": json.dumps(body)}).encode())
    changed = resolve(store, "m:v1")
    assert changed.digest == first.digest
    with pytest.raises(UntrustedArtifact):
        check_signed(store, changed, [mine])


def test_a_spoilt_signature_is_none_and_is_mended_by_signing_again(store: Store, tmp_path: Path) -> None:
    mine, artifact = make_key(tmp_path / "mine.pem"), make(store)
    sign(store, artifact, tmp_path / "mine.pem", who="ann")
    [info] = store.list("models/m/signatures")
    store.put(info.key, b"{}")
    with pytest.raises(UntrustedArtifact):
        check_signed(store, artifact, [mine])
    sign(store, artifact, tmp_path / "mine.pem", who="ann")
    check_signed(store, artifact, [mine])


def test_an_unsigned_candidate_is_refused_before_it_is_judged(store: Store, tmp_path: Path) -> None:
    mine, artifact = make_key(tmp_path / "mine.pem"), make(store)
    with pytest.raises(UntrustedArtifact):
        judge_candidate(store, artifact, GateRules(), signed_by=[mine])
    assert store.list("models/m/verdicts") == []


def test_a_file_that_is_no_key_is_told_without_its_content(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "no.pem"
    path.write_text("a secret")
    with pytest.raises(UsageError, match="no private key") as told:
        sign(store, make(store), path, who="ann")
    assert "a secret" not in str(told.value)
    with pytest.raises(UsageError, match="cannot be written"):
        make_key(path)
