"""Keeps one backup's processes in the idle I/O class, and its guest's processes out of it.

It changes the guest's record only by putting new values in place of old ones: the phases write that record to disk
while the check runs.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from pvehook.deadline import Deadline
from pvehook.errors import NodeError
from pvehook.host.ioprio import IDLE, restore_normal, set_all_threads
from pvehook.host.processes import Found, ProcessId, backup_processes, guests_left_idle, vm_processes, vzdump_task_of
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.records.journal import Log
from pvehook.records.run_state import RunState
from pvehook.settings import DUMP_DIRECTORY, IoPriorityConfig

COMPRESSORS = frozenset({"zstd", "gzip", "pigz", "lzop"})

HOOK = "vzdump-hook"
"""The kernel's name of the hook that calls here: a child of the worker too, and gone in a moment."""

CHECK_S = 2.0
"""How long `finish` waits for a check in progress before it goes on beside it."""


class _Seen(NamedTuple):
    comm: str
    threads: int
    confirmed: int


class IdlePriority:
    """One guest's. `begin` and `finish` it with the guest's turn; in between `check` it now and then."""

    def __init__(self, context: Context, run: RunState, guest: GuestRecord) -> None:
        self._context = context
        self._run = run
        self._guest = guest
        self._seen: dict[ProcessId, _Seen] = {}
        self._reported: set[str] = set()
        self._checking = threading.Lock()
        self._finished = False

    def begin(self, settings: IoPriorityConfig) -> None:
        """The worker, at once: a backup may be over before the first check."""
        worker, _ = set_worker_idle(self._context, self._run, settings)
        if worker is not None:
            self._seen[self._run.worker] = worker
            self._add_up()

    def check(self, settings: IoPriorityConfig) -> None:
        """Finds every process of this backup, and what is to be restored."""
        with self._checking:
            if self._finished:
                return
            if settings.mode == "idle":
                self._keep_backup_idle(settings)
            self._restore_guest()

    def finish(self, deadline: Deadline) -> None:
        """After it nothing of this guest is in the idle class."""
        locked = self._checking.acquire(timeout=deadline.within(CHECK_S).left_s())
        try:
            self._finished = True
            self._restore_guest()
        finally:
            if locked:
                self._checking.release()

    def _keep_backup_idle(self, settings: IoPriorityConfig) -> None:
        # A relative one is seen from where vzdump was started: "." would be in every command line.
        dumpdir = self._run.dumpdir if (self._run.dumpdir or "").startswith("/") else None
        also = [
            (each.command, (dumpdir if each.mentions == DUMP_DIRECTORY else each.mentions) or "")
            for each in settings.also
            if each.mentions != DUMP_DIRECTORY or dumpdir
        ]
        failed = dict.fromkeys(self._guest.not_idle)
        for found in backup_processes(self._context.node, self._run.worker, also):
            nice = settings.compressor_nice if found.comm in COMPRESSORS and settings.compressor_nice else None
            done = set_all_threads(self._context.node, found.process.pid, IDLE, nice)
            if done.threads == 0 or found.comm == HOOK:
                continue  # it ended in the meantime, or is the hook itself
            seen = _Seen("vzdump" if found.process == self._run.worker else done.comm, done.threads, done.confirmed)
            failed.update(dict.fromkeys(f"{seen.comm}: {reason}" for reason in done.failed))
            before = self._seen.get(found.process)
            if before is None or seen.threads >= before.threads:
                self._seen[found.process] = seen
            # The first sight of a process is an event, and so is one that somebody has set otherwise since.
            if before is None or done.changed:
                _report_set(self._context.log, found, seen, self._guest.vmid)
        self._guest.not_idle = list(failed)
        self._add_up()

    def _add_up(self) -> None:
        totals: dict[str, list[int]] = {}
        for seen in self._seen.values():
            total = totals.setdefault(seen.comm, [0, 0, 0])
            total[0] += 1
            total[1] += seen.threads
            total[2] += seen.confirmed
        self._guest.idle = totals

    def _restore_guest(self) -> None:
        """The trap: a VM that vzdump starts inherits the worker's class and would keep it for life. It starts one only
        in mode stop, which is also the mode of a guest that was off; a container is started by systemd."""
        guest = self._guest
        if guest.vmtype == "lxc" or guest.mode in ("snapshot", "suspend"):
            return
        for found in vm_processes(self._context.node, guest.vmid, self._run.worker):
            _restore(self._context, found, guest, self._reported)
        for found in guests_left_idle(self._context.node, self._run.worker):
            # This guest's QEMU is among them while its pid file is not written yet.
            _restore(self._context, found, guest if found.vmid == guest.vmid else None, self._reported)


def set_worker_idle(
    context: Context, run: RunState, settings: IoPriorityConfig
) -> tuple[_Seen | None, tuple[str, ...]]:
    """Sets vzdump's worker itself; what it forks from now on inherits it. A line for the task log only for trouble."""
    if settings.mode == "off":
        return None, ()
    if vzdump_task_of(context.node, run.worker.pid) != run.worker.pid:
        return None, (f"the idle I/O class was not set: process {run.worker.pid}, which called, is no vzdump task",)
    try:
        done = set_all_threads(context.node, run.worker.pid, IDLE)
    except (NodeError, OSError) as error:
        return None, (f"the idle I/O class was not set on vzdump: {error}",)
    seen = _Seen("vzdump", done.threads, done.confirmed)
    if done.changed:
        _report_set(context.log, Found(run.worker, done.comm, "the vzdump worker"), seen, None)
    if done.confirmed == done.threads:
        return seen, ()
    failed = "; ".join(done.failed)
    return seen, (f"the idle I/O class is set on {done.confirmed} of {done.threads} threads of vzdump: {failed}",)


def restore_strays(context: Context, run: RunState) -> None:
    """What else was started below the worker, say by a chained script, gets its normal priority back too."""
    for found in guests_left_idle(context.node, run.worker):
        _restore(context, found, None, set())


def _restore(context: Context, found: Found, guest: GuestRecord | None, reported: set[str]) -> None:
    """Restores one process, and says so in the summary of the guest whose it is."""
    done = restore_normal(context.node, found.process.pid)
    if not done.changed and not done.failed:
        return
    text = (
        f"{found.comm} {found.process.pid} ({found.why}): {done.confirmed} of {done.threads} threads back at "
        f"normal priority ({done.was_idle} were idle, {done.was_nice} were nice)"
    )
    if done.failed:
        text += ": " + "; ".join(done.failed)
    if guest is not None and text not in guest.restored:
        guest.restored = [*guest.restored, text]
    if not done.changed and text in reported:
        return  # refused again, as at the last check
    reported.add(text)
    write = context.log.error if done.failed else context.log.info
    write(
        "io-priority-restored",
        message=text,
        vmid=guest.vmid if guest is not None else None,
        process=found.process.pid,
        command=found.comm,
        threads=done.threads,
        threads_confirmed=done.confirmed,
        was_idle=done.was_idle,
    )


def _report_set(log: Log, found: Found, seen: _Seen, vmid: int | None) -> None:
    log.info(
        "io-priority-set",
        message=f"{seen.comm} ({found.why}): idle I/O class on {seen.confirmed} of {seen.threads} threads, read back",
        vmid=vmid,
        process=found.process.pid,
        command=seen.comm,
        threads=seen.threads,
        threads_confirmed=seen.confirmed,
    )
