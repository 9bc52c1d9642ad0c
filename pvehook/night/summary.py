"""The end of a night in one look: who was backed up, who was not and why, who suffered, what to change."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import tzinfo
from typing import Final, NamedTuple

from pvehook.contract.measured import Absent, Measured, value_of
from pvehook.contract.text import printable
from pvehook.host.node import Node
from pvehook.host.processes import identify
from pvehook.night.advice import Advice, advice
from pvehook.records import run_state
from pvehook.records.history import record_of
from pvehook.records.nights import backups_between
from pvehook.records.run_state import RunState
from pvehook.records.stall_record import Chart, StallRecord
from pvehook.report.last_night import beside_of, detailed
from pvehook.report.night_turns import GuestTurns, NightTurns
from pvehook.report.node_night import Row, node_night
from pvehook.report.standing import Standing, named, still_to_come

RECORDS_READ: Final = 20
"""Of the backups in which a guest suffered most, for what is to be changed."""


class RunningRun(NamedTuple):
    """A run that goes on now."""

    vmid: int | None = None
    """The guest in backup; None: it is between two guests."""
    to_come: int | None = None
    """Guests that are still to come; None: that is not known."""
    expected_end_s: float | None = None
    """By the forecast at its start, in seconds since the epoch; None: there is none."""


class NightSummary(NamedTuple):
    """See the top of this file."""

    turns: NightTurns
    suffered: tuple[Row, ...]
    """Those who suffered, the worst first."""
    standings: Measured[tuple[Standing, ...]]
    """Of all guests of the node, those that are overdue first."""
    advice: tuple[Advice, ...]
    running: tuple[RunningRun, ...]

    @property
    def overdue(self) -> list[Standing]:
        return [each for each in value_of(self.standings) or () if each.is_overdue]


class LastGood(NamedTuple):
    """One guest's line about its last good backup."""

    vmid: int
    title: str
    last_good_s: float | None
    note: str


def summarized(
    history: sqlite3.Connection,
    turns: NightTurns,
    standings: Measured[tuple[Standing, ...]],
    running: tuple[RunningRun, ...],
    zone: tzinfo,
) -> NightSummary:
    """Puts together what the history has of this night."""
    turns = named(still_to_come(turns) if running else turns, standings)
    suffered = _suffered(history, turns, zone)
    records = [record for row in suffered[:RECORDS_READ] for record in _records(history, row)]
    found = advice(turns, value_of(standings) or (), suffered, records)
    return NightSummary(turns, tuple(suffered), standings, tuple(found), running)


def _suffered(history: sqlite3.Connection, turns: NightTurns, zone: tzinfo) -> list[Row]:
    backups = backups_between(history, turns.from_s, turns.to_s)
    beside = beside_of(history, turns.from_s, zone)
    night = node_night(backups, beside, lambda _: Chart(), lambda each: detailed(history, [each])[0])
    rows = [row for row in night.rows if row.suffered] if night is not None else []
    return sorted(rows, key=lambda row: (row.key, -row.vmid), reverse=True)


def _records(history: sqlite3.Connection, row: Row) -> list[StallRecord]:
    found = (record_of(history, backup.id) for backup in row.backups)
    return [record for record in found if isinstance(record, StallRecord)]


def running_now(node: Node) -> tuple[RunningRun, ...]:
    """By the recovery notes of the runs whose worker lives."""
    runs = (run for run in run_state.load_all(node, tidy=False) if run.began)
    return tuple(_running(run) for run in runs if identify(node, run.worker.pid) == run.worker)


def _running(run: RunState) -> RunningRun:
    vmid = run.guest.vmid if run.guest is not None else None
    if run.forecast is None:
        return RunningRun(vmid)
    had_turn = {each.vmid for each in run.done} | {vmid}
    to_come = sum(each.vmid not in had_turn for each in run.forecast.guests)
    return RunningRun(vmid, to_come, run.forecast.guests[-1].end_s if run.forecast.guests else None)


def last_goods(summary: NightSummary) -> list[LastGood]:
    """Of every guest of the node, the oldest first. Where the node's guests are not known, of those that had a turn
    lately."""
    known = value_of(summary.standings)
    if known is None:
        guests: Sequence[GuestTurns] = (*summary.turns.guests, *summary.turns.others)
        found = [LastGood(each.vmid, each.title, each.last_good_s, "") for each in guests]
    else:
        found = [LastGood(each.vmid, printable(each.title), each.last_good_s, each.note) for each in known]
    return sorted(found, key=lambda each: (each.last_good_s or 0.0, each.vmid))


NOT_OF_THE_LAST_NIGHT: Final = Absent("it is told for the last night only: the jobs of earlier ones are not kept")
