"""The history, to read: what every guest suffered in each of its backups. Its tables: history_schema.py.

What it suffered beside the backups of others is read by beside_history.py.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any, Final, NamedTuple

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.records.attempt_history import last_good_s
from pvehook.records.encoding import decode
from pvehook.records.figures import decode_figure
from pvehook.records.history_schema import (
    BUSY_S,
    CHART_DAYS,
    DETAIL_DAYS,
    SCHEMA,
    primary_code,
    unpacked,
    version_of,
    why_not_readable,
)
from pvehook.records.known_guests import is_overdue, known_guests
from pvehook.records.stall_record import Baseline, Chart, Point, SpeedPoint, StallRecord
from pvehook.records.textfile import GuestSamples, standing_samples

DAY_S: Final = 86400

_NO_ROOM_FOR_SHM: Final = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)


class PastBackup(NamedTuple):
    """One guest's backup as lists and trends know it."""

    id: int
    vmid: int
    started_s: float
    duration_s: float
    node: str
    name: str | None
    vmtype: str | None
    result: str
    severity: str
    causes: str
    """Their kinds, as in rules/stalls.py, with spaces between."""
    pve_manager: str | None
    qemu: str | None
    kernel: str | None
    stalled_s: Measured[float]
    slowed_s: Measured[float]
    read_p99_ms: Measured[float]
    write_p99_ms: Measured[float]
    flush_p99_ms: Measured[float]
    baseline_write_p99_ms: Measured[float]
    over_1s: Measured[float]
    frozen_ms: Measured[float]


FIGURE_COLUMNS: Final = PastBackup._fields[PastBackup._fields.index("stalled_s") :]
"""Those of records/figures.py that have a column."""


def history_file(node: Node) -> str:
    """Where the node's is kept."""
    return os.path.join(node.state_dir, "history.db")


@contextmanager
def reading(path: str) -> Iterator[sqlite3.Connection]:
    """The database, to read from: while the daemon writes, after a crash, and where nothing can be written at all (a
    copy on another machine, a medium that is read-only). Raises NodeError, also for a later error of SQLite."""
    with _opened(path) as (history, version):
        if (why := why_not_readable(version)) is not None:
            raise NodeError(f"history {path}: {why}")
        yield history


def why_unusable(path: str, gives_up: Callable[[], bool]) -> str | None:
    """Why the next backup cannot go on with this database, after a look at all of it; None: it can. `gives_up` is asked
    every few milliseconds, and the look ends with InterruptedError once it is true."""
    try:
        with _opened(path) as (history, version):
            if version > len(SCHEMA):
                return why_not_readable(version)
            history.set_progress_handler(gives_up, 10_000)
            found = history.execute("PRAGMA quick_check(1)").fetchone()[0]
    except NodeError as error:
        if isinstance(error.__cause__, sqlite3.OperationalError) and gives_up():
            raise InterruptedError(f"history {path}: not read to its end") from error
        return str(error).removeprefix(f"history {path}: ")
    return None if found == "ok" else str(found)


@contextmanager
def _opened(path: str) -> Iterator[tuple[sqlite3.Connection, int]]:
    """The database and its version. Raises NodeError, also for a later error of SQLite."""
    with ExitStack() as stack:
        try:
            history = stack.enter_context(closing(_connect_to_read(path)))
            try:
                version = version_of(history)
            except sqlite3.OperationalError as error:
                if primary_code(error) not in _NO_ROOM_FOR_SHM or not os.path.exists(path):
                    raise
                # A database in WAL mode is read with the help of its -shm file, which cannot be made on a medium that
                # is full or read-only. So a copy is read, with the journal that belongs to it.
                copy = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="pvehook-history-")), "db")
                for journal in ("", "-wal"):
                    if os.path.exists(path + journal):
                        shutil.copyfile(path + journal, copy + journal)
                history = stack.enter_context(closing(_connect_to_read(copy)))
                version = version_of(history)
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            raise NodeError(f"history {path}: {error}") from error
        try:
            yield history, version
        except (sqlite3.Error, UnicodeDecodeError) as error:  # UnicodeDecodeError: where SQLite quotes damage
            raise NodeError(f"history {path}: {error}") from error


def _connect_to_read(path: str) -> sqlite3.Connection:
    url = f"file:{urllib.parse.quote(os.path.abspath(path))}?mode=ro"
    return sqlite3.connect(url, uri=True, timeout=BUSY_S, isolation_level=None)


def past_backup(row: Sequence[Any]) -> PastBackup:
    """A row that has PastBackup's columns. Raises sqlite3.DataError where one is of another kind."""
    known, kept = row[: -len(FIGURE_COLUMNS)], row[-len(FIGURE_COLUMNS) :]
    for name, value in zip(PastBackup._fields, known, strict=False):
        check_kind(name, {type(value)})
    return PastBackup._make((*known, *map(decode_column, kept)))


def check_kind(name: str, kinds: Set[type]) -> None:
    """That a column without figures has values of its kind; a damaged row may not. Raises sqlite3.DataError."""
    expected = {float} if name.endswith("_s") else {int} if name.endswith(("id", "vmid")) else {str, type(None)}
    if not kinds <= expected:
        raise sqlite3.DataError(f"damaged: {name} of another kind")


def decode_column(value: object) -> Measured[float]:
    """A figure as a row has it."""
    if type(value) is float:  # nearly all are
        return value
    try:
        return decode_figure(value)
    except ValueError as error:
        return Broken(f"damaged in the history: {error}")


def record_of(history: sqlite3.Connection, backup: int) -> Measured[StallRecord]:
    """The whole record of a backup, with its chart if that is still kept."""
    record = _detail(history, backup)
    if isinstance(record, (Absent, Broken)):
        return record
    chart = chart_of(history, backup)
    if isinstance(chart, (Absent, Broken)):
        return record if isinstance(chart, Absent) else chart
    governor = record.governor and record.governor._replace(speeds=chart.speeds)
    return replace(record, points=chart.points, governor=governor)


def chart_of(history: sqlite3.Connection, backup: int) -> Measured[Chart]:
    """A backup's chart alone."""
    row = history.execute("SELECT body FROM charts WHERE backup = ?", (backup,)).fetchone()
    if row is None:
        return Absent(f"charts are kept for {CHART_DAYS} days, of backups that had one")
    try:
        chart = unpacked(row[0])
        points = decode(tuple[Point, ...], chart["points"])
        return Chart(points, decode(tuple[SpeedPoint, ...], chart["speeds"]))
    except (ValueError, TypeError, KeyError) as error:
        return Broken(f"the chart cannot be read: {error}")


def last_records(history: sqlite3.Connection, since_s: float) -> list[StallRecord]:
    """Each guest's newest record that began at `since_s` or later, without its chart; those that can be read."""
    newest = "SELECT id, max(started_s) FROM backups WHERE started_s >= ? GROUP BY vmid ORDER BY vmid"
    records = [_detail(history, backup) for backup, _ in history.execute(newest, (since_s,)).fetchall()]
    return [record for record in records if isinstance(record, StallRecord)]


def last_samples(
    path: str, since_s: float, until_s: float = math.inf
) -> tuple[dict[int, GuestSamples], dict[int, GuestSamples], dict[int, GuestSamples]]:
    """What Prometheus gets of each guest: of its last backup, and of the last run in which it was watched beside the
    backups of others, if that began at `since_s` or later; and whether it is overdue at `until_s`. Raises NodeError."""
    with reading(path) as history:
        rows = [
            history.execute(f"SELECT vmid, body FROM {table} WHERE started_s >= ?", (since_s,)).fetchall()  # noqa: S608
            for table in ("samples", "beside_samples")
        ]
        good_s = last_good_s(history, until_s)
        known = known_guests(history)
    try:
        own, beside = ({vmid: json.loads(body) for vmid, body in each} for each in rows)
    except ValueError as error:
        raise NodeError(f"history {path}: the samples cannot be read: {error}") from error
    standing = {
        vmid: standing_samples(vmid, good_s.get(vmid), is_overdue(guest, good_s.get(vmid)))
        for vmid, guest in known.items()
    }
    return own, beside, standing


def past_baselines(path: str, vmid: int, limit: int = 7) -> list[Baseline]:
    """What was measured just before a guest's last backups, the newest first. Raises NodeError."""
    if not os.path.exists(path):
        return []
    with reading(path) as history:
        newest = "SELECT id FROM backups WHERE vmid = ? ORDER BY started_s DESC LIMIT ?"
        records = [_detail(history, backup) for (backup,) in history.execute(newest, (vmid, 4 * limit)).fetchall()]
    found = [record.baseline for record in records if isinstance(record, StallRecord)]
    return [each for each in found if isinstance(each, Baseline) and each.source == "before"][:limit]


def _detail(history: sqlite3.Connection, backup: int) -> Measured[StallRecord]:
    row = history.execute("SELECT body FROM details WHERE backup = ?", (backup,)).fetchone()
    if row is None:
        return Absent(f"details are kept for {DETAIL_DAYS} days")
    try:
        record: StallRecord = decode(StallRecord, unpacked(row[0]))
    except ValueError as error:
        return Broken(f"its details cannot be read: {error}")
    return record
