"""What a terminal can show, and text cut to that."""

from __future__ import annotations

import os
import shutil
import textwrap
from typing import Final, NamedTuple, TextIO

from pvehook.contract.text import printable

BARS: Final = "▁▂▃▄▅▆▇█"

FEWEST_COLUMNS: Final = 80  # narrower than this nothing gets; a narrower terminal wraps

_COLOURS: Final = {"locked-up": "1;35", "stalled": "1;31", "slowed": "33", "none": "32", "unknown": "36"}


class TerminalStyle(NamedTuple):
    """What the terminal can show."""

    columns: int
    unicode: bool
    colour: bool

    @property
    def bars(self) -> str:
        return BARS if self.unicode else "_.:=+*#@"

    def shown(self, text: str) -> str:
        """Where the terminal takes no more than ASCII, a name in other letters is not worth an error."""
        return text if self.unicode else text.encode("ascii", "replace").decode("ascii")

    def painted(self, text: str, severity: str) -> str:
        """In the severity's colour; the words beside it say the same."""
        return f"\x1b[{_COLOURS[severity]}m{text}\x1b[0m" if self.colour and severity in _COLOURS else text

    def wrapped(self, text: str, first: str = "", others: str = "") -> list[str]:
        """A text of others as lines, with `first` in front of the first and `others` of those that follow."""
        shown = self.shown(printable(text, 600))
        lines = textwrap.wrap(
            shown, self.columns, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
        )
        return lines or [first.rstrip()]


def style_of(out: TextIO) -> TerminalStyle:
    """Colour only on a terminal, and never if NO_COLOR is set (no-color.org)."""
    try:
        "".join((BARS, "─│└┄·")).encode(out.encoding or "ascii")
        takes_unicode = True
    except (UnicodeEncodeError, LookupError):
        takes_unicode = False
    columns = max(shutil.get_terminal_size((FEWEST_COLUMNS, 24)).columns, FEWEST_COLUMNS)
    return TerminalStyle(columns, takes_unicode, out.isatty() and not os.environ.get("NO_COLOR"))
