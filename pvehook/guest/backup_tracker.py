"""Which of the backups that QEMU shows is the one of this run: has it begun, is it over?

    what says so, best first                                       begun when, since `arm`,
    query-backup             Proxmox's own command                 status, start time or uuid has changed
    query-block-jobs         where QEMU has no such command        a new job of type `backup` is there
    query-named-block-nodes  a backup provider's (PVE 8.4 and      a new `snapshot-access` node is there
                             later) is in neither of them

    not-yet   nothing has changed. A backup of somebody else may run: one that a killed vzdump left behind, an
              administrator's `blockdev-backup`
    running   ours, with its block jobs (none between two disks, and none with a backup provider)
    over      ours has begun and is not there any more

query-backup keeps the result of the last backup, so one that is over before the first poll is still seen. A block job
of type `backup` has a `copy-before-write` node too, whoever started it; `snapshot-access` is made for fleecing and for
providers only (facts/qemu.md), which is why a foreign job is not taken for a provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from pvehook.contract.block_job import BlockJob
from pvehook.deadline import Deadline
from pvehook.guest.qmp import BackupRun, QmpConnection

DRIVE_PREFIX = "drive-"
"""Proxmox names a backup's block jobs after the VM's drives: `drive-scsi0`, `drive-tpmstate0-backup`."""


class Progress(NamedTuple):
    state: Literal["not-yet", "running", "over"]
    jobs: tuple[BlockJob, ...] = ()


class Seen(NamedTuple):
    run: BackupRun | None
    """None: this QEMU has no `query-backup`."""
    jobs: tuple[BlockJob, ...] = ()
    """Of type `backup`."""
    access_nodes: frozenset[str] | None = frozenset()
    """None: not read, since it was clear without them."""


class Tracked(NamedTuple):
    """What is known of the backups of one guest: what was there before ours, and whether ours was seen."""

    run: BackupRun | None = None
    foreign_jobs: Mapping[str, BlockJob] = MappingProxyType({})
    """By device, as they were seen last; see `_may_be`."""
    access_nodes: frozenset[str] = frozenset()
    begun: bool = False


def armed_with(seen: Seen) -> Tracked:
    """Whatever is there now is not ours."""
    return Tracked(seen.run, {job.device: job for job in seen.jobs}, seen.access_nodes or frozenset())


def progress(tracked: Tracked, seen: Seen) -> tuple[Tracked, Progress]:
    before = tracked.foreign_jobs
    foreign = {job.device: job for job in seen.jobs if job.device in before and _may_be(before[job.device], job)}
    ours = tuple(job for job in seen.jobs if job.device not in foreign)
    has_provider, nodes = False, tracked.access_nodes
    if seen.access_nodes is not None:
        has_provider = bool(seen.access_nodes - nodes)
        nodes &= seen.access_nodes  # one that has gone may come again, and is another one then
    if seen.run is None:
        is_begun = is_running = bool(ours) or has_provider
    else:
        has_changed = _has_changed(tracked.run, seen.run)
        is_running = (has_changed and seen.run.is_active) or has_provider
        is_begun = has_changed or is_running
        ours = tuple(job for job in ours if job.device.startswith(DRIVE_PREFIX))
    tracked = Tracked(tracked.run, foreign, nodes, tracked.begun or is_begun)
    if is_running:
        return tracked, Progress("running", ours)
    return tracked, Progress("over" if tracked.begun else "not-yet")


def _may_be(before: BlockJob, now: BlockJob) -> bool:
    """Whether a job may be the one that had its name before. One that is less far is another one, and so is one of
    another speed: the offset alone does not tell a quick new job from a slow old one."""
    return now.offset_bytes >= before.offset_bytes and now.speed_bytes_per_s == before.speed_bytes_per_s


def _has_changed(before: BackupRun | None, now: BackupRun) -> bool:
    if before is None:  # a restarted daemon's: one that is over need not have been ours
        return now.is_active
    if (now.uuid, now.start_s) != (before.uuid, before.start_s):
        return now.status != ""
    return now.is_active and not before.is_active


class BackupTracker:
    """One guest's. Used by one thread; the methods raise GuestError."""

    def __init__(self, *, picked_up: bool = False) -> None:
        """`picked_up`: the daemon was restarted during the backup, so what runs at the first poll is ours."""
        self._tracked = Tracked() if picked_up else None

    def arm(self, qmp: QmpConnection, deadline: Deadline) -> None:
        """The backup is about to begin: what is there now is not it."""
        run = qmp.query_backup(deadline)
        self._tracked = armed_with(Seen(run, qmp.query_backup_jobs(deadline), qmp.query_access_nodes(deadline)))

    def poll(self, qmp: QmpConnection, deadline: Deadline, *, with_jobs: bool = True) -> Progress:
        """How far the backup is. The first poll arms, where that was not done.
        Without `with_jobs` it takes as few commands as possible, for a guest that is frozen and a PVE that may wait for
        the monitor: one where Proxmox's backup has begun. `running` then comes without its jobs."""
        if self._tracked is None:
            self.arm(qmp, deadline)
        assert self._tracked is not None  # noqa: S101  (armed)
        run, nodes = qmp.query_backup(deadline), None
        with_jobs = with_jobs or run is None
        jobs = qmp.query_backup_jobs(deadline) if with_jobs else ()
        is_clear = _has_changed(self._tracked.run, run) if run is not None else bool(jobs)
        if not is_clear:
            nodes = qmp.query_access_nodes(deadline)
        tracked, now = progress(self._tracked, Seen(run, jobs, nodes))
        # Jobs that were not read have not gone.
        self._tracked = tracked if with_jobs else tracked._replace(foreign_jobs=self._tracked.foreign_jobs)
        return now

    def jobs(self, qmp: QmpConnection, deadline: Deadline) -> tuple[BlockJob, ...]:
        """Of a backup that runs, where `poll` came without them."""
        foreign = self._tracked.foreign_jobs if self._tracked is not None else {}
        jobs = qmp.query_backup_jobs(deadline)
        return tuple(each for each in jobs if each.device.startswith(DRIVE_PREFIX) and each.device not in foreign)
