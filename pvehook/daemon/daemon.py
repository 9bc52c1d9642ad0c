"""The daemon: answers the doorbell, keeps one Job per vzdump worker, leaves when nothing is left to watch.

    main thread     waits for rings, for the death of workers (pidfd) and for idleness; beats systemd's watchdog
    ring threads    one per ring, short: ask the job, answer, end
    keeper threads  one per job (job/keeper.py)

The main thread does nothing that can hang: if it stops beating, systemd restarts the daemon and the new one picks
the running jobs up from /run/pvehook/jobs.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pvehook.config.in_force import Configuration
from pvehook.contract.call import (
    REQUEST_LIMIT_BYTES,
    TAKEN_UP,
    BadCall,
    HookCall,
    Reply,
    encode_patience,
    encode_reply,
    parse_call,
)
from pvehook.contract.phases import REFUSABLE_PHASES
from pvehook.contract.upid import parse_upid
from pvehook.daemon.run import Job, chain_of
from pvehook.freeze.guest_freeze import OpenFreezes, thaw_left_over_in_daemon
from pvehook.host import systemd
from pvehook.host.processes import ProcessId, command_line, identify, parent_of, vzdump_task_of
from pvehook.records import run_state
from pvehook.records.context import Context
from pvehook.rescue.speed_record import restore_left_over_speeds

REQUEST_DEADLINE_S = 2.0
"""The hook sends its line at once; whoever does not is not the hook."""

RINGS_AT_ONCE = 16
BEAT_S = 2.0
"""How often the main thread wakes at least; systemd's WatchdogSec is a multiple of it."""


class Daemon:
    """Serves every vzdump job of the node."""

    def __init__(
        self, context: Context, configuration: Configuration, freezes: OpenFreezes, idle_exit_s: float
    ) -> None:
        self._context = context
        self._configuration = configuration
        self._freezes = freezes
        self._log = context.log
        self._idle_exit_s = idle_exit_s
        self._jobs: dict[ProcessId, Job] = {}
        self._jobs_lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._pidfds: dict[ProcessId, int] = {}
        self._rings = threading.BoundedSemaphore(RINGS_AT_ONCE)
        self._ringing = 0
        self._last_ring_s = time.monotonic()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._told_to_leave = False

    def serve(self, listener: socket.socket) -> None:
        """Answers until told to leave (SIGTERM) or until nothing has been left to watch for `idle_exit_s`."""
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._leave)
        thaw_left_over_in_daemon(self._context, self._freezes)
        # In a thread: a VM that hangs must not keep the daemon from answering.
        threading.Thread(target=self._put_speeds_back, name="speeds", daemon=True).start()
        self._pick_up_running_jobs()
        systemd.notify("READY=1")
        while not self._told_to_leave and not self._idle():
            systemd.notify("WATCHDOG=1")
            for key, _ in self._selector.select(min(BEAT_S, self._idle_exit_s)):
                if key.fileobj is listener:
                    self._accept(listener)
                elif key.fd == self._wake_read:
                    _drain(self._wake_read)
                else:
                    self._worker_died(key.data)
        systemd.notify("STOPPING=1")
        for job in list(self._jobs.values()):
            job.put_down()

    def _put_speeds_back(self) -> None:
        for report in restore_left_over_speeds(self._context.node):
            write = self._log.warning if report.done else self._log.error
            write("governor-left-over", message=report.text, vmid=report.vmid)

    def _leave(self, *_: object) -> None:
        self._told_to_leave = True
        os.write(self._wake_write, b"x")

    def _idle(self) -> bool:
        with self._jobs_lock:
            busy = bool(self._jobs) or self._ringing > 0 or self._freezes.any
        return not busy and time.monotonic() - self._last_ring_s >= self._idle_exit_s

    # Rings

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # the hook gave up in the meantime
        self._last_ring_s = time.monotonic()
        if not self._rings.acquire(blocking=False):
            connection.close()  # the hook sees no answer and helps itself
            self._log.error("too-many-calls", message=f"more than {RINGS_AT_ONCE} hooks at once; one was not answered")
            return
        with self._jobs_lock:
            self._ringing += 1
        threading.Thread(target=self._ring, args=(connection,), name="ring", daemon=True).start()

    def _ring(self, connection: socket.socket) -> None:
        try:
            with connection:
                reply = self._answer(connection)
                connection.sendall(encode_reply(reply))
        except OSError as error:
            self._log.info("call-lost", message=f"a hook went away before its answer: {error}")
        finally:
            self._rings.release()
            self._last_ring_s = time.monotonic()
            with self._jobs_lock:
                self._ringing -= 1

    def _answer(self, connection: socket.socket) -> Reply:
        try:
            call = parse_call(_read_line(connection))
            worker = self._checked_worker(connection, call)
            connection.sendall(TAKEN_UP)
        except BadCall as bad:
            self._log.warning("call-refused", message=f"a ring was not served: {bad}")
            return Reply(not_served=f"this call was not served: {bad}")
        try:
            with self._job_of(worker) as job:
                return job.phase(call, lambda seconds: connection.sendall(encode_patience(seconds)))
        except Exception as fault:  # a fault of ours costs a log line, never a backup
            self._log.error(
                "fault",
                message=f"{call.phase}: {fault!r}; the backup goes on",
                phase=call.phase,
                vmid=call.vmid,
                exc_type=type(fault).__name__,
                where=_where(fault),
            )
            if call.phase in REFUSABLE_PHASES:
                return Reply(not_served=f"fault in {call.phase}: {fault!r}")
            # The chained script was there before us: it must not go missing for a fault of ours.
            return Reply(
                (f"pvehook: fault in {call.phase} ({fault!r}); the backup goes on",),
                chain=chain_of(self._context.node, self._configuration.now()),
            )

    def _checked_worker(self, connection: socket.socket, call: HookCall) -> ProcessId:
        """Who rings, as the kernel says it: root, and a child of the worker that it claims. Raises BadCall."""
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", credentials)
        if uid not in (0, os.geteuid()):
            raise BadCall(f"process {pid} belongs to user {uid}, only root may ring")
        parent = parent_of(self._context.node, pid)
        if parent is None:
            raise BadCall(f"the hook {pid} of worker {call.worker_pid} had given up before it was served")
        if call.worker_pid not in (parent, vzdump_task_of(self._context.node, parent)):
            raise BadCall(f"process {pid} says it serves worker {call.worker_pid}, but its parent is {parent}")
        worker = identify(self._context.node, call.worker_pid)
        if worker is None:
            raise BadCall(f"worker {call.worker_pid} has ended")
        return worker

    # Jobs

    @contextmanager
    def _job_of(self, worker: ProcessId) -> Iterator[Job]:
        """The worker's job, new or running; afterwards it is watched as long as it has not ended."""
        with self._jobs_lock:
            job = self._jobs.get(worker)
            if job is None:
                state = run_state.RunState(worker, self._upid_of(worker), self._context.clock.now_s())
                job = Job(self._context, self._configuration, self._freezes, state)
                self._jobs[worker] = job
                self._watch(worker)
        yield job
        if job.ended:
            self._forget(worker)

    def _upid_of(self, worker: ProcessId) -> str:
        upid = parse_upid(command_line(self._context.node, worker.pid))
        return upid.text if upid else ""

    def _watch(self, worker: ProcessId) -> bool:
        """Has the main thread told when the worker dies, however it dies. False: it is dead."""
        if worker in self._pidfds:
            return True  # its job ended and began anew: a chained script that fails in job-end brings a job-abort
        try:
            pidfd = os.pidfd_open(worker.pid)
        except OSError:
            return False
        self._pidfds[worker] = pidfd
        self._selector.register(pidfd, selectors.EVENT_READ, worker)
        os.write(self._wake_write, b"x")
        return True

    def _unwatch(self, worker: ProcessId) -> None:
        pidfd = self._pidfds.pop(worker, None)
        if pidfd is not None:
            self._selector.unregister(pidfd)
            os.close(pidfd)

    def _worker_died(self, worker: ProcessId) -> None:
        self._unwatch(worker)
        with self._jobs_lock:
            job = self._jobs.get(worker)
        if job is not None:
            threading.Thread(target=self._end_without_vzdump, args=(job, worker), daemon=True).start()

    def _end_without_vzdump(self, job: Job, worker: ProcessId) -> None:
        try:
            job.worker_died()
        finally:
            with self._jobs_lock:
                self._jobs.pop(worker, None)
            self._last_ring_s = time.monotonic()

    def _forget(self, worker: ProcessId) -> None:
        with self._jobs_lock:
            self._jobs.pop(worker, None)
        os.write(self._wake_write, b"x")

    def _pick_up_running_jobs(self) -> None:
        """Jobs of a daemon that died: those whose worker lives go on, the others are brought to their end."""
        for left in run_state.load_all(self._context.node):
            job = Job(self._context, self._configuration, self._freezes, left)
            self._jobs[left.worker] = job
            if identify(self._context.node, left.worker.pid) == left.worker and self._watch(left.worker):
                job.resume()
            else:
                self._worker_died(left.worker)


def listen(path: str) -> socket.socket:
    """The doorbell's socket, made by ourselves: outside of systemd, in rehearsals and tests."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.chmod(os.path.dirname(path), 0o700)  # an exception may have made it before us, with the umask of a shell
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    old_umask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(old_umask)
    listener.listen(128)
    return listener


def _read_line(connection: socket.socket) -> bytes:
    """The request, within one deadline for all of it: whoever drips bytes must not hold a place for long."""
    data = bytearray()
    until_s = time.monotonic() + REQUEST_DEADLINE_S
    while not data.endswith(b"\n"):
        connection.settimeout(max(until_s - time.monotonic(), 0.001))
        chunk = connection.recv(REQUEST_LIMIT_BYTES + 1 - len(data))
        if not chunk:
            raise BadCall("it broke off")
        data += chunk
        if len(data) > REQUEST_LIMIT_BYTES:
            raise BadCall(f"it is over {REQUEST_LIMIT_BYTES} bytes long")
    connection.settimeout(REQUEST_DEADLINE_S)
    return bytes(data)


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        pass


def _where(fault: BaseException) -> str:
    """The innermost place of a fault, for the one who reads the journal."""
    trace = fault.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
