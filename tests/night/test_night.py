"""`pvehook night` as an administrator meets it with the first coffee."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from pvehook.contract.measured import Absent, Measured
from pvehook.errors import NodeError
from pvehook.night.night import run_night
from pvehook.night.summary import RunningRun
from pvehook.records.attempt import Attempt
from pvehook.records.history_writing import append, append_attempts, append_beside
from pvehook.records.stall_record import GovernorSummary
from pvehook.report.standing import Standing
from tests.night.nights import CLOSED, TWO_S, UPID, refused_at_boot, turn
from tests.records.backups import DAY_S, NOW_S, beside, record
from tests.report.test_report import EVIL

NOW = datetime.fromtimestamp(NOW_S, UTC)
NO_JOBS = Absent("the node's jobs could not be read")
WORKERS = "set `performance: max-workers=1` in /etc/vzdump.conf"


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def history(tmp_path: Path) -> str:
    return str(tmp_path / "history.db")


def night(
    history: str,
    *turns: Attempt,
    now: datetime = NOW,
    standings: Measured[tuple[Standing, ...]] = NO_JOBS,
    encoding: str = "utf-8",
    **options: Any,
) -> str:
    """What it prints into a pipe, with these turns on record."""
    if turns:
        append_attempts(history, turns, now_s=NOW_S)
    pipe = io.BytesIO()
    out = io.TextIOWrapper(pipe, encoding=encoding)
    assert run_night(history, out, now, lambda _: standings, **options) == 0
    out.flush()
    return pipe.getvalue().decode(encoding)


def as_json(history: str, *turns: Attempt, **options: Any) -> Any:
    return json.loads(night(history, *turns, as_json=True, **options))


def joined(text: str) -> str:
    """Without the breaks of lines."""
    return " ".join(text.split())


def section(text: str, title: str) -> list[str]:
    """The lines below a title, up to the next empty one."""
    lines = text.splitlines()
    below = lines[lines.index(title) + 1 :]
    return below[: below.index("")] if "" in below else below


def standing(vmid: int, age: float | None = 0.2, **changes: Any) -> Standing:
    values: dict[str, Any] = {"title": f"VM {vmid} web", "last_good_s": None if age is None else NOW_S - age * DAY_S}
    return Standing(**{"vmid": vmid, "in_job": True, **values, **changes})


def overdue(vmid: int, age: float | None = 5.1) -> Standing:
    cause = "refused 4 nights: the window closed before its turn; this job needs 4 h 10 min"
    command = (
        f'pvehook allow --vmid {vmid} --for 4h --reason "overdue" && vzdump {vmid} --storage a-storage-with-a-name'
    )
    ways = (f"to back it up now: {command}", "to widen the window: window.open in /etc/pvehook.yaml")
    return standing(vmid, age, missed_turns=4, is_overdue=True, cause=cause, ways_out=ways)


# A night


def test_a_good_night_is_short(history: str) -> None:
    turns = (turn(101, 0, 10), turn(102, 10, 71), turn(103, 81, 20))
    kept = tuple(standing(vmid) for vmid in (101, 102, 103))
    assert night(history, *turns, standings=kept).splitlines() == [
        "pvehook: night of Mon 2026-11-23 to Tue 2026-11-24, node pve1",
        "All 3 guests were backed up, from 02:00 to 03:41 (1h41). Every guest that is in",
        "a job has a backup within what its jobs promise.",
        "",
        "last good backup, the oldest first",
        "VM 101 web    4h48 ago, Tue 2026-11-24 01:12",
        "VM 102 web    4h48 ago, Tue 2026-11-24 01:12",
        "VM 103 web    4h48 ago, Tue 2026-11-24 01:12",
    ]


def test_who_was_not_backed_up_and_why(history: str) -> None:
    text = night(
        history,
        turn(101, 0),
        turn(102, 10, 5, result="failed", reason="job failed with err -5 - Input/output error"),
        turn(103, 15, 5, result="worker-died", reason="vzdump's worker ended in the middle of it"),
        turn(104, 20, 5, result="cancelled", reason="it ran past the window's end, and was cancelled"),
        turn(105, 180, result="refused"),
        turn(106, 180.2, result="refused"),
        turn(107, 25, 5, result="unknown"),
    )
    assert "1 of 7 guests was backed up, 1 failed, 2 refused, 1 cancelled, 1 worker died, 1 not known, from" in joined(
        text
    )
    assert section(text, "not backed up") == [
        "failed       VM 102 db (02:10)",
        "             job failed with err -5 - Input/output error",
        "worker died  CT 103 files (02:15)",
        "             vzdump's worker ended in the middle of it",
        "cancelled    VM 104 mail (02:20)",
        "             it ran past the window's end, and was cancelled",
        "refused      VM 105 win-dc1 (05:00), VM 106 git (05:00)",
        f"             at 05:00 {CLOSED}",
        "not known    VM 107 backup (02:25)",
        "             its end was not seen, so there may be a good backup",
    ]
    assert f"   pvenode task log {turn(101).job}" in section(text, "what to do")
    assert '   pvehook allow --vmid 105 --vmid 106 --for 2h --reason "refused last night"' in section(
        text, "what to do"
    )


def test_a_night_in_which_nothing_was_backed_up(history: str) -> None:
    text = night(history, *(turn(vmid, 200, result="refused") for vmid in (101, 102)))
    assert "None of 2 guests were backed up, 2 refused. Whether every guest has" in joined(text)
    text = night(history, turn(101, 200, result="refused"), turn(102, 200, result="refused"))
    (run,) = [line for line in text.splitlines() if line.startswith("05:20 ")]
    assert run == "05:20        job nightly, by its schedule: all 2 guests refused: at 05:00 the"


def test_a_guest_that_was_backed_up_in_another_run_was_backed_up(history: str) -> None:
    text = night(
        history, turn(101, 0, result="failed", reason="disk full"), turn(101, 30, job=f"{UPID}x", job_id="late")
    )
    assert "The one guest was backed up" in text
    assert "not backed up" not in text
    assert section(text, "runs") == [
        "02:00-02:10  job nightly, by its schedule: 1 failed",
        "02:30-02:40  job late, by its schedule: 1 backed up",
    ]


# Which night, and what runs are


def test_two_jobs_and_midnight_are_one_night(history: str) -> None:
    late: dict[str, Any] = {"job": f"{UPID}late", "job_id": "late"}
    text = night(history, turn(101, -200, 60), turn(102, -140, 30), turn(103, 10, 20, **late))
    assert "All 3 guests were backed up, from 22:40 to 02:30 (3h50)" in text
    assert [line[:28] for line in section(text, "runs")] == [
        "22:40-00:10  job nightly, by",
        "02:10-02:30  job late, by it",
    ]


def test_a_run_over_noon_is_told_in_both_nights(history: str) -> None:
    turns = (turn(101, 0, 590), turn(102, 590, 60), turn(103, 650, 60))
    text = night(history, *turns, day="2026-11-24", now=NOW + timedelta(days=1))
    assert "job nightly, by its schedule: 2 backed up; it went on after noon, with 1 more" in joined(text)
    text = night(history, now=NOW + timedelta(hours=8))
    assert "job nightly, by its schedule: 1 backed up; it began in the night before, with 2 more" in joined(text)


def test_a_run_that_was_missed_is_told_as_what_it_is(history: str) -> None:
    text = night(history, *refused_at_boot(*range(101, 141)), turn(101, 0, age=1))
    assert "None of 40 guests were backed up, 40 refused" in text
    assert joined("\n".join(section(text, "runs"))) == (
        "06:30 job nightly, started at boot because it was missed while the node was off (repeat-missed): "
        f"all 40 guests refused: at 06:30 {CLOSED}"
    )
    assert joined("\n".join(section(text, "not backed up"))).startswith(
        "refused VM 101 build (06:30), guest 102 (06:30)"
    )
    assert "and 32 more" in text
    assert "the node was off when" in joined(text)
    assert '   pvehook allow --for 2h --reason "refused last night"' in text.splitlines()


def test_nothing_is_advised_for_a_guest_that_gave_way(history: str) -> None:
    why = "gave way to guest 103, which waited longer: not all guests of this job fit into the window"
    text = night(history, turn(101, 0), turn(102, 100, result="refused", reason=why))
    assert "gave way to guest 103" in joined(text)
    assert "pvehook allow" not in text


def test_a_run_that_was_refused_as_a_whole_has_the_names_of_today(history: str) -> None:
    text = night(history, *refused_at_boot(101, 102), standings=(standing(101, title="VM 101 web"),))
    assert section(text, "not backed up")[0] == "refused      VM 101 web (06:30), guest 102 (06:30)"


def test_what_the_schedules_run_refused_is_told_before_what_was_made_up_at_boot(history: str) -> None:
    text = night(history, turn(101, 0), turn(102, 180, result="refused"), *refused_at_boot(101, 102))
    assert section(text, "not backed up") == ["refused      VM 102 db (05:00)", f"             at 05:00 {CLOSED}"]


def test_guests_to_which_a_run_did_not_come_are_told(history: str) -> None:
    """The worker was killed during the second of six: of the others nothing is on record in this night."""
    before = [turn(vmid, vmid - 100, age=1) for vmid in range(101, 107)]
    weekly = turn(110, 100, age=1, job=f"{UPID}w", job_id="weekly")
    died = turn(102, 10, result="worker-died", reason="vzdump's worker ended in the middle of it")
    text = night(history, *before, weekly, turn(101, 0), died)
    assert "1 of 6 guests was backed up, 1 worker died, 4 had no turn, from 02:00 to 02:20" in joined(text)
    assert section(text, "not backed up")[2:] == [
        "no turn      CT 103 files, VM 104 mail, VM 105 win-dc1, VM 106 git",
        "             the run of job nightly did not come to it, the one before had",
    ]
    assert [guest["vmid"] for guest in as_json(history)["passed_over"]] == [103, 104, 105, 106]
    assert "no turn" not in night(history, running=(RunningRun(103),))  # it is still to come
    kept = (standing(101), standing(102), standing(103), standing(104, in_job=False))
    assert [guest["vmid"] for guest in as_json(history, standings=kept)["passed_over"]] == [103]


def test_a_guests_name_is_not_broken(history: str) -> None:
    text = night(history, *(turn(vmid, 60, result="refused", reason="closed") for vmid in range(101, 111)))
    assert section(text, "not backed up") == [
        "refused      VM 101 build (03:00), VM 102 db (03:00), CT 103 files (03:00),",
        "             VM 104 mail (03:00), VM 105 win-dc1 (03:00), VM 106 git (03:00),",
        "             VM 107 backup (03:00), VM 108 monitoring (03:00), and 2 more",
        "             closed",
    ]


def test_many_reasons_are_not_a_list_without_end(history: str) -> None:
    turns = [turn(vmid, vmid - 100, 1, result="failed", reason=f"reason {vmid}") for vmid in range(101, 141)]
    text = night(history, *turns)
    assert section(text, "not backed up")[-1] == "and 30 more for other reasons; --json has all"


def test_a_run_by_hand_is_told(history: str) -> None:
    text = night(history, turn(101, 0, trigger="hand", job_id=None))
    assert section(text, "runs") == ["02:00-02:10  run, started by hand: 1 backed up"]


def test_who_was_refused_has_the_command_that_its_job_needs(history: str) -> None:
    refused = standing(102, missed_turns=1, ways_out=("to back it up now: pvehook allow && vzdump 102",))
    text = night(history, turn(101), turn(102, 180, result="refused"), standings=(standing(101), refused))
    assert section(text, "what to do") == [
        "1. VM 102 web was refused; to back it up before the next run:",
        "   pvehook allow &&",
        "   vzdump 102",
    ]
    (found,) = as_json(history, standings=(standing(101), refused))["advice"]
    assert found["commands"] == ["pvehook allow && vzdump 102"]


def test_a_night_of_an_older_pvehook_has_no_runs_to_tell_of(history: str) -> None:
    text = night(history, turn(101, 0, job="", job_id=None, trigger="unknown"))
    assert "The one guest was backed up" in text
    assert "runs" not in text


def test_the_night_that_ended_on_a_day(history: str, capsys: pytest.CaptureFixture[str]) -> None:
    night(history, turn(101, 0), turn(101, 0, age=1, result="failed", reason="disk full"), turn(101, 0, age=4))
    text = night(history, day="2026-11-23", standings=(overdue(101),))
    assert "night of Sun 2026-11-22 to Mon 2026-11-23" in text
    assert "The one guest was not backed up (1 failed)" in text
    assert "told for the last night only" in joined(text)
    assert "VM 101 build   3d10h ago, Fri 2026-11-20 02:00" in text  # as of that night
    assert "OVERDUE" in night(history, day="2026-11-24", standings=(overdue(101),))
    assert run_night(history, io.StringIO(), NOW, lambda *_: NO_JOBS, day="2026-11-22") == 2
    assert capsys.readouterr().err == (
        "pvehook: no backup is on record in the night that ended on 2026-11-22; "
        "the last nights that have one ended on 2026-11-20, 2026-11-23, 2026-11-24\n"
    )


@pytest.mark.parametrize("asked", ["yesterday", "2026-1-1", "24.11.2026", "2026-02-30", "", "0001-01-01", "9999-12-31"])
def test_a_day_that_is_none_is_told(history: str, asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    append_attempts(history, [turn(101)], now_s=NOW_S)
    new_york = NOW.astimezone(timezone(timedelta(hours=-5)))
    assert run_night(history, io.StringIO(), new_york, lambda *_: NO_JOBS, day=asked) == 2
    assert capsys.readouterr().err.startswith("pvehook: ")


def test_a_later_night_without_a_run_is_told(history: str) -> None:
    """Else the night before would pass for it."""
    assert "No run is on record since" not in night(history, turn(101), now=NOW + timedelta(hours=23))
    text = night(history, now=NOW + timedelta(days=1, hours=1))
    assert "night of Mon 2026-11-23 to Tue 2026-11-24" in text
    assert "No run is on record since then; it is Wed 2026-11-25 07:00." in joined(text)


def test_a_night_that_goes_on_is_told(history: str) -> None:
    text = night(history, turn(101), running=(RunningRun(102),))
    assert "So far the one guest was backed up, from 02:00 to 02:10" in text
    assert "A backup is running now (guest 102): each guest is in here when its turn is over." in joined(text)
    assert "A backup is running now: each" in night(history, running=(RunningRun(),))
    known = RunningRun(102, 3, TWO_S + 2 * 3600)
    text = joined(night(history, running=(known,)))
    assert "3 guests are still to come; the run was expected to end at 04:00." in text
    (found,) = as_json(history, running=(known,))["running"]
    assert found == {"vmid": 102, "to_come": 3, "expected_end": "2026-11-24T04:00:00+00:00"}
    night(history, turn(101, age=3))
    assert "running" not in night(history, running=(RunningRun(102),), day="2026-11-21")


# Overdue, and the age of the last good backups


def test_overdue_guests_come_first_with_cause_and_commands(history: str) -> None:
    text = night(history, turn(101), standings=(overdue(140), overdue(141, None), standing(101)))
    lines = text.splitlines()
    assert "2 guests are OVERDUE: they have no backup within what their jobs promise." in joined(text)
    assert lines[3:6] == ["", "OVERDUE", "VM 140 web: last good backup 5d02h ago, Thu 2026-11-19 03:36"]
    assert section(text, "OVERDUE") == [
        "VM 140 web: last good backup 5d02h ago, Thu 2026-11-19 03:36",
        "  refused 4 nights: the window closed before its turn; this job needs 4 h 10 min",
        "  to back it up now:",
        '    pvehook allow --vmid 140 --for 4h --reason "overdue" &&',
        "    vzdump 140 --storage a-storage-with-a-name",
        "  to widen the window:",
        "    window.open in /etc/pvehook.yaml",
        "VM 141 web: no good backup on record",
        "  to back it up now:",
        '    pvehook allow --vmid 141 --for 4h --reason "overdue" &&',
        "    vzdump 141 --storage a-storage-with-a-name",
    ]
    assert section(text, "last good backup, the oldest first")[:2] == [
        "VM 141 web  no good backup on record            OVERDUE",
        "VM 140 web   5d02h ago, Thu 2026-11-19 03:36    OVERDUE",
    ]


def test_guests_in_no_job_have_an_age_too(history: str) -> None:
    text = night(history, turn(101), standings=(standing(101), standing(900, None, title="CT 900 dns", in_job=False)))
    assert "CT 900 dns  no good backup on record            in no job" in text
    text = night(history, standings=(standing(101), standing(102, None, missed_turns=1)))
    missed = "No guest is overdue; 1 guest has missed a turn; 1 guest in a job has no good backup on record yet."
    assert missed in joined(text)
    assert "VM 102 web  no good backup on record            1 turn missed" in text
    text = night(history, standings=(standing(101, in_job=False),))
    assert "No guest of this node is in a backup job." in joined(text)


def test_a_schedule_that_is_not_understood_is_told(history: str) -> None:
    why = "job odd: its schedule 'never' is not understood: no time of day"
    text = night(history, turn(101), standings=tuple(standing(vmid, not_understood=(why,)) for vmid in (101, 102)))
    assert text.count("Not counted:") == 1
    assert f"Not counted: {why}." in joined(text)


def test_ten_oldest_are_shown_and_json_has_all(history: str) -> None:
    old = [turn(100 + age, 0, age=age) for age in range(1, 15)]
    text = night(history, turn(100, 0), *old)
    shown = section(text, "last good backup, the oldest first")
    assert shown[0].split(",")[0].split() == ["VM", "114", "mail", "14d04h", "ago"]
    assert shown[10] == "and 5 more with newer ones; --json has all"
    found = as_json(history)["last_good"]
    assert [each["vmid"] for each in found] == [*range(114, 99, -1)]
    assert found[0] | {"title": ""} == {
        "vmid": 114,
        "title": "",
        "last_good": "2026-11-10T02:00:00+00:00",
        "age_s": 14 * 86400 + 4 * 3600,
        "note": "",
    }


# Who suffered, and what to do


def suffering(history: str) -> None:
    governor = GovernorSummary("on", 60.0, 20.0, 10**6, 25.0, (), (WORKERS,), ())
    backups = [
        record(vmid=vmid, name="db", started_s=TWO_S + at, ended_s=TWO_S + at + 600, governor=governor, **changes)
        for vmid, at, changes in ((102, 0, {"stalled_s": 12.3, "slowed_s": 60.0}), (104, 600, {"slowed_s": 5.0}))
    ]
    append(history, record(vmid=105, started_s=TWO_S + 1200, ended_s=TWO_S + 1300), *backups, now_s=NOW_S)
    append_beside(history, [beside(vmid=900, name="router", started_s=TWO_S, ended_s=TWO_S + 1300)], now_s=NOW_S)


def test_who_suffered_worst_first_in_its_own_backup_and_beside_whom(history: str) -> None:
    suffering(history)
    text = night(history, turn(102), turn(104, 10), turn(105, 20))
    assert section(text, "suffered from the backups, worst first") == [
        "                 its own backup     beside others",
        "guest          stalled   slowed  stalled   slowed  whose backup",
        "VM 900 router        -        -      17s      41s  VM 103 12s, CT 110 5s",
        "VM 102 db          12s      60s        -        -",
        "VM 104 db           0s       5s        -        -",
        "stalled: a disk request took over 1 s; slowed: over 0.1 s",
    ]
    assert section(text, "what to do") == [
        f"1. for VM 102 and VM 104: {WORKERS}",
        "2. what VM 900 router suffered, in detail:",
        "   pvehook report --vmid 900",
    ]
    found = as_json(history)["suffered"]
    assert [each["vmid"] for each in found] == [900, 102, 104]
    assert found[0]["own"]["stalled_s"] == "absent: it was not backed up"
    assert found[0]["beside"]["backups"][0]["vmid"] == 103
    assert found[1]["own"] == {"stalled_s": 12.3, "slowed_s": 60}


def test_those_of_another_night_did_not_suffer_in_this_one(history: str) -> None:
    suffering(history)
    text = night(history, turn(102, age=1), day="2026-11-23")
    assert "suffered" not in text
    assert "what to do" not in text


def test_advice_is_never_more_than_five_lines(history: str) -> None:
    many = tuple(f"advice {number}" for number in range(9))
    governor = GovernorSummary("on", 60.0, 20.0, 10**6, 25.0, (), many, ())
    append(history, record(started_s=TWO_S, ended_s=TWO_S + 60, governor=governor, stalled_s=3.0), now_s=NOW_S)
    assert len(as_json(history, turn(102, result="failed", reason="x"))["advice"]) == 5


# How the forecast did


def forecast(vmid: int, minute: float, took: float, expected: float, end: float, **changes: Any) -> Attempt:
    """It was expected to take so many minutes, give or take a fifth, and to end so many after 02:00."""
    kept = {"expected_s": expected * 60, "expected_least_s": expected * 48, "expected_most_s": expected * 72}
    return turn(vmid, minute, took, **kept, expected_end_s=TWO_S + end * 60, **changes)


def test_how_the_forecast_did(history: str) -> None:
    text = night(history, forecast(101, 0, 10, 11, 11), forecast(102, 10, 20, 20, 31), forecast(104, 30, 41, 12, 43))
    assert section(text, "forecast") == [
        "2 of 3 backups took as long as their range says; half were off by at most 10%",
        "the run of job nightly ended at 03:11, 28m00 later than forecast",
        "furthest off: VM 104 mail, forecast 12m00 (9m36-14m24), took 41m00",
    ]
    found = as_json(history)["forecast"]
    assert (found["backups"], found["within"], found["error"], found["furthest_off"]) == (3, 2, 0.1, 104)
    assert found["run_ends"][0]["later_s"] == 28 * 60


def test_of_a_run_with_a_refused_guest_the_end_was_not_forecast(history: str) -> None:
    text = night(history, forecast(101, 0, 10, 11, 11), forecast(102, 180, 0, 20, 31, result="refused"))
    assert section(text, "forecast") == ["the backup took as long as its range says; off by 10%"]
    assert as_json(history)["forecast"]["run_ends"] == []


def test_without_a_forecast_nothing_is_told(history: str) -> None:
    assert "forecast" not in night(history, turn(101))
    assert as_json(history)["forecast"] is None


# JSON


def test_json_has_everything(history: str) -> None:
    body = as_json(
        history,
        turn(101, 0),
        turn(102, 180, result="refused"),
        *refused_at_boot(102),
        standings=(overdue(102), standing(101)),
        running=(RunningRun(103),),
    )
    assert body["format"] == 1
    assert body["night"] | {"results": 0} == {
        "from": "2026-11-23T12:00:00+00:00", "to": "2026-11-24T12:00:00+00:00", "nodes": ["pve1"], "results": 0,
        "began": "2026-11-24T02:00:00+00:00", "ended": "2026-11-24T02:10:00+00:00",
    }  # fmt: skip
    assert (body["night"]["results"]["ok"], body["night"]["results"]["refused"]) == (1, 1)
    assert [each["vmid"] for each in body["running"]] == [103]
    assert body["promises_kept"] is False
    (late,) = body["overdue"]
    assert (late["vmid"], late["ways_out"]) == (102, list(overdue(102).ways_out))
    assert [(guest["vmid"], guest["result"], len(guest["turns"])) for guest in body["guests"]] == [
        (101, "ok", 1), (102, "refused", 2)
    ]  # fmt: skip
    assert body["guests"][1]["reason"] == f"at 05:00 {CLOSED}"
    assert [(run["trigger"], run["refused"]) for run in body["runs"]] == [("schedule", False), ("missed", True)]
    assert as_json(history)["promises_kept"] == "absent: the node's jobs could not be read"


# Histories of all kinds


def test_without_a_history_it_says_when_there_will_be_one(history: str) -> None:
    assert f"there is no history yet ({history})" in night(history)
    assert as_json(history) == {"format": 1, "night": None}
    append_attempts(history, [], now_s=NOW_S)
    assert "the history has no backup yet" in night(history)


def test_a_history_that_is_none_older_or_newer_is_an_error(history: str) -> None:
    append_attempts(history, [turn(101)], now_s=NOW_S)
    for version, why in ((4, "of an older pvehook; the next backup brings it up to date"), (99, "newer pvehook")):
        with contextlib.closing(sqlite3.connect(history)) as theirs:
            theirs.execute(f"PRAGMA user_version = {version}")
        with pytest.raises(NodeError, match=why):
            night(history)
    for journal in ("-wal", "-shm"):
        Path(history + journal).unlink(missing_ok=True)
    Path(history).write_bytes(b"rubbish" * 999)
    with pytest.raises(NodeError, match="not a database"):
        night(history)


@pytest.mark.parametrize("column", ["result = 'eaten'", "ended_s = 'x'", "name = x'00ff'", "trigger = 'magic'"])
def test_a_damaged_row_is_an_error_that_says_so(history: str, column: str) -> None:
    append_attempts(history, [turn(101)], now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(history, isolation_level=None)) as damage:
        damage.execute(f"UPDATE attempts SET {column}")
    with pytest.raises(NodeError, match="damaged"):
        night(history)


def test_names_and_reasons_of_others_cannot_move_the_cursor_or_forge_a_line(history: str) -> None:
    append_attempts(history, [turn(101), turn(102, result="failed", reason="x")], now_s=NOW_S)
    append(history, record(started_s=TWO_S, ended_s=TWO_S + 60, stalled_s=3.0), now_s=NOW_S)
    with contextlib.closing(sqlite3.connect(history, isolation_level=None)) as theirs:
        theirs.execute(
            "UPDATE attempts SET node = ?1, name = ?1, reason = ?1, job_id = ?1, job = ?1, mode = ?1", (EVIL,)
        )
        theirs.execute("UPDATE backups SET name = ?1, node = ?1", (EVIL,))
    odd = overdue(102)._replace(title=EVIL, cause=EVIL, ways_out=(EVIL,), not_understood=(EVIL,))
    for encoding in ("utf-8", "ascii"):
        text = night(history, standings=(odd, standing(101, title=EVIL)), encoding=encoding)
        assert all(char.isprintable() for char in text if char != "\n")
        assert not [line for line in text.splitlines() if line.startswith("VM 999")]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_every_line_but_a_command_fits(
    history: str, monkeypatch: pytest.MonkeyPatch, columns: int, encoding: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    suffering(history)
    turns = [turn(vmid, vmid - 100, name="ü" * 60, result="ok" if vmid % 3 else "failed") for vmid in range(101, 141)]
    text = night(history, *turns, *refused_at_boot(*range(101, 141)), standings=(overdue(140),), encoding=encoding)
    for line in text.splitlines():
        assert len(line) <= columns or line.lstrip().startswith(("pvehook ", "pvenode ")), line


def test_a_night_belongs_to_the_zone_of_the_node(history: str) -> None:
    auckland = NOW.astimezone(timezone(timedelta(hours=13)))  # 02:00 UTC is 15:00 there
    assert "night of Tue 2026-11-24 to Wed 2026-11-25" in night(history, turn(101), now=auckland)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_read_the_history_is_not_told_that_there_is_none(tmp_path: Path) -> None:
    state = tmp_path / "state"
    append_attempts(str(state / "history.db"), [turn(101)], now_s=NOW_S)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            night(str(state / "history.db"))
    finally:
        os.seteuid(0)
