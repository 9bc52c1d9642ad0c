"""What guests suffered beside the backups of others, in a terminal and as JSON."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from pvehook.contract.measured import Absent, Broken
from pvehook.errors import NodeError
from pvehook.records.beside_record import BesideBackup, BesideRecord
from pvehook.records.history_writing import append, append_beside
from tests.records.backups import DAY_S, NO_AGENT, NOW_S, beside, neighbours, one_after_the_other
from tests.report.test_report import EVIL, backup, on_a_terminal, report


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def history(tmp_path: Path) -> str:
    return str(tmp_path / "history.db")


def keep(history: str, *records: BesideRecord) -> None:
    append_beside(history, records, now_s=NOW_S)


def at(age: float, **changes: object) -> BesideRecord:
    """Of so many nights ago."""
    job = f"UPID:pve1:00001267:0086789C:{int(NOW_S - age * DAY_S):08X}:vzdump::root@pam:"
    return beside(job=job, started_s=NOW_S - age * DAY_S - 8400, ended_s=NOW_S - age * DAY_S - 1200, **changes)


def block(text: str, first: str = "beside the backups of others") -> list[str]:
    """The lines from this one on, to the next empty one."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    return lines[start : lines.index("", start) if "" in lines[start:] else None]


# All guests


def test_who_suffered_beside_others_is_told_worst_first_apart_from_its_own_backup(history: str) -> None:
    append(history, backup(0, 101, stalled_s=3.4), backup(0, 102), backup(0, 103), now_s=NOW_S)
    slowed = (BesideBackup(103, "qemu", "shared", 3600.0, 0.0, 9.0),)
    keep(
        history,
        at(0, vmid=101),
        at(0, vmid=102, name="db", stalled_s=0.0, slowed_s=9.0, p99_ms=120.0, beside=slowed),
        at(0, vmid=900, name="router", stalled_s=44.0, slowed_s=80.0),
        at(0, vmid=103, stalled_s=0.0, slowed_s=0.0),
        at(1, vmid=800, stalled_s=99.0),
    )
    assert block(report(history)) == [
        "beside the backups of others, night of 2026-11-24",
        "guest            own  stalled   slowed        p99  whose backup",
        "VM 900 router      -      44s      80s    15>2405  VM 103 12s, CT 110 5s",
        "VM 101 web      3.4s      17s      41s    15>2405  VM 103 12s, CT 110 5s",
        "VM 102 db         0s       0s       9s     15>120  VM 103 9s",
        "own        stalled seconds in its own backup; the other figures: beside others'",
    ]


def test_where_nobody_suffered_nothing_is_told(history: str) -> None:
    append(history, backup(0), now_s=NOW_S)
    assert "beside the backups of others" not in report(history)
    keep(history, at(0, vmid=101, stalled_s=0.4, slowed_s=0.4), at(3, vmid=101))
    assert "beside the backups of others" not in report(history)


def test_what_could_not_be_measured_is_a_mark(history: str) -> None:
    append(history, backup(0), now_s=NOW_S)
    keep(history, at(0, vmid=110, vmtype="lxc", p99_ms=NO_AGENT, baseline_p99_ms=NO_AGENT))
    assert "CT 110 web      -      17s      41s          -  VM 103 12s" in report(history)
    assert "VM 101 web" not in "".join(block(report(history))[2:])


def test_it_is_short_and_fits(history: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backups = one_after_the_other(30)
    append(history, *backups, now_s=NOW_S)
    keep(history, *(each for seed in range(3) for each in neighbours(backups, seed)))
    text = report(history)
    assert len(block(text)) <= 14
    assert "more suffered less; --worst shows more" in text
    assert len(block(report(history, worst=3))) == 2 + 3 + 2
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        for vmid in (None, 102, 900):
            for encoding in ("utf-8", "ascii"):
                for line in report(history, encoding=encoding, vmid=vmid).splitlines():
                    assert len(line) <= columns, line


def test_a_stall_is_in_colour_on_a_terminal(history: str) -> None:
    append(history, backup(0), now_s=NOW_S)
    keep(history, at(0, vmid=900))
    assert "\x1b[1;31m     17s\x1b[0m" in on_a_terminal(history, 80)


def test_a_hostile_name_is_text(history: str) -> None:
    append(history, backup(0), now_s=NOW_S)
    keep(history, at(0, vmid=900, name=EVIL, unknown=(EVIL,), p99_ms=Broken(EVIL)))
    for text in (report(history), report(history, vmid=900), report(history, encoding="ascii", vmid=900)):
        assert all(char.isprintable() for char in text if char != "\n")
        assert not [line for line in text.splitlines() if line.startswith("VM 999")]


def test_a_history_of_others_cannot_move_the_cursor(history: str) -> None:
    append(history, backup(0), now_s=NOW_S)
    keep(history, at(0, vmid=900))
    with contextlib.closing(sqlite3.connect(history, isolation_level=None)) as theirs:
        theirs.execute("UPDATE beside SET node = ?1, job = ?1, name = ?1, vmtype = ?1, p99_ms = ?1", (EVIL,))
    for text in (report(history), report(history, vmid=900)):
        assert all(char.isprintable() for char in text if char != "\n")
        assert not [line for line in text.splitlines() if line.startswith("VM 999")]
    (run,) = json.loads(report(history, as_json=True))["beside"]
    assert (run["name"], run["p99_ms"][:7]) == (EVIL, "broken:")
    with contextlib.closing(sqlite3.connect(history, isolation_level=None)) as theirs:
        theirs.execute("UPDATE beside SET severity = x'00'")
    for as_json in (True, False):
        with pytest.raises(NodeError, match="damaged"):
            report(history, as_json=as_json)


# One guest


def test_a_guests_nights_beside_others_are_told_with_whose_backups(history: str) -> None:
    append(history, backup(0), backup(1), now_s=NOW_S)
    others = (
        BesideBackup(103, "qemu", "shared", 3600.0, 12.0, 30.0, 34.0),
        BesideBackup(110, "lxc", "unknown", 1800.0, 0.0, 11.0),
        BesideBackup(105, "qemu", "elsewhere", 900.0, 0.0, 2.0),
    )
    keep(history, at(1, beside=others, unknown=("scsi1: /dev/sdx is not there",)), at(0, stalled_s=0.0, slowed_s=0.0))
    keep(history, at(4, stalled_s=0.0, slowed_s=6.0, p99_ms=Absent("no histogram")))
    assert block(report(history, vmid=101)) == [
        "beside the backups of others",
        "2026-11-23 stalled 17 s, slowed 41 s, p99 15 > 2405 ms",
        "           VM 103's backup: stalled 12 s, slowed 30 s; it was slowed for this",
        "             guest for 34 s",
        "           CT 110's backup: slowed 11 s; whether they share a disk is not known",
        "           VM 105's backup: slowed 2 s; on other disks",
        "           what it shares is not known: scsi1: /dev/sdx is not there",
        "2026-11-20 slowed 6 s",
        "           VM 103's backup: stalled 12 s, slowed 30 s; it was slowed for this",
        "             guest for 8 s",
        "           CT 110's backup: stalled 5 s, slowed 11 s",
    ]


def test_a_guest_in_no_job_has_its_nights_too(history: str) -> None:
    append(history, backup(0, 103), now_s=NOW_S)
    keep(history, *(at(age, vmid=900, name="router") for age in range(9)))
    text = report(history, vmid=900)
    assert text.startswith("VM 900 router: no backup of its own in this time\n\nbeside the backups of others\n")
    assert "and in 2 nights before" in text
    earlier = report(history, vmid=900, backup="2026-11-20")
    assert "2026-11-20 stalled 17 s" in earlier
    assert "2026-11-21" not in earlier
    assert "no night of guest 901" in report(history, vmid=901)
    keep(history, at(0, vmid=902, name="quiet", stalled_s=0.0, slowed_s=0.0))
    assert report(history, vmid=902).splitlines()[-1] == "it did not suffer beside others"


# JSON


def test_json_has_every_run_in_which_somebody_suffered(history: str) -> None:
    append(history, backup(0, 101), backup(0, 103), now_s=NOW_S)
    keep(history, at(3, vmid=900, name="router"), at(0, vmid=101), at(0, vmid=103, stalled_s=0.0, slowed_s=0.0))
    body = json.loads(report(history, as_json=True))
    earlier, last = body["beside"]
    assert (earlier["vmid"], earlier["name"], earlier["type"]) == (900, "router", "qemu")
    assert earlier["started"] == "2026-11-21T03:40:00+00:00"
    assert (earlier["severity"], earlier["stalled_s"], earlier["slowed_s"]) == ("stalled", 17, 41)
    assert (earlier["p99_ms"], earlier["baseline_p99_ms"], earlier["worst_vmid"]) == (2405, 15, 103)
    assert earlier["record"] is None  # only of the last night
    assert [each["vmid"] for each in last["record"]["beside"]] == [103, 110]
    assert last["record"]["beside"][0]["slowed_backup_s"] == 8.0
    assert len(last["record"]["marks"]) == 10


def test_json_finds_the_record_of_a_run_that_did_not_begin_on_a_full_second(history: str) -> None:
    append(history, backup(0, 103), now_s=NOW_S)
    keep(history, replace(at(0), started_s=NOW_S - 8400.123456789))
    for vmid in (None, 101):
        (run,) = json.loads(report(history, as_json=True, vmid=vmid))["beside"]
        assert run["record"]["vmid"] == 101


def test_json_of_one_guest_has_all_its_runs_whole(history: str) -> None:
    append(history, backup(0, 101), now_s=NOW_S)
    keep(history, at(2, p99_ms=Broken("QMP did not answer")), at(0), at(0, vmid=900, name="router"))
    body = json.loads(report(history, vmid=101, as_json=True))
    assert body["backup"]["stalled_s"] == 0.0
    assert [each["started"][:10] for each in body["beside"]] == ["2026-11-22", "2026-11-24"]
    assert body["beside"][0]["p99_ms"] == "broken: QMP did not answer"
    assert all(len(each["record"]["marks"]) == 10 for each in body["beside"])
    alone = json.loads(report(history, vmid=900, as_json=True))
    assert (alone["vmid"], alone["name"], alone["backup"], alone["record"]) == (900, "router", None, None)
    assert [each["record"]["vmid"] for each in alone["beside"]] == [900]


def test_records_that_are_damaged_or_no_longer_kept_leave_the_figures(history: str) -> None:
    append(history, backup(0, 103), now_s=NOW_S)
    keep(history, at(0, vmid=900, name="router"))
    with contextlib.closing(sqlite3.connect(history, isolation_level=None)) as damage:
        damage.execute("UPDATE beside_details SET body = x'00'")
    assert "VM 900 router      -      17s      41s    15>2405  VM 103" in report(history)
    assert "2026-11-24 stalled 17 s, slowed 41 s" in report(history, vmid=900)
    (run,) = json.loads(report(history, vmid=900, as_json=True))["beside"]
    assert (run["stalled_s"], run["record"]) == (17, None)
