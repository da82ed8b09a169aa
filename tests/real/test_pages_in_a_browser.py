"""The pages in a real browser: light and dark, phone and desktop, by keyboard. Skips where there is no Chromium.

python -m tests.real.test_pages_in_a_browser FOLDER      writes a screenshot of each to be looked at
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.page_examples import pages

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
PHONE, DESKTOP = {"width": 375, "height": 812}, {"width": 1280, "height": 900}
# The contrast of every text with what is behind it, as the browser paints both.
CONTRAST = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const lum = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (el) => { for (let e = el; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255]; };
  const found = [];
  for (const el of document.querySelectorAll('body *')) {
    const own = [...el.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || el.closest('svg') || !el.getClientRects().length) continue;
    const [a, b] = [lum(parse(getComputedStyle(el).color)), lum(behind(el))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([el.tagName, el.textContent.slice(0, 30), ratio]);
  }
  return found;
}"""


def skip_reason() -> str | None:
    if CHROMIUM is None:
        return "no Chromium: apt-get install chromium"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed: pip install playwright"
    return None


def open_browser(playwright: Any) -> Any:  # Any: playwright is optional
    return playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if reason := skip_reason():
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = open_browser(playwright)
        yield made
        made.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    written = {}
    for name, text in pages().items():
        written[name] = folder / f"{name}.html"
        written[name].write_text(text, encoding="utf-8")
    return written


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_page_is_legible(browser: Any, files: dict[str, Path], scheme: str, size: dict[str, int]) -> None:
    """Nothing is asked of a network, nothing goes wrong, no page is wider than the screen, every word stands out."""
    context = browser.new_context(viewport=size, color_scheme=scheme)
    asked: list[str] = []
    troubles: list[str] = []
    for name, path in files.items():
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.goto(path.as_uri())
        wide, high = tab.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert wide <= size["width"], name
        assert high > 500, name
        assert tab.evaluate(CONTRAST) == [], name
        paper = tab.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, paper[4:-1].split(","))) > 384) is (scheme == "light")
        small = tab.evaluate(
            "() => [...document.querySelectorAll('body *')].filter((e) => e.getClientRects().length"
            " && parseFloat(getComputedStyle(e).fontSize) < 11).map((e) => e.tagName)"
        )
        assert small == [], name
        tab.close()
    context.close()
    assert all(url.startswith("file:") for url in asked)
    assert troubles == []


def test_the_pages_can_be_walked_by_keyboard(browser: Any, files: dict[str, Path]) -> None:
    """Tab reaches the skip link first, then every section, then what scrolls and what folds; focus can be seen."""
    context = browser.new_context(viewport=DESKTOP)
    tab = context.new_page()
    tab.goto(files["cost"].as_uri())
    tab.keyboard.press("Tab")
    assert tab.evaluate("() => document.activeElement.textContent") == "Skip to the content"
    assert tab.evaluate("() => document.activeElement.getBoundingClientRect().left") > 0
    sections = tab.evaluate("() => document.querySelectorAll('nav a').length")
    for _ in range(sections):
        tab.keyboard.press("Tab")
        assert tab.evaluate("() => document.activeElement.closest('nav') !== null")
        assert tab.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.keyboard.press("Enter")
    assert "#prices" in tab.url
    tab.goto(files["cost"].as_uri())
    for _ in range(sections + 2):
        tab.keyboard.press("Tab")
    assert tab.evaluate("() => document.activeElement.tagName") == "SUMMARY"
    assert tab.evaluate("() => document.querySelector('details').open") is False
    tab.keyboard.press("Enter")
    assert tab.evaluate("() => document.querySelector('details').open") is True
    context.close()


def shoot(folder: Path) -> None:
    """A screenshot of every page, scheme and size."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = open_browser(playwright)
        for name, text in pages().items():
            (folder / f"{name}.html").write_text(text, encoding="utf-8")
            for scheme in ("light", "dark"):
                for label, size in (("phone", PHONE), ("desktop", DESKTOP)):
                    context = browser.new_context(viewport=size, color_scheme=scheme)
                    tab = context.new_page()
                    tab.goto((folder / f"{name}.html").as_uri())
                    tab.screenshot(path=folder / f"{name}-{scheme}-{label}.png", full_page=True)
                    context.close()
        browser.close()


if __name__ == "__main__":
    shoot(Path(sys.argv[1]))
