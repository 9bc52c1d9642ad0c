"""Every running guest of the node, watched while others' backups run: one loop, one thread, from job-start to job-end.

    job-start          histograms are armed, one VM after the other; a VM that starts later at its first look
    a guest's backup   the others are looked at: block counters often, QEMU's when a guest waits or its time has come
    job-end            histograms are removed; a record of each guest that suffered

The loop holds one connection at a time, shortly (short_look.py), and none to the guest in backup, which has a sampler
of its own. What is looked at when: node_looks.py.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

from pvehook.contract.latency import DiskCounters
from pvehook.contract.measured import Absent, Measured
from pvehook.records.beside_record import BesideRecord
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.records.run_state import RunState
from pvehook.records.stall_record import Baseline
from pvehook.rules.patients import Resources
from pvehook.settings import GovernorConfig
from pvehook.throttle.governor import Governor
from pvehook.watch.baselines import baseline_before, mean_since_start, requests_between
from pvehook.watch.node_looks import Load, NodeLooks
from pvehook.watch.patients import GuestTable
from pvehook.watch.short_look import remove_histograms
from pvehook.watch.suffering import Sufferings
from pvehook.watch.watch_status import WRITE_EVERY_S, remove_status, status_of, write_status
from pvehook.watch.watched import watched

NOTE_EVERY_S = 5.0
LEAVE_S = 1.0
REMOVE_AGAIN_S = (0.5, 2.0, 8.0)
AFTER_FAULT_S = 5.0
STATUS_PER_GUEST_S = 0.05


class NodeWatch:
    """One run's. Every method is quick, and none raises."""

    def __init__(
        self,
        context: Context,
        run: RunState,
        past_of: Callable[[int], Baseline | None],
        keep: Callable[[], None],
    ) -> None:
        """`past_of`: the baseline of a guest's last backups; it may wait for a disk. `keep` writes down what the next
        daemon would go on from."""
        self._context = context
        self._node = context.node
        self._run = run
        self._keep = keep
        self._table = GuestTable(context.node, context.readers, context.log, past_of)
        self._sufferings = Sufferings(run.beside)
        self._looks = NodeLooks(context.node, context.clock, self._sufferings, self._note_armed)
        self._listing = threading.Lock()
        """Of the run's list of armed VMs, and of `_load`."""
        self._load: Load | None = None
        self._loads = 0
        self._next_first_s = self._next_note_s = self._next_status_s = time.monotonic()
        self._has_told = False
        self._woken = threading.Event()
        self._ended = self._leaves = False
        self._begins = threading.Lock()
        self._thread: threading.Thread | None = None

    # What the phases call

    def begin(self) -> None:
        """Returns at once; a second time it does nothing. Where no thread can be started, nobody is watched."""
        with self._begins:
            if self._thread is not None or self._ended:
                return
            thread = threading.Thread(target=self._watch, name="node-watch", daemon=True)
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread = thread
                self._table.begin(self._woken.set)

    def load_begins(
        self, guest: GuestRecord, governor: Governor | None, wake: Callable[[], None], config: GovernorConfig
    ) -> None:
        """This guest's backup begins, or a daemon was started in the middle of it. Its histograms are its sampler's to
        arm, and stay until the run's end."""
        self.begin()
        if guest.vmtype != "lxc":
            self._note_armed(guest.vmid)
        self._loads += 1
        load = Load(self._loads, guest.vmid, guest.vmtype, governor, wake, config, time.monotonic())

        def found(resources: Resources) -> None:
            load.resources = resources
            self._next_first_s = 0.0  # at once: its job may come soon
            self._woken.set()

        self._replace_load(None, load)
        self._table.find_load(self._run.backup_of(guest), self._run.job_id, found)
        self._woken.set()

    def load_ends(self, vmid: int) -> None:
        """Its backup is over."""
        load = self._load
        if load is not None and load.vmid == vmid:
            load.ends.set()
            self._woken.set()

    def baseline_of(self, vmid: int, disks: Sequence[DiskCounters], past: Baseline | None) -> Measured[Baseline]:
        """How this VM was before `disks`, the first reading of its own backup: where others' came before, before
        those."""
        patient = self._looks.patients.get(vmid)
        if patient is not None and isinstance(patient.baseline, Baseline) and patient.baseline.source == "before":
            return patient.baseline
        first = patient.first if patient is not None else None
        found = baseline_before(first, time.monotonic(), disks, past)
        return mean_since_start(disks) if isinstance(found, Absent) else found

    def requests_before(self, vmid: int, disks: Sequence[DiskCounters]) -> tuple[int, float, float] | None:
        """How much this VM has asked of its disks since it was armed: see baselines.requests_between."""
        patient = self._looks.patients.get(vmid)
        return requests_between(patient.first, time.monotonic(), disks) if patient is not None else None

    def end(self) -> list[BesideRecord]:
        """The run has ended: what each guest that suffered suffered, the worst first. Histograms are removed by a
        thread, no phase waits for it."""
        with self._begins:
            was_ended, self._ended = self._ended, True
        found = self._sufferings.records(self._run.upid, self._context.clock.now_s())
        if not was_ended:
            self._woken.set()
            self._table.end()
            if self._thread is None and self._run.waiting:
                with contextlib.suppress(RuntimeError):  # the next backup takes them for its own
                    threading.Thread(target=self._remove_histograms, name="node-watch-end", daemon=True).start()
        return found

    def leave(self) -> None:
        """The daemon leaves while the run goes on: the next one takes histograms and totals over."""
        with self._begins:
            self._ended = True
            self._leaves = True
        self._woken.set()
        self._table.end()
        if self._thread is not None:
            self._thread.join(LEAVE_S)

    def note(self) -> bool:
        """What was counted becomes part of the run's recovery note, for the next daemon. Whether it is news."""
        before, self._run.beside = self._run.beside, self._sufferings.note()
        return self._run.beside != before

    # The thread

    def _watch(self) -> None:
        while not self._ended:
            try:
                self._woken.wait(max(self._pass() - time.monotonic(), 0.0))
                self._woken.clear()
            except Exception as fault:  # a fault of ours costs a look, never the watching
                if not self._has_told:
                    self._has_told = True
                    text = f"watching the node's guests: {fault!r}; the backup goes on"
                    self._context.log.error("fault", message=text, exc_type=type(fault).__name__)
                self._woken.wait(AFTER_FAULT_S)
        remove_status(self._node)
        if not self._leaves:
            self._remove_histograms()

    def _pass(self) -> float:
        """Does what is due. When to come again, on the monotonic clock."""
        now_s = time.monotonic()
        load = self._load
        self._looks.know_guests(self._table.guests, load)
        if load is not None and load.ends.is_set():
            self._looks.last_looks(load)
            self._replace_load(load, None)
            remove_status(self._node)
            load = None
        if now_s >= self._next_note_s:
            if self.note():  # a backup may take hours between two phases
                self._keep()
            self._next_note_s = now_s + NOTE_EVERY_S
        next_s = self._next_note_s
        if load is not None:
            self._looks.count_slowing(load, now_s)
            if now_s >= self._next_first_s:
                self._next_first_s = self._looks.first_looks(load, now_s)
            if now_s >= self._next_status_s:
                self._write_status(load, now_s)
                self._next_status_s = now_s + max(WRITE_EVERY_S, STATUS_PER_GUEST_S * len(self._looks.patients))
            next_s = min(self._next_first_s, self._next_status_s)
        return min(next_s, self._looks.second_look(load))

    def _replace_load(self, before: Load | None, load: Load | None) -> None:
        with self._listing:
            if before is None or self._load is before:
                self._load = load

    def _write_status(self, load: Load, now_s: float) -> None:
        """For `pvehook governor status`; where it cannot be written, it tells nothing."""
        governor = load.governor
        guests = (
            watched(
                each,
                governor.standing(each.vmid) if governor is not None else None,
                self._sufferings.totals_s(each.vmid),
                now_s,
            )
            for each in self._looks.beside(load)
        )
        steers = governor.steers if governor is not None else None
        written_s = self._context.clock.steady_s()
        write_status(self._node, status_of(written_s, self._run.upid, load.vmid, steers, guests))

    def _note_armed(self, vmid: int) -> None:
        """Before it is: a daemon that is killed in between leaves nothing behind."""
        with self._listing:
            if vmid not in self._run.waiting:
                self._run.waiting = [*self._run.waiting, vmid]

    def _remove_histograms(self) -> None:
        """Of all VMs that were armed in this run. A VM that is gone has none; one that hangs keeps them, which costs
        nothing, and the next backup takes them for its own."""
        armed = self._run.waiting
        for pause_s in (*REMOVE_AGAIN_S, 0.0):
            armed = [vmid for vmid in armed if not remove_histograms(self._node, vmid)]
            if not armed:
                return
            time.sleep(pause_s)
