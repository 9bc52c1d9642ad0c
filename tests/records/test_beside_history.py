"""The history keeps what guests suffered beside the backups of others, bounded as their own backups are."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from pvehook.contract.measured import Absent, Broken
from pvehook.errors import NodeError
from pvehook.records import beside_history
from pvehook.records.beside_history import (
    beside_between,
    beside_record_of,
    beside_records,
    last_beside,
)
from pvehook.records.beside_record import BesideRecord
from pvehook.records.history import reading
from pvehook.records.history_schema import CHART_DAYS, DETAIL_DAYS, KEEP_DAYS
from pvehook.records.history_writing import append, append_beside
from tests.records.backups import DAY_S, HUNG, NOW_S, beside, record


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "history.db")


def aged(age: float, vmid: int = 101, **changes: object) -> BesideRecord:
    started_s = NOW_S - age * DAY_S
    values = {"job": f"UPID:{age}", "started_s": started_s, "ended_s": started_s + 7200, **changes}
    return beside(vmid=vmid, **values)


def nights(path: str, *ages: float) -> None:
    """A backup of somebody in each night, by which ages are counted."""
    for age in ages:
        started_s = NOW_S - age * DAY_S
        append(path, record(vmid=103, started_s=started_s, ended_s=started_s + 60), now_s=started_s + 60)


def ages_of(path: str) -> list[int]:
    with reading(path) as history:
        return [round((NOW_S - each.started_s) / DAY_S) for each in beside_between(history, 0.0, NOW_S * 3)]


@pytest.mark.parametrize(
    "shown",
    [
        beside(),
        beside(stalled_s=0.0, slowed_s=0.0, name=None),
        beside(vmtype="lxc", seen_by="pressure", p99_ms=Absent("a container"), baseline_p99_ms=Absent("a container")),
        beside(severity="unknown", p99_ms=HUNG, unknown=("scsi0: no such storage",)),
    ],
    ids=["bad", "good", "container", "not known"],
)
def test_what_was_written_is_read(path: str, shown: BesideRecord) -> None:
    assert append_beside(path, [shown], now_s=NOW_S) is None
    with reading(path) as history:
        (row,) = beside_between(history, 0.0, NOW_S)
        assert beside_record_of(history, row.id) == shown
    assert (row.vmid, row.name, row.vmtype, row.job) == (shown.vmid, shown.name, shown.vmtype, shown.job)
    figures = (shown.stalled_s, shown.slowed_s, shown.p99_ms, shown.baseline_p99_ms)
    assert (row.severity, row.stalled_s, row.slowed_s, row.p99_ms, row.baseline_p99_ms) == (shown.severity, *figures)
    worst = (shown.beside[0].vmid, shown.beside[0].vmtype) if shown.beside else (None, None)
    assert (row.worst_vmid, row.worst_vmtype) == worst


def test_a_run_that_is_told_twice_is_kept_once_and_two_runs_are_two(path: str) -> None:
    append_beside(path, [beside(), beside(vmid=102)], now_s=NOW_S)
    append_beside(path, [beside(started_s=NOW_S - 8000, marks=()), aged(1)], now_s=NOW_S)
    with reading(path) as history:
        rows = beside_between(history, 0.0, NOW_S)
        assert [(row.vmid, row.started_s) for row in rows] == [
            (101, NOW_S - DAY_S),
            (102, NOW_S - 8400),
            (101, NOW_S - 8000),
        ]
        assert [len(each.marks) for each in beside_records(history, NOW_S - 9000, NOW_S)] == [10, 0]


def test_runs_whose_task_is_not_known_are_not_taken_for_one(path: str) -> None:
    append_beside(path, [aged(2, job=""), aged(1, job="")], now_s=NOW_S)
    assert ages_of(path) == [2, 1]


def test_records_are_of_a_time_worst_first_and_not_without_end(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [aged(1, 101, stalled_s=2.0), aged(1, 102, stalled_s=30.0), aged(1, 103, severity="none"), aged(3, 104)]
    append_beside(path, shown, now_s=NOW_S)
    began_s = NOW_S - DAY_S
    with reading(path) as history:
        for since_s, until_s in ((began_s, began_s), (began_s + 7200, NOW_S), (began_s - 60, began_s + 9000)):
            assert [each.vmid for each in beside_records(history, since_s, until_s)] == [102, 101, 103]
        assert beside_records(history, began_s + 7201, NOW_S) == []
        monkeypatch.setattr(beside_history, "RECORDS_READ", 1)
        assert [each.vmid for each in beside_records(history, 0.0, NOW_S)] == [102]


def test_a_list_is_of_one_guest_when_asked_and_the_last_of_each_is_the_last(path: str) -> None:
    append_beside(path, [aged(age, vmid) for age in (5, 1) for vmid in (102, 101)], now_s=NOW_S)
    with reading(path) as history:
        assert [each.vmid for each in beside_between(history, 0.0, NOW_S, 102)] == [102, 102]
        lasts = last_beside(history, 0.0, NOW_S)
        assert [(each.vmid, NOW_S - each.started_s) for each in lasts] == [(101, DAY_S), (102, DAY_S)]
        assert [NOW_S - each.started_s for each in last_beside(history, 0.0, NOW_S - 2 * DAY_S)] == [5 * DAY_S] * 2
        assert last_beside(history, NOW_S, NOW_S) == []


# The bound


def test_what_is_too_old_goes_marks_first_then_details_then_the_row(path: str) -> None:
    ages = (KEEP_DAYS + 3, DETAIL_DAYS + 3, DETAIL_DAYS - 1, CHART_DAYS + 3, CHART_DAYS - 1, 0)
    nights(path, 2, 1, 0)
    append_beside(path, list(map(aged, ages)), now_s=NOW_S)
    assert ages_of(path) == [123, 119, 38, 34, 0]
    with reading(path) as history:
        read = [beside_record_of(history, row.id) for row in beside_between(history, 0.0, NOW_S)]
    assert read[0] == Absent("details are kept for 120 days")
    assert [len(each.marks) for each in read if isinstance(each, BesideRecord)] == [0, 0, 10, 10]


def test_a_caller_can_keep_less(path: str) -> None:
    nights(path, 2, 1, 0)
    append_beside(path, [aged(33), aged(31), aged(0)], now_s=NOW_S, keep_days=30)
    assert ages_of(path) == [31, 0]


def test_a_run_that_a_wrong_clock_dated_ahead_is_forgotten_in_the_end(path: str) -> None:
    nights(path, 3, 2, 1)
    append_beside(path, [aged(1), aged(-9000)], now_s=NOW_S)
    assert ages_of(path) == [1, -9000]
    last = KEEP_DAYS + 9
    nights(path, *(day - last for day in (2, 1, 0)))
    assert ages_of(path) == [-9000]
    append_beside(path, [aged(-last)], now_s=NOW_S + last * DAY_S)
    assert ages_of(path) == [-last]


# Damage


@pytest.mark.parametrize("body", [b"rubbish", "a text", b"x\x9c"], ids=["rubbish", "no blob", "cut short"])
@pytest.mark.parametrize("table", ["beside_details", "beside_marks"])
def test_a_record_that_cannot_be_read_costs_the_record(path: str, table: str, body: object) -> None:
    append_beside(path, [beside(), beside(vmid=102)], now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as damage:
        damage.execute(f"UPDATE {table} SET body = ? WHERE rowid = 1", (body,))
    with reading(path) as history:
        row, _ = beside_between(history, 0.0, NOW_S)
        read = beside_record_of(history, row.id)
        assert [each.vmid for each in beside_records(history, 0.0, NOW_S)] == [102]
    assert isinstance(read, Broken)
    assert "cannot be read" in read.why
    assert row.stalled_s == 17.0


def test_a_figure_that_is_no_figure_is_broken_and_a_number_that_is_none_is_damage(path: str) -> None:
    append_beside(path, [beside()], now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as damage:
        damage.execute("UPDATE beside SET stalled_s = x'00'")
        with reading(path) as history:
            (row,) = beside_between(history, 0.0, NOW_S)
        assert isinstance(row.stalled_s, Broken)
        damage.execute("UPDATE beside SET worst_vmid = 'x'")
    with pytest.raises(NodeError, match="damaged: worst_vmid"), reading(path) as history:
        beside_between(history, 0.0, NOW_S)


def test_a_file_that_is_no_database_is_moved_aside_and_said(path: str) -> None:
    Path(path).parent.mkdir()
    Path(path).write_bytes(b"no database at all" * 999)
    said = append_beside(path, [beside()], now_s=NOW_S)
    assert said is not None
    assert f"it is now {path}.damaged" in said
    assert ages_of(path) == [0]
