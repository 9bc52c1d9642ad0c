"""The generated pages of docs/ are what the code says now, and so is the table of events."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pvehook.config.checks import CHECKS
from scripts.events import EVENTS
from scripts.generate_docs import (
    configuration_page,
    events_of,
    in_markdown,
    log_calls,
    logged_events,
    pages,
    topics,
)

TOP = Path(__file__).parents[2]
HOW = "run: .venv/bin/python scripts/generate_docs.py"


def test_no_page_is_stale() -> None:
    assert [str(page) for page, text in pages().items() if page.read_text() != text] == [], HOW


def test_every_event_has_a_line_and_every_line_an_event() -> None:
    assert sorted(EVENTS) == sorted(logged_events())


def test_an_event_has_the_priorities_with_which_it_is_logged() -> None:
    logged = {name: each.priorities for name, each in logged_events().items()}
    assert {name: set(levels.split()) for name, (levels, _) in EVENTS.items()} == logged


def test_every_key_has_an_entry_of_its_own() -> None:
    page = configuration_page((TOP / "hooks" / "pvehook.example.yaml").read_text())
    titles = [line for line in page.splitlines() if line.startswith("### ")]
    assert all(sum(f"`{key}`" in title for title in titles) == 1 for key in CHECKS)


# How the pages are made


def test_a_comment_belongs_to_the_section_or_the_keys_below_it() -> None:
    example = "# the file\n\n# --- A.\n#\n# all of it\na:\n\n  # two keys\n  #b: 1\n  #c: 2\n"
    example += "\n  # deep\n  d:\n\n    # one\n    #e: 3\n"
    assert [(section, keys, comment) for section, keys, comment in topics(example) if comment] == [
        ("", [], ["the file"]),
        ("a", [], ["--- A.", "", "all of it"]),
        ("", ["a.b", "a.c"], ["two keys"]),
        ("a.d", [], ["deep"]),
        ("", ["a.d.e"], ["one"]),
    ]


def test_values_become_a_list_and_what_is_indented_code() -> None:
    comment = ["Which one?", "    on     all of it", "           goes on", "    off    none", "Such as:", "    a: on"]
    shown = ["Which one?", "", "- `on`: all of it", "  goes on", "- `off`: none", "", "Such as:", "", "    a: on"]
    assert list(in_markdown(comment)) == shown


def found_in(source: str) -> list[tuple[str, str]]:
    function = ast.parse(f"def f(self):\n    {source}").body[0]
    assert isinstance(function, ast.FunctionDef)
    return [pair for call, levels in log_calls(function) for pair in events_of(TOP, call, levels)]


@pytest.mark.parametrize(
    ("source", "events"),
    [
        ('self._log.info("a", vmid=1)', [("a", "info")]),
        ('journal_log(node.journal_socket).error("a")', [("a", "error")]),
        ('write = log.info if good else log.error; write("a")', [("a", "info"), ("a", "error")]),
        ('write = log.info if x else log.error; write("a" if x else "b")', [("a", "info"), ("b", "error")]),
        ('parser.error("a")', []),
    ],
)
def test_an_event_is_read_off_the_call(source: str, events: list[tuple[str, str]]) -> None:
    assert found_in(source) == events


def test_an_event_without_a_plain_name_is_not_passed_over() -> None:
    with pytest.raises(SyntaxError):
        found_in("log.info(name)")
