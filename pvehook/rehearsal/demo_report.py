"""Prints a simulated night: vzdump's view, the journal's view, a table of all guests, the checks.

Plain ASCII, at most 100 columns.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TextIO

from pvehook.rehearsal.journal_receiver import Event
from pvehook.rehearsal.vzdump.player import Played
from pvehook.rehearsal.vzdump.run import Guest

WIDTH = 100
_PRIORITIES = {"2": "crit", "3": "err", "4": "warning", "5": "notice", "6": "info", "7": "debug"}
_COLUMNS = ("guest", "result", "window", "I/O priority", "effect of idle", "note")
_WIDTHS = (13, 7, 13, 12, 22, 28)


class Check(NamedTuple):
    """One thing that must be true."""

    text: str
    held: bool


def print_report(
    out: TextIO, guests: Sequence[Guest], played: Played, events: Sequence[Event], checks: Sequence[Check]
) -> None:
    """All four parts."""
    _print_title(out, "vzdump's view: the task log")
    for line in played.task_log:
        _print_wrapped(out, line, "      ")
    _print_title(out, "vzdump's view: what the notification has of the hook")
    for line in played.notification:
        _print_wrapped(out, line[11:], "      ")  # without the date: a table of 80 columns shall stay one
    _print_title(out, "the journal's view: journalctl -t pvehook (simulated time, UTC)")
    for event in events:
        _print_event(out, event)
    _print_title(out, "the night in one table")
    _print_row(out, _COLUMNS)
    _print_row(out, ["-" * width for width in _WIDTHS])
    for guest in guests:
        _print_row(out, _row(guest, events))
    _print_title(out, "checked, the priorities in the kernel through psutil")
    for check in checks:
        _print_wrapped(out, f"{'ok    ' if check.held else 'FAILED'}  {check.text}", " " * 8)
    failed = sum(not check.held for check in checks)
    verdict = f"{failed} of {len(checks)} checks FAILED" if failed else f"all {len(checks)} checks held"
    print(f"\n{verdict}", file=out)


def _print_title(out: TextIO, text: str) -> None:
    print(f"\n{text}\n{'=' * len(text)}", file=out)


def _print_event(out: TextIO, event: Event) -> None:
    when = f"{datetime.fromtimestamp(event.at_s, UTC):%H:%M:%S}"
    priority = _PRIORITIES.get(event.fields.get("PRIORITY", ""), "?")
    _print_wrapped(out, f"{when} {priority:<7} {event.fields.get('MESSAGE', '')}", " " * 17)


def _row(guest: Guest, events: Sequence[Event]) -> list[str]:
    kind = "VM" if guest.kind == "qemu" else "CT"
    name = f"{kind} {guest.vmid} {guest.name}"
    own = [event.fields for event in events if event.fields.get("PVEHOOK_VMID") == str(guest.vmid)]
    done = next((event for event in own if event.get("PVEHOOK_EVENT") == "guest-done"), None)
    if done is None:
        return [name, "?", "?", "?", "?", "no summary in the journal"]
    window = done.get("PVEHOOK_ADMITTED_BY", "?")
    if done["PVEHOOK_RESULT"] == "refused":
        return [name, "refused", window, "-", "-", "not started: the window was closed"]
    confirmed, threads = done.get("PVEHOOK_IDLE_THREADS_CONFIRMED", "?"), done.get("PVEHOOK_IDLE_THREADS", "?")
    effect = done.get("PVEHOOK_IDLE_EFFECT", "?")
    return [name, done["PVEHOOK_RESULT"], window, f"{confirmed}/{threads} idle", effect, _note(own)]


def _note(own: Iterable[dict[str, str]]) -> str:
    notes = []
    for event in own:
        if event.get("PVEHOOK_EVENT") == "io-priority-restored":
            confirmed, threads = event["PVEHOOK_THREADS_CONFIRMED"], event["PVEHOOK_THREADS"]
            notes.append(f"was off; vzdump started it: {confirmed}/{threads} threads back to normal")
        if event.get("PVEHOOK_EVENT") == "window-closed-on-guest":
            notes.append("ran past the window's end, could finish")
    return "; ".join(notes)


def _print_row(out: TextIO, cells: Sequence[str]) -> None:
    """One row; cells that are too long go on in lines of their own column."""
    wrapped = [_wrap(cell, width) for cell, width in zip(cells, _WIDTHS, strict=True)]
    for number in range(max(map(len, wrapped))):
        parts = [lines[number] if number < len(lines) else "" for lines in wrapped]
        line = " ".join(part.ljust(width) for part, width in zip(parts, _WIDTHS, strict=True))
        print(line.rstrip(), file=out)


def _print_wrapped(out: TextIO, text: str, indent: str) -> None:
    print("\n".join(_wrap(text, WIDTH, indent)), file=out)


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    plain = text.encode("ascii", "replace").decode("ascii")
    return textwrap.wrap(plain, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
