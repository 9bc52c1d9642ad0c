"""vzdump's worker as the hook meets it: a process of its own that plays one run.

The order of phases, the environment and what a failing hook does are PVE::VZDump's (`exec_backup`,
`exec_backup_task`, `run_hook_script`), held to 40 recordings of the real one. What is not played: locks of
guests' configurations, pruning, rsync of a suspended container.

It talks to the player on two pipes: one JSON event a line to it, one word a line from it.

    {"event":"calling","argv":["job-init"],"env":{...}}     a hook is about to be started
    {"event":"called","argv":["job-init"],"env":{...},"exit":0,"lines":["..."]}
    {"event":"log","line":"INFO: ..."}                       one line of the task log
    {"event":"notify","line":"..."}                          one line of the notification
    {"event":"children","vmid":101,"pids":{"zstd":4712}}     the archive's processes
    {"event":"vm","vmid":101,"pid":4713}                     a VM was started by vzdump
    {"event":"pause","at":"archive 101"}                     waits for the word `go`

and around the start of a VM's backup job, each with `vmid` and `at_s` (CLOCK_MONOTONIC, the same in all processes):

    pve-pings     pve-pinged                                 a command is about to be sent, and was answered
    pve-skipped-freeze                                       with `why`; a ping that is not answered ends here too
    pve-freezes   pve-froze     pve-freeze-failed            `why` with the last
    job-started                 job-failed                   the same; `name` with the first
    pve-thaws     pve-thawed    pve-thaw-failed              the same
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import sys
import time
from datetime import datetime
from typing import Any

from pvehook.host.clock import RehearsalClock, local_zone
from pvehook.host.node import Node
from pvehook.rehearsal.vzdump.commands import (
    LEAKED_DESCRIPTOR,
    CommandError,
    InterruptError,
    Signals,
    check,
    run_checked,
    run_command,
)
from pvehook.rehearsal.vzdump.guest_backup import Task, TaskError, Turn
from pvehook.rehearsal.vzdump.proc_title import set_title, start_ticks
from pvehook.rehearsal.vzdump.run import Run, from_json

LOCK_FILE = "/var/run/vzdump.lock"
_LOCK_POLL_S = 0.05
_DIED = 255
"""What PVE's worker exits with when its task died."""


class Player:
    """The other end of the two pipes."""

    def __init__(self, words: int, events: int) -> None:
        self.words = os.fdopen(words, "rb", buffering=0)
        self._events = events

    def tell(self, event: str, **fields: Any) -> None:
        """One event."""
        data = json.dumps({"event": event, **fields}).encode() + b"\n"
        while data:
            data = data[os.write(self._events, data) :]


class Worker:
    """One run of vzdump."""

    def __init__(self, run: Run, player: Player, upid: str) -> None:
        self.run = run
        self.player = player
        self.upid = upid
        self.node = Node(run.root)
        self.signals = Signals()
        self._clock = RehearsalClock(run.clock_file)
        self.zone = local_zone(self.node)
        self._lock: int | None = None

    def work(self) -> int:
        """The whole run; returns the worker's exit code. The last line of the task log says how it went."""
        warnings = 0
        try:
            self._init()
            self._take_lock()
            self._set_ionice()
            warnings = self._job()
        except (TaskError, CommandError, InterruptError) as error:
            self.say("TASK ERROR:", error)
            return _DIED
        self.say("TASK", f"WARNINGS: {warnings}" if warnings else "OK")
        return 0

    # The job

    def _init(self) -> None:
        hook = self.run.hook
        if not os.path.isfile(hook):
            raise TaskError(f"The hook script '{hook}' does not exist.")
        if not os.access(hook, os.X_OK):
            raise TaskError(f"The hook script '{hook}' is not executable.")
        try:
            self._job_hook("job-init")
        except CommandError as error:
            self.player.tell("notify", line=str(error))
            raise

    def _take_lock(self) -> None:
        path = self.node.path(LOCK_FILE)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        waited = False
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waited:
                    self.say("INFO:", "trying to get global lock - waiting...")
                waited = True
                self.wait(_LOCK_POLL_S)
            else:
                break
        if waited:
            self.say("INFO:", "got global lock")

    def _set_ionice(self) -> None:
        level = ["-c3"] if self.run.ionice > 7 else ["-c2", f"-n{self.run.ionice}"]
        command = ["ionice", *level, "-p", str(os.getpid())]
        run_checked(command, self._hear, self.signals)

    def _hear(self, line: bytes) -> None:
        self.say("INFO:", os.fsdecode(line))

    def _job(self) -> int:
        run = self.run
        numbers = " ".join(str(guest.vmid) for guest in run.guests)
        where = f"--storage {run.storeid}" if run.storeid else f"--dumpdir {run.dumpdir}"
        self.say("INFO:", f"starting new backup job: vzdump {numbers} --mode {run.mode} {where}")
        errors = warnings = 0
        try:
            self._job_hook("job-start")
            for guest in sorted(run.guests, key=lambda guest: guest.vmid):
                failed, warned = Turn(self, guest).take()
                errors += failed
                warnings += warned
            self._job_hook("job-end")
        except (CommandError, InterruptError) as error:
            with contextlib.suppress(CommandError):
                self._job_hook("job-abort")
            self.say("ERROR:", f"Backup job failed - {error}")
            raise
        if errors:
            self.say("INFO:", "Backup job finished with errors")
            raise TaskError("job errors")
        self.say("INFO:", "Backup job finished successfully")
        return warnings

    # The hook

    def _job_hook(self, phase: str) -> None:
        def say(line: bytes) -> None:
            text = self.say("INFO:", os.fsdecode(line))
            if text:
                self.player.tell("notify", line=f"{self.time()} {text}")

        self._hook([phase], {}, say)

    def guest_hook(self, phase: str, task: Task, into_guest_log: bool = True) -> None:
        owner = task if into_guest_log else None
        argv = [phase, task.mode, str(task.guest.vmid)]
        self._hook(argv, task.env, lambda line: self.say("INFO:", os.fsdecode(line), owner))

    def tolerated(self, phase: str, task: Task, into_guest_log: bool = True) -> int:
        """A phase whose failure is a warning: 1 if it failed."""
        try:
            self.guest_hook(phase, task, into_guest_log)
        except CommandError as error:
            self.say("WARN:", error)
            return 1
        return 0

    def _hook(self, argv: list[str], guest_env: dict[str, str], say: Any) -> None:
        run = self.run
        env = {"LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}
        if run.storeid:
            env["STOREID"] = run.storeid
        if not run.to_pbs and not (run.storeid and argv == ["job-init"]):
            env["DUMPDIR"] = run.dumpdir
        env.update(guest_env)
        lines: list[str] = []

        def hear(line: bytes) -> None:
            lines.append(os.fsdecode(line))
            say(line)

        where = " ".join([argv[0], *argv[2:]])
        self.pause(f"before {where}")
        self.player.tell("calling", argv=argv, env=env)
        command = [run.hook, *argv]
        code = run_command(command, hear, self.signals, env)
        self.player.tell("called", argv=argv, env=env, exit=code, lines=lines)
        self.pause(f"after {where}")
        check(command, code)

    # What it stands on

    def say(self, prefix: str, message: object, task: Task | None = None) -> str:
        """PVE's `debugmsg`: to the task log, and to `task`'s own. Empty messages and a lone 0 vanish."""
        text = str(message).rstrip("\n")
        if text in {"", "0"}:
            return ""
        line = f"{prefix} {text}".lstrip()
        self.player.tell("log", line=line)
        if task is not None:
            task.log.append(f"{self.time()} {line}")
        return line

    def pause(self, at: str) -> None:
        """Wait for the player, if it asked for it. A signal does not end this; it counts where PVE polls."""
        if at in self.run.pauses:
            self.player.tell("pause", at=at)
            self.take_word()

    def take_word(self) -> None:
        """Take the player's `go`. A player that is gone ends this process: nobody would ever end it."""
        if not self.player.words.readline():
            raise SystemExit(_DIED)

    def wait(self, seconds: float, for_word: bool = False) -> bool:
        """Wait as PVE polls; True when the player's word has come. Raises InterruptError on a signal."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.signals, selectors.EVENT_READ)
            if for_word:
                selector.register(self.player.words, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(seconds)]
        self.signals.check()
        return self.player.words in ready

    def now_s(self) -> float:
        return self.run.at_s if self.run.at_s is not None else self._clock.now_s()

    def time(self) -> str:
        return datetime.fromtimestamp(self.now_s(), self.zone).strftime("%Y-%m-%d %H:%M:%S")


def main() -> None:
    """`main WORDS EVENTS`: the numbers of the two pipes. The first line of WORDS is the run."""
    # away from the small numbers, of which one is leaked on purpose; and no child inherits them
    words, events = (fcntl.fcntl(int(number), fcntl.F_DUPFD_CLOEXEC, 16) for number in sys.argv[1:3])
    for number in sys.argv[1:3]:
        os.close(int(number))
    player = Player(words, events)
    run = from_json(player.words.readline().decode())
    pid = os.getpid()
    upid = (
        f"UPID:{run.node_name}:{pid:08X}:{start_ticks(pid):08X}:{int(time.time()):08X}"
        f":vzdump:{run.upid_id}:{run.upid_user}:"
    )
    set_title([f"task {upid}"], f"task {upid}")
    os.chdir("/")
    os.umask(0o022)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDONLY)
    if null != LEAKED_DESCRIPTOR:
        os.dup2(null, LEAKED_DESCRIPTOR)
        os.close(null)
    player.tell("started", pid=pid, upid=upid)
    sys.exit(Worker(run, player, upid).work())
