"""Text in pieces: together they are the whole text, and nothing of a stop string gets out."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from heliostat.inference.words import TextStream


def decode(ids: Sequence[int]) -> str:
    """Tokens that are bytes, so that characters are cut in their middle."""
    return bytes(ids).decode(errors="replace")


def pieces(text: str, stop: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(decode, stop)
    out = []
    for byte in text.encode():
        out.append(stream.push(byte))
        if stream.stopped:
            return out, stream
    return [*out, stream.end()], stream


@given(st.text(max_size=60))
def test_the_pieces_are_the_text(text: str) -> None:
    assert "".join(pieces(text)[0]) == text


@given(st.text(alphabet="abé", max_size=40), st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=4))
def test_the_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    out, stream = pieces(text, stop)
    at = min((text.find(one) for one in stop if one in text), default=len(text))
    assert stream.stopped == any(one in text for one in stop)
    # Of several that end at the same character, the one that begins first is cut off.
    found = "".join(out)
    assert text.startswith(found)
    assert not any(one in found for one in stop)
    if len(stop) == 1:
        assert found == text[:at]


def test_what_may_begin_a_stop_string_is_held_back_until_it_does_not() -> None:
    assert pieces("a\nUsex", ["\nUser:"])[0] == ["a", "", "", "", "", "\nUsex", ""]


def test_a_character_comes_when_it_is_whole_and_a_broken_one_at_the_end() -> None:
    assert pieces("é")[0] == ["", "é", ""]
    stream = TextStream(decode)
    assert (stream.push(0xC3), stream.end()) == ("", "\ufffd")
