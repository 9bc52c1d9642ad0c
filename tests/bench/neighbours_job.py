"""Backup jobs of the benches with several guests, as `Run.vm_job` names them. Held, nobody polls them: what comes to
the monitor then is not vzdump's.

vzdump's worker imports this file, so it needs nothing but the standard library and pvehook.
"""

from __future__ import annotations

from typing import Final

from pvehook.rehearsal.vzdump.vm_job import START_S, VmJob

JOB: Final = "tests.bench.neighbours_job:NowhereJob"
PROXMOX_JOB: Final = "tests.bench.neighbours_job:HeldJob"
DEVICE: Final = "drive-virtio0"
"""The disk, and so the job, as Proxmox names them."""
WORKERS: Final = 16
HELD_BYTES_PER_S: Final = 64 * 1024


class HeldJob(VmJob):
    """Proxmox's own."""

    is_held = False

    def start(self, held: bool) -> str:
        self.is_held = held
        return super().start(held)

    def let_go(self) -> None:
        self.is_held = False

    def runs(self) -> bool:
        return self.is_held or super().runs()


class NowhereJob(HeldJob):
    """QEMU's own, one disk's, with 16 workers, to nowhere. A guest whose `archive_s` is set has its backup at the fixed
    limit with which that takes so long."""

    def prepare(self) -> None:
        """QEMU was started with its target."""

    def start(self, held: bool) -> str:
        disk = next(each for each in self.ask("query-block") if "virtio0" in each.get("qdev", ""))
        size_bytes, lasts_s = disk["inserted"]["image"]["virtual-size"], self.guest.archive_s
        self.is_held = held
        speed = HELD_BYTES_PER_S if held else round(size_bytes / lasts_s) if lasts_s else 0
        job = {"job-id": DEVICE, "device": DEVICE, "target": "target0", "sync": "full", "speed": speed}
        self.ask("blockdev-backup", patience_s=START_S, **job, **{"x-perf": {"max-workers": WORKERS}})
        return DEVICE

    def let_go(self) -> None:
        self.is_held = False
        self.ask("block-job-set-speed", device=DEVICE, speed=0)

    def runs(self) -> bool:
        return self.is_held or bool(self.ask("query-block-jobs"))

    def cancel(self) -> None:
        self.ask("block-job-cancel", device=DEVICE, force=True)
