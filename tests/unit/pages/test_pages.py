"""The pages are whole documents that fetch and run nothing, let no name break out, and can be read by all."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import click
import pytest
import typer

from heliostat.cli.app import app
from heliostat.meter.facts import CLASSES
from heliostat.pages.cost import cost_page
from heliostat.pages.look import DARK, FAMILIES, LIGHT, Palette
from heliostat.pages.plot import amount, nice, percent
from heliostat.pages.status import StatusView, status_page
from heliostat.plan.why import Answer, Cause
from tests.support import page_examples

PAGES = page_examples.pages()
VOID = {"meta", "rect", "line", "path", "br"}


class Reader(HTMLParser):
    """Every element opened is closed again, in order; what there was is kept."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_and_fetches_and_runs_nothing(name: str) -> None:
    read = Reader(PAGES[name])
    names = [tag for tag, _ in read.elements]
    assert not {"script", "link", "iframe", "object", "img"} & set(names)
    for _, attributes in read.elements:
        assert not any(key.startswith("on") for key in attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert "src" not in attributes
    assert "url(" not in PAGES[name]
    assert "@import" not in PAGES[name]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_found_through_by_keyboard_and_by_ear(name: str) -> None:
    read = Reader(PAGES[name])
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [(a.get("href") or "")[1:] for tag, a in read.elements if tag == "a"]
    assert set(targets) <= set(ids)
    assert [tag for tag, _ in read.elements].count("h1") == 1
    for tag, attributes in read.elements:
        if tag == "svg" or attributes.get("role") in ("img", "region"):
            assert attributes.get("aria-label")
        if "scroll" in (attributes.get("class") or "").split():
            assert attributes.get("tabindex") == "0"


def test_no_name_breaks_out_of_the_page() -> None:
    text = status_page(page_examples.hostile())
    assert "<script" not in text
    assert page_examples.HOSTILE in Reader(text).text
    made, days = page_examples.reports(teams=(page_examples.HOSTILE,))
    assert "<script" not in cost_page(made, days, cluster=page_examples.HOSTILE)


def test_empty_sections_say_what_to_do() -> None:
    text = Reader(PAGES["status-empty"]).text
    for command in ("heliostat app deploy NAME", "heliostat job submit NAME", "heliostat up cluster/laptop.yaml"):
        assert command in text


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_that_a_page_names_exist(name: str) -> None:
    for command in re.findall(r"<code>heliostat ([a-z ]+)", PAGES[name]):
        found: click.Command = typer.main.get_command(app)
        for word in command.split():
            if isinstance(found, click.Group):
                assert word in found.commands, command
                found = found.commands[word]


def test_the_cost_page_shows_the_report_s_own_figures() -> None:
    made, days = page_examples.reports()
    text = Reader(PAGES["cost"]).text
    assert amount(made.total.held / 3600) in text
    assert f"${made.total.usd:,.0f}" in text
    assert sum(line.held for line in days.lines) == pytest.approx(made.total.held)
    for team in ("voice", "search", "research", "Nobody's"):
        assert team in text


# --- colours


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_shapes_stand_out_from_the_paper(palette: Palette) -> None:
    """4.5 for words and 3 for shapes (WCAG 2.2, 1.4.3 and 1.4.11)."""
    for words in ("ink", "soft", "link"):
        assert contrast(palette[words], palette["paper"]) >= 4.5, words
    for shape in ("serving", "training", "overhead", "idle", "unknown", "good", "warn", "bad"):
        assert contrast(palette[shape], palette["paper"]) >= 3, (shape, contrast(palette[shape], palette["paper"]))


def test_every_class_has_one_family() -> None:
    assert sorted(use for family in FAMILIES for use in family.uses) == sorted(CLASSES)
    assert {family.colour for family in FAMILIES} <= set(LIGHT)
    assert set(LIGHT) == set(DARK)


def test_every_colour_of_the_sheet_is_in_the_palette() -> None:
    assert set(re.findall(r"var\(--([a-z]+)\)", PAGES["status"])) <= set(LIGHT)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12345.6, "12,346"), (99.94, "99.9"), (50.0, "50"), (1.5, "1.5"), (0.014, "0.01"), (0.004, "0.004")],
)
def test_amounts(value: float, text: str) -> None:
    assert amount(value) == text


def test_axes_end_at_round_numbers() -> None:
    assert [nice(value) for value in (0, 0.3, 1, 7.2, 41, 99)] == pytest.approx([1, 0.3, 1, 8, 50, 100])
    assert percent(1, 2000) == "<0.1%"
    assert percent(0, 0) == "-"


def test_what_waits_its_turn_is_shown_and_blocks_nothing() -> None:
    waits = [
        Answer("next", "job", Cause("queued", "it waits for its turn", "heliostat job list")),
        Answer("soon", "job", Cause("node-starting", "a node of train starts", "nothing to do")),
        Answer("stuck", "job", Cause("quota", "the cluster is full", "raise it")),
    ]
    shown = status_page(StatusView("c", True, 0.0, "http://a", "http://b", waiting=waits))
    assert all(f">{answer.work}<" in shown for answer in waits)
    assert "piece of work is blocked" in shown
