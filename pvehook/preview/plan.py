"""What vzdump itself would do with a job and a guest, from what its configuration says. Pure.

Proxmox starts no job whose options contradict each other or whose pool is not there, fails a whole job before its first
guest when the script or the storage is unfit (PVE/VZDump.pm `new`), and one guest when it is locked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from pvehook.contract.guest_config import GuestConfig, boolean
from pvehook.contract.section_config import Section, find_section
from pvehook.contract.storage_config import can_snapshot_container
from pvehook.contract.vzdump_config import MODE_DEFAULT
from pvehook.host.backup_jobs import Job, Pools
from pvehook.host.node import HOOK
from pvehook.rules.governor_policy import workers_of


class Guest(NamedTuple):
    vmid: int
    vmtype: str
    running: bool
    config: GuestConfig


def why_job_does_not_start(job: Job, pools: Pools) -> str | None:
    """Why Proxmox ends it before any hook is called (`verify_vzdump_parameters`); None: nothing speaks against it."""
    options = job.options
    for other in ("all", "exclude", "pool"):
        if "vmid" in options and other in options and boolean(options[other]) is not False:
            return f"option '{other}' conflicts with option 'vmid'"
    unknown = "pool" in options and options["pool"] not in pools
    return f"pool '{options['pool']}' does not exist" if unknown else None


def why_guest_fails(guest: Guest) -> str | None:
    """Why Proxmox fails this guest's backup; None: nothing that was read speaks against it."""
    if guest.config.lock is None:
        return None
    kind, how = ("VM", "qm") if guest.vmtype == "qemu" else ("CT", "pct")
    return f"{kind} is locked ({guest.config.lock}); if nothing works on it any more: {how} unlock {guest.vmid}"


def mode_of(options: Mapping[str, str], guest: Guest, storages: Sequence[Section]) -> tuple[str, str]:
    """The mode in which vzdump would back the guest up when its turn comes, and why if it may not be the job's."""
    wanted = options.get("mode", MODE_DEFAULT)
    if not guest.running:
        return "stop", ""
    if guest.vmtype != "lxc" or wanted != "snapshot":
        return wanted, ""
    volumes = [volume.volume for volume in guest.config.volumes if volume.backup]
    answers = {
        volume: can_snapshot_container(find_section(storages, volume.partition(":")[0]), volume) for volume in volumes
    }
    if without := [volume for volume, can in answers.items() if can is False]:
        why = f"{', '.join(without)} cannot be snapshotted, so PVE falls back from snapshot to suspend:"
        return "suspend", f"{why} rsync copies the files twice, the second time while the container is suspended"
    if unknown := [volume for volume, can in answers.items() if can is None]:
        what = f"whether {', '.join(unknown)} can be snapshotted"
        return wanted, f"{what} is not known; if not, PVE falls back to suspend"
    return wanted, ""


def notes_on_job(
    job: Job, options: Mapping[str, str], defaults: Mapping[str, str], ignored: Collection[str]
) -> list[str]:
    """What an administrator should know of the job, whichever guest it is about."""
    notes = [f"vzdump ignores this line of /etc/vzdump.conf: {line}" for line in ignored]
    script = options.get("script")
    where = f"line {job.id}" if job.is_cron else f"job {job.id}"
    if script != HOOK and "script" in job.options:
        remedy = "take --script out of it" if job.is_cron else f"pvesh set /cluster/backup/{job.id} --delete script"
        notes.append(f"{where} has a script of its own: {script}; to have pvehook run for it: {remedy}")
    elif script != HOOK:
        notes.append(f"/etc/vzdump.conf has {'script: ' + script if script else 'no script'}; run install.sh")
    elif options.get("ionice") != "8":
        ionice = options.get("ionice", "7")
        notes.append(f"vzdump sets ionice {ionice} first; pvehook sets the idle I/O class at job-start")
    own, default = job.options.get("performance", ""), defaults.get("performance", "")
    if "max-workers" in own and "max-workers" in default and workers_of(own) != workers_of(default):
        notes.append(
            f"max-workers={workers_of(own)} of {where} wins over max-workers={workers_of(default)} of /etc/vzdump.conf"
        )
    if not options.get("dumpdir", "/").startswith("/"):
        notes.append(f"dumpdir {options['dumpdir']} is relative to the directory in which vzdump is started")
    if boolean(options.get("repeat-missed")):
        notes.append(
            "repeat-missed: a run that was missed while the node was off starts when it boots; outside the window it is"
            " refused then, and not made up for"
        )
    return notes
