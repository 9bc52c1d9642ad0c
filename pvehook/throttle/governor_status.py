"""`pvehook governor status`: how fast the backups that run now are allowed to be, read from QEMU itself."""

from __future__ import annotations

from typing import NamedTuple

from pvehook.contract.block_job import BlockJob
from pvehook.deadline import Deadline
from pvehook.errors import GuestError
from pvehook.guest.qmp import open_qmp
from pvehook.host.node import Node
from pvehook.records import run_state
from pvehook.records.guest_record import GuestRecord
from pvehook.records.guest_summary import guest_title
from pvehook.rescue.speed_record import SpeedRecord, read_record
from pvehook.rules.governor_policy import mode_for
from pvehook.settings import GovernorConfig

ANSWER_S = 2.0


class RunningBackup(NamedTuple):
    """One block job of one guest in backup; without a device none was seen."""

    vmid: int
    text: str
    device: str | None = None
    done_part: float | None = None
    speed_bytes_per_s: int | None = None
    """What QEMU is limited to now; 0 is no limit."""
    throttled: bool = False
    """The governor has set this speed: while the backup starts, or because the guest suffers."""


def running_backups(node: Node, config: GovernorConfig) -> list[RunningBackup]:
    """Of the jobs that the daemon knows, the guests in backup now."""
    guests = [run.guest for run in run_state.load_all(node, tidy=False) if run.guest is not None]
    return [backup for guest in guests for backup in _backups_of(node, guest, config)]


def _backups_of(node: Node, guest: GuestRecord, config: GovernorConfig) -> list[RunningBackup]:
    vmid, title = guest.vmid, guest_title(guest)
    if guest.vmtype == "lxc":
        return [RunningBackup(vmid, f"{title}: a container's backup has no speed that could be set")]
    deadline = Deadline.after(ANSWER_S)
    try:
        with open_qmp(node.path(f"/var/run/qemu-server/{vmid}.qmp"), deadline) as qmp:
            jobs = [job for job in qmp.query_block_jobs(deadline) if job.type == "backup"]
    except GuestError as error:
        return [RunningBackup(vmid, f"{title}: {error}")]
    record = read_record(node, vmid)
    # Without its tags, which only the daemon has read: a rule for one shows in what is done.
    mode = mode_for(config, vmid, guest.name, ())
    running = [_running(vmid, title, job, mode, record) for job in jobs]
    return running or [RunningBackup(vmid, f"{title}: its backup job is not running")]


def _running(vmid: int, title: str, job: BlockJob, mode: str, record: SpeedRecord | None) -> RunningBackup:
    limit = job.speed_bytes_per_s
    throttled = record is not None and limit in record.ours and limit != record.original.get(job.device)
    part = job.offset_bytes / job.length_bytes if job.length_bytes else 0.0
    speed = f"{limit / 1e6:.1f} MB/s at most" if limit else "as fast as it can"
    who = ", throttled by the governor" if throttled else "" if mode == "on" else f" (governor: {mode})"
    text = f"{title}: {job.device} {part:.0%} done, {speed}{who}"
    return RunningBackup(vmid, text, job.device, part, limit, throttled)
