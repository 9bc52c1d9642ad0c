"""Many nights of many guests, read from the history: 500 guests of 400 nights make 200 000 rows.

So SQLite does what it can in C, a guest is dealt with before the next one is read, and a row keeps what is drawn.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from sys import intern
from typing import Final, NamedTuple

from pvehook.contract.measured import Measured
from pvehook.records.history import PastBackup, decode_column
from pvehook.rules.regression import BackupFigures

_TEXTS: Final = ("node", "result", "severity", "pve_manager", "qemu", "kernel")
_NOT_NUMBERS: Final = (*_TEXTS, "id", "vmid", "name", "vmtype", "causes")
_NUMBERS: Final = tuple(name for name in PastBackup._fields if name not in _NOT_NUMBERS)
_JSON: Final = '{"started": "%s", ' + "".join(f'"{name}": %s, ' for name in _NUMBERS)
"""What follows is made by SQLite, which writes texts quicker than Python, and numbers slower."""
_CAUSES: Final = "json(iif(causes = '', '[]', '[' || replace(json_quote(causes), ' ', '\",\"') || ']'))"
_JSON_COLUMNS: Final = ", ".join(
    (
        *(f"iif(typeof({name}) = 'real', {name}, json_quote({name}))" for name in _NUMBERS),
        "json_object(" + "".join(f"'{name}', {name}, " for name in _TEXTS) + f"'causes', {_CAUSES})",
    )
)


class Night(NamedTuple):
    """One backup as the bar of a night shows it: a long report has 200 000 of them."""

    started_s: float
    severity: str
    stalled_s: Measured[float]
    slowed_s: Measured[float]


def nights(
    history: sqlite3.Connection, since_s: float, until_s: float, vmid: int | None = None
) -> Iterator[tuple[int, list[Night], list[BackupFigures]]]:
    """Guest by guest, of one or of all: its number, its nights, and what regressions are found in; the oldest first."""
    rows = history.execute(
        "SELECT vmid, started_s, severity, stalled_s, slowed_s, write_p99_ms, pve_manager, qemu, kernel FROM backups"
        " WHERE started_s BETWEEN ? AND ? AND coalesce(vmid = ?, 1) ORDER BY vmid, started_s",
        (since_s, until_s, vmid),
    )
    for guest, own in groupby(rows, itemgetter(0)):
        _, started_s, severities, *figures, pve_manager, qemu, kernel = zip(*own, strict=True)
        stalled_s, slowed_s, _ = map(_measured, figures)
        shown = list(map(Night, started_s, map(intern, severities), stalled_s, slowed_s))
        versions = zip(pve_manager, qemu, kernel, strict=True)
        yield guest, shown, list(map(BackupFigures, started_s, *map(_known, figures), versions))


def _measured(column: Iterable[object]) -> list[Measured[float]]:
    return [value if type(value) is float else decode_column(value) for value in column]


def _known(column: Iterable[object]) -> list[float | None]:
    return [value if type(value) is float else None for value in column]


def backups_json(
    history: sqlite3.Connection, vmid: int, since_s: float, until_s: float, instant: Callable[[float], str]
) -> str:
    """One guest's backups as a JSON list, the oldest first; a figure as the history keeps it. `instant` writes a
    time."""
    sql = f"SELECT {_JSON_COLUMNS} FROM backups WHERE vmid = ? AND started_s BETWEEN ? AND ?"  # noqa: S608
    rows = history.execute(f"{sql} ORDER BY started_s", (vmid, since_s, until_s))
    text = ", ".join([_JSON % (instant(row[0]), *row[:-1]) + row[-1][1:] for row in rows])
    return f"[{text}]" if text.isascii() else json.dumps(json.loads(f"[{text}]"))
