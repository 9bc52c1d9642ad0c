"""What runs beside the phases of one job: keeps the backup's processes at idle I/O priority and the guests' at
normal, and minds the window's end.

vzdump forks the compressor inside *archive*, where no phase is announced, so a thread looks again every
`check_every`, and at once when a phase wakes it. It changes the guest's record only by putting new values in
place of old ones: the phases write that record to disk while it looks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pvehook.deadline import Deadline
from pvehook.errors import GuestError, NodeError
from pvehook.guest.qmp import open_qmp
from pvehook.host.ioprio import IDLE, restore_normal, set_all_threads
from pvehook.host.processes import Found, ProcessId, backup_processes, guests_left_idle, vm_processes
from pvehook.host.timely_files import TimelyReader
from pvehook.host.volumes import Backup
from pvehook.priority.io_priority_effect import effect_of_idle
from pvehook.rules.admission import WINDOW_OPEN
from pvehook.settings import DUMP_DIRECTORY

if TYPE_CHECKING:
    from pvehook.config.in_force import InForce
    from pvehook.records.context import Context
    from pvehook.records.guest_record import GuestRecord
    from pvehook.records.journal import Log
    from pvehook.records.run_state import RunState

COMPRESSORS = frozenset({"zstd", "gzip", "pigz", "lzop"})

HOOK = "vzdump-hook"
"""The kernel's name of the hook that rings here: a child of the worker too, and gone in a moment."""

CANCEL_DEADLINE_S = 5.0

FIRST_WAIT_S = 0.1

LAST_LOOK_S = 2.0
"""How long `log-end` waits for a look that is being taken before it takes its own."""


class _Seen(NamedTuple):
    comm: str
    threads: int
    confirmed: int


class IdlePriority:
    """One job's thread. `start` it when the job is admitted, `stop` it with the job."""

    def __init__(
        self, context: Context, may_still_run: Callable[[int, RunState, InForce], bool], job: RunState, log: Log
    ) -> None:
        self._context = context
        self._may_still_run = may_still_run
        self._job = job
        self._log = log
        self._in_force: InForce | None = None
        self._guest: GuestRecord | None = None
        self._effect_known_for: GuestRecord | None = None
        self._seen: dict[ProcessId, _Seen] = {}
        self._said: set[str] = set()
        # Its own: the disks under a storage may take 8 s to be found, and configuration waits for no disk.
        self._reader = TimelyReader()
        self._look_lock = threading.Lock()
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    # What the phases call

    def start(self, in_force: InForce) -> None:
        """Begins to look, or goes on under the configuration that is in force now."""
        self._in_force = in_force
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """No further look is begun."""
        self._stopped.set()
        self._woken.set()

    def wake(self) -> None:
        """Processes may have come or gone: look now."""
        self._woken.set()

    def set_worker_idle(self) -> tuple[str, ...]:
        """Sets vzdump's worker itself, at once; what it forks from now on inherits it. A line only for trouble."""
        if self._in_force is None or self._in_force.config.io_priority.mode == "off":
            return ()
        try:
            done = set_all_threads(self._context.node, self._job.worker.pid, IDLE)
        except (NodeError, OSError) as error:
            return (f"idle I/O priority was not set on vzdump: {error}",)
        worker = Found(self._job.worker, done.comm, "the vzdump worker")
        self._note(worker, _Seen("vzdump", done.threads, done.confirmed), changed=done.changed)
        if done.confirmed == done.threads:
            return ()
        return (
            f"idle I/O priority is in place on {done.confirmed} of {done.threads} threads of vzdump: "
            + "; ".join(done.failed),
        )

    def guest_started(self, guest: GuestRecord) -> None:
        """From now on the account is this guest's."""
        self._guest = guest
        self.wake()

    def guest_ends(self, guest: GuestRecord) -> None:
        """The last look, taken by the phase itself: after it nothing of this guest is at idle."""
        self._locked(lambda: self._last_look(guest), guest)
        worker = self._seen.get(self._job.worker)
        self._seen = {self._job.worker: worker} if worker else {}

    def _last_look(self, guest: GuestRecord) -> None:
        # before anything may fail: a look that begins later must not add to a summary that is closed
        self._guest = None
        if guest.result != "refused":
            self._add_up(guest)  # a backup may be over before the first look; the worker was set all the same
        if _may_have_been_started_by_vzdump(guest):
            self._put_guests_back(guest)

    def job_ends(self) -> None:
        """What else was started below the worker, say by a chained script, is put back to normal too."""
        self._locked(lambda: self._put_strays_back(None), None)
        self.stop()

    def _locked(self, look: Callable[[], None], guest: GuestRecord | None) -> None:
        """Waits for a look that is being taken, but not for ever, and survives its own."""
        locked = self._look_lock.acquire(timeout=LAST_LOOK_S)
        try:
            look()
        except Exception as fault:  # the account must not be lost with one look
            self._report_fault(fault, guest)
        finally:
            if locked:
                self._look_lock.release()

    # The thread

    def _run(self) -> None:
        wait_s = FIRST_WAIT_S
        while not self._stopped.is_set():
            # After a phase vzdump goes on to the next, then forks: look soon, but not while it waits for our answer.
            if self._woken.wait(wait_s):
                self._woken.clear()
                wait_s = FIRST_WAIT_S
                continue
            wait_s = min(2 * wait_s, self._check_every_s())
            guest = self._guest
            if guest is None or self._stopped.is_set():
                continue
            try:
                with self._look_lock:
                    if self._guest is guest:
                        self._look(guest)
                self._mind_the_window(guest)
                self._find_the_effect(guest)
            except Exception as fault:  # one look that fails must not be the last
                self._report_fault(fault, guest)

    def _check_every_s(self) -> float:
        return self._in_force.config.io_priority.check_every_s if self._in_force is not None else FIRST_WAIT_S

    def _look(self, guest: GuestRecord) -> None:
        """One look at every process of this backup."""
        if self._in_force is not None and self._in_force.config.io_priority.mode == "idle":
            self._keep_backup_idle(guest)
        if _may_have_been_started_by_vzdump(guest):
            self._put_guests_back(guest)

    def _keep_backup_idle(self, guest: GuestRecord) -> None:
        assert self._in_force is not None  # noqa: S101  (asked by the caller)
        settings = self._in_force.config.io_priority
        dumpdir = self._job.dumpdir
        also = [
            (each.command, dumpdir if each.mentions == DUMP_DIRECTORY else each.mentions)
            for each in settings.also
            if each.mentions != DUMP_DIRECTORY or dumpdir
        ]
        failed = dict.fromkeys(guest.not_idle)
        for found in backup_processes(self._context.node, self._job.worker, [(c, t or "") for c, t in also]):
            nice = settings.compressor_nice if found.comm in COMPRESSORS and settings.compressor_nice else None
            done = set_all_threads(self._context.node, found.process.pid, IDLE, nice)
            if done.threads == 0 or found.comm == HOOK:
                continue  # it ended in the meantime, or is the doorbell itself
            comm = "vzdump" if found.process == self._job.worker else done.comm
            failed.update(dict.fromkeys(f"{comm}: {reason}" for reason in done.failed))
            self._note(found, _Seen(comm, done.threads, done.confirmed), changed=done.changed)
        guest.not_idle = list(failed)
        self._add_up(guest)

    def _add_up(self, guest: GuestRecord) -> None:
        totals: dict[str, list[int]] = {}
        for seen in self._seen.values():
            total = totals.setdefault(seen.comm, [0, 0, 0])
            total[0] += 1
            total[1] += seen.threads
            total[2] += seen.confirmed
        guest.idle = totals

    def _note(self, found: Found, seen: _Seen, *, changed: int) -> None:
        """Keeps the most threads that one process ever showed. The first sight of a process is an event, and so is
        one that somebody had set otherwise since."""
        before = self._seen.get(found.process)
        if before is None or seen.threads >= before.threads:
            self._seen[found.process] = seen
        if before is None or changed:
            self._log.info(
                "io-priority-set",
                message=f"{seen.comm} ({found.why}): idle I/O priority on "
                f"{seen.confirmed} of {seen.threads} threads, read back",
                vmid=self._guest.vmid if self._guest else None,
                process=found.process.pid,
                command=seen.comm,
                threads=seen.threads,
                threads_confirmed=seen.confirmed,
            )

    def _put_guests_back(self, guest: GuestRecord) -> None:
        """The trap: a VM that vzdump starts inherits the worker's idle priority and would keep it for life."""
        for found in vm_processes(self._context.node, guest.vmid, self._job.worker):
            self._put_back(found, guest)
        self._put_strays_back(guest)

    def _put_strays_back(self, guest: GuestRecord | None) -> None:
        """The guest's own QEMU is among them while its pid file is not written yet."""
        for found in guests_left_idle(self._context.node, self._job.worker):
            self._put_back(found, guest if guest and guest.vmid == found.vmid else None)

    def _put_back(self, found: Found, guest: GuestRecord | None) -> None:
        """Puts one process back to normal, and says so in the summary of the guest whose it is."""
        done = restore_normal(self._context.node, found.process.pid)
        if not done.changed and not done.failed:
            return
        text = (
            f"{found.comm} {found.process.pid} ({found.why}): {done.confirmed} of {done.threads} threads back at "
            f"normal priority ({done.was_idle} were idle, {done.was_nice} were nice)"
        )
        if done.failed:
            text += ": " + "; ".join(done.failed)
        if guest and text not in guest.restored:
            guest.restored = [*guest.restored, text]
        if not done.changed and text in self._said:
            return  # refused again, as at the last look
        self._said.add(text)
        write = self._log.error if done.failed else self._log.info
        write(
            "io-priority-restored",
            message=text,
            vmid=guest.vmid if guest else None,
            process=found.process.pid,
            command=found.comm,
            threads=done.threads,
            threads_confirmed=done.confirmed,
            was_idle=done.was_idle,
        )

    # The window's end

    def _mind_the_window(self, guest: GuestRecord) -> None:
        """A guest that was let in by the open window and still runs when it closes."""
        if self._in_force is None or guest.result != "running" or guest.admitted_by != WINDOW_OPEN:
            return
        if self._may_still_run(guest.vmid, self._job, self._in_force):
            return
        cancel = self._in_force.config.window.running_guest == "cancel"
        if guest.closed_at_s is None:
            guest.closed_at_s = self._context.clock.now_s()
            if not cancel:
                guest.closed_plan = "running_guest: finish lets it finish"
            elif guest.vmtype == "lxc":
                guest.closed_plan = "running_guest: cancel cannot reach a container's backup, it finishes"
            else:
                guest.closed_plan = "running_guest: cancel cancels it"
            self._log.warning(
                "window-closed-on-guest",
                message=f"the window closed while guest {guest.vmid} is in backup; {guest.closed_plan}",
                vmid=guest.vmid,
            )
        if cancel and guest.vmtype != "lxc":
            self._cancel(guest)

    def _cancel(self, guest: GuestRecord) -> None:
        """Proxmox's own `backup-cancel`: vzdump sees its job end and aborts this guest cleanly. Asked again at each
        look, because before the job has begun it has no effect."""
        path = self._context.node.path(f"/var/run/qemu-server/{guest.vmid}.qmp")
        deadline = Deadline.after(CANCEL_DEADLINE_S)
        try:
            with open_qmp(path, deadline) as qmp:
                qmp.backup_cancel(deadline)
        except GuestError as error:
            guest.closed_plan = f"running_guest: cancel failed: {error}"
            text = f"guest {guest.vmid}: its backup could not be cancelled: {error}"
            if text not in self._said:  # a backup may go on for hours, and each look tries again
                self._said.add(text)
                self._log.error("backup-cancel-failed", message=text, vmid=guest.vmid)
            return
        if not guest.cancel_sent:
            guest.cancel_sent = True
            self._log.warning(
                "backup-cancelled",
                message=f"guest {guest.vmid}: backup-cancel sent, the window has closed",
                vmid=guest.vmid,
            )

    # What idle priority can reach

    def _find_the_effect(self, guest: GuestRecord) -> None:
        if self._effect_known_for is guest:
            return
        self._effect_known_for = guest
        found = effect_of_idle(
            self._context.node,
            self._reader,
            Backup(guest.vmid, guest.vmtype, guest.mode, self._job.storeid, self._job.dumpdir),
        )
        guest.effect_in_short, guest.effect = found.in_short, list(found.sentences)

    def _report_fault(self, fault: Exception, guest: GuestRecord | None) -> None:
        vmid = guest.vmid if guest else None
        self._log.error("fault", message=f"keeper: {fault!r}; the backup goes on", vmid=vmid)


def _may_have_been_started_by_vzdump(guest: GuestRecord) -> bool:
    """Only in mode stop, which is also the mode of a guest that was off; a container is started by systemd."""
    return guest.vmtype != "lxc" and guest.mode not in ("snapshot", "suspend")
