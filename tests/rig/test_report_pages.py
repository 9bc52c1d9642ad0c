"""The report's page in a real browser: on a desk, a tablet and a phone, and in the dark; nothing sticks out, nothing is
fetched, nothing is complained about. The pictures are kept where PVEHOOK_SCREENSHOTS says, for people to see."""

from __future__ import annotations

import io
import itertools
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pvehook.records.history_writing import append, append_beside
from pvehook.report.report import run_report
from tests.records.backups import NOW_S, a_nodes_backups, charted, neighbours, one_after_the_other
from tests.rig.browser import CHROMIUM, Browser, Page, Screen, running_browser

pytestmark = [
    pytest.mark.rig,
    pytest.mark.skipif(CHROMIUM is None, reason="a real browser: Debian's chromium is not installed"),
]

WIDE = Screen("wide", 1280, 900, "light")
PHONE = Screen("phone", 360, 740, "light")
DARK = Screen("dark", 1280, 900, "dark")
TABLET = Screen("tablet", 768, 1024, "light")
SCREENS = [pytest.param(screen, id=screen.name) for screen in (WIDE, PHONE, DARK, TABLET)]

STICKS_OUT = """
[...document.querySelectorAll("body *")]
  .filter((each) => { const box = each.getBoundingClientRect();
                      return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5); })
  .filter((each) => !each.closest("svg") || each.tagName === "svg")
  .map((each) => each.tagName + "." + each.className).slice(0, 5)
"""
CLIPPED_TEXTS = """
[...document.querySelectorAll(".chart text")].filter((each) => {
  const text = each.getBoundingClientRect(), chart = each.closest("svg").getBoundingClientRect();
  return chart.width > 0 && (text.left < chart.left - 1 || text.right > chart.right + 1);
}).map((each) => each.textContent)
"""
SMALLEST_TEXT_PX = """
Math.min(...[...document.querySelectorAll(".chart text")].map((each) => each.getBoundingClientRect().height)
  .filter((height) => height > 0))
"""
CONTRASTS = """
(() => {
  const luminance = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number).slice(0, 3).map((each) => each / 255)
      .map((each) => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const opaque = (color) => !/, 0\\)$|transparent/.test(color);
  const behind = (each) => { while (each && !opaque(getComputedStyle(each).backgroundColor)) each = each.parentElement;
                             return getComputedStyle(each ?? document.body).backgroundColor; };
  const found = {};
  for (const each of document.querySelectorAll("h1, p, td, th, dt, dd, .word, .legend span, summary, strong")) {
    if (!each.textContent.trim() || !each.getBoundingClientRect().width) continue;
    const [a, b] = [luminance(getComputedStyle(each).color), luminance(behind(each))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), name = each.tagName + "." + each.className;
    if (ratio < 4.5) found[name] = Math.round(ratio * 100) / 100;
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    history = str(place / "history.db")
    last_night = one_after_the_other(40)
    last_night[4] = replace(last_night[4], result="failed")
    append(history, *a_nodes_backups(24, 40)[:-24], *last_night, now_s=NOW_S)
    long_name = charted(3, vmid=150, name="a-name-as-long-as-names-may-be." + "x" * 40, stalled_s=320.0)
    append(history, long_name, now_s=NOW_S)
    append_beside(history, neighbours([*last_night, long_name]), now_s=NOW_S)
    file = place / "report.html"
    assert run_report(history, io.StringIO(), datetime.fromtimestamp(NOW_S, UTC), html=str(file)) == 0
    return file


@pytest.mark.parametrize("screen", SCREENS)
def test_it_fits_fetches_nothing_and_is_not_complained_about(browser: Browser, page_file: Path, screen: Screen) -> None:
    page = Page(browser, page_file, screen)
    page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == screen.width
    assert page.evaluate(STICKS_OUT) == []
    assert page.evaluate(CLIPPED_TEXTS) == []
    assert page.complaints() == []


@pytest.mark.parametrize("screen", SCREENS)
def test_it_can_be_read(browser: Browser, page_file: Path, screen: Screen) -> None:
    """Texts of a chart are as large on a phone as on a desk; every text stands out from what is behind it as WCAG's
    AA wants it."""
    page = Page(browser, page_file, screen)
    page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert page.evaluate(SMALLEST_TEXT_PX) >= 10.0
    assert page.evaluate(CONTRASTS) == {}


def test_light_and_dark_are_two(browser: Browser, page_file: Path) -> None:
    light, dark = (Page(browser, page_file, screen) for screen in (WIDE, DARK))
    background = "getComputedStyle(document.body).backgroundColor"
    assert light.evaluate(background) == "rgb(246, 247, 248)"
    assert dark.evaluate(background) == "rgb(16, 19, 22)"


def test_each_screen_gets_the_charts_that_fit_it(browser: Browser, page_file: Path) -> None:
    shown = "[...document.querySelectorAll('figure > svg')].filter((each) => each.getBoundingClientRect().width > 0)"
    kinds = f"[...new Set({shown}.map((each) => each.className.baseVal))]"
    assert Page(browser, page_file, WIDE).evaluate(kinds) == ["chart wide"]
    assert Page(browser, page_file, TABLET).evaluate(kinds) == ["chart middle"]
    assert Page(browser, page_file, PHONE).evaluate(kinds) == ["chart narrow"]


@pytest.mark.parametrize("screen", SCREENS)
def test_the_nights_picture_is_above_all_else_and_whole(browser: Browser, page_file: Path, screen: Screen) -> None:
    """Every row can be told apart by its name, and no name runs into the bars."""
    page = Page(browser, page_file, screen)
    shown = "[...document.querySelectorAll('#night figure > svg')].find((each) => each.getBoundingClientRect().width)"
    first = "document.querySelector('h2')"
    assert page.evaluate(f"{first}.closest('#night') !== null")
    tops = page.evaluate(f"[...{shown}.querySelectorAll('.name')].map((each) => each.getBoundingClientRect().bottom)")
    assert len(tops) == 42  # 41 guests with a backup and one that was in no job
    assert min(later - one for one, later in itertools.pairwise(tops)) >= 16
    overlaps = f"""[...{shown}.querySelectorAll('.name')].filter((name) => {{
      const box = name.getBoundingClientRect();
      return [...{shown}.querySelectorAll('.bar, .stall, .slowed, .some')].some((each) => {{
        const other = each.getBoundingClientRect();
        return other.left < box.right && other.right > box.left
            && other.top < box.bottom - 3 && other.bottom > box.top + 3;
      }});
    }}).map((name) => name.textContent)"""
    assert page.evaluate(overlaps) == []


@pytest.mark.parametrize("width", [320, 360, 412, 540, 560, 700, 720, 880, 900, 955, 970, 1100, 1920])
def test_nothing_sticks_out_at_any_width(browser: Browser, page_file: Path, width: int) -> None:
    page = Page(browser, page_file, Screen(str(width), width, 900, "light"))
    page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(STICKS_OUT) == []


def test_the_table_is_sorted_by_a_click(browser: Browser, page_file: Path) -> None:
    page = Page(browser, page_file, WIDE)
    names = "[...document.querySelectorAll('#guests tbody .name')].map((each) => each.textContent)"
    first = page.evaluate(names)
    page.evaluate("document.querySelectorAll('#guests th button')[0].click()")
    by_name = page.evaluate(names)
    assert by_name == sorted(first)
    page.evaluate("document.querySelectorAll('#guests th button')[0].click()")
    assert page.evaluate(names) == sorted(first, reverse=True)
    page.evaluate("document.querySelectorAll('#guests th button')[3].click()")
    assert page.evaluate(names)[0] == first[0]
    assert page.complaints() == []


@pytest.mark.parametrize("screen", SCREENS)
def test_a_picture_of_it(browser: Browser, page_file: Path, screen: Screen, tmp_path: Path) -> None:
    place = Path(os.environ.get("PVEHOOK_SCREENSHOTS") or tmp_path)
    picture = place / f"report-{screen.name}.png"
    page = Page(browser, page_file, screen)
    page.screenshot(picture)
    width, pixels = decoded(picture)
    assert width == screen.width
    assert len(set(pixels)) > 20  # something is drawn on it


def decoded(picture: Path) -> tuple[int, bytes]:
    """A PNG's width, and the bytes of its lines as they are packed."""
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    (width,) = struct.unpack(">I", data[16:20])
    packed, at = b"", 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += length + 12
    return width, zlib.decompress(packed)
