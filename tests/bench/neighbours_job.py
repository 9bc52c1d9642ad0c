"""The backup job of the bench of neighbours, as `Run.vm_job` names it: QEMU's own, with 16 workers, to nowhere.

vzdump's worker imports this file, so it needs nothing but the standard library and pvehook.
"""

from __future__ import annotations

from typing import Final

from pvehook.rehearsal.vzdump.vm_job import START_S, VmJob

JOB: Final = "tests.bench.neighbours_job:NowhereJob"
DEVICE: Final = "drive-virtio0"
"""The disk, and so the job, as Proxmox names them."""
WORKERS: Final = 16


class NowhereJob(VmJob):
    """One disk's. A guest whose `archive_s` is set has its backup at the fixed limit with which that takes so long."""

    def prepare(self) -> None:
        """QEMU was started with its target."""

    def start(self, held: bool) -> str:
        disk = next(each for each in self.ask("query-block") if "virtio0" in each.get("qdev", ""))
        size_bytes, lasts_s = disk["inserted"]["image"]["virtual-size"], self.guest.archive_s
        speed = round(size_bytes / lasts_s) if lasts_s else 0
        job = {"job-id": DEVICE, "device": DEVICE, "target": "target0", "sync": "full", "speed": speed}
        self.ask("blockdev-backup", patience_s=START_S, **job, **{"x-perf": {"max-workers": WORKERS}})
        return DEVICE

    def runs(self) -> bool:
        return bool(self.ask("query-block-jobs"))

    def cancel(self) -> None:
        self.ask("block-job-cancel", device=DEVICE, force=True)
