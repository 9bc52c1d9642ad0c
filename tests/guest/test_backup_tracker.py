"""Which backup is ours, has it begun, is it over: from Proxmox's own command, block jobs or block nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.contract.block_job import BlockJob
from pvehook.deadline import Deadline
from pvehook.guest.backup_tracker import (
    BackupTracker,
    Progress,
    Seen,
    armed_with,
    progress,
)
from pvehook.guest.qmp import BackupRun, open_qmp
from tests.guest_files import SimulatedGuest

NOT_YET, OVER = Progress("not-yet"), Progress("over")
NO_BACKUP = BackupRun("", "", 0)
YESTERDAY = BackupRun("done", "a", 100)
ACTIVE = BackupRun("active", "b", 200)
DONE = BackupRun("done", "b", 200)
FAILED = BackupRun("error", "b", 200)


def job(device: str = "drive-scsi0", offset: int = 5, speed: int = 0) -> BlockJob:
    return BlockJob(device, "backup", offset, 100, speed)


def follow(*seen: Seen) -> Progress:
    """What is known at the last of these, armed with the first."""
    first, *rest = seen
    tracked, now = armed_with(first), NOT_YET  # type: tuple[object, Progress]
    for each in rest:
        tracked, now = progress(tracked, each)  # type: ignore[arg-type]  # of armed_with
    return now


ACCESS = frozenset({"drive-scsi0-access"})

PLAYS: dict[str, tuple[tuple[Seen, ...], Progress]] = {
    "nothing yet": ((Seen(NO_BACKUP), Seen(NO_BACKUP)), NOT_YET),
    "yesterday's result stays": ((Seen(YESTERDAY), Seen(YESTERDAY)), NOT_YET),
    "the first of this QEMU": ((Seen(NO_BACKUP), Seen(ACTIVE, (job(),))), Progress("running", (job(),))),
    "a new one": ((Seen(YESTERDAY), Seen(ACTIVE, (job(),))), Progress("running", (job(),))),
    "between two disks": ((Seen(YESTERDAY), Seen(ACTIVE)), Progress("running", ())),
    "over before it was seen": ((Seen(YESTERDAY), Seen(DONE)), OVER),
    "over before it was seen, the first of this QEMU": ((Seen(NO_BACKUP), Seen(DONE)), OVER),
    "failed": ((Seen(YESTERDAY), Seen(FAILED)), OVER),
    "seen, then over": ((Seen(YESTERDAY), Seen(ACTIVE, (job(),)), Seen(DONE)), OVER),
    "the same start time and uuid, active again": ((Seen(DONE), Seen(ACTIVE)), Progress("running", ())),
    "QEMU was started anew": ((Seen(YESTERDAY), Seen(NO_BACKUP)), NOT_YET),
    "left by a killed vzdump": ((Seen(ACTIVE, (job(),)), Seen(ACTIVE, (job(offset=9),))), NOT_YET),
    "left by a killed vzdump, and ended": ((Seen(ACTIVE, (job(),)), Seen(DONE)), NOT_YET),
    "an administrator's job": ((Seen(YESTERDAY), Seen(YESTERDAY, (job("mine"),))), NOT_YET),
    "an administrator's job under a drive's name": ((Seen(YESTERDAY), Seen(YESTERDAY, (job(),))), NOT_YET),
    "an administrator's job beside ours": (
        (Seen(YESTERDAY), Seen(ACTIVE, (job("mine"), job()))),
        Progress("running", (job(),)),
    ),
    "a provider": ((Seen(YESTERDAY), Seen(YESTERDAY, (), ACCESS)), Progress("running", ())),
    "a provider's end": ((Seen(YESTERDAY), Seen(YESTERDAY, (), ACCESS), Seen(YESTERDAY)), OVER),
    "a provider that was there": ((Seen(YESTERDAY, (), ACCESS), Seen(YESTERDAY, (), ACCESS)), NOT_YET),
    "stock: nothing yet": ((Seen(None), Seen(None)), NOT_YET),
    "stock: a new job": ((Seen(None), Seen(None, (job(),))), Progress("running", (job(),))),
    "stock: it ends": ((Seen(None), Seen(None, (job(),)), Seen(None)), OVER),
    "stock: a job that was there": ((Seen(None, (job(),)), Seen(None, (job(offset=9),))), NOT_YET),
    "stock: a new job of the same name": (
        (Seen(None, (job(),)), Seen(None, (job(offset=0),))),
        Progress("running", (job(offset=0),)),
    ),
    "stock: a new job of the same name that is further already": (
        (Seen(None, (job(speed=1),)), Seen(None, (job(offset=9),))),
        Progress("running", (job(offset=9),)),
    ),
    "stock: a provider": ((Seen(None), Seen(None, (), ACCESS)), Progress("running", ())),
}


@pytest.mark.parametrize(("seen", "expected"), PLAYS.values(), ids=PLAYS)
def test_what_follows_from_what_qemu_shows(seen: tuple[Seen, ...], expected: Progress) -> None:
    assert follow(*seen) == expected


def polled(guest: SimulatedGuest, tracker: BackupTracker, *commands: str, with_jobs: bool = True) -> Progress:
    """One poll, after these commands of PVE's."""
    deadline = Deadline.after(30)
    with open_qmp(guest.qmp_path, deadline) as qmp:
        for command in commands:
            qmp.execute(command, deadline=deadline)
        return tracker.poll(qmp, deadline, with_jobs=with_jobs)


@pytest.mark.parametrize("with_jobs", [True, False])
def test_a_backup_is_followed_from_its_start_to_its_end(tmp_path: Path, with_jobs: bool) -> None:
    with SimulatedGuest(str(tmp_path), 101) as guest:
        tracker = BackupTracker()
        assert polled(guest, tracker) == NOT_YET
        guest.start_foreign_job("mine")
        assert polled(guest, tracker) == NOT_YET
        now = polled(guest, tracker, "backup", with_jobs=with_jobs)
        assert now.state == "running"
        assert [each.device for each in now.jobs] == (["drive-scsi0"] if with_jobs else [])
        guest.finish_backup()
        assert polled(guest, tracker, with_jobs=with_jobs) == OVER


def test_a_provider_is_seen_by_its_block_nodes(tmp_path: Path) -> None:
    with SimulatedGuest(str(tmp_path), 101) as guest:
        tracker = BackupTracker()
        assert polled(guest, tracker) == NOT_YET
        assert polled(guest, tracker, "backup-access-setup", with_jobs=False) == Progress("running", ())
        assert polled(guest, tracker, "backup-access-teardown") == OVER


def test_a_start_costs_one_command(tmp_path: Path) -> None:
    """The guest is frozen meanwhile."""
    with SimulatedGuest(str(tmp_path), 101) as guest:
        tracker = BackupTracker()
        polled(guest, tracker)
        heard = len(guest.heard)
        polled(guest, tracker, "backup", with_jobs=False)
        assert [each.command for each in guest.heard[heard:]] == ["qmp_capabilities", "backup", "query-backup"]


def test_a_restarted_daemon_goes_on_with_the_backup_that_runs(tmp_path: Path) -> None:
    with SimulatedGuest(str(tmp_path), 101) as guest:
        polled(guest, BackupTracker(), "backup")
        assert polled(guest, BackupTracker(picked_up=True)).state == "running"
        assert polled(guest, BackupTracker()) == NOT_YET
