"""The daemon: answers hook calls, keeps one Run per vzdump worker, leaves when nothing is left to watch.

    main thread     waits for calls, for the death of workers (pidfd) and for idleness; notifies systemd's watchdog
    call threads    one per hook call, short: ask the run, answer, end
    others          belong to a run or to one guest's turn, and end with it

The main thread does nothing that can hang: if it stops, systemd restarts the daemon and the new one resumes the
running runs from /run/pvehook/jobs.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pvehook.config.in_force import Configuration
from pvehook.contract.call import (
    TAKEN_UP,
    BadCall,
    HookCall,
    Reply,
    encode_patience,
    encode_reply,
    parse_call,
    parse_started,
)
from pvehook.contract.phases import REFUSABLE_PHASES
from pvehook.contract.upid import parse_upid
from pvehook.daemon.hook_socket import REQUEST_DEADLINE_S, checked_caller, read_line
from pvehook.daemon.run import Run, chain_of
from pvehook.daemon.started_guests import StartedGuests
from pvehook.deadline import Deadline
from pvehook.freeze.guest_freeze import thaw_left_over_in_daemon
from pvehook.freeze.open_freezes import OpenFreezes
from pvehook.host import systemd
from pvehook.host.processes import ProcessId, command_line, identify, parent_of, vzdump_task_of
from pvehook.night.notifier import Notifier
from pvehook.night.past_runs import PastRuns
from pvehook.records import run_state
from pvehook.records.context import Context
from pvehook.records.history import history_file
from pvehook.rescue.speed_record import restore_left_over_speeds

ANSWER_RESERVE_S = 0.5
"""Before the hook stops waiting: for the answer's way to it."""
DEFAULT_DEADLINE_S = 5.0
"""For a call that does not say until when it waits; the shortest of the hook's own is that long."""

CALLS_AT_ONCE = 16
LOST_AFTER_S = 60.0
"""A call that is so much later than its hook waits hangs for good."""
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
ACCEPT_AGAIN_S = 0.1
BEAT_S = 2.0
"""How often the main thread wakes at least; systemd's WatchdogSec is a multiple of it."""


class Daemon:
    """Serves every vzdump run of the node."""

    def __init__(
        self,
        context: Context,
        configuration: Configuration,
        freezes: OpenFreezes,
        notifier: Notifier,
        idle_exit_s: float,
    ) -> None:
        self._context = context
        self._configuration = configuration
        self._freezes = freezes
        self._notifier = notifier
        self._log = context.log
        self._idle_exit_s = idle_exit_s
        self._past_runs = PastRuns(context, history_file(context.node))
        self._started = StartedGuests(context, lambda: bool(self._runs))
        self._runs: dict[ProcessId, Run] = {}
        self._runs_lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._pidfds: dict[ProcessId, int | None] = {}
        """What shows a worker's death; None: it has died, and its run is being brought to its end."""
        self._calls: dict[socket.socket, float] = {}
        """The calls that are answered now, and when each is to be over, on the monotonic clock."""
        self._dead: set[ProcessId] = set()
        """Workers whose runs are still to be brought to their end. The main thread's alone."""
        self._cannot_accept = False
        self._last_call_s = time.monotonic()
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._leaving = False

    def serve(self, listener: socket.socket) -> None:
        """Answers until SIGTERM, or until there has been nothing to watch for `idle_exit_s`."""
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._leave)
        thaw_left_over_in_daemon(self._context, self._freezes)
        # In a thread: a VM that hangs must not keep the daemon from answering.
        self._start_thread("speeds", self._restore_speeds)
        self._start_thread("past-runs", self._read_past_runs)
        self._resume_runs()
        systemd.notify("READY=1")
        while not self._leaving and not self._idle():
            self._freezes.watchdog.ping()
            self._freezes.serve_added()
            self._end_dead_runs()
            for key, _ in self._selector.select(min(BEAT_S, self._idle_exit_s)):
                if key.fileobj is listener:
                    self._accept(listener)
                elif key.fd == self._woken:
                    os.eventfd_read(self._woken)
                else:
                    self._worker_died(key.data)
        systemd.notify("STOPPING=1")
        for run in list(self._runs.values()):
            run.leave()

    def _restore_speeds(self) -> None:
        for report in restore_left_over_speeds(self._context.node):
            write = self._log.warning if report.done else self._log.error
            write("governor-left-over", message=report.text, vmid=report.vmid)

    def _read_past_runs(self) -> None:
        """What was backed up while no daemon was there to see it. No phase waits for it."""
        try:
            self._past_runs.read(self._configuration.now().config.metrics.keep_days)
        except Exception as fault:  # a fault of ours costs a log line
            self._report_fault("past runs", None, fault)

    def _leave(self, *_: object) -> None:
        self._leaving = True
        self._wake()

    def _wake(self) -> None:
        """The main thread looks again."""
        os.eventfd_write(self._woken, 1)

    def _idle(self) -> bool:
        with self._runs_lock:
            busy = bool(self._runs) or bool(self._calls)
        busy = busy or self._freezes.any or self._started.any or self._notifier.is_busy
        return not busy and time.monotonic() - self._last_call_s >= self._idle_exit_s

    # Calls

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:  # the hook gave up in the meantime, or we are out of descriptors
            if error.errno in OUT_OF_DESCRIPTORS:
                if not self._cannot_accept:
                    self._log.error("too-many-calls", message=f"a call could not be accepted: {error}")
                self._cannot_accept = True
                time.sleep(ACCEPT_AGAIN_S)  # the listener stays readable
            return
        self._cannot_accept = False
        now_s = self._last_call_s = time.monotonic()
        with self._runs_lock:
            ends_s = sorted(self._calls.values())
            if len(ends_s) < CALLS_AT_ONCE:
                self._calls[connection] = now_s + REQUEST_DEADLINE_S
        if len(ends_s) >= CALLS_AT_ONCE:
            connection.close()  # the hook sees no answer and takes the degraded path
            self._log.error("too-many-calls", message=f"more than {CALLS_AT_ONCE} hooks at once; one was not answered")
            if ends_s[-1] + LOST_AFTER_S < now_s:
                # All of them hang, and no phase would be answered any more. The next daemon goes on with the runs.
                self._log.critical("calls-lost", message=f"{CALLS_AT_ONCE} calls hang for good: the daemon starts anew")
                self._leave()
        elif not self._start_thread("call", self._serve_call, connection):
            self._call_is_over(connection)
            connection.close()  # as above

    def _serve_call(self, connection: socket.socket) -> None:
        try:
            with connection:
                if (reply := self._answer(connection)) is not None:
                    connection.sendall(encode_reply(reply))
            self._forget_failures()
        except OSError as error:
            self._log.info("call-lost", message=f"a hook went away before its answer: {error}")
        finally:
            self._call_is_over(connection)

    def _forget_failures(self) -> None:
        """Of daemons before this one (hooks/systemd/restart-pause): it could start and answers, so if it is ended in a
        run, the next one is not to wait."""
        with suppress(OSError):
            os.unlink(os.path.join(self._context.node.run_dir, "failures"))

    def _call_is_over(self, connection: socket.socket) -> None:
        self._last_call_s = time.monotonic()
        with self._runs_lock:
            self._calls.pop(connection, None)

    def _answer(self, connection: socket.socket) -> Reply | None:
        """None: a call that is not answered."""
        try:
            line = read_line(connection)
            if (started := parse_started(line)) is not None:
                checked_caller(connection)
                self._started.add(started)
                return None
            call = parse_call(line)
            worker = self._checked_worker(connection, call)
            connection.sendall(TAKEN_UP)
        except BadCall as bad:
            self._log.warning("call-refused", message=f"a call was not served: {bad}")
            return Reply(not_served=f"this call was not served: {bad}")
        try:
            deadline = Deadline.after(DEFAULT_DEADLINE_S)
            if call.until_s is not None:
                deadline = Deadline.at(call.until_s - ANSWER_RESERVE_S)
            self._calls[connection] = deadline.at_s

            def more_time(seconds: float) -> None:
                self._calls[connection] += seconds
                connection.sendall(encode_patience(seconds))

            with self._run_of(worker) as run:
                return run.phase(call, deadline, more_time)
        except Exception as fault:  # a fault of ours costs a log line, never a backup
            self._report_fault(call.phase, call.vmid, fault)
            if call.phase in REFUSABLE_PHASES:
                return Reply(not_served=f"fault in {call.phase}: {fault!r}")
            # The chained script was there before us: it must not go missing for a fault of ours.
            return Reply(
                (f"pvehook: fault in {call.phase} ({fault!r}); the backup goes on",),
                chain=chain_of(self._context.node, self._configuration.now()),
            )

    def _checked_worker(self, connection: socket.socket, call: HookCall) -> ProcessId:
        """Who calls, as the kernel says it: root, and a child of the worker that it claims. Raises BadCall."""
        pid = checked_caller(connection)
        parent = parent_of(self._context.node, pid)
        if parent is None:
            raise BadCall(f"the hook {pid} of worker {call.worker_pid} had given up before it was served")
        if call.worker_pid not in (parent, vzdump_task_of(self._context.node, parent)):
            raise BadCall(f"process {pid} says it serves worker {call.worker_pid}, but its parent is {parent}")
        worker = identify(self._context.node, call.worker_pid)
        if worker is None:
            raise BadCall(f"worker {call.worker_pid} has ended")
        return worker

    # Runs

    @contextmanager
    def _run_of(self, worker: ProcessId) -> Iterator[Run]:
        """The worker's run, new or running; afterwards it is forgotten if it has ended, also where a phase raised."""
        with self._runs_lock:
            run = self._runs.get(worker)
            if run is None:
                upid = parse_upid(command_line(self._context.node, worker.pid))
                state = run_state.RunState(worker, upid.text if upid else "", self._context.clock.now_s())
                run = self._runs[worker] = self._new_run(state)
                self._watch(worker)
        try:
            yield run
        finally:
            if run.ended:
                self._forget(worker)

    def _new_run(self, state: run_state.RunState) -> Run:
        return Run(self._context, self._configuration, self._freezes, state, self._waiting_runs)

    def _waiting_runs(self) -> list[run_state.RunState]:
        with self._runs_lock:
            runs = list(self._runs.values())
        return [state for run in runs if (state := run.waiting) is not None]

    def _watch(self, worker: ProcessId) -> bool:
        """From here on the main thread sees the worker's death, however it dies. False: it is dead."""
        if worker in self._pidfds:
            return True  # its run ended and began anew: a chained script that fails in job-end brings a job-abort
        try:
            pidfd = os.pidfd_open(worker.pid)
        except ProcessLookupError:
            return False
        except OSError:
            return True  # out of descriptors; tried again at the next beat
        self._pidfds[worker] = pidfd
        self._selector.register(pidfd, selectors.EVENT_READ, worker)
        self._wake()
        return True

    def _worker_died(self, worker: ProcessId) -> None:
        self._dead.add(worker)
        pidfd, self._pidfds[worker] = self._pidfds.get(worker), None
        if pidfd is not None:
            self._selector.unregister(pidfd)
            os.close(pidfd)

    def _end_dead_runs(self) -> None:
        """Brings the runs of dead workers to their end. Where no thread can be started, again in a moment."""
        with self._runs_lock:
            unwatched = [worker for worker in self._runs if worker not in self._pidfds]
        for worker in unwatched:
            if not self._watch(worker):
                self._worker_died(worker)
        for worker in list(self._dead):
            with self._runs_lock:
                run = self._runs.get(worker)
            if run is None:
                self._pidfds.pop(worker, None)
                self._start_thread("past-runs", self._read_past_runs)
            elif not self._start_thread("worker-died", self._end_without_vzdump, run, worker):
                continue
            self._dead.discard(worker)

    def _end_without_vzdump(self, run: Run, worker: ProcessId) -> None:
        try:
            run.worker_died()
        except Exception as fault:
            self._report_fault("worker-died", None, fault)
        finally:
            self._forget(worker)
            self._pidfds.pop(worker, None)
            self._last_call_s = time.monotonic()
        self._read_past_runs()

    def _forget(self, worker: ProcessId) -> None:
        with self._runs_lock:
            self._runs.pop(worker, None)
        self._wake()

    def _resume_runs(self) -> None:
        """Runs of a daemon that died: those whose worker lives go on, the others are brought to their end."""
        for left in run_state.load_all(self._context.node):
            run = self._runs[left.worker] = self._new_run(left)
            lives = identify(self._context.node, left.worker.pid) == left.worker and self._watch(left.worker)
            run.adopt(resume=lives)
            if not lives:
                self._worker_died(left.worker)

    # Threads and faults

    def _start_thread(self, name: str, work: Callable[..., None], *arguments: object) -> bool:
        """False where no thread can be started; the caller goes on without."""
        try:
            threading.Thread(target=work, args=arguments, name=name, daemon=True).start()
        except RuntimeError as error:
            self._log.error("fault", message=f"{name}: no thread could be started: {error}")
            return False
        return True

    def _report_fault(self, phase: str, vmid: int | None, fault: Exception) -> None:
        frame, line = list(traceback.walk_tb(fault.__traceback__))[-1]
        self._log.error(
            "fault",
            message=f"{phase}: {fault!r}; the backup goes on",
            phase=phase,
            vmid=vmid,
            exc_type=type(fault).__name__,
            where=f"{os.path.basename(frame.f_code.co_filename)}:{line}",
        )
