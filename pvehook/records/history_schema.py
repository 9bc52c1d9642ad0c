"""The history's tables, and how an older database becomes today's. /var/lib/pvehook/history.db is SQLite.

    backups           one row for each backup of a guest: what lists and trends show; kept for KEEP_DAYS
    details           the whole record of a backup, without its chart: zlib over JSON (records/encoding.py); DETAIL_DAYS
    charts            the points of a backup's chart, the same way; CHART_DAYS
    samples           each guest's last backup as Prometheus gets it (records/textfile.py)

    beside            one row for each guest and run: what it suffered beside the backups of others
    beside_details    its whole record, without its marks, as `details`
    beside_marks      the marks of the night's picture, as `charts`
    beside_samples    the last run's, as Prometheus gets them

    attempts          one row for each guest and run, whatever became of it: also refused and failed ones
    guests            those that the node has: since when a job takes each, whether it is overdue

An absent figure is kept as the text `absent: why`, a broken one as `broken: why`.

Only the daemon writes (history_writing.py); reports read at the same time (history.py, beside_history.py). Losing the
history costs the history and nothing else: a failure is a NodeError with the reason, and the backup goes on. A database
that is damaged, or that a newer pvehook made, is moved aside and a new one is begun.

Bound: 200 guests with a chart every night, each of which suffers beside as many backups as a record keeps, stay under
155 MB (tests/records/test_history_size.py); where none of them suffers it is 100 MB.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from typing import Any, Final

KEEP_DAYS: Final = 400
"""So that a backup can be compared with the one a year ago."""
DETAIL_DAYS: Final = 120
CHART_DAYS: Final = 35
BUSY_S: Final = 2.0
"""How long to wait for somebody else's lock."""
DETAIL_LIMIT_BYTES: Final = 4 << 20
"""Of one record as JSON. Ours have some 10 kB; a damaged blob may claim anything."""

SCHEMA: Final = (
    """
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
        stalled_s, slowed_s, read_p99_ms, write_p99_ms, flush_p99_ms, baseline_write_p99_ms, over_1s, frozen_ms,
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
    """
    CREATE TABLE beside (
        id INTEGER PRIMARY KEY,
        vmid INTEGER NOT NULL,
        started_s REAL NOT NULL,
        ended_s REAL NOT NULL,
        node TEXT NOT NULL,
        job TEXT NOT NULL,
        name TEXT,
        vmtype TEXT NOT NULL,
        severity TEXT NOT NULL,
        worst_vmid INTEGER,
        worst_vmtype TEXT,
        stalled_s, slowed_s, p99_ms, baseline_p99_ms
    );
    CREATE INDEX beside_by_guest ON beside (vmid, started_s);
    CREATE INDEX beside_by_time ON beside (started_s, ended_s);
    CREATE TABLE beside_details (beside INTEGER PRIMARY KEY, started_s REAL NOT NULL, body BLOB NOT NULL);
    CREATE INDEX beside_details_by_time ON beside_details (started_s);
    CREATE TABLE beside_marks (beside INTEGER PRIMARY KEY, started_s REAL NOT NULL, body BLOB NOT NULL);
    CREATE INDEX beside_marks_by_time ON beside_marks (started_s);
    CREATE TABLE beside_samples (vmid INTEGER PRIMARY KEY, started_s REAL NOT NULL, body TEXT NOT NULL);
    UPDATE samples SET body = replace(
        replace(body, 'pvehook_stalled_seconds{', 'pvehook_stalled_seconds{part=\\"own\\",'),
        'pvehook_slowed_seconds{', 'pvehook_slowed_seconds{part=\\"own\\",'
    );
    """,
    """
    CREATE TABLE attempts (
        id INTEGER PRIMARY KEY,
        vmid INTEGER NOT NULL,
        started_s REAL NOT NULL,
        ended_s REAL NOT NULL,
        node TEXT NOT NULL,
        job TEXT NOT NULL,
        job_id TEXT,
        trigger TEXT NOT NULL,
        name TEXT,
        vmtype TEXT,
        mode TEXT,
        result TEXT NOT NULL,
        reason TEXT NOT NULL,
        copied_bytes REAL,
        cost_s REAL,
        expected_s REAL,
        expected_least_s REAL,
        expected_most_s REAL,
        expected_end_s REAL,
        UNIQUE (vmid, started_s)
    );
    CREATE INDEX attempts_by_time ON attempts (started_s);
    CREATE TABLE guests (
        vmid INTEGER PRIMARY KEY, promised_s REAL, overdue_s REAL, overdue_logged_s REAL
    );
    INSERT INTO attempts (vmid, started_s, ended_s, node, job, trigger, name, vmtype, result, reason)
        SELECT vmid, started_s, started_s + duration_s, node, '', 'unknown', name, vmtype, result, '' FROM backups;
    """,
)
"""Step by step: a database of version N (`user_version`) becomes today's by the steps from N on."""


class NotOurs(Exception):
    """A database that this version of pvehook cannot use: why, and what its file is called from then on."""


def bring_up_to_date(history: sqlite3.Connection) -> None:
    """Takes the steps that are missing, all or none. Raises NotOurs for a newer database, sqlite3.Error."""
    version = version_of(history)
    if version > len(SCHEMA):
        raise NotOurs(f"made by a newer pvehook (version {version}; this one knows {len(SCHEMA)})", "newer")
    if version < len(SCHEMA):
        steps = "".join(SCHEMA[version:])
        history.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {len(SCHEMA)}; COMMIT;")


def why_not_readable(version: int) -> str | None:
    """Why a database of this version cannot be read as it is; None: it can."""
    if version > len(SCHEMA):
        return f"made by a newer pvehook (version {version}, not {len(SCHEMA)})"
    return "of an older pvehook; the next backup brings it up to date" if version < len(SCHEMA) else None


def version_of(history: sqlite3.Connection) -> int:
    """Its `user_version`. Raises sqlite3.Error."""
    return int(history.execute("PRAGMA user_version").fetchone()[0])


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary error code; the upper bytes refine it (sqlite.org/rescode.html)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


# Bodies


def packed(plain: object) -> bytes:
    """zlib over JSON."""
    return zlib.compress(json.dumps(plain, separators=(",", ":")).encode())


def unpacked(body: object) -> Any:
    """The inverse of `packed`. Raises ValueError for anything that is not our JSON."""
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
