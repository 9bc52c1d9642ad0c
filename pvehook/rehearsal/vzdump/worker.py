"""vzdump's worker as the hook meets it: a process of its own that plays one run.

The order of phases, the environment and what a failing hook does are PVE::VZDump's (`exec_backup`,
`exec_backup_task`, `run_hook_script`), held to 40 recordings of the real one. What is not played: locks of
guests' configurations, pruning, rsync of a suspended container.

It talks to the player by stdout and stdin: one JSON event a line to it, one word a line from it.

    {"event":"calling","argv":["job-init"],"env":{...}}     a hook is about to be started
    {"event":"called","argv":["job-init"],"env":{...},"exit":0,"lines":["..."]}
    {"event":"log","line":"INFO: ..."}                       one line of the task log
    {"event":"notify","line":"..."}                          one line of the notification
    {"event":"children","vmid":101,"pids":{"zstd":4712}}     the archive's processes
    {"event":"vm","vmid":101,"pid":4713}                     a VM was started by vzdump
    {"event":"pause","at":"archive 101"}                     waits for the word `go`

and around the start of a VM's backup job, each with `vmid` and `at_s` (CLOCK_MONOTONIC, the same in all processes):

    job-started                 job-failed                   with `name`, with `why`
    what `Run.freeze` sends before and after
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time

from pvehook.rehearsal.vzdump.commands import LEAKED_DESCRIPTOR, CommandError, InterruptError, check, run_command
from pvehook.rehearsal.vzdump.guest_backup import GuestBackup
from pvehook.rehearsal.vzdump.proc_title import set_title, start_ticks
from pvehook.rehearsal.vzdump.run import from_json
from pvehook.rehearsal.vzdump.session import DIED, Session, TaskError

_LOCK_FILE = "/var/run/vzdump.lock"
_LOCK_POLL_S = 0.05


def main() -> None:
    """The process itself. The first line of stdin is the run."""
    # away from the small numbers, of which one is leaked on purpose; and no child inherits them
    words_end, events = (fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 16) for number in (0, 1))
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, LEAKED_DESCRIPTOR):
        os.dup2(null, number)
    words = os.fdopen(words_end, "rb", buffering=0)
    run = from_json(words.readline().decode())
    pid = os.getpid()
    upid = f"UPID:pve:{pid:08X}:{start_ticks():08X}:{int(time.time()):08X}:vzdump:{run.upid_id}:root@pam:"
    set_title([f"task {upid}"], f"task {upid}")
    os.chdir("/")
    os.umask(0o022)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    session = Session(run, words, events)
    session.begin_log(upid)
    session.send("started", pid=pid, upid=upid)
    sys.exit(_work(session))


def _work(session: Session) -> int:
    """The whole run; returns the worker's exit code. The last line of the task log says how it went."""
    try:
        _init(session)
        _take_lock(session)
        _set_ionice(session)
        warnings = _job(session)
    except (TaskError, CommandError, InterruptError) as error:
        session.log("TASK ERROR:", error)
        return DIED
    session.log("TASK", f"WARNINGS: {warnings}" if warnings else "OK")
    return 0


def _init(session: Session) -> None:
    hook = session.run.hook
    if not os.path.isfile(hook):
        raise TaskError(f"The hook script '{hook}' does not exist.")
    if not os.access(hook, os.X_OK):
        raise TaskError(f"The hook script '{hook}' is not executable.")
    try:
        session.job_hook("job-init")
    except CommandError as error:
        session.send("notify", line=str(error))
        raise


def _take_lock(session: Session) -> None:
    """Held until this process ends."""
    path = session.node.path(_LOCK_FILE)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    waited = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waited:
                session.log("INFO:", "trying to get global lock - waiting...")
            waited = True
            session.wait(_LOCK_POLL_S)
        else:
            break
    if waited:
        session.log("INFO:", "got global lock")


def _set_ionice(session: Session) -> None:
    ionice = session.run.ionice
    level = ["-c3"] if ionice > 7 else ["-c2", f"-n{ionice}"]
    command = ["ionice", *level, "-p", str(os.getpid())]
    check(command, run_command(command, lambda line: session.log("INFO:", os.fsdecode(line)), session.signals))


def _job(session: Session) -> int:
    """The number of warnings. Raises TaskError, CommandError, InterruptError."""
    run = session.run
    numbers = " ".join(str(guest.vmid) for guest in run.guests)
    where = f"--storage {run.storeid}" if run.storeid else f"--dumpdir {run.dumpdir}"
    session.log("INFO:", f"starting new backup job: vzdump {numbers} --mode {run.mode} {where}")
    errors = warnings = 0
    try:
        session.job_hook("job-start")
        for guest in sorted(run.guests, key=lambda guest: guest.vmid):
            failed, warned = GuestBackup(session, guest).run()
            errors += failed
            warnings += warned
        session.job_hook("job-end")
    except (CommandError, InterruptError) as error:
        with contextlib.suppress(CommandError):
            session.job_hook("job-abort")
        session.log("ERROR:", f"Backup job failed - {error}")
        raise
    if errors:
        session.log("INFO:", "Backup job finished with errors")
        raise TaskError("job errors")
    session.log("INFO:", "Backup job finished successfully")
    return warnings
