"""How far two answers lie apart."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import pytest

from heliostat.serve.compare import Difference, compare, read


def apart(before: object, tried: object) -> Difference:
    one, other = read(json.dumps(before).encode()), read(json.dumps(tried).encode())
    assert one is not None
    assert other is not None
    return compare(one, other)


def test_who_answered_makes_no_difference_and_numbers_drift() -> None:
    before = {"label": "on", "probability": 0.9, "version": "v1", "digest": "a", "model": "m"}
    tried = {"label": "on", "probability": 0.6, "version": "v2", "digest": "b", "model": "m"}
    found = apart(before, tried)
    assert (found.items, found.disagreed) == (1, 0)
    assert found.drift == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("before", "tried"),
    [
        ({"label": "on"}, {"label": "off"}),
        ({"digit": 3}, {"digit": 4}),
        ({"a": True}, {"a": 1.5}),
        ({"a": 1}, {"b": 1}),
    ],
)
def test_another_word_number_or_field_is_another_answer(before: object, tried: object) -> None:
    assert apart(before, tried).disagreed == 1


def test_items_of_a_list_count_one_by_one_and_failed_ones_not() -> None:
    failed = {"error": {"message": "x"}}
    before = {"results": [{"label": "a"}, {"label": "b"}, failed], "failed": 1}
    tried = {"results": [{"label": "a"}, {"label": "c"}, {"label": "d"}], "failed": 0}
    assert apart(before, tried) == Difference(2, 1, 0.0)


def test_vectors_agree_where_they_point_the_same_way_whatever_their_encoding() -> None:
    vector = np.linspace(-1, 1, 16).astype("<f4")

    def answer(numbers: np.ndarray, *, encoded: bool = False) -> object:
        value = base64.b64encode(numbers.tobytes()).decode() if encoded else numbers.tolist()
        return {"data": [{"embedding": value, "index": 0}]}

    assert apart(answer(vector), answer(vector * 2, encoded=True)).disagreed == 0
    assert apart(answer(vector, encoded=True), answer(-vector, encoded=True)).disagreed == 1
    assert math.isfinite(apart(answer(vector), answer(-vector)).drift)


def test_generated_text_and_what_is_not_json_are_not_compared() -> None:
    assert read(b'{"choices": []}') is None
    assert read(b"no json") is None
    assert read(b"[1]") is None
