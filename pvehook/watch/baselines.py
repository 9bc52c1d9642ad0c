"""How the node's VMs are before their backup: histograms are armed when the run starts, read when a VM's turn comes.

    job-start      every running VM: armed, counters read         one short connection each, one VM after the other
    its turn       what was counted in between is its baseline    backup_sampler.py goes on with the same histograms
    job-end        VMs whose turn did not come: histograms removed

The first VM of a run has hardly any time before it. Then the baselines of its last backups count, and where there are
none, the mean since the VM was started, which has no percentiles.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from pvehook.contract.latency import REQUEST_KINDS, DiskCounters, RequestCounters
from pvehook.contract.measured import Absent, Measured
from pvehook.deadline import Deadline
from pvehook.errors import GuestError
from pvehook.guest.block_stats import arm_histograms, disarm_histograms, read_disks
from pvehook.guest.qmp import open_qmp
from pvehook.host.node import Node
from pvehook.host.processes import running_vms
from pvehook.records.run_state import RunState
from pvehook.records.stall_record import Baseline
from pvehook.rules.latency import NS_PER_MS, disks_between, latency_of, sum_of
from pvehook.watch.disk_sampler import went_back

LEAST_S = 20.0
"""A shorter time before its backup says little about a guest."""
ANSWER_S = 1.0
MOST_VMS = 200


class Baselines:
    """The running VMs of one run's node. `begin` it with the run, `end` it with the run."""

    def __init__(self, node: Node, run: RunState) -> None:
        self._node = node
        self._run = run
        self._before: dict[int, tuple[float, tuple[DiskCounters, ...]]] = {}
        """When each VM was armed, on the monotonic clock, and its counters then."""
        self._waiting = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Returns at once; one VM after the other is armed by a thread."""
        if self._thread is None:
            thread = threading.Thread(target=self._arm_all, name="baselines", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread could be started: there are no baselines
                thread.start()
                self._thread = thread

    def taken(self, vmid: int) -> None:
        """Its turn has come: what becomes of its histograms is decided there."""
        with self._waiting:
            self._run.waiting = [each for each in self._run.waiting if each != vmid]

    def of(self, vmid: int, disks: Sequence[DiskCounters], past: Sequence[Baseline]) -> Measured[Baseline]:
        """How this VM was before `disks`, the first reading of its backup, was made. `past` are its last backups'."""
        if vmid in self._before:
            armed_s, before = self._before[vmid]
            lasted_s = time.monotonic() - armed_s
            completed = disks_between(before, disks)
            if lasted_s >= LEAST_S and any(each.operations for each in completed.values()):
                return _baseline(lasted_s, "before", completed)
        if past:
            return sorted(past, key=lambda each: each.write.mean_ms or 0.0)[len(past) // 2]._replace(source="history")
        since_start: dict[str, RequestCounters] = {
            kind: sum_of(getattr(disk, kind)._replace(histogram=None) for disk in disks) for kind in REQUEST_KINDS
        }
        if not any(each.operations for each in since_start.values()):
            return Absent("its disks have not been used since it was started")
        return _baseline(0.0, "since-start", since_start)

    def requests_before(self, vmid: int, disks: Sequence[DiskCounters]) -> tuple[int, float, float] | None:
        """How many requests this VM has made since it was armed, the milliseconds that they took together, and for how
        many seconds it has been armed. None: it was not, or it was started anew since."""
        if vmid not in self._before or went_back(self._before[vmid][1], disks):
            return None
        armed_s, before = self._before[vmid]
        completed = disks_between(before, disks).values()
        total_ms = sum(each.total_time_ns for each in completed) / NS_PER_MS
        return sum(each.operations for each in completed), total_ms, time.monotonic() - armed_s

    def end(self) -> None:
        """Removes what is armed on VMs whose turn did not come; in a thread, no phase waits for it."""
        self._ended.set()
        if self._thread is not None or self._run.waiting:
            with contextlib.suppress(RuntimeError):  # as for a VM that hangs: the next backup takes them for its own
                threading.Thread(target=self._disarm_all, name="baselines-end", daemon=True).start()

    def _arm_all(self) -> None:
        for vmid in list(running_vms(self._node))[:MOST_VMS]:
            if self._ended.is_set():
                return
            if self._run.guest is not None and self._run.guest.vmid == vmid:
                continue  # its turn has come already
            deadline = Deadline.after(ANSWER_S)
            # A VM that does not answer has no baseline.
            with contextlib.suppress(GuestError), open_qmp(self._path(vmid), deadline) as qmp:
                disks = read_disks(qmp, deadline)
                arm_histograms(qmp, disks, deadline)
                known = [disk.qdev for disk in disks]
                self._before[vmid] = time.monotonic(), read_disks(qmp, deadline, known)
                with self._waiting:
                    self._run.waiting = [*self._run.waiting, vmid]

    def _disarm_all(self) -> None:
        if self._thread is not None:
            self._thread.join()
        for vmid in self._run.waiting:
            deadline = Deadline.after(ANSWER_S)
            # One that is gone, or hangs: its histograms cost nothing, and the next backup takes them for its own.
            with contextlib.suppress(GuestError), open_qmp(self._path(vmid), deadline) as qmp:
                known = [disk.qdev for disk in read_disks(qmp, deadline)]
                disarm_histograms(qmp, known, deadline)

    def _path(self, vmid: int) -> str:
        return self._node.path(f"/var/run/qemu-server/{vmid}.qmp")


def _baseline(
    lasted_s: float, source: Literal["before", "since-start"], completed: Mapping[str, RequestCounters]
) -> Baseline:
    return Baseline(
        lasted_s,
        source,
        read=latency_of(completed["read"]),
        write=latency_of(completed["write"]),
        flush=latency_of(completed["flush"]),
        p99_ms=latency_of(sum_of(completed.values())).p99_ms,
    )
