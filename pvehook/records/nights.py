"""Many nights of many guests, read from the history: 500 guests of 400 nights make 200 000 rows.

So SQLite says first whose last night was how bad, then each guest is read once and dealt with before the next, column
by column, and a row keeps what is drawn.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
from sys import intern
from typing import Any, Final, NamedTuple

from pvehook.contract.measured import Measured
from pvehook.records.figures import encode_figure
from pvehook.records.history import PastBackup, check_kind, decode_column, past_backup
from pvehook.rules.regression import BackupFigures, Regression, find_regression

_TEXTS: Final = ("node", "result", "severity", "pve_manager", "qemu", "kernel", "causes")
_NOT_NUMBERS: Final = (*_TEXTS, "id", "vmid", "name", "vmtype")
_NUMBERS: Final = tuple(name for name in PastBackup._fields if name not in _NOT_NUMBERS)
_JUDGED: Final = ("started_s", "stalled_s", "slowed_s", "write_p99_ms")
_VERSIONS: Final = ("pve_manager", "qemu", "kernel")
_JSON: Final = '{"started": "%s", ' + "".join(f'"{name}": %s, ' for name in _NUMBERS) + "%s}"


class Night(NamedTuple):
    """One backup as the bar of a night shows it: a long report has 200 000 of them."""

    started_s: float
    severity: str
    stalled_s: Measured[float]
    slowed_s: Measured[float]


def last_backups(
    history: sqlite3.Connection, since_s: float, until_s: float, vmid: int | None = None
) -> list[tuple[PastBackup, float]]:
    """Of each guest, or of one, the last backup that began in this time, and how many seconds all of them stalled, as
    far as it is known."""
    when = "started_s BETWEEN ? AND ? AND coalesce(vmid = ?, 1)"
    # Rows are read in the order in which they lie: looked up one by one by an index, they take ten times as long.
    stalled = "SELECT vmid, sum(stalled_s) FROM backups NOT INDEXED"
    sql = f"{stalled} WHERE typeof(stalled_s) = 'real' AND stalled_s > 0 AND {when} GROUP BY vmid"
    stalled_s = dict(history.execute(sql, (since_s, until_s, vmid)))
    last = f"SELECT vmid AS guest, max(started_s) AS at_s FROM backups WHERE +{when} GROUP BY vmid"  # noqa: S608
    columns = ", ".join(PastBackup._fields)
    sql = f"SELECT {columns} FROM ({last}) CROSS JOIN backups ON vmid = guest AND started_s = at_s"  # noqa: S608
    found = map(past_backup, history.execute(sql, (since_s, until_s, vmid)))
    return [(last, stalled_s.get(last.vmid, 0.0)) for last in found]


def backups_between(history: sqlite3.Connection, since_s: float, until_s: float) -> list[PastBackup]:
    """All that began in this time, the oldest first."""
    columns = ", ".join(PastBackup._fields)
    sql = f"SELECT {columns} FROM backups WHERE started_s >= ? AND started_s < ? ORDER BY started_s"  # noqa: S608
    return list(map(past_backup, history.execute(sql, (since_s, until_s))))


def nights(
    history: sqlite3.Connection, vmid: int, since_s: float, shown_from_s: float, until_s: float
) -> tuple[list[Night], Regression | None]:
    """One guest's nights from `shown_from_s` on, the oldest first, and the regression that is found since `since_s`."""
    columns = _columns(history, ("severity",), vmid, since_s, until_s)
    first = bisect_left(columns["started_s"], shown_from_s)
    shown = list(
        map(
            Night,
            columns["started_s"][first:],
            map(intern, columns["severity"][first:]),
            *(_each(decode_column, columns[name][first:]) for name in ("stalled_s", "slowed_s")),
        )
    )
    return shown, _regression(columns)


def backups_json(
    history: sqlite3.Connection,
    vmid: int,
    since_s: float,
    shown_from_s: float,
    until_s: float,
    instant: Callable[[float], str],
) -> tuple[str, Regression | None]:
    """As `nights`, but the backups as a JSON list; a figure as the history keeps it. `instant` writes a time."""
    columns = _columns(history, (*_NUMBERS, *_TEXTS), vmid, since_s, until_s)
    first = bisect_left(columns["started_s"], shown_from_s)
    started = [instant(at_s) for at_s in columns["started_s"][first:]]
    numbers = (_each(_json_number, columns[name][first:]) for name in _NUMBERS)
    texts = map(_json_texts, *(columns[name][first:] for name in _TEXTS))
    return f"[{', '.join([_JSON % row for row in zip(started, *numbers, texts, strict=True)])}]", _regression(columns)


def _columns(
    history: sqlite3.Connection, names: Sequence[str], vmid: int, since_s: float, until_s: float
) -> dict[str, Sequence[Any]]:
    """These of one guest's backups, the oldest first, and those that a regression is found in. There is a backup."""
    needed = tuple(dict.fromkeys((*_JUDGED, *_VERSIONS, *names)))
    sql = f"SELECT {', '.join(needed)} FROM backups WHERE vmid = ? AND started_s BETWEEN ? AND ?"  # noqa: S608
    rows = history.execute(f"{sql} ORDER BY started_s", (vmid, since_s, until_s)).fetchall()
    columns: dict[str, Sequence[Any]] = dict(zip(needed, zip(*rows, strict=True), strict=True))
    for name in ("started_s", *(name for name in needed if name in _TEXTS)):
        check_kind(name, set(map(type, columns[name])))
    return columns


def _regression(columns: dict[str, Sequence[Any]]) -> Regression | None:
    versions = list(zip(*(columns[name] for name in _VERSIONS), strict=True))
    if len(set(versions)) == 1:  # there is no regression without a change
        return None
    figures = (_each(lambda _: None, columns[name]) for name in _JUDGED[1:])
    return find_regression(list(map(BackupFigures, columns["started_s"], *figures, versions)))


def _each(made: Callable[[object], Any], column: Sequence[Any]) -> Sequence[Any]:
    """The column, with what is `made` of each value that is no number: nearly all are."""
    return column if set(map(type, column)) == {float} else [v if type(v) is float else made(v) for v in column]


def _json_number(value: object) -> str:
    return json.dumps(encode_figure(decode_column(value)))


@lru_cache(maxsize=4096)
def _json_texts(*texts: str | None) -> str:
    """The rest of a backup's fields; thousands of backups share theirs."""
    known = dict(zip(_TEXTS, texts, strict=True))
    return json.dumps({**known, "causes": (known["causes"] or "").split()})[1:-1]
