"""`pvehook report --json`: for programs. A figure that is missing is the text `absent: why` or `broken: why`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.records.encoding import encode
from pvehook.records.figures import encode_figure, figures
from pvehook.records.history import PastBackup
from pvehook.records.stall_record import StallRecord
from pvehook.report.trends import Trend
from pvehook.rules.regression import Regression

_IDENTITY = ("id", "vmid", "name", "vmtype")

FORMAT = 1
"""Grows when something that was here means something else or is gone."""


def overview_json(trends: Sequence[Trend], zone: tzinfo) -> dict[str, object]:
    """Every guest with its backups, the worst last backup first; the backups of a guest oldest first."""
    return {"format": FORMAT, "guests": [_guest(trend, zone) for trend in trends]}


def backup_json(trend: Trend, record: Measured[StallRecord], zone: tzinfo) -> dict[str, object]:
    """The last backup: its row, all of its figures by name, and the record as it is kept."""
    backup = trend.last
    body: dict[str, object] = {"format": FORMAT, **_identity(backup), "regression": _regression(trend.regression, zone)}
    body["backup"] = _backup(backup, zone)
    body["record"] = encode(record)
    if not isinstance(record, (Absent, Broken)):
        body["figures"] = {name: encode_figure(figure) for name, figure in figures(record).items()}
    return body


def _guest(trend: Trend, zone: tzinfo) -> dict[str, object]:
    return {
        **_identity(trend.last),
        "regression": _regression(trend.regression, zone),
        "backups": [_backup(backup, zone) for backup in trend.backups],
    }


def _identity(backup: PastBackup) -> dict[str, object]:
    return {"vmid": backup.vmid, "name": backup.name, "type": backup.vmtype}


def _backup(backup: PastBackup, zone: tzinfo) -> dict[str, object]:
    body: dict[str, object] = {"started": _instant(backup.started_s, zone)}
    for name, value in backup._asdict().items():
        if name not in _IDENTITY:
            body[name] = encode_figure(value) if isinstance(value, (Absent, Broken)) else value
    body["causes"] = backup.causes.split()
    return body


def _regression(found: Regression | None, zone: tzinfo) -> dict[str, object] | None:
    if found is None:
        return None
    return {
        "since": _instant(found.since_s, zone),
        **{name: encode(value) for name, value in found._asdict().items()},
    }


def _instant(at_s: float, zone: tzinfo) -> str:
    return datetime.fromtimestamp(at_s, zone).isoformat(timespec="seconds")
