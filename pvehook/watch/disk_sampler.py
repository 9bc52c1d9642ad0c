"""What QEMU reports of one guest's disks while it is backed up: sampled twice a second, judged at the end.

    first sample    the histograms are armed; counters from here on are the backup's
    each sample     what was completed since the last one: stalled seconds, the chart, the governor's input
    at the end      the whole difference becomes percentiles; the histograms stay until the run's end (node_watch.py)

QMP serves one client at a time and vzdump comes by once a second, so each sample is one short connection. Where QEMU
does not answer we wait on, on the same connection: a new one would take a second place in a queue of three. For how
long it was silent is a figure of its own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pvehook.contract.block_job import BlockJob, DiskSample
from pvehook.contract.latency import REQUEST_KINDS, DiskCounters
from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.deadline import Deadline
from pvehook.errors import GuestError, TimedOut, Unreachable
from pvehook.guest.backup_tracker import BackupTracker
from pvehook.guest.block_stats import arm_histograms, read_disks
from pvehook.guest.qmp import QmpConnection, greet, open_qmp
from pvehook.guest.sockets import Connection, connect
from pvehook.records.chart_points import ChartPoints, Piece
from pvehook.rules.latency import disks_between, latency_of, sum_of
from pvehook.rules.stalls import SLOWED_AFTER_S, STALLED_AFTER_S, Count, HypervisorView, count_stall
from pvehook.rules.standstill import still_since

ANSWER_S = 2.0
"""A sample that takes longer, once QEMU has begun to answer, is given up; vzdump may wait behind it."""

SLOW_MONITOR_S = 0.03
"""For greeting and capabilities, which take 1 ms. The first sample is a dozen commands as slow as these."""

TURN_S = 0.5
"""For how long one call waits for its turn; then the caller may have something else to do."""


Act = Callable[[QmpConnection, DiskSample, Deadline], None]
"""What is done on the connection of a sample: the governor's changes of speed."""


class Start(NamedTuple):
    """Where the counting began; it outlives the daemon, so that the next one goes on with the same backup."""

    at_s: float
    """On the node's steady clock."""
    disks: tuple[DiskCounters, ...]
    armed: tuple[str, ...]
    """By us."""
    theirs: tuple[str, ...]
    not_armed: tuple[str, ...]
    vcpus: tuple[int, ...]
    """Their thread ids on the node."""
    qemu: str
    """The running QEMU's version."""


class DiskSampler:
    """One guest's disks. Used by one thread."""

    def __init__(self, path: str, steady_s: Callable[[], float], act: Act | None, start: Start | None) -> None:
        self._path = path
        self._steady_s = steady_s
        self._act = act
        self.start = start
        self._last: tuple[DiskCounters, ...] = start.disks if start else ()
        self._last_s: float | None = None
        self._stalled = Count(STALLED_AFTER_S)
        self._slowed = Count(SLOWED_AFTER_S)
        self.chart = ChartPoints()
        self._samples = 0
        self._silence_s = 0.0
        self._silent_since_s: float | None = None
        self._waiting: Connection | None = None
        self._fault: GuestError | None = None
        self._run_state = "unknown"
        self._tracker = BackupTracker(picked_up=start is not None)
        self.job_seen = False
        """Whether the backup was seen to run: a block job, or a backup provider that reads the disks."""
        self._still_since_s: float | None = None
        self._jobs: dict[str, BlockJob] = {}
        """The backup's, by device, each as it was last seen."""

    @property
    def backup_bytes(self) -> int | None:
        """What the backup's jobs had to read; None: no job was seen."""
        return sum(job.length_bytes for job in self._jobs.values()) if self._jobs else None

    @property
    def still_s(self) -> float:
        """For how long the backup has copied nothing, at the last sample."""
        if self._still_since_s is None or self._last_s is None:
            return 0.0
        return self._last_s - self._still_since_s

    @property
    def is_paused(self) -> bool:
        """Whether the VM was paused when the counting began."""
        return self._run_state == "paused"

    @property
    def waits(self) -> bool:
        """Whether a connection waits for its turn: sample again at once, or vzdump waits behind a silent one."""
        return self._waiting is not None

    def sample(self, turn_s: float = TURN_S, *, pve_comes: bool = False) -> None:
        """Takes one sample, or goes on waiting for its turn. `pve_comes`: the monitor is needed for the verdict and by
        PVE's freeze, so a slow one is left alone; what runs at the first sample after that is our backup."""
        asked_s = time.monotonic()
        qmp: QmpConnection | None = None
        waits_on = False
        try:
            if self._waiting is None:
                self._waiting = connect(self._path)
            qmp = greet(self._waiting, Deadline.after(turn_s))
            if not (pve_comes and time.monotonic() - asked_s >= SLOW_MONITOR_S):
                self._sample_on(qmp, Deadline.after(ANSWER_S))
                self._silence_s = max(self._silence_s, time.monotonic() - (self._silent_since_s or asked_s))
                self._silent_since_s = None
            elif self.start is None:
                self._tracker = BackupTracker(picked_up=True)
        except GuestError as error:
            self._fault = error
            self._silent_since_s = self._silent_since_s or asked_s
            waits_on = qmp is None and isinstance(error, TimedOut)
        finally:
            if not waits_on:
                self._hang_up()

    def _sample_on(self, qmp: QmpConnection, deadline: Deadline) -> None:
        disks = read_disks(qmp, deadline, [disk.qdev for disk in self._last]) if self.start is not None else ()
        # Another QEMU counts anew: vzdump has stopped the VM and started it again.
        if self.start is None or went_back(self._last, disks):
            self.start = self._begin(qmp, deadline)
            self._last, self._last_s, disks = self.start.disks, None, self.start.disks
        progress = self._tracker.poll(qmp, deadline)
        self.job_seen |= progress.state == "running"
        jobs = progress.jobs
        at_s = time.monotonic()
        self._take(at_s, disks, jobs)
        if self._act is not None:
            self._act(qmp, DiskSample(at_s, disks, jobs), deadline)

    def _hang_up(self) -> None:
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None

    def end(self, deadline: Deadline) -> bool:
        """The last sample. False: QEMU did not answer."""
        before = self._samples
        self.sample(deadline.left_s())
        self._hang_up()
        if self._samples > before:
            with contextlib.suppress(GuestError), open_qmp(self._path, deadline) as qmp:
                self._run_state = qmp.query_status(deadline)
        return self._samples > before

    def view(self) -> Measured[HypervisorView]:
        """What was sampled."""
        if self.start is None or not self._samples:
            if isinstance(self._fault, Unreachable) or self._fault is None:
                return Absent(f"no QEMU to ask: {self._fault or 'the backup was over before the first sample'}")
            return Broken(str(self._fault))
        completed = disks_between(self.start.disks, self._last)
        silent_s = time.monotonic() - self._silent_since_s if self._silent_since_s is not None else 0.0
        return HypervisorView(
            read=latency_of(completed["read"]),
            write=latency_of(completed["write"]),
            flush=latency_of(completed["flush"]),
            stalled_s=self._stalled.total_s,
            slowed_s=self._slowed.total_s,
            samples=self._samples,
            silence_ms=max(self._silence_s, silent_s) * 1000,
            run_state=self._run_state,
            their_histograms=self.start.theirs,
            not_armed=self.start.not_armed,
        )

    def _begin(self, qmp: QmpConnection, deadline: Deadline) -> Start:
        before = read_disks(qmp, deadline)
        arming = arm_histograms(qmp, before, deadline)
        version = qmp.query_version(deadline)
        self._run_state = qmp.query_status(deadline)
        return Start(
            at_s=self._steady_s(),
            disks=read_disks(qmp, deadline, [disk.qdev for disk in before]),
            armed=arming.armed,
            theirs=arming.theirs,
            not_armed=tuple(f"{qdev}: {why}" for qdev, why in arming.refused),
            vcpus=qmp.query_cpus_fast(deadline),
            qemu=version,
        )

    def _take(self, at_s: float, disks: tuple[DiskCounters, ...], jobs: Sequence[BlockJob]) -> None:
        assert self.start is not None  # noqa: S101  (made before the first sample is taken)
        since_s = self._last_s if self._last_s is not None else at_s
        completed = disks_between(self._last, disks)
        stalled_before_s = self._stalled.total_s
        copied = self._progress(jobs)
        self._still_since_s = still_since(self._still_since_s, at_s, jobs, copied)
        if self._last_s is None:  # what went on while no daemon sampled cannot be put to a time
            copied, completed = 0, {}
        self._stalled = count_stall(self._stalled, at_s, since_s, completed)
        self._slowed = count_stall(self._slowed, at_s, since_s, completed)
        stalled_s = self._stalled.total_s - stalled_before_s
        chart_s = self._steady_s() - self.start.at_s
        self.chart.add(Piece(chart_s, at_s - since_s, sum_of(completed.values()), stalled_s, copied))
        self._last, self._last_s = disks, at_s
        self._samples += 1

    def _progress(self, jobs: Sequence[BlockJob]) -> int:
        """How many bytes the backup's jobs went on since the last sample."""
        before = {device: job.offset_bytes for device, job in self._jobs.items()}
        self._jobs |= {job.device: job for job in jobs}
        return sum(max(job.offset_bytes - before.get(job.device, 0), 0) for job in jobs)


def went_back(before: Sequence[DiskCounters], after: Sequence[DiskCounters]) -> bool:
    """Whether any counter is less than it was."""
    earlier = {disk.qdev: disk for disk in before}
    pairs = [(earlier[disk.qdev], disk) for disk in after if disk.qdev in earlier]
    return any(getattr(b, kind).operations > getattr(a, kind).operations for b, a in pairs for kind in REQUEST_KINDS)
