"""What the administrator is told of through Proxmox's own notifications, beside the journal.

One notice is about one event and all guests of which that is new tonight. hooks/notify hands it to Proxmox, which fills
the templates hooks/templates/pvehook-* with `template_data`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

from pvehook.contract.text import printable

WIDTH: Final = 76
LINE_LIMIT: Final = 600


class Notice(NamedTuple):
    event: str
    """What a matcher sees as `pvehook-event`."""
    severity: Literal["warning", "error"]
    """As Proxmox's matchers spell it."""
    vmids: tuple[int, ...]
    """At least one, the worst first."""
    title: str
    lines: tuple[str, ...]
    """What happened, a sentence each."""
    advice: tuple[tuple[str, str], ...]
    """What for, and the command; an empty command: the text is all."""


Told: TypeAlias = Mapping[str, Collection[int]]
"""The guests that were told of tonight, by event."""
Notices: TypeAlias = Callable[[Told], Sequence[Notice]]
"""Makes those that are new. Called beside the phases, so it may take its time."""


def nobody(_: Notices) -> None:
    """For a rehearsal, and wherever nobody is to be told."""


def template_data(notice: Notice) -> dict[str, object]:
    """What the templates may use: texts, and lists of them. `text` is the whole plain body, wrapped."""
    advice = [(printable(text, LINE_LIMIT), printable(command, LINE_LIMIT)) for text, command in notice.advice]
    return {
        "title": printable(notice.title, 160),
        "text": "\n".join(_plain(notice.lines, advice)),
        "lines": [printable(line, LINE_LIMIT) for line in notice.lines],
        "advice": [{"text": text, "command": command} for text, command in advice],
    }


def _plain(lines: Sequence[str], advice: Sequence[tuple[str, str]]) -> Iterator[str]:
    for line in lines:
        yield from textwrap.wrap(printable(line, LINE_LIMIT), WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    yield from ("", "What to do")
    for text, command in advice:
        yield from textwrap.wrap(
            f"- {text}{':' if command else ''}", WIDTH, subsequent_indent="  ", break_on_hyphens=False
        )
        if command:  # to be copied, so in one line
            yield f"    {command}"
