"""The certificate of the embedded store: made once, for its owner alone, and its authority cannot sign another."""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography import x509

from heliostat.cluster.store_fence import fence


def test_every_file_is_its_owners_alone_and_is_made_once(tmp_path: Path) -> None:
    fence(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"ca.pem", "inner.pem", "inner-key.pem", "security.toml"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    fence(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_fence_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "inner-key.pem").write_text("half")
    fence(tmp_path)
    assert "BEGIN PRIVATE KEY" in (tmp_path / "inner-key.pem").read_text()


def test_the_one_certificate_is_the_authoritys_and_nothing_else_is_kept(tmp_path: Path) -> None:
    fence(tmp_path)
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    inner = x509.load_pem_x509_certificate((tmp_path / "inner.pem").read_bytes())
    inner.verify_directly_issued_by(authority)
    texts = "".join(path.read_text() for path in tmp_path.iterdir())
    assert texts.count("PRIVATE KEY") == 2  # the beginning and the end of one
    # Two clusters do not know one another.
    fence(tmp_path / "other")
    assert (tmp_path / "other" / "ca.pem").read_bytes() != (tmp_path / "ca.pem").read_bytes()
