"""The history of guests' turns in vzdump runs, to read. Its table: history_schema.py."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from pvehook.records.attempt import RESULTS, TRIGGERS, Attempt

ATTEMPT_TEXTS: Final = ("node", "job", "job_id", "trigger", "name", "vmtype", "mode", "result", "reason")
UNSEEN: Final = ("unknown", "worker-died")
"""Results of turns whose end the daemon did not see."""

_COLUMNS: Final = ", ".join(Attempt._fields)
_NUMBERS: Final = (
    *("copied_bytes", "cost_s"),
    *("expected_s", "expected_least_s", "expected_most_s", "expected_end_s"),
)


def attempts_between(
    history: sqlite3.Connection, since_s: float, until_s: float, vmid: int | None = None
) -> list[Attempt]:
    """Of each guest, or of one, those that began in this time, the oldest first."""
    sql = (
        f"SELECT {_COLUMNS} FROM attempts WHERE started_s BETWEEN ? AND ? AND coalesce(vmid = ?, 1)"  # noqa: S608
        " ORDER BY started_s, vmid"
    )
    return [_attempt(row) for row in history.execute(sql, (since_s, until_s, vmid))]


def last_good_s(history: sqlite3.Connection, until_s: float) -> dict[int, float]:
    """Of each guest that has one, when its last good backup until then began."""
    sql = "SELECT vmid, max(started_s) FROM attempts WHERE result = 'ok' AND started_s <= ? GROUP BY vmid"
    return dict(history.execute(sql, (until_s,)))


def last_turn_s(history: sqlite3.Connection, until_s: float) -> float | None:
    """When the last turn on record until then began; None: there is none."""
    found = history.execute("SELECT max(started_s) FROM attempts WHERE started_s <= ?", (until_s,)).fetchone()[0]
    if not isinstance(found, (float, type(None))):
        raise sqlite3.DataError("damaged: started_s of another kind")
    return found


def known_jobs(history: sqlite3.Connection) -> dict[str, bool]:
    """Of each vzdump task with a turn on record, by UPID: whether the ends of all its turns were seen."""
    sql = f"SELECT job, min(result NOT IN {UNSEEN}) FROM attempts WHERE job != '' GROUP BY job"  # noqa: S608
    return {job: bool(is_seen) for job, is_seen in history.execute(sql)}


def guests_with_attempts(history: sqlite3.Connection) -> set[int]:
    """Those of whom anything is on record."""
    return {vmid for (vmid,) in history.execute("SELECT DISTINCT vmid FROM attempts")}


def turns_since_good(history: sqlite3.Connection, until_s: float) -> dict[int, list[Attempt]]:
    """Of each guest that had some until then: its turns since its last good backup, the oldest first."""
    columns = ", ".join(f"attempts.{name}" for name in Attempt._fields)
    sql = (
        f"SELECT {columns} FROM attempts LEFT JOIN (SELECT vmid, max(started_s) AS good_s FROM attempts"  # noqa: S608
        " WHERE result = 'ok' AND started_s <= :until_s GROUP BY vmid) USING (vmid)"
        " WHERE started_s > coalesce(good_s, 0) AND started_s <= :until_s ORDER BY started_s"
    )
    found: dict[int, list[Attempt]] = {}
    for row in history.execute(sql, {"until_s": until_s}):
        attempt = _attempt(row)
        found.setdefault(attempt.vmid, []).append(attempt)
    return found


def _attempt(row: Sequence[Any]) -> Attempt:
    """Raises sqlite3.DataError where a column is of another kind: a damaged row."""
    attempt = Attempt._make(row)
    for name, value in attempt._asdict().items():
        if name in _NUMBERS or name in ("job_id", "name", "vmtype", "mode"):
            expected: tuple[type, ...] = (float if name in _NUMBERS else str, type(None))
        else:
            expected = (int,) if name == "vmid" else (float,) if name.endswith("_s") else (str,)
        if not isinstance(value, expected):
            raise sqlite3.DataError(f"damaged: {name} of another kind")
    if attempt.result not in RESULTS or attempt.trigger not in TRIGGERS:
        raise sqlite3.DataError("damaged: an attempt of another kind")
    return attempt
