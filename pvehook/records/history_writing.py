"""The history, to write: one record at each guest's end, and those of the guests beside it at the run's.

Its tables and its bound: history_schema.py.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import Final

from pvehook.contract.measured import Measured
from pvehook.contract.text import printable
from pvehook.errors import NodeError
from pvehook.records.attempt import Attempt
from pvehook.records.attempt_history import ATTEMPT_TEXTS, UNSEEN
from pvehook.records.beside_history import BESIDE_FIGURES
from pvehook.records.beside_record import BesideRecord
from pvehook.records.encoding import encode
from pvehook.records.figures import beside_figures, encode_figure, figures
from pvehook.records.history import DAY_S, FIGURE_COLUMNS
from pvehook.records.history_schema import (
    BUSY_S,
    CHART_DAYS,
    DETAIL_DAYS,
    KEEP_DAYS,
    NotOurs,
    bring_up_to_date,
    packed,
    primary_code,
)
from pvehook.records.known_guests import KnownGuest
from pvehook.records.stall_record import StallRecord
from pvehook.records.textfile import beside_samples, guest_samples

NIGHTS_TRUSTED: Final = 3
"""Ages are counted back from the third last night on record, and not from now: a clock that is years ahead for a night
or two must not delete the history."""

REASON_LIMIT: Final = 400
"""Characters of why there is no backup."""
SAME_TURN_S: Final = 60.0
"""Of an old database the runs' tasks are not known: a turn that Proxmox's log puts so close to one is the same."""

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_writing = threading.Lock()
"""Jobs end in threads of their own, and only one of them may move a database aside."""


def append(path: str, *records: StallRecord, now_s: float, keep_days: int = KEEP_DAYS) -> str | None:
    """Adds records and drops what is too old. A record of the same guest and time replaces the one that is there.

    Returns what an administrator should know, if anything: that a database was moved aside. Raises NodeError when the
    records are not kept. May wait BUSY_S for a lock, and as long as the disk takes.
    """

    def insert(history: sqlite3.Connection) -> None:
        for record in records:
            _insert(history, record)

    return _written(path, insert, now_s, keep_days)


def append_beside(
    path: str, records: Sequence[BesideRecord], *, now_s: float, keep_days: int = KEEP_DAYS
) -> str | None:
    """As `append`, of what guests suffered beside the backups of others: all records of one run, none where nobody was
    watched. A record of the same guest and run replaces the one that is there."""

    def insert(history: sqlite3.Connection) -> None:
        history.execute("DELETE FROM beside_samples")  # they are those of the last run
        for record in records:
            _insert_beside(history, record)

    return _written(path, insert, now_s, keep_days)


def append_attempts(
    path: str, attempts: Sequence[Attempt], *, now_s: float, keep_days: int = KEEP_DAYS, are_read: bool = False
) -> str | None:
    """As `append`, of guests' turns in runs. One of the same guest and time, or of the same guest and task, replaces
    the one that is there. `are_read`: from Proxmox's own logs; such a one only tells the end of one whose end was not
    seen."""

    def insert(history: sqlite3.Connection) -> None:
        insert_one = _insert_read_attempt if are_read else _insert_attempt
        for attempt in attempts:
            insert_one(history, attempt)

    return _written(path, insert, now_s, keep_days)


def keep_guests(
    path: str, guests: Mapping[int, KnownGuest], *, now_s: float, keep_days: int = KEEP_DAYS
) -> str | None:
    """As `append`, of the guests that the node has now; the others are forgotten. Where `overdue_logged_s` is None,
    what is kept of it stays."""

    def insert(history: sqlite3.Connection) -> None:
        known = {vmid for (vmid,) in history.execute("SELECT vmid FROM guests")}
        history.executemany("DELETE FROM guests WHERE vmid = ?", [(vmid,) for vmid in known - guests.keys()])
        history.executemany(
            "INSERT INTO guests (vmid, promised_s, overdue_s, overdue_logged_s) VALUES (?, ?, ?, ?) ON CONFLICT (vmid)"
            " DO UPDATE SET promised_s = excluded.promised_s, overdue_s = excluded.overdue_s,"
            " overdue_logged_s = coalesce(excluded.overdue_logged_s, overdue_logged_s)",
            [(vmid, *guest) for vmid, guest in guests.items()],
        )

    return _written(path, insert, now_s, keep_days)


def _written(path: str, insert: Callable[[sqlite3.Connection], None], now_s: float, keep_days: int) -> str | None:
    with _writing:
        try:
            try:
                _write(path, insert, now_s, keep_days)
                return None
            except NotOurs as not_ours:
                why, suffix = not_ours.args
            aside = _move_aside(path, why, suffix)
            _write(path, insert, now_s, keep_days)
            return f"history {path}: {why}; it is now {aside}, and a new one was begun"
        except (NotOurs, sqlite3.Error, OSError) as error:
            raise NodeError(f"history {path}: {error}; tonight's record is not kept") from error


def _write(path: str, insert: Callable[[sqlite3.Connection], None], now_s: float, keep_days: int) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite would make it readable for all
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)) as history:
            history.execute("PRAGMA journal_mode = WAL")
            history.execute("PRAGMA synchronous = NORMAL")
            bring_up_to_date(history)
            history.execute("BEGIN IMMEDIATE")
            insert(history)
            _drop_old(history, now_s, keep_days)
            history.execute("COMMIT")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter where SQLite's message quotes the damage
        if isinstance(error, UnicodeDecodeError) or primary_code(error) in _DAMAGED:
            raise NotOurs(f"damaged ({error})", "damaged") from error
        raise


# A record's rows


def _insert(history: sqlite3.Connection, record: StallRecord) -> None:
    known = figures(record)
    row: dict[str, object] = {
        "vmid": record.vmid,
        "started_s": record.started_s,
        "duration_s": round(record.duration_s, 3),
        **_texts({name: getattr(record, name) for name in ("node", "name", "vmtype", "result")}),
        "severity": record.verdict.severity,
        "causes": " ".join(cause.kind for cause in record.verdict.causes),
        **_texts(record.versions._asdict()),
        **{name: _column(known[name]) for name in FIGURE_COLUMNS},
    }
    replaced = history.execute(
        "SELECT id FROM backups WHERE vmid = ? AND started_s = ?", (record.vmid, record.started_s)
    )
    _forget(history, "backups", replaced.fetchall())
    backup = _add(history, "backups", row)
    speeds = record.governor.speeds if record.governor is not None else ()
    body = replace(record, points=(), governor=record.governor and record.governor._replace(speeds=()))
    history.execute("INSERT INTO details VALUES (?, ?, ?)", (backup, record.started_s, packed(encode(body))))
    samples = json.dumps(guest_samples(record), separators=(",", ":"))
    history.execute("INSERT OR REPLACE INTO samples VALUES (?, ?, ?)", (record.vmid, record.started_s, samples))
    if record.points or speeds:
        chart = {"points": encode(record.points), "speeds": encode(speeds)}
        history.execute("INSERT INTO charts VALUES (?, ?, ?)", (backup, record.started_s, packed(chart)))


def _insert_beside(history: sqlite3.Connection, record: BesideRecord) -> None:
    known = beside_figures(record)
    worst = record.beside[0] if record.beside else None
    row: dict[str, object] = {
        "vmid": record.vmid,
        "started_s": record.started_s,
        "ended_s": record.ended_s,
        **_texts({name: getattr(record, name) for name in ("node", "job", "name", "vmtype", "severity")}),
        "worst_vmid": worst and worst.vmid,
        **_texts({"worst_vmtype": worst and worst.vmtype}),
        **{name: _column(known[name]) for name in BESIDE_FIGURES},
    }
    replaced = history.execute(
        "SELECT id FROM beside WHERE vmid = ? AND (started_s = ? OR job = nullif(?, ''))",
        (record.vmid, record.started_s, row["job"]),
    )
    _forget(history, "beside", replaced.fetchall())
    beside = _add(history, "beside", row)
    body = packed(encode(replace(record, marks=())))
    history.execute("INSERT INTO beside_details VALUES (?, ?, ?)", (beside, record.started_s, body))
    samples = json.dumps(beside_samples(record), separators=(",", ":"))
    history.execute("INSERT OR REPLACE INTO beside_samples VALUES (?, ?, ?)", (record.vmid, record.started_s, samples))
    if record.marks:
        marks = packed(encode(record.marks))
        history.execute("INSERT INTO beside_marks VALUES (?, ?, ?)", (beside, record.started_s, marks))


def _insert_attempt(history: sqlite3.Connection, attempt: Attempt) -> None:
    same = "vmid = ? AND (started_s = ? OR job = nullif(?, ''))"
    key = (attempt.vmid, attempt.started_s, printable(attempt.job))
    history.execute(f"DELETE FROM attempts WHERE {same}", key)  # noqa: S608
    _add_attempt(history, attempt)


def _insert_read_attempt(history: sqlite3.Connection, attempt: Attempt) -> None:
    """What was seen of a turn stays: also what started its run, of one whose end was not seen. Of a worker that died
    while the daemon was away, vzdump may have told the end."""
    job = printable(attempt.job)
    near = f"abs(started_s - ?) < {SAME_TURN_S} AND '' IN (job, ?)"
    same = f"vmid = ? AND (started_s = ? OR job = nullif(?, '') OR {near})"
    key = (attempt.vmid, attempt.started_s, job, attempt.started_s, job)
    if not history.execute(f"SELECT 1 FROM attempts WHERE {same}", key).fetchone():  # noqa: S608
        _add_attempt(history, attempt)
    elif attempt.result != "unknown":
        told = "ended_s = ?, result = ?, reason = ?, copied_bytes = coalesce(copied_bytes, ?)"
        reason = printable(attempt.reason, REASON_LIMIT)
        history.execute(
            f"UPDATE attempts SET {told} WHERE {same} AND result IN {UNSEEN}",  # noqa: S608
            (attempt.ended_s, attempt.result, reason, attempt.copied_bytes, *key),
        )


def _add_attempt(history: sqlite3.Connection, attempt: Attempt) -> None:
    row = attempt._asdict()
    texts = _texts({name: row[name] for name in ATTEMPT_TEXTS})
    _add(history, "attempts", {**row, **texts, "reason": printable(attempt.reason, REASON_LIMIT)})


def _texts(texts: Mapping[str, str | None]) -> dict[str, str | None]:
    """SQLite takes no text that cannot be encoded, and names are others'."""
    return {name: None if text is None else printable(text) for name, text in texts.items()}


def _column(figure: Measured[float]) -> float | str:
    value = encode_figure(figure)
    return value if isinstance(value, str) else float(value)


def _add(history: sqlite3.Connection, table: str, row: Mapping[str, object]) -> int | None:
    sql = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"  # noqa: S608  (names are ours)
    return history.execute(sql, tuple(row.values())).lastrowid


def _forget(history: sqlite3.Connection, rows: str, ids: Sequence[tuple[int]]) -> None:
    for table, (of, key, _) in _TABLES.items():
        if of == rows and key is not None:
            history.executemany(f"DELETE FROM {table} WHERE {key} = ?", ids)  # noqa: S608


# What is too old

_TABLES: Final[dict[str, tuple[str, str | None, int]]] = {
    "charts": ("backups", "backup", CHART_DAYS),
    "details": ("backups", "backup", DETAIL_DAYS),
    "samples": ("backups", None, KEEP_DAYS),
    "backups": ("backups", "id", KEEP_DAYS),
    "beside_marks": ("beside", "beside", CHART_DAYS),
    "beside_details": ("beside", "beside", DETAIL_DAYS),
    "beside_samples": ("beside", None, KEEP_DAYS),
    "beside": ("beside", "id", KEEP_DAYS),
    "attempts": ("attempts", "id", KEEP_DAYS),
}
"""Each table: whose rows it belongs to, by which column, and for how long it is kept. The rows themselves come last."""


def _drop_old(history: sqlite3.Connection, now_s: float, keep_days: int) -> None:
    trusted_s = _trusted_s(history, now_s)
    if trusted_s is None:
        return
    # What a wrong clock dated ahead is as old as the rows that were written before and after it.
    oldest = {
        rows: history.execute(f"SELECT min(id) FROM {rows} WHERE started_s <= ?", (now_s,)).fetchone()[0]  # noqa: S608
        for rows in ("backups", "beside", "attempts")
    }
    for table, (rows, key, days) in _TABLES.items():
        oldest_s = trusted_s - min(days, keep_days) * DAY_S
        history.execute(f"DELETE FROM {table} WHERE started_s < ?", (oldest_s,))  # noqa: S608
        if key is not None:
            ahead = f"DELETE FROM {table} WHERE started_s > ? AND {key} < ?"  # noqa: S608
            history.execute(ahead, (now_s, oldest[rows]))


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
