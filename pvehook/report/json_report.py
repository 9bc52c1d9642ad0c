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

FORMAT = 1  # grows when something that was here means something else or is gone


def overview_json(
    history: sqlite3.Connection,
    lasts: Sequence[PastBackup],
    since_s: float,
    shown_from_s: float,
    until_s: float,
    zone: tzinfo,
) -> Iterator[str]:
    """In pieces: every guest, given by its last backup, with its backups from `shown_from_s` on, the oldest first."""
    yield f'{{"format": {FORMAT}, "guests": ['
    for number, last in enumerate(lasts):
        backups, regression = backups_json(
            history, last.vmid, since_s, shown_from_s, until_s, lambda at_s: instant(at_s, zone)
        )
        guest = json.dumps(_guest(last, regression, zone))
        yield f'{", " if number else ""}{guest[:-1]}, "backups": {backups}}}'
    yield "]}\n"


def backup_json(trend: Trend, record: Measured[StallRecord], zone: tzinfo) -> dict[str, object]:
    """The last backup: its row, all of its figures by name, and the record as it is kept."""
    body = {
        "format": FORMAT,
        **_guest(trend.last, trend.regression, zone),
        "backup": _backup(trend.last, zone),
        "record": encode(record),
    }
    if not isinstance(record, (Absent, Broken)):
        body["figures"] = {name: encode_figure(figure) for name, figure in figures(record).items()}
    return body


def _guest(last: PastBackup, found: Regression | None, zone: tzinfo) -> dict[str, object]:
    regression = None
    if found is not None:
        known = {name: encode(value) for name, value in found._asdict().items()}
        regression = {"since": instant(found.since_s, zone), **known}
    return {"vmid": last.vmid, "name": last.name, "type": last.vmtype, "regression": regression}


def _backup(backup: PastBackup, zone: tzinfo) -> dict[str, object]:
    body: dict[str, object] = {"started": instant(backup.started_s, zone)}
    for name, value in backup._asdict().items():
        body[name] = encode_figure(value) if isinstance(value, (Absent, Broken)) else value
    body["causes"] = backup.causes.split()
    return {name: value for name, value in body.items() if name not in ("id", "vmid", "name", "vmtype")}
