"""Backup jobs other than Proxmox's `backup`, for `Run.vm_job`: a stock QEMU's, and a backup provider's.

vzdump's worker imports this file, so it needs nothing but the standard library and pvehook.

A stock QEMU has no `backup`, `query-backup` and `backup-cancel`. There a block job for each disk is used instead, under
the name that Proxmox gives it (`drive-scsi0`), so that `query-block-jobs` shows the same.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Final, NamedTuple

from pvehook.host.node import Node
from pvehook.rehearsal.vzdump.commands import CommandError
from pvehook.rehearsal.vzdump.run import Guest, Run
from pvehook.rehearsal.vzdump.vm_job import START_S, VmJob

PROVIDER: Final = "tests.vm_jobs:ProviderJob"
STOCK: Final = "tests.vm_jobs:StockJobs"
STOCK_ONE_WORKER: Final = "tests.vm_jobs:OneWorkerJobs"
STOCK_SLOW_TARGET: Final = "tests.vm_jobs:SlowTargetJobs"

SLOW_TARGET: Final = "slow-target"
"""The throttle group that a slow target is in, so that it can be made fast: `/objects/slow-target`."""

_HELD_BYTES_PER_S = 64 * 1024
"""How fast a stock QEMU's job goes while the archive is held: so slowly that it does not end by itself."""

_CANCEL_S = 10.0
_CANCEL_POLL_S = 0.02


class ProviderJob(VmJob):
    """A backup provider's (a storage plugin of PVE 8.4 and later): QEMU gives access to the disks as they are at the
    start, the plugin reads them, and QEMU runs no backup job."""

    def __init__(self, run: Run, guest: Guest) -> None:
        super().__init__(run, guest)
        self._is_held = False
        self._started_s: float | None = None

    def prepare(self) -> None:
        """Its fleecing images, which are mandatory, would be made here."""

    def start(self, held: bool) -> str:
        target = {"target-id": "provider", "devices": [{"device": "drive-scsi0"}]}
        self.ask("backup-access-setup", patience_s=START_S, **target)
        self._is_held, self._started_s = held, time.monotonic()
        return "provider"

    def let_go(self) -> None:
        self._is_held = False

    def runs(self) -> bool:
        lasts_s = self.guest.archive_s
        if self._started_s is None or self._is_held or time.monotonic() < self._started_s + lasts_s:
            return self._started_s is not None
        self.cancel()
        return False

    def cancel(self) -> None:
        if self._started_s is not None:
            self._started_s = None
            self.ask("backup-access-teardown", **{"target-id": "provider"})


class _Disk(NamedTuple):
    name: str
    """`drive-scsi0`: what Proxmox calls the drive, and its job."""
    source: str
    """What QEMU knows it by."""
    size_bytes: int

    @property
    def target(self) -> str:
        """The target's node name in QEMU."""
        return f"to-{self.name}"


class StockJobs(VmJob):
    """A stock QEMU's block jobs, one a disk, all started in one moment, each to a raw file in the dump directory:
    `vzdump-qemu-VMID.drive-scsi0.raw`, which stays there after a backup that went well."""

    max_workers = 16  # `performance: max-workers`; PVE's own default
    target_writes_per_s = 0
    """How many writes a second the target takes: a busy NAS, say. 0: as many as it can."""

    def __init__(self, run: Run, guest: Guest) -> None:
        super().__init__(run, guest)
        self._disks: tuple[_Disk, ...] = ()

    def prepare(self) -> None:
        """Also ends what a worker that was killed has left behind."""
        self._disks = tuple(disk for device in self.ask("query-block") if (disk := _disk(device)))
        self._clear()
        if self.target_writes_per_s:
            limits = {"iops-write": self.target_writes_per_s}
            self.ask("object-add", **{"qom-type": "throttle-group", "id": SLOW_TARGET, "limits": limits})
        for disk in self._disks:
            path = self._path(disk)
            with open(path, "wb") as file:
                file.truncate(disk.size_bytes)
            to_file: dict[str, object] = {"driver": "file", "filename": path}
            if self.target_writes_per_s:
                to_file = {"driver": "throttle", "throttle-group": SLOW_TARGET, "file": to_file}
            self.ask("blockdev-add", driver="raw", **{"node-name": disk.target}, file=to_file)

    def start(self, held: bool) -> str:
        actions = []
        for disk in self._disks:
            speed = _HELD_BYTES_PER_S if held else self._bytes_per_s(disk)
            job = {"job-id": disk.name, "device": disk.source, "target": disk.target, "sync": "full", "speed": speed}
            # It stays to be seen after its end, or nobody could tell how it ended.
            job = {**job, "auto-dismiss": False, "x-perf": {"max-workers": self.max_workers}}
            actions.append({"type": "blockdev-backup", "data": job})
        self.ask("transaction", patience_s=START_S, actions=actions)
        return " ".join(disk.name for disk in self._disks)

    def let_go(self) -> None:
        for disk in self._disks:
            with contextlib.suppress(CommandError):  # it may have ended, whatever was wanted
                self.ask("block-job-set-speed", device=disk.name, speed=self._bytes_per_s(disk))

    def runs(self) -> bool:
        jobs = self._jobs()
        if any(job["status"] != "concluded" for job in jobs):
            return True
        self._clear()
        for job in jobs:
            if "error" in job:
                raise CommandError(f"job '{job['id']}' failed - {job['error']}")
        return False

    def cancel(self) -> None:
        """The files go with it."""
        self._clear()
        for disk in self._disks:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(disk))

    def _clear(self) -> None:
        """No jobs of these names and no targets any more."""
        until_s = time.monotonic() + _CANCEL_S
        while running := [job for job in self._jobs() if job["status"] != "concluded"]:
            if time.monotonic() > until_s:
                raise CommandError(f"job '{running[0]['id']}' still there {_CANCEL_S:g} s after it was cancelled")
            for job in running:
                with contextlib.suppress(CommandError):  # it ends in this moment, or is about to
                    self.ask("block-job-cancel", device=job["id"], force=True)
            time.sleep(_CANCEL_POLL_S)
        for job in self._jobs():
            self.ask("job-dismiss", id=job["id"])
        targets = {disk.target for disk in self._disks}
        for known in self.ask("query-named-block-nodes", flat=True):
            if known["node-name"] in targets:
                self.ask("blockdev-del", **{"node-name": known["node-name"]})
        with contextlib.suppress(CommandError):  # there is none, unless the target was to be slow
            self.ask("object-del", id=SLOW_TARGET)

    def _jobs(self) -> list[dict[str, Any]]:
        names = {disk.name for disk in self._disks}
        return [job for job in self.ask("query-jobs") if job["id"] in names]

    def _bytes_per_s(self, disk: _Disk) -> int:
        """0 is as fast as it goes."""
        lasts_s = self.guest.archive_s
        return int(disk.size_bytes / lasts_s) if lasts_s > 0 else 0

    def _path(self, disk: _Disk) -> str:
        return Node(self.run.root).path(f"{self.run.dumpdir}/vzdump-qemu-{self.guest.vmid}.{disk.name}.raw")


class OneWorkerJobs(StockJobs):
    max_workers = 1


class SlowTargetJobs(OneWorkerJobs):
    """The background copy with its one worker has always one write waiting: a guest's write takes 2 s."""

    target_writes_per_s = 1


def _disk(device: dict[str, Any]) -> _Disk | None:
    """The disk of one entry of `query-block`: with `-drive` it has a name there, with `-blockdev` only a `qdev`."""
    inserted = device.get("inserted")
    if inserted is None or inserted["ro"]:
        return None
    qdev = device.get("qdev", "").removeprefix("/machine/peripheral/").partition("/")[0]
    name = device["device"] or f"drive-{qdev}"
    if not name.startswith("drive-") or not qdev:
        return None  # not one of a VM's configured disks
    return _Disk(name, device["device"] or inserted["node-name"], inserted["image"]["virtual-size"])
