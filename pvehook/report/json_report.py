"""`pvehook report --json`: for programs. A figure that is missing is the text `absent: why` or `broken: why`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.records.figures import figures, told
from pvehook.records.history import Night
from pvehook.records.plain import to_plain
from pvehook.records.stall_record import StallRecord
from pvehook.report.trends import Trend
from pvehook.rules.regression import Regression

_IDENTITY = ("id", "vmid", "name", "vmtype")

FORMAT = 1
"""Grows when something that was here means something else or is gone."""


def overview_json(trends: Sequence[Trend], zone: tzinfo) -> dict[str, object]:
    """Every guest with its nights, the worst last night first, nights the oldest first."""
    return {"format": FORMAT, "guests": [_guest(trend, zone) for trend in trends]}


def night_json(trend: Trend, record: Measured[StallRecord], zone: tzinfo) -> dict[str, object]:
    """The last night: its row, all of its figures by name, and the record as it is kept."""
    night = trend.last
    body: dict[str, object] = {"format": FORMAT, **_identity(night), "regression": _regression(trend.regression, zone)}
    body["night"] = _night(night, zone)
    body["record"] = to_plain(record)
    if not isinstance(record, (Absent, Broken)):
        body["figures"] = {name: told(figure) for name, figure in figures(record).items()}
    return body


def _guest(trend: Trend, zone: tzinfo) -> dict[str, object]:
    return {
        **_identity(trend.last),
        "regression": _regression(trend.regression, zone),
        "nights": [_night(night, zone) for night in trend.nights],
    }


def _identity(night: Night) -> dict[str, object]:
    return {"vmid": night.vmid, "name": night.name, "type": night.vmtype}


def _night(night: Night, zone: tzinfo) -> dict[str, object]:
    body: dict[str, object] = {"started": _instant(night.started_s, zone)}
    for name, value in night._asdict().items():
        if name not in _IDENTITY:
            body[name] = told(value) if isinstance(value, (Absent, Broken)) else value
    body["causes"] = night.causes.split()
    return body


def _regression(found: Regression | None, zone: tzinfo) -> dict[str, object] | None:
    if found is None:
        return None
    return {
        "since": _instant(found.since_s, zone),
        **{name: to_plain(value) for name, value in found._asdict().items()},
    }


def _instant(at_s: float, zone: tzinfo) -> str:
    return datetime.fromtimestamp(at_s, zone).isoformat(timespec="seconds")
