from __future__ import annotations

import pytest

from heliostat.errors import UsageError
from heliostat.names import check_name, check_path, check_segment, parse_version, version_name

HOSTILE = ["..", "a/../b", "/etc/passwd", "a//b", "", "a\x00b", "a\nb", "а", "x" * 1000, "a b"]  # noqa: RUF001


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_path_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        check_path(text)


@pytest.mark.parametrize("text", [*HOSTILE, "Upper", "1st", "a_b", "a/b"])
def test_a_name_that_could_not_be_a_label_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        check_name(text)


def test_a_refused_name_comes_with_one_that_would_do() -> None:
    with pytest.raises(UsageError, match="such as intent-classifier"):
        check_name("Intent Classifier")


def test_versions_print_and_parse() -> None:
    assert parse_version(version_name(7)) == 7
    for wrong in ("7", "v0", "v-1", "v07x", "V7"):
        with pytest.raises(UsageError):
            parse_version(wrong)


def test_a_segment_is_one_segment() -> None:
    assert check_segment("model-00001.safetensors") == "model-00001.safetensors"
    with pytest.raises(UsageError):
        check_segment("a/b")
