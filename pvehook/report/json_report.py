"""`pvehook report --json`: for programs. A figure that is missing is the text `absent: why` or `broken: why`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import tzinfo

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.records.beside_history import PastBeside, suffered_json
from pvehook.records.encoding import encode
from pvehook.records.figures import encode_figure, figures
from pvehook.records.history import PastBackup
from pvehook.records.nights import backups_json
from pvehook.records.stall_record import StallRecord
from pvehook.report.beside import Beside
from pvehook.report.last_night import beside_of, detailed
from pvehook.report.node_night import ROWS_MOST
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
    """In pieces: every guest, given by its last backup, with its backups from `shown_from_s` on, the oldest first; then
    who suffered beside the backups of others since then, a row for each guest and run, the oldest first, those of the
    last night with their records."""
    yield f'{{"format": {FORMAT}, "guests": ['
    for number, last in enumerate(lasts):
        backups, regression = backups_json(
            history, last.vmid, since_s, shown_from_s, until_s, lambda at_s: instant(at_s, zone)
        )
        guest = json.dumps({**_guest(last), "regression": _regression(regression, zone)})
        yield f'{", " if number else ""}{guest[:-1]}, "backups": {backups}}}'
    yield '], "beside": ['
    night = beside_of(history, max(last.started_s for last in lasts), zone)[:ROWS_MOST]
    read = detailed(history, [each for each in night if each.suffered])
    records = {run.id: _record_of(run, each) for each in read for run in each.runs}
    runs = suffered_json(history, shown_from_s, until_s, lambda at_s: instant(at_s, zone), records.get)
    for number, run in enumerate(runs):
        yield f"{', ' if number else ''}{run}"
    yield "]}\n"


def guest_json(
    found: Trend | None, record: Measured[StallRecord] | None, beside: Sequence[Beside], zone: tzinfo
) -> dict[str, object]:
    """One guest. Its last backup, None where it had none: its row, all of its figures by name, and the record as it is
    kept. And each run in which it suffered beside the backups of others, of which there is one where it had none."""
    body: dict[str, object] = {"format": FORMAT, **_guest(found.last if found is not None else beside[-1].runs[-1])}
    body["regression"] = _regression(found.regression, zone) if found is not None else None
    body["backup"] = _row(found.last, zone) if found is not None else None
    body["record"] = encode(record)
    if record is not None and not isinstance(record, (Absent, Broken)):
        body["figures"] = {name: encode_figure(figure) for name, figure in figures(record).items()}
    body["beside"] = [
        {**_guest(run), **_row(run, zone), "record": _record_of(run, each)} for each in beside for run in each.runs
    ]
    return body


def _record_of(run: PastBeside, beside: Beside) -> object:
    """A run's record as it is kept; None where it was not read, or cannot be. A guest has one for each job."""
    found = (each for each in beside.records if each.job == run.job)
    return encode(next(found, None))


def _guest(last: PastBackup | PastBeside) -> dict[str, object]:
    return {"vmid": last.vmid, "name": last.name, "type": last.vmtype}


def _regression(found: Regression | None, zone: tzinfo) -> dict[str, object] | None:
    if found is None:
        return None
    known = {name: encode(value) for name, value in found._asdict().items()}
    return {"since": instant(found.since_s, zone), **known}


def _row(row: PastBackup | PastBeside, zone: tzinfo) -> dict[str, object]:
    body: dict[str, object] = {"started": instant(row.started_s, zone)}
    for name, value in row._asdict().items():
        body[name] = encode_figure(value) if isinstance(value, (Absent, Broken)) else value
    if isinstance(row, PastBackup):
        body["causes"] = row.causes.split()
    return {name: value for name, value in body.items() if name not in ("id", "vmid", "name", "vmtype")}
