"""The history of what guests suffered beside the backups of others, to read. Its tables: history_schema.py."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.records.beside_record import BesideRecord, Mark
from pvehook.records.encoding import decode
from pvehook.records.figures import encode_figure, severity_key
from pvehook.records.history import check_kind, decode_column
from pvehook.records.history_schema import DETAIL_DAYS, unpacked

RECORDS_READ: Final = 500
"""Whole records at once: as many guests as a large node has."""


class PastBeside(NamedTuple):
    """One guest and run as lists know it."""

    id: int
    vmid: int
    started_s: float
    ended_s: float
    node: str
    job: str
    """UPID of vzdump's task."""
    name: str | None
    vmtype: str
    severity: str
    worst_vmid: int | None
    """Whose backup it suffered from most; None: from nobody's."""
    worst_vmtype: str | None
    stalled_s: Measured[float]
    slowed_s: Measured[float]
    p99_ms: Measured[float]
    baseline_p99_ms: Measured[float]


BESIDE_FIGURES: Final = PastBeside._fields[PastBeside._fields.index("stalled_s") :]
"""Those of records/figures.py that have a column."""

_COLUMNS: Final = ", ".join(PastBeside._fields)
_STARTED: Final = PastBeside._fields.index("started_s")
_FIRST_FIGURE: Final = PastBeside._fields.index(BESIDE_FIGURES[0])
_JSON_NAMES: Final = ["type" if name == "vmtype" else name for name in PastBeside._fields[1:]]
_JSON: Final = '{"started": "%s", ' + "".join(f'"{name}": %s, ' for name in _JSON_NAMES) + '"record": %s}'


def beside_between(
    history: sqlite3.Connection, since_s: float, until_s: float, vmid: int | None = None
) -> list[PastBeside]:
    """Of each guest, or of one, what overlaps this time, the oldest first."""
    sql = (
        f"SELECT {_COLUMNS} FROM beside WHERE started_s <= ? AND ended_s >= ? AND coalesce(vmid = ?, 1)"  # noqa: S608
        " ORDER BY started_s, vmid"
    )
    return [_past_beside(row) for row in history.execute(sql, (until_s, since_s, vmid))]


def suffered_json(
    history: sqlite3.Connection,
    since_s: float,
    until_s: float,
    instant: Callable[[float], str],
    record_of: Callable[[int], object],
) -> Iterator[str]:
    """The runs that began in this time in which a guest suffered, or in which that is not known, the oldest first: each
    row as JSON, as the history keeps it, with its record as `record_of` gives it by the row's id. `instant` writes a
    time. A long report has 200 000 of them."""
    # Read in the order in which they lie: looked up one by one by an index, they take ten times as long.
    sql = f"SELECT {_COLUMNS} FROM beside NOT INDEXED WHERE severity <> 'none' AND started_s BETWEEN ? AND ?"  # noqa: S608
    for row in history.execute(f"{sql} ORDER BY started_s, vmid", (since_s, until_s)):
        started_s = row[_STARTED]
        check_kind("started_s", {type(started_s)})
        known = [_json_of(value) for value in row[1:_FIRST_FIGURE]]
        kept = [value if type(value) is float else _json_of(_kept(value)) for value in row[_FIRST_FIGURE:]]
        yield _JSON % (instant(started_s), *known, *kept, json.dumps(record_of(row[0])))


@lru_cache(maxsize=4096)
def _json_of(value: object) -> str:
    """Runs share most of their texts."""
    if isinstance(value, (int, float, str, type(None))):
        return json.dumps(value)
    raise sqlite3.DataError(f"damaged: a value of {type(value).__name__}")


@lru_cache(maxsize=4096)
def _kept(value: object) -> float | int | str:
    """A figure that is no number."""
    return encode_figure(decode_column(value))


def last_beside(history: sqlite3.Connection, since_s: float, until_s: float) -> list[PastBeside]:
    """Each guest's last run that began in this time, in the order of their numbers."""
    sql = f"SELECT {_COLUMNS}, max(started_s) FROM beside WHERE started_s BETWEEN ? AND ? GROUP BY vmid ORDER BY vmid"  # noqa: S608
    return [_past_beside(row[:-1]) for row in history.execute(sql, (since_s, until_s))]


def beside_records(history: sqlite3.Connection, since_s: float, until_s: float) -> list[BesideRecord]:
    """The records that overlap this time, with their marks where those are kept, the worst first: those that can be
    read, RECORDS_READ at most."""
    rows = beside_between(history, since_s, until_s)
    rows.sort(key=lambda row: severity_key(row.severity, row.stalled_s, row.slowed_s), reverse=True)
    records = [beside_record_of(history, row.id) for row in rows[:RECORDS_READ]]
    return [record for record in records if isinstance(record, BesideRecord)]


def beside_record_of(history: sqlite3.Connection, beside: int) -> Measured[BesideRecord]:
    """The whole record of a row, with its marks if they are still kept."""
    row = history.execute("SELECT body FROM beside_details WHERE beside = ?", (beside,)).fetchone()
    if row is None:
        return Absent(f"details are kept for {DETAIL_DAYS} days")
    try:
        record: BesideRecord = decode(BesideRecord, unpacked(row[0]))
        for (body,) in history.execute("SELECT body FROM beside_marks WHERE beside = ?", (beside,)):
            record = replace(record, marks=decode(tuple[Mark, ...], unpacked(body)))
    except ValueError as error:
        return Broken(f"its details cannot be read: {error}")
    return record


def _past_beside(row: Sequence[Any]) -> PastBeside:
    """Raises sqlite3.DataError where a column without figures is of another kind: a damaged row."""
    known, kept = row[: -len(BESIDE_FIGURES)], row[-len(BESIDE_FIGURES) :]
    for name, value in zip(PastBeside._fields, known, strict=False):
        if name != "worst_vmid" or value is not None:
            check_kind(name, {type(value)})
    return PastBeside._make((*known, *map(decode_column, kept)))
