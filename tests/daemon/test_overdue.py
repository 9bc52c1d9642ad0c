"""Several nights on one state directory, by call sequences of the real vzdump: who goes without a backup is told, once
a day, until there is one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pvehook.rehearsal.vzdump.player import Played, play
from tests.node_under_test import NodeUnderTest
from tests.rehearsal.recordings import recordings, run_for

RECORDED = {each.case: each for each in recordings()}
GOOD_NIGHT, FIRST_REFUSED = "two-mixed", "fail-snapshot-backup-start-101"
"""Two guests are backed up; the hook refuses guest 101 at its backup-start, and the next one has its turn."""

TEXTFILE = "/var/lib/prometheus/node-exporter/pvehook.prom"
CONFIG = f"""\
window: {{open: ["02:00-05:00"], timezone: UTC, exempt: {{guests: [102]}}}}
metrics: {{textfile: {TEXTFILE}}}
"""


@pytest.fixture
def nights(node: NodeUnderTest) -> NodeUnderTest:
    """A node with three VMs, of which 101 and 102 are in a job."""
    node.configure(CONFIG)
    for vmid, name in ((101, "archive"), (102, "web"), (103, "lab")):
        node.write(f"/etc/pve/qemu-server/{vmid}.conf", f"name: {name}\n")
    node.write("/etc/pve/jobs.cfg", "vzdump: nightly\n\tschedule 02:00\n\tvmid 101,102\n\tstorage nas\n")
    return node


def night(node: NodeUnderTest, case: str, day: int, clock: str) -> Played:
    """Plays it, and checks that vzdump did what the real one did."""
    node.set_clock(f"2026-11-{day}T{clock}:00+00:00")
    recording = RECORDED[case]
    run = replace(run_for(recording, Path(node.hook), node.root), freeze=node.run().freeze)
    played = play(run)
    assert [(list(call.argv), call.exit_code) for call in played.calls] == [
        (call["argv"], call["exit"]) for call in recording.calls
    ]
    node.wait_for_event("job-ended", after=_ended(node) - 1, guests="2")
    return played


def _ended(node: NodeUnderTest) -> int:
    """How many events there are up to the last run's end."""
    names = node.event_names()
    return len(names) - names[::-1].index("job-ended") if "job-ended" in names else 1


def told(node: NodeUnderTest) -> list[dict[str, str]]:
    return [each.fields for each in node.journal.events if each.fields.get("PVEHOOK_EVENT") == "guest-overdue"]


def figure(node: NodeUnderTest, name: str, vmid: int) -> float | None:
    lines = Path(node.node.path(TEXTFILE)).read_text().splitlines()
    found = [line.rpartition(" ")[2] for line in lines if line.startswith(f'{name}{{id="qemu/{vmid}",vmid="{vmid}"}}')]
    return float(found[0]) if found else None


def test_a_guest_that_is_refused_night_after_night_is_told_once_a_day_until_it_has_a_backup(
    nights: NodeUnderTest,
) -> None:
    night(nights, GOOD_NIGHT, 20, "02:00")
    last_success_s = figure(nights, "pvehook_last_success_timestamp_seconds", 101)
    night(nights, FIRST_REFUSED, 21, "05:12")
    assert told(nights) == []
    assert figure(nights, "pvehook_guest_overdue", 101) == 0

    played = night(nights, FIRST_REFUSED, 22, "05:12")
    (event,) = told(nights)
    assert (event["PVEHOOK_VMID"], event["PRIORITY"], event["PVEHOOK_MISSED_TURNS"]) == ("101", "2", "2")
    cause = "refused twice: at 05:12 the backup window was closed (outside 02:00-05:00)"
    assert event["PVEHOOK_CAUSE"].startswith(f"{cause}; job nightly needs 0 h 0")
    assert "VM 101 archive is OVERDUE: last good backup 2d03h ago" in event["MESSAGE"]
    assert "pvehook allow --vmid 101 --for 4h" in event["MESSAGE"]
    mailed = played.notification
    first = next(index for index, line in enumerate(mailed) if "OVERDUE for a backup" in line)
    assert mailed[first].endswith("1 guest OVERDUE for a backup:")
    assert "VM 101 archive: last good backup 2d03h ago" in mailed[first + 1]
    assert any("to back it up now: pvehook allow --vmid 101" in line for line in mailed)
    rows = [line for line in mailed if line.endswith("  OVERDUE")]
    assert [" VM 101 " in row for row in rows] == [True]
    assert figure(nights, "pvehook_guest_overdue", 101) == 1
    assert figure(nights, "pvehook_guest_overdue", 102) == 0
    assert figure(nights, "pvehook_last_success_timestamp_seconds", 101) == last_success_s

    nights.kill_daemon()
    nights.start_daemon()
    night(nights, FIRST_REFUSED, 22, "14:00")
    assert len(told(nights)) == 1  # the same day, and another daemon

    night(nights, FIRST_REFUSED, 23, "05:12")
    assert len(told(nights)) == 2
    assert told(nights)[1]["PVEHOOK_MISSED_TURNS"] == "3"

    played = night(nights, GOOD_NIGHT, 24, "02:00")
    assert len(told(nights)) == 2
    assert not any("OVERDUE" in line for line in played.notification)
    assert figure(nights, "pvehook_guest_overdue", 101) == 0
    assert (figure(nights, "pvehook_last_success_timestamp_seconds", 101) or 0) > (last_success_s or 0)


def test_a_guest_in_no_job_has_its_figures_and_is_never_overdue(nights: NodeUnderTest) -> None:
    for day in (20, 21, 22, 23):
        night(nights, GOOD_NIGHT, day, "02:00")
    assert told(nights) == []
    assert figure(nights, "pvehook_guest_overdue", 103) == 0
    assert figure(nights, "pvehook_last_success_timestamp_seconds", 103) is None  # none on record


def test_a_job_whose_start_is_outside_of_the_window_is_told_although_no_run_begins(nights: NodeUnderTest) -> None:
    nights.write("/etc/pve/jobs.cfg", "vzdump: nightly\n\tschedule 21:00\n\tvmid 101\n\tstorage nas\n")
    nights.configure(CONFIG.replace(", exempt: {guests: [102]}", ""))
    for day in (20, 21, 22, 23):
        nights.set_clock(f"2026-11-{day}T21:00:03+00:00")
        assert [call.argv for call in play(nights.run()).calls] == [("job-init",)]
    event = nights.wait_for_event("guest-overdue", vmid="101")
    assert "at its job's start (Sun 2026-11-22 21:00) the backup window is closed" in event["PVEHOOK_CAUSE"]
    assert "pvesh set /cluster/backup/nightly --schedule 02:00" in event["PVEHOOK_WAYS_OUT"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["cannot be read", "hangs"])
def test_an_etc_pve_that_does_not_answer_costs_a_log_line(nights: NodeUnderTest, make: Callable[[str], None]) -> None:
    jobs = nights.node.path("/etc/pve/jobs.cfg")
    os.unlink(jobs)
    make(jobs)
    played = night(nights, GOOD_NIGHT, 20, "02:00")
    assert any("VM 101" in line for line in played.notification)
    assert "whether guests are overdue is not known" in nights.wait_for_event("overdue-not-known")["MESSAGE"]


def test_a_schedule_that_is_not_understood_is_told(nights: NodeUnderTest) -> None:
    nights.write("/etc/pve/jobs.cfg", "vzdump: odd\n\tschedule now and then\n\tvmid 101,102\n")
    night(nights, GOOD_NIGHT, 20, "02:00")
    message = nights.wait_for_event("schedule-not-understood")["MESSAGE"]
    assert message.startswith("job odd: its schedule 'now and then' is not understood: ")
