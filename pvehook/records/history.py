"""What every guest suffered in each of its backups, kept: SQLite at /var/lib/pvehook/history.db.

    backups    one row for each backup of a guest: what lists and trends show; kept for KEEP_DAYS
    details    the whole record of a backup, without its chart: zlib over JSON (records/encoding.py); for DETAIL_DAYS
    charts     the points of a backup's chart, the same way; for CHART_DAYS
    samples    each guest's last backup as Prometheus gets it (records/textfile.py)

An absent figure is kept as the text `absent: why`, a broken one as `broken: why`.

Only the daemon writes, one record at each guest's end; reports read at the same time. Losing the history costs the
history and nothing else: a failure here is a NodeError with the reason, and the backup goes on. A database that is
damaged, or that a newer pvehook made, is moved aside and a new one is begun.

Bound: 200 guests, each with a chart every night, stay under 80 MB (tests/records/test_history_size.py).
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import threading
import urllib.parse
import zlib
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import Any, Final, NamedTuple

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.text import printable
from pvehook.errors import NodeError
from pvehook.records.encoding import decode, encode
from pvehook.records.figures import decode_figure, encode_figure, figures
from pvehook.records.stall_record import Baseline, Point, SpeedPoint, StallRecord
from pvehook.records.textfile import GuestSamples, guest_samples

KEEP_DAYS: Final = 400
"""So that a backup can be compared with the one a year ago."""
DETAIL_DAYS: Final = 120
CHART_DAYS: Final = 35
BUSY_S: Final = 2.0
"""How long to wait for somebody else's lock."""
DETAIL_LIMIT_BYTES: Final = 4 << 20
"""Of one record as JSON. Ours have some 10 kB; a damaged blob may claim anything."""

DAY_S: Final = 86400
NIGHTS_TRUSTED: Final = 3
"""Ages are counted back from the third last night on record, and not from now: a clock that is years ahead for a night
or two must not delete the history."""

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_NO_ROOM_FOR_SHM: Final = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)
_writing = threading.Lock()
"""Jobs end in threads of their own, and only one of them may move a database aside."""


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

SCHEMA: Final = (
    f"""
    CREATE TABLE nights (
        id INTEGER PRIMARY KEY,
        vmid INTEGER NOT NULL,
        started_s REAL NOT NULL,
        duration_s REAL NOT NULL,
        node TEXT NOT NULL,
        name TEXT,
        vmtype TEXT,
        result TEXT NOT NULL,
        severity TEXT NOT NULL,
        causes TEXT NOT NULL,
        pve_manager TEXT,
        qemu TEXT,
        kernel TEXT,
        {", ".join(FIGURE_COLUMNS)},
        UNIQUE (vmid, started_s)
    );
    CREATE INDEX nights_by_time ON nights (started_s);
    CREATE TABLE details (night INTEGER PRIMARY KEY, started_s REAL NOT NULL, body BLOB NOT NULL);
    CREATE INDEX details_by_time ON details (started_s);
    CREATE TABLE charts (night INTEGER PRIMARY KEY, started_s REAL NOT NULL, body BLOB NOT NULL);
    CREATE INDEX charts_by_time ON charts (started_s);
    """,
    """
    ALTER TABLE nights RENAME TO backups;
    DROP INDEX nights_by_time;
    CREATE INDEX backups_by_time ON backups (started_s);
    ALTER TABLE details RENAME COLUMN night TO backup;
    ALTER TABLE charts RENAME COLUMN night TO backup;
    """,
    "CREATE TABLE samples (vmid INTEGER PRIMARY KEY, started_s REAL NOT NULL, body TEXT NOT NULL);",
)
"""Step by step: a database of version N (`user_version`) becomes today's by the steps from N on."""


# Writing


def append(path: str, *records: StallRecord, now_s: float, keep_days: int = KEEP_DAYS) -> str | None:
    """Adds records and drops what is too old. A record of the same guest and time replaces the one that is there.

    Returns what an administrator should know, if anything: that a database was moved aside. Raises NodeError when the
    records are not kept. May wait BUSY_S for a lock, and as long as the disk takes.
    """
    with _writing:
        try:
            try:
                _append(path, records, now_s, keep_days)
                return None
            except _NotOurs as not_ours:
                why, suffix = not_ours.args
            aside = _move_aside(path, why, suffix)
            _append(path, records, now_s, keep_days)
            return f"history {path}: {why}; it is now {aside}, and a new one was begun"
        except (_NotOurs, sqlite3.Error, OSError) as error:
            raise NodeError(f"history {path}: {error}; tonight's record is not kept") from error


class _NotOurs(Exception):
    """A database that this version of pvehook cannot use: why, and what its file is called from then on."""


def _append(path: str, records: tuple[StallRecord, ...], now_s: float, keep_days: int) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite would make it readable for all
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)) as history:
            history.execute("PRAGMA journal_mode = WAL")
            history.execute("PRAGMA synchronous = NORMAL")
            _bring_up_to_date(history)
            history.execute("BEGIN IMMEDIATE")
            for record in records:
                _insert(history, record)
            _drop_old(history, now_s, keep_days)
            history.execute("COMMIT")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter where SQLite's message quotes the damage
        if isinstance(error, UnicodeDecodeError) or _primary_code(error) in _DAMAGED:
            raise _NotOurs(f"damaged ({error})", "damaged") from error
        raise


def _bring_up_to_date(history: sqlite3.Connection) -> None:
    version = _version(history)
    if version > len(SCHEMA):
        raise _NotOurs(f"made by a newer pvehook (version {version}; this one knows {len(SCHEMA)})", "newer")
    if version < len(SCHEMA):
        steps = "".join(SCHEMA[version:])
        history.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {len(SCHEMA)}; COMMIT;")


def _insert(history: sqlite3.Connection, record: StallRecord) -> None:
    known = figures(record)
    texts: dict[str, str | None] = {
        **{name: getattr(record, name) for name in ("node", "name", "vmtype", "result")},
        "severity": record.verdict.severity,
        "causes": " ".join(cause.kind for cause in record.verdict.causes),
        **record.versions._asdict(),
    }
    row: dict[str, object] = {
        "vmid": record.vmid,
        "started_s": record.started_s,
        "duration_s": round(record.duration_s, 3),
        # SQLite takes no text that cannot be encoded, and names are others'.
        **{name: None if text is None else printable(text) for name, text in texts.items()},
        **{name: _column(known[name]) for name in FIGURE_COLUMNS},
    }
    sql = f"INSERT INTO backups ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"  # noqa: S608  (names are ours)
    forget = "SELECT id FROM backups WHERE vmid = ? AND started_s = ?"
    for (backup,) in history.execute(forget, (record.vmid, record.started_s)).fetchall():
        for table, key in (("backups", "id"), ("details", "backup"), ("charts", "backup")):
            history.execute(f"DELETE FROM {table} WHERE {key} = ?", (backup,))  # noqa: S608
    backup = history.execute(sql, tuple(row.values())).lastrowid
    speeds = record.governor.speeds if record.governor is not None else ()
    body = replace(record, points=(), governor=record.governor and record.governor._replace(speeds=()))
    history.execute("INSERT INTO details VALUES (?, ?, ?)", (backup, record.started_s, _packed(encode(body))))
    samples = json.dumps(guest_samples(record), separators=(",", ":"))
    history.execute("INSERT OR REPLACE INTO samples VALUES (?, ?, ?)", (record.vmid, record.started_s, samples))
    if record.points or speeds:
        chart = {"points": encode(record.points), "speeds": encode(speeds)}
        history.execute("INSERT INTO charts VALUES (?, ?, ?)", (backup, record.started_s, _packed(chart)))


def _column(figure: Measured[float]) -> float | str:
    value = encode_figure(figure)
    return value if isinstance(value, str) else float(value)


def _drop_old(history: sqlite3.Connection, now_s: float, keep_days: int) -> None:
    trusted_s = _trusted_s(history, now_s)
    if trusted_s is None:
        return
    tables = (("charts", CHART_DAYS), ("details", DETAIL_DAYS), ("samples", KEEP_DAYS), ("backups", KEEP_DAYS))
    for table, days in tables:
        oldest_s = trusted_s - min(days, keep_days) * DAY_S
        history.execute(f"DELETE FROM {table} WHERE started_s < ?", (oldest_s,))  # noqa: S608
    # What a wrong clock dated ahead is as old as the rows that were written before and after it.
    (oldest,) = history.execute("SELECT min(id) FROM backups WHERE started_s <= ?", (now_s,)).fetchone()
    for table, key in (("charts", "backup"), ("details", "backup"), ("backups", "id")):
        history.execute(f"DELETE FROM {table} WHERE started_s > ? AND {key} < ?", (now_s, oldest))  # noqa: S608


def _trusted_s(history: sqlite3.Connection, now_s: float) -> float | None:
    """When the third last night until now was; None: there are not so many. Half a day later is another night."""
    before = "SELECT max(started_s) FROM backups WHERE started_s <= ? - ?"
    night_s: float | None = now_s + DAY_S / 2
    for _ in range(NIGHTS_TRUSTED):
        (night_s,) = history.execute(before, (night_s, DAY_S / 2)).fetchone()
    return night_s


def _move_aside(path: str, why: str, suffix: str) -> str:
    """One of each kind is kept: moving one aside every night must not fill the disk. Raises NodeError."""
    aside = f"{path}.{suffix}"
    try:
        os.replace(path, aside)
        for journal in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.replace(path + journal, aside + journal)
    except OSError as error:
        raise NodeError(f"history {path}: {why}, and it cannot be moved aside ({error})") from error
    return aside


# Reading


@contextmanager
def reading(path: str) -> Iterator[sqlite3.Connection]:
    """The database, to read from: while the daemon writes, after a crash, and where nothing can be written at all (a
    copy on another machine, a medium that is read-only). Raises NodeError, also for a later error of SQLite."""
    with ExitStack() as stack:
        try:
            history = stack.enter_context(closing(_connect_to_read(path)))
            try:
                version = _version(history)
            except sqlite3.OperationalError as error:
                if _primary_code(error) not in _NO_ROOM_FOR_SHM or not os.path.exists(path):
                    raise
                # A database in WAL mode is read with the help of its -shm file, which cannot be made on a medium that
                # is full or read-only. So a copy is read, with the journal that belongs to it.
                copy = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="pvehook-history-")), "db")
                for journal in ("", "-wal"):
                    if os.path.exists(path + journal):
                        shutil.copyfile(path + journal, copy + journal)
                history = stack.enter_context(closing(_connect_to_read(copy)))
                version = _version(history)
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            raise NodeError(f"history {path}: {error}") from error
        if version > len(SCHEMA):
            raise NodeError(f"history {path}: made by a newer pvehook (version {version}, not {len(SCHEMA)})")
        if version < len(SCHEMA):
            raise NodeError(f"history {path}: of an older pvehook; the next backup brings it up to date")
        try:
            yield history
        except (sqlite3.Error, UnicodeDecodeError) as error:  # UnicodeDecodeError: as in _append
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
    expected = {float} if name.endswith("_s") else {int} if name in ("id", "vmid") else {str, type(None)}
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
    for (body,) in history.execute("SELECT body FROM charts WHERE backup = ?", (backup,)):
        try:
            chart = _unpacked(body)
            points = decode(tuple[Point, ...], chart["points"])
            speeds = decode(tuple[SpeedPoint, ...], chart["speeds"])
        except (ValueError, TypeError, KeyError) as error:
            return Broken(f"the chart cannot be read: {error}")
        governor = record.governor and record.governor._replace(speeds=speeds)
        record = replace(record, points=points, governor=governor)
    return record


def last_records(history: sqlite3.Connection, since_s: float) -> list[StallRecord]:
    """Each guest's newest record that began at `since_s` or later, without its chart; those that can be read."""
    newest = "SELECT id, max(started_s) FROM backups WHERE started_s >= ? GROUP BY vmid ORDER BY vmid"
    records = [_detail(history, backup) for backup, _ in history.execute(newest, (since_s,)).fetchall()]
    return [record for record in records if isinstance(record, StallRecord)]


def last_samples(path: str, since_s: float) -> dict[int, GuestSamples]:
    """Each guest's last backup, if it began at `since_s` or later, as Prometheus gets it. Raises NodeError."""
    with reading(path) as history:
        rows = history.execute("SELECT vmid, body FROM samples WHERE started_s >= ?", (since_s,)).fetchall()
    try:
        return {vmid: json.loads(body) for vmid, body in rows}
    except ValueError as error:
        raise NodeError(f"history {path}: the samples cannot be read: {error}") from error


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
        record: StallRecord = decode(StallRecord, _unpacked(row[0]))
    except ValueError as error:
        return Broken(f"its details cannot be read: {error}")
    return record


def _version(history: sqlite3.Connection) -> int:
    return int(history.execute("PRAGMA user_version").fetchone()[0])


def _primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary error code; the upper bytes refine it (sqlite.org/rescode.html)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _packed(plain: object) -> bytes:
    return zlib.compress(json.dumps(plain, separators=(",", ":")).encode())


def _unpacked(body: object) -> Any:
    """Raises ValueError for anything that is not our JSON."""
    if not isinstance(body, bytes):
        raise ValueError("no bytes")
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(body, DETAIL_LIMIT_BYTES)
        if not unpacking.eof:
            raise ValueError(f"cut short, or over {DETAIL_LIMIT_BYTES} bytes")
        return json.loads(text)
    except (zlib.error, RecursionError) as error:
        raise ValueError(str(error)) from error
