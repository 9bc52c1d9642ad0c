"""A node in a directory with block devices, simulated guests, and the loop that watches them, in this process.

Which guests run is told by the test; all else the loop finds out as on a node.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from pvehook.contract.measured import Measured
from pvehook.host import block
from pvehook.host.clock import SystemClock
from pvehook.host.processes import ProcessId
from pvehook.host.timely_files import Readers
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.records.journal import journal_log
from pvehook.records.run_state import RunState
from pvehook.records.stall_record import Baseline
from pvehook.rules.patients import PatientSample
from pvehook.settings import GovernorConfig
from pvehook.watch import patients
from pvehook.watch.node_watch import NodeWatch
from tests.guest_files import SimulatedGuest
from tests.host.conftest import BlockTree

WITHIN_S = 20.0
STORAGES = """\
dir: local
\tpath /var/lib/vz

lvmthin: fast
\tvgname fast
\tthinpool data

lvmthin: other
\tvgname other
\tthinpool data

nfs: nas
\tserver nas
\tpath /mnt/pve/nas
"""


class FakeGovernor:
    """Notes what it is told, and wants a look at everybody ten times a second."""

    is_slowed = False

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.steers: int | None = None
        self.known: dict[int, Measured[Baseline]] = {}
        self.ever_known: list[int] = []
        self.samples: list[PatientSample] = []
        self.wants_backup_sample = False

    def know_patient(self, vmid: int, name: str | None, before: Measured[Baseline], _requests: object) -> None:
        with self.changed:
            self.known[vmid] = before
            self.ever_known.append(vmid)
            self.changed.notify_all()

    def forget_patient(self, vmid: int) -> None:
        with self.changed:
            self.known.pop(vmid, None)
            self.changed.notify_all()

    def take(self, sample: PatientSample) -> bool:
        with self.changed:
            assert sample.vmid in self.known
            self.samples.append(sample)
            self.changed.notify_all()
        return self.wants_backup_sample

    def look_every_s(self, _vmid: int) -> float:
        return 0.1

    def standing(self, vmid: int) -> tuple[float, bool] | None:
        return (15.0, False) if vmid in self.known else None

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, WITHIN_S)

    def wait_for_sample(self, vmid: int, more: int = 1) -> PatientSample:
        """The `more`th one from now on."""
        with self.changed:
            seen = len(self.samples)
        self.wait_until(lambda: len([each for each in self.samples[seen:] if each.vmid == vmid]) >= more)
        return [each for each in self.samples[seen:] if each.vmid == vmid][more - 1]

    def write_is_seen(self, vmid: int, operations: int) -> Callable[[], bool]:
        return lambda: any(
            each.vmid == vmid and each.completed["write"].operations == operations for each in self.samples
        )


class WatchedNode(BlockTree):
    """`with node.watched() as watch: ...`."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__(root)
        patch.setattr(block, "device_of", self.device_of)
        patch.setattr(patients, "running_vms", lambda _: dict(self.vms))
        patch.setattr(patients, "LOOK_EVERY_S", 0.05)
        self.vms: dict[int, ProcessId] = {}
        self.governor = FakeGovernor()
        self.run = RunState(ProcessId(1, 1), "UPID:", 1.0, storeid="local", dumpdir="/var/lib/vz/dump", job_id="j")
        self.woken = threading.Event()
        self.stack = ExitStack()
        self._running: dict[int, ExitStack] = {}
        for directory in ("var/run/qemu-server", "run/pvehook", "etc/pve/qemu-server", "etc/pve/lxc"):
            os.makedirs(root / directory)
        os.symlink("/proc/net", root / "proc/net")  # who waits at a socket
        self.write("/etc/pve/storage.cfg", STORAGES)
        for minor, name in ((0, "sda"), (16, "sdb")):
            self.device(name, (8, minor), under=f"pci0000:00/{name}", scheduler="none")
        self.mount("/", "ext4", "/dev/sda")
        self.place("/var/lib/vz/images", (8, 0))
        self.place("/var/lib/vz", (8, 0))
        self._volumes = 0

    def logical_volume(self, group: str, name: str, disk: str) -> str:
        """A volume of that name, on that disk; the device's name."""
        device = f"dm-{self._volumes}"
        home = self.device(device, (253, self._volumes), slaves=[disk])
        self.place(f"/dev/{group}/{name}", (253, self._volumes))
        self._volumes += 1
        (home / "stat").write_text(" ".join(17 * ["0"]) + "\n")
        return device

    def count(self, device: str, *, writes: int, took_ms: int, in_flight: int = 0) -> None:
        """What the device has completed since it was made."""
        figures = [0] * 17
        figures[4], figures[7], figures[8] = writes, took_ms, in_flight
        path = self.root / f"sys/class/block/{device}/stat"
        new = path.resolve().with_suffix(".new")
        new.write_text(" ".join(map(str, figures)) + "\n")
        os.replace(new, path.resolve())

    def vm(self, vmid: int, config: str = "", *, pid: int = 0, **options: Any) -> SimulatedGuest:
        """A VM that runs from now on; its disk is in a directory on sda, unless `config` says otherwise."""
        volume = f"scsi0: local:{vmid}/vm-{vmid}-disk-0.qcow2\n"
        self.write(f"/etc/pve/qemu-server/{vmid}.conf", config or f"name: vm{vmid}\n{volume}")
        running = self._running[vmid] = self.stack.enter_context(ExitStack())
        sockets = str(self.root / "var/run/qemu-server")
        guest = running.enter_context(SimulatedGuest(sockets, vmid, has_agent=False, **options))
        self.vms[vmid] = ProcessId(pid or 1000 + vmid, 1)
        return guest

    def stop_vm(self, vmid: int) -> None:
        """As `qm shutdown`, or a migration to another node without the configuration's part."""
        self.vms.pop(vmid)
        self._running.pop(vmid).close()

    @contextmanager
    def watched(self) -> Iterator[NodeWatch]:
        """The loop, until the end of the run or the block. At its end nothing may have gone wrong."""
        with open(self.root / "stderr", "a", encoding="utf-8") as stderr:
            log = journal_log(str(self.root / "no-journal"), stderr=stderr)
            context = Context(self.node, SystemClock(), Readers(), log)
            watch = NodeWatch(context, self.run, lambda _: None, lambda: None)
            try:
                watch.begin()
                yield watch
            finally:
                watch.end()
                self.stack.close()
        assert "[fault" not in self.logged()

    def logged(self) -> str:
        """All events."""
        return (self.root / "stderr").read_text("utf-8")

    def backup_begins(self, watch: NodeWatch, vmid: int = 101, vmtype: str = "qemu", **rules: Any) -> FakeGovernor:
        """This guest's backup; what a governor is told of the others."""
        guest = GuestRecord(vmid, "snapshot", vmtype, None, 1.0)
        if vmtype == "qemu" and not (self.root / f"etc/pve/qemu-server/{vmid}.conf").exists():
            self.write(f"/etc/pve/qemu-server/{vmid}.conf", f"scsi0: local:{vmid}/vm-{vmid}-disk-0.qcow2\n")
        governor = self.governor = FakeGovernor()
        watch.load_begins(guest, cast(Any, governor), self.woken.set, GovernorConfig(**rules))
        return governor
