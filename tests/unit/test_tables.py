"""Tables in notebooks: a list stays a list, and no text becomes markup."""

from __future__ import annotations

from dataclasses import dataclass

from heliostat.tables import Rows, table


@dataclass(frozen=True)
class Row:
    name: str
    started_at: float | None
    gpus: float


def test_rows_are_a_list_and_draw_their_fields() -> None:
    rows = Rows([Row("a", 0.0, 1234.5), Row("b", None, 0.5)])
    assert rows == [Row("a", 0.0, 1234.5), Row("b", None, 0.5)]
    drawn = rows._repr_html_()
    assert "<th>started at</th>" in drawn
    assert "1970-01-01 00:00:00" in drawn
    assert "1,234" in drawn
    assert "None" not in drawn


def test_no_rows_say_so() -> None:
    assert Rows([])._repr_html_() == "<i>none</i>"


def test_text_is_escaped_everywhere() -> None:
    drawn = table(("<a>",), [("<script>",)], caption="<b>")
    assert "<script>" not in drawn
    assert drawn.count("&lt;") == 3
