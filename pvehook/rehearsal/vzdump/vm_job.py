"""The backup job inside the VM, as vzdump starts, watches and cancels it over QMP.

Proxmox's QEMU has `backup`, `query-backup` and `backup-cancel`. A stock QEMU has not; there a block job for each disk
is used instead, under the name that Proxmox gives it (`drive-scsi0`), so that `query-block-jobs` shows the same.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, NamedTuple, Protocol

from pvehook.host.node import Node
from pvehook.rehearsal.vzdump import monitor
from pvehook.rehearsal.vzdump.commands import CommandError
from pvehook.rehearsal.vzdump.monitor import MonitorError
from pvehook.rehearsal.vzdump.run import Run

_START_S = 30.0
_START_AT_PBS_S = 125.0
"""PVE's patience for `backup`, the longer one because QEMU connects to the backup server first."""

SLOW_TARGET = "slow-target"
"""The throttle group that a slow target is in, so that it can be made fast: `/objects/slow-target`."""

_HELD_BYTES_PER_S = 64 * 1024
"""How fast a stock QEMU's job goes while the archive is held: so slowly that it does not end by itself."""

_CANCEL_S = 10.0
_CANCEL_POLL_S = 0.02


class VmJob(Protocol):
    """One guest's backup job. Every method raises CommandError."""

    def prepare(self) -> None:
        """All that can be done before the guest is frozen."""

    def start(self, held: bool) -> str:
        """Start it, and return its name for the log. A `held` one does not come to its end before `let_go`."""

    def let_go(self) -> None:
        """It may end now."""

    def runs(self) -> bool:
        """Whether it still does; CommandError if it has failed or was cancelled."""

    def cancel(self) -> None:
        """End it, if there is one."""


def vm_job(run: Run, vmid: int, lasts_s: float) -> VmJob:
    """The kind of job that this VM's QEMU can do. Raises CommandError."""
    node = Node(run.root)
    if run.to_provider:
        return ProviderJob(node, vmid, lasts_s)
    try:
        monitor.ask(node, vmid, "query-proxmox-support")
    except MonitorError as error:
        if error.kind == "CommandNotFound":
            return StockJobs(node, vmid, lasts_s, run)
    # also when there was no answer: the question is PVE's own
    return ProxmoxJob(node, vmid, _START_AT_PBS_S if run.to_pbs else _START_S)


class ProxmoxJob:
    """Proxmox's `backup`."""

    def __init__(self, node: Node, vmid: int, patience_s: float) -> None:
        self._node = node
        self._vmid = vmid
        self._patience_s = patience_s

    def prepare(self) -> None:
        pass  # fleecing images would be made here

    def start(self, held: bool) -> str:
        """How long it lasts is the VM's affair, held or not."""
        arguments = {"backup-file": "/dev/fdname/backup", "speed": 0, "devlist": "drive-scsi0"}
        answer = _ask(self._node, self._vmid, "backup", patience_s=self._patience_s, **arguments)
        return str(answer.get("UUID", "")) if isinstance(answer, dict) else ""

    def let_go(self) -> None:
        pass

    def runs(self) -> bool:
        status = _ask(self._node, self._vmid, "query-backup")
        if status.get("status") == "error":
            raise CommandError(status.get("errmsg", "unknown error"))
        return bool(status.get("status") == "active")

    def cancel(self) -> None:
        _ask(self._node, self._vmid, "backup-cancel")


class ProviderJob:
    """A backup provider's: QEMU gives access to the disks as they are at the start, and the plugin reads them."""

    def __init__(self, node: Node, vmid: int, lasts_s: float) -> None:
        self._node = node
        self._vmid = vmid
        self._lasts_s = lasts_s
        self._is_held = False
        self._started_s: float | None = None

    def prepare(self) -> None:
        """Its fleecing images, which are mandatory, would be made here."""

    def start(self, held: bool) -> str:
        """See VmJob."""
        target = {"target-id": "provider", "devices": [{"device": "drive-scsi0"}]}
        _ask(self._node, self._vmid, "backup-access-setup", patience_s=_START_S, **target)
        self._is_held, self._started_s = held, time.monotonic()
        return "provider"

    def let_go(self) -> None:
        """See VmJob."""
        self._is_held = False

    def runs(self) -> bool:
        """See VmJob."""
        if self._started_s is None or self._is_held or time.monotonic() < self._started_s + self._lasts_s:
            return self._started_s is not None
        self.cancel()
        return False

    def cancel(self) -> None:
        """See VmJob."""
        if self._started_s is not None:
            self._started_s = None
            _ask(self._node, self._vmid, "backup-access-teardown", **{"target-id": "provider"})


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


class StockJobs:
    """A stock QEMU's block jobs, one a disk, all started in one moment, each to a raw file in the dump directory:
    `vzdump-qemu-VMID.drive-scsi0.raw`, which stays there after a backup that went well."""

    def __init__(self, node: Node, vmid: int, lasts_s: float, run: Run) -> None:
        self._node = node
        self._vmid = vmid
        self._dumpdir = run.dumpdir
        self._lasts_s = lasts_s
        self._max_workers = run.max_workers
        self._target_writes_per_s = run.target_writes_per_s
        self._disks: tuple[_Disk, ...] = ()

    def prepare(self) -> None:
        """Also ends what a worker that was killed has left behind."""
        self._disks = tuple(disk for device in self._ask("query-block") if (disk := _disk(device)))
        self._clear()
        if self._target_writes_per_s:
            limits = {"iops-write": self._target_writes_per_s}
            self._ask("object-add", **{"qom-type": "throttle-group", "id": SLOW_TARGET, "limits": limits})
        for disk in self._disks:
            path = self._path(disk)
            with open(path, "wb") as file:
                file.truncate(disk.size_bytes)
            to_file: dict[str, object] = {"driver": "file", "filename": path}
            if self._target_writes_per_s:
                to_file = {"driver": "throttle", "throttle-group": SLOW_TARGET, "file": to_file}
            self._ask("blockdev-add", driver="raw", **{"node-name": disk.target}, file=to_file)

    def start(self, held: bool) -> str:
        actions = []
        for disk in self._disks:
            speed = _HELD_BYTES_PER_S if held else self._bytes_per_s(disk)
            job = {"job-id": disk.name, "device": disk.source, "target": disk.target, "sync": "full", "speed": speed}
            # It stays to be seen after its end, or nobody could tell how it ended.
            job = {**job, "auto-dismiss": False, "x-perf": {"max-workers": self._max_workers}}
            actions.append({"type": "blockdev-backup", "data": job})
        self._ask("transaction", patience_s=_START_S, actions=actions)
        return " ".join(disk.name for disk in self._disks)

    def let_go(self) -> None:
        for disk in self._disks:
            with contextlib.suppress(CommandError):  # it may have ended, whatever was wanted
                self._ask("block-job-set-speed", device=disk.name, speed=self._bytes_per_s(disk))

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
                    self._ask("block-job-cancel", device=job["id"], force=True)
            time.sleep(_CANCEL_POLL_S)
        for job in self._jobs():
            self._ask("job-dismiss", id=job["id"])
        targets = {disk.target for disk in self._disks}
        for known in self._ask("query-named-block-nodes", flat=True):
            if known["node-name"] in targets:
                self._ask("blockdev-del", **{"node-name": known["node-name"]})
        with contextlib.suppress(CommandError):  # there is none, unless the target was to be slow
            self._ask("object-del", id=SLOW_TARGET)

    def _jobs(self) -> list[dict[str, Any]]:
        names = {disk.name for disk in self._disks}
        return [job for job in self._ask("query-jobs") if job["id"] in names]

    def _bytes_per_s(self, disk: _Disk) -> int:
        """0 is as fast as it goes."""
        return int(disk.size_bytes / self._lasts_s) if self._lasts_s > 0 else 0

    def _path(self, disk: _Disk) -> str:
        return self._node.path(f"{self._dumpdir}/vzdump-qemu-{self._vmid}.{disk.name}.raw")

    def _ask(self, command: str, **arguments: Any) -> Any:
        return _ask(self._node, self._vmid, command, **arguments)


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


def _ask(node: Node, vmid: int, command: str, **arguments: Any) -> Any:
    try:
        return monitor.ask(node, vmid, command, **arguments)
    except MonitorError as error:
        raise CommandError(str(error)) from error
