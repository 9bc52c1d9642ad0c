"""Many nights of many guests, read from the history: 500 guests of 400 nights make 200 000 rows.

So SQLite does what it can in C, a guest is dealt with before the next one is read, and a row keeps what is drawn.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from itertools import groupby
from operator import itemgetter
from sys import intern
from typing import Final, NamedTuple

from pvehook.contract.measured import Measured, value_of
from pvehook.records.history import PastBackup, decode_column
from pvehook.rules.regression import BackupFigures

_IDENTITY: Final = ("id", "vmid", "name", "vmtype", "causes")
_JSON: Final = ", ".join(
    (
        "'started', instant(started_s)",
        *(f"'{name}', {name}" for name in PastBackup._fields if name not in _IDENTITY),
        "'causes', json(iif(causes = '', '[]', '[\"' || replace(causes, ' ', '\",\"') || '\"]'))",
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
        shown, judged = [], []
        for _, started_s, severity, stalled_s, slowed_s, write_p99_ms, *versions in own:
            stalled, slowed = decode_column(stalled_s), decode_column(slowed_s)
            write = write_p99_ms if isinstance(write_p99_ms, float) else None
            shown.append(Night(started_s, intern(severity), stalled, slowed))
            judged.append(BackupFigures(started_s, value_of(stalled), value_of(slowed), write, tuple(versions)))
        yield guest, shown, judged


def backups_json(
    history: sqlite3.Connection, vmid: int, since_s: float, until_s: float, instant: Callable[[float], str]
) -> str:
    """One guest's backups as a JSON list, the oldest first; a figure as the history keeps it. `instant` writes a
    time."""
    history.create_function("instant", 1, instant, deterministic=True)
    rows = "SELECT * FROM backups WHERE vmid = ? AND started_s BETWEEN ? AND ? ORDER BY started_s"
    sql = f"SELECT json_group_array(json_object({_JSON})) FROM ({rows})"  # noqa: S608  (names are ours)
    text: str = history.execute(sql, (vmid, since_s, until_s)).fetchone()[0]
    return text if text.isascii() else json.dumps(json.loads(text))
