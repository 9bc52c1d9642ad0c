"""Makes text from outside safe for a terminal, a log line and a mail."""

from __future__ import annotations

from collections.abc import Collection


def printable(text: str, limit: int = 200) -> str:
    """`text` on one line, of visible characters only, at most `limit` characters long (at least 3).
    Whatever moves a cursor, ends a line, turns the direction of writing or cannot be encoded is written as an escape:
    `\\n`, `\\x1b`, `\\u202e`, `\\ud800`. A text that is too long ends in `...`. Backslashes stay as they are (`C:\\` is
    a mountpoint), so the original cannot be recovered from the result.
    """
    if len(text) <= limit and text.isprintable():
        return text  # as almost all are
    # At most limit + 1 characters are processed, however long the text is.
    pieces = [_visible(char) for char in text[: limit + 1]]
    if sum(map(len, pieces)) <= limit:
        return "".join(pieces)
    room = limit - len("...")
    while sum(map(len, pieces)) > room:
        pieces.pop()  # a whole escape at a time: half of one would mean something else
    return "".join(pieces) + "..."


def named(texts: Collection[str], most: int = 4) -> str:
    """`VM 101 a, VM 102 b, CT 103 c and 17 more`."""
    listed = list(texts)
    rest = len(listed) - most
    return ", ".join(listed) if rest <= 0 else f"{', '.join(listed[:most])} and {rest} more"


def counted(number: int, noun: str) -> str:
    """`1 guest`, `4 guests`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _visible(char: str) -> str:
    # str.isprintable is false for control and format characters (bidi among them), surrogates, line separators,
    # private and unassigned characters.
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
