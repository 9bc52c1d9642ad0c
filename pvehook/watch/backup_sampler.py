"""What is sampled of one guest from `backup-start` to its end, in a thread of its own.

    backup-start    begin: the node's counters; QEMU is sampled twice a second from here on (disk_sampler.py)
    pre-stop        the guest's own counters, before anybody holds its agent's socket (guest_sampler.py)
    archive         the governor acts on the same connection; the agent is pinged now and then
    backup-end      finish: everything is read once more
    log-end         the views

Nothing here may hold a phase, touch agent or monitor while PVE may freeze, or cost a backup: a view that cannot be had
is absent or broken, and the record is made of the others.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pvehook.contract.latency import DiskCounters
from pvehook.contract.measured import Absent, Broken, Measured, value_of
from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.host.processes import qemu_of
from pvehook.records.context import Context
from pvehook.records.encoding import decode, encode
from pvehook.records.guest_record import GuestRecord
from pvehook.records.guest_summary import guest_title
from pvehook.records.stall_record import Baseline, GovernorSummary, Point
from pvehook.rules.governor_constants import YOUNG_EVERY_S
from pvehook.rules.stalls import GuestView, HostView, HypervisorView
from pvehook.rules.standstill import STANDS_STILL_S
from pvehook.settings import MetricsConfig
from pvehook.throttle.governor import Governor
from pvehook.watch.disk_sampler import DiskSampler, Start
from pvehook.watch.guest_sampler import CountersStart, GuestSampler
from pvehook.watch.host_sampler import HostSampler, Reading

LAST_SAMPLE_S = 4.0
"""For the last sample, from backup-end on: the speed's release, the disks, the guest itself."""
LAST_DISKS_S = 2.0
HANGS_S = 0.3
"""For the agent of a guest whose monitor does not answer: QEMU's main loop serves both."""
LEAVE_S = 3.0
LOG_EVERY_S = 5.0
"""The kernel's ring holds some thousand lines."""
PING_EVERY_S = 10.0
PING_AFTER_S = 30.0
"""From the moment its backup job was seen: PVE's own freeze and thaw have the agent to themselves."""
PVE_STARTS_S = 10.0
"""From the archive's begin on: PVE freezes and starts its backup in milliseconds, or in seconds on a slow host."""
FREEZE_AT_MOST_S = 70.0
"""For so long agent and monitor are left to PVE and the freeze; a freeze that hangs longer must not blind the rest."""


class Seen(NamedTuple):
    """Where it all began, as the run's recovery note keeps it for the daemon that may have to go on."""

    host: Reading
    disks: Start | None
    inside: CountersStart | None


class Views(NamedTuple):
    """What was seen of one guest."""

    guest: Measured[GuestView]
    hypervisor: Measured[HypervisorView]
    host: Measured[HostView]
    baseline: Measured[Baseline]
    points: tuple[Point, ...]
    backup_bytes: int | None
    disks: Start | None
    governor: GovernorSummary | None
    cpu_s: float


class BackupSampler:
    """`begin` it with the guest's backup, `finish` it when that is over, then take the `views`."""

    def __init__(
        self,
        context: Context,
        guest: GuestRecord,
        config: MetricsConfig,
        governor: Governor | None,
        baseline_of: Callable[[Sequence[DiskCounters]], Measured[Baseline]],
        requests_before: Callable[[Sequence[DiskCounters]], tuple[int, float, float] | None],
        pve_may_freeze: Callable[[], bool],
    ) -> None:
        self._context = context
        self._guest = guest
        self._config = config
        self._governor = governor
        self._baseline_of = baseline_of
        self._requests_before = requests_before
        self._pve_may_freeze = pve_may_freeze
        self._baseline: Measured[Baseline] = Absent("its disks were not seen")
        seen: Seen | None = None
        with contextlib.suppress(ValueError):  # another version's
            seen = decode(Seen, guest.seen) if guest.seen is not None else None
        self._host = HostSampler(context, guest, seen.host if seen else None)
        self._inside = GuestSampler(context, guest, config.guest_kernel_log, seen.inside if seen else None)
        self._disks: DiskSampler | None = None
        if guest.vmtype != "lxc":
            qmp = context.node.path(f"/var/run/qemu-server/{guest.vmid}.qmp")
            act = governor.act if governor is not None else None
            self._disks = DiskSampler(qmp, context.clock.steady_s, act, seen.disks if seen else None)
        self._noted: Start | None = None
        self._archive_since_s: float | None = None
        self._job_since_s: float | None = None
        self._views: Views | None = None
        self._cpu_s = 0.0
        self._stood_still = False
        self._finishing = False
        self._leaving = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sampler-{guest.vmid}", daemon=True)

    # What the phases call

    def begin(self) -> None:
        """Returns at once. Where no thread can be started there will be no views."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._report_fault(error)

    def read_guest_counters(self, deadline: Deadline, silent_agent: Absent | Broken | None) -> None:
        """The guest's own counters, now; to be called while nobody needs the agent."""
        self._inside.begin(deadline, silent_agent)
        self._keep()

    def archive_begins(self) -> None:
        """From here on PVE may freeze, and its job may come: sampled at once, and more often. A second time, when the
        freeze is over, only the sample is taken."""
        if self._archive_since_s is None:
            self._archive_since_s = time.monotonic()
        self._woken.set()

    def wake(self) -> None:
        """A sample is wanted now: the governor may have to change the speed for another guest."""
        self._woken.set()

    def finish(self) -> None:
        """The backup is over: the last sample is taken by the thread. Returns at once."""
        self._finishing = True
        self._woken.set()

    def views(self, wait_s: float) -> Views | None:
        """What was sampled; waits for the last sample, but not for ever. Without it, what there is until now. None: a
        fault of ours."""
        self.finish()
        if self._thread.ident is not None:
            self._thread.join(max(wait_s, 0.0))
        try:
            return self._views or self._views_now(Broken("its last sample was not there when the summary was written"))
        except Exception as fault:  # the thread may be at the same figures
            self._report_fault(fault)
            return None

    def leave(self) -> None:
        """The daemon leaves while the backup runs: the speed is restored, and there are no views. The next daemon
        goes on."""
        self._leaving = True
        self.finish()
        if self._thread.ident is not None:
            self._thread.join(LEAVE_S)

    # The thread

    def _run(self) -> None:
        try:
            self._sample_until_the_end()
            if not self._leaving:
                self._views = self._last_sample()
        except Exception as fault:  # a fault of ours costs a record, never a backup
            self._report_fault(fault)
        finally:
            if self._governor is not None:
                self._governor.release()  # after a fault too; a second time it does nothing
            self._host.close()

    def _report_fault(self, fault: Exception) -> None:
        self._context.log.error(
            "fault",
            message=f"sampling guest {self._guest.vmid}: {fault!r}; the backup goes on",
            vmid=self._guest.vmid,
            exc_type=type(fault).__name__,
        )

    def _sample_until_the_end(self) -> None:
        every_s = self._config.sample_every_s
        next_s = time.monotonic()
        next_log_s = next_s + LOG_EVERY_S
        next_ping_s = next_s
        while not self._finishing:
            self._woken.wait(max(next_s - time.monotonic(), 0.0))
            self._woken.clear()
            if self._finishing:
                return
            if self._disks is None:
                self._host.chart_container()
            elif self._disks.waits or not self._is_left_to_pve():
                self._disks.sample(pve_comes=self._pve_comes())
                self._note_start(self._disks)
                self._note_standstill(self._disks.still_s)
                every_s = self._sample_every_s()
            self._cpu_s = time.thread_time()
            now_s = time.monotonic()
            if now_s >= next_log_s:
                self._host.sample()
                next_log_s = now_s + LOG_EVERY_S
            if now_s >= next_ping_s and self._agent_is_free(now_s):
                self._inside.ping()
                next_ping_s = now_s + PING_EVERY_S
            # A connection that waits for its turn must not be left alone when that comes.
            next_s = now_s if self._disks is not None and self._disks.waits else now_s + every_s

    def _note_start(self, disks: DiskSampler) -> None:
        if disks.start is not None and disks.start is not self._noted:
            self._noted = disks.start
            process = qemu_of(self._context.node, self._guest.vmid)
            if process is not None:
                self._host.vcpus_are(process.pid, disks.start.vcpus)
            self._baseline = self._baseline_of(disks.start.disks)
            if self._governor is not None:
                if disks.is_paused:
                    self._governor.know_paused()
                if requests := self._requests_before(disks.start.disks):
                    self._governor.know_activity(*requests)
                self._governor.know_baseline(self._baseline)
            self._keep()
        if self._job_since_s is None and disks.job_seen:
            self._job_since_s = time.monotonic()

    def _note_standstill(self, still_s: float) -> None:
        """Once: somebody has to be told at once, for only the target itself can free the guest."""
        if still_s < STANDS_STILL_S or self._stood_still:
            return
        self._stood_still = True
        target = f"the target {printable(self._guest.target)}" if self._guest.target else "the target"
        self._context.log.error(
            "backup-stands-still",
            message=f"{guest_title(self._guest)}: its backup has copied nothing for {still_s:.0f} s: {target} does not "
            "answer, or a disk that is read does not; without fleecing the guest waits for it",
            vmid=self._guest.vmid,
            still_s=round(still_s, 1),
        )

    def _pve_comes(self) -> bool:
        """Whether PVE is about to freeze, or may just do so, by itself or with us."""
        since_s = self._archive_since_s
        return self._guest.mode == "snapshot" and (since_s is None or time.monotonic() - since_s < PVE_STARTS_S)

    def _is_left_to_pve(self) -> bool:
        since_s = self._archive_since_s
        return since_s is not None and time.monotonic() - since_s < FREEZE_AT_MOST_S and self._pve_may_freeze()

    def _agent_is_free(self, now_s: float) -> bool:
        job_since_s = self._job_since_s
        return job_since_s is not None and now_s - job_since_s >= PING_AFTER_S and not self._is_left_to_pve()

    def _last_sample(self) -> Views:
        deadline = Deadline.after(LAST_SAMPLE_S)
        if self._governor is not None:
            self._governor.release()
        answers = self._disks is None or self._disks.end(deadline.within(LAST_DISKS_S))
        return self._views_now(self._inside.view(deadline if answers else deadline.within(HANGS_S)))

    def _views_now(self, guest: Measured[GuestView]) -> Views:
        """All but the guest's own view is there without asking anybody."""
        disks = self._disks
        return Views(
            guest=guest,
            hypervisor=disks.view() if disks is not None else Absent("a container has no QEMU"),
            host=self._host.view(self._inside.slowest_ms),
            baseline=self._baseline,
            points=(self._host if disks is None else disks).chart.points(),
            backup_bytes=disks.backup_bytes if disks is not None else None,
            disks=disks.start if disks is not None else None,
            governor=self._governor.summary() if self._governor is not None else None,
            cpu_s=self._cpu_s,
        )

    def _sample_every_s(self) -> float:
        """The governor wants more samples until it knows how busy the guest is, and while its job is young; the most
        while that is awaited, which is for a moment only, or it never comes."""
        if self._governor is None or (self._archive_since_s is None and self._governor.knows_guest):
            return self._config.sample_every_s
        wanted_s, since_s = self._governor.sample_every_s, self._archive_since_s
        if since_s is None or time.monotonic() - since_s >= PVE_STARTS_S:
            wanted_s = max(wanted_s, YOUNG_EVERY_S)
        return min(self._config.sample_every_s, wanted_s)

    def _keep(self) -> None:
        """What a restarted daemon would go on from; the next phase writes it down."""
        disks = self._disks.start if self._disks is not None else None
        self._guest.seen = encode(Seen(self._host.start, disks, value_of(self._inside.start)))
