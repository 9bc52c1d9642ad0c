"""`pvehook report --json`: for programs. A figure that is missing is the text `absent: why` or `broken: why`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import tzinfo

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.records.encoding import encode
from pvehook.records.figures import encode_figure, figures
from pvehook.records.history import PastBackup
from pvehook.records.nights import backups_json
from pvehook.records.stall_record import StallRecord
from pvehook.report.trends import Trend, instant
from pvehook.rules.regression import Regression

_IDENTITY = ("id", "vmid", "name", "vmtype")

FORMAT = 1
"""Grows when something that was here means something else or is gone."""


def overview_json(
    history: sqlite3.Connection, trends: Sequence[Trend], since_s: float, until_s: float, zone: tzinfo
) -> Iterator[str]:
    """In pieces: every guest with its backups, the worst last backup first; the backups of a guest oldest first."""
    yield f'{{"format": {FORMAT}, "guests": ['
    for number, trend in enumerate(trends):
        guest = json.dumps({**_identity(trend.last), "regression": _regression(trend.regression, zone)})
        backups = backups_json(history, trend.last.vmid, since_s, until_s, lambda at_s: instant(at_s, zone))
        yield f'{", " if number else ""}{guest[:-1]}, "backups": {backups}}}'
    yield "]}\n"


def backup_json(trend: Trend, record: Measured[StallRecord], zone: tzinfo) -> dict[str, object]:
    """The last backup: its row, all of its figures by name, and the record as it is kept."""
    backup = trend.last
    body: dict[str, object] = {"format": FORMAT, **_identity(backup), "regression": _regression(trend.regression, zone)}
    body["backup"] = _backup(backup, zone)
    body["record"] = encode(record)
    if not isinstance(record, (Absent, Broken)):
        body["figures"] = {name: encode_figure(figure) for name, figure in figures(record).items()}
    return body


def _identity(backup: PastBackup) -> dict[str, object]:
    return {"vmid": backup.vmid, "name": backup.name, "type": backup.vmtype}


def _backup(backup: PastBackup, zone: tzinfo) -> dict[str, object]:
    body: dict[str, object] = {"started": instant(backup.started_s, zone)}
    for name, value in backup._asdict().items():
        if name not in _IDENTITY:
            body[name] = encode_figure(value) if isinstance(value, (Absent, Broken)) else value
    body["causes"] = backup.causes.split()
    return body


def _regression(found: Regression | None, zone: tzinfo) -> dict[str, object] | None:
    if found is None:
        return None
    return {
        "since": instant(found.since_s, zone),
        **{name: encode(value) for name, value in found._asdict().items()},
    }
