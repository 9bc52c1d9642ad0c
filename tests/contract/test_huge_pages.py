"""The kernel's files on transparent huge pages: the word in brackets, and nothing else, is what is in force."""

from __future__ import annotations

import pytest

from pvehook.contract.huge_pages import parse_choice


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("[always] madvise never\n", "always"),
        ("always [madvise] never\n", "madvise"),
        ("always madvise [never]\n", "never"),
        ("always defer [defer+madvise] madvise never\n", "defer+madvise"),
    ],
)
def test_the_word_in_brackets_is_in_force(text: str, choice: str) -> None:
    assert parse_choice(text) == choice


@pytest.mark.parametrize("text", ["", "always madvise never\n", "[always] [never]\n", "[al ways]\n", "[\x1b[2J]\n"])
def test_what_is_no_choice_is_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match="no choice in brackets"):
        parse_choice(text)
