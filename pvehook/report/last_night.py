"""Reads a node's night from the history: its rows first, and the details of those that are shown."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import tzinfo
from functools import partial

from pvehook.contract.measured import Absent, Broken
from pvehook.records.beside_history import beside_between, beside_record_of
from pvehook.records.history import PastBackup, chart_of, record_of
from pvehook.records.nights import backups_between
from pvehook.records.stall_record import Chart
from pvehook.report.beside import Beside, by_guest, night_of, with_records
from pvehook.report.node_night import NodeNight, node_night


def beside_of(history: sqlite3.Connection, at_s: float, zone: tzinfo) -> list[Beside]:
    """The guests that suffered beside the backups of others in the night of this instant, the worst first; without
    their records."""
    began_s, ended_s = night_of(at_s, zone)
    return by_guest(run for run in beside_between(history, began_s, ended_s) if began_s <= run.started_s < ended_s)


def detailed(history: sqlite3.Connection, found: Sequence[Beside]) -> list[Beside]:
    """The same with their records."""
    return [with_records(each, partial(beside_record_of, history)) for each in found]


def read_night(history: sqlite3.Connection, beside: Sequence[Beside], at_s: float, zone: tzinfo) -> NodeNight | None:
    """The night of this instant, in which these suffered beside the backups of others; None: nothing is known."""
    backups = backups_between(history, *night_of(at_s, zone))
    ends = (_window_closes_s(history, backup) for backup in (backups[:1] + backups[-1:]))
    return node_night(
        backups,
        beside,
        lambda backup: _chart(history, backup),
        lambda each: detailed(history, [each])[0],
        [at_s for at_s in ends if at_s is not None],
    )


def _window_closes_s(history: sqlite3.Connection, backup: PastBackup) -> float | None:
    record = record_of(history, backup.id)
    return None if isinstance(record, (Absent, Broken)) else record.window_closes_s


def _chart(history: sqlite3.Connection, backup: PastBackup) -> Chart:
    """An empty one where it cannot be read; the guest's own chart says why."""
    chart = chart_of(history, backup.id)
    return Chart() if isinstance(chart, (Absent, Broken)) else chart
