"""The layout of the history's database, version by version."""

from __future__ import annotations

from typing import Final

FIGURE_COLUMNS: Final = (
    *("stalled_s", "slowed_s", "read_p99_ms", "write_p99_ms", "flush_p99_ms", "baseline_write_p99_ms"),
    *("over_1s", "frozen_ms"),
)
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
