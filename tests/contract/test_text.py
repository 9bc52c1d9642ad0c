"""Text of a guest in a message: one line, visible, of a bounded length, and still readable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvehook.contract.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web-1", "web-1"),
        ("Grüße, 東京", "Grüße, 東京"),
        ("C:\\", "C:\\"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("\x85\x9b", "\\x85\\x9b"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_long_text_is_cut_and_says_so() -> None:
    assert printable("x" * 21, limit=20) == "x" * 17 + "..."
    assert printable("x" * 20, limit=20) == "x" * 20


def test_a_cut_never_leaves_half_an_escape() -> None:
    assert printable("\x00" * 10, limit=12) == "\\x00\\x00..."


@given(st.text(st.characters()), st.integers(min_value=3, max_value=50))
def test_every_text_becomes_one_visible_line_within_the_limit(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    shown.encode("utf-8")
