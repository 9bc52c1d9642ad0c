"""What one run of vzdump stands on: its task log, its clock, its signals, its hook, and the pipes to the player.

The environment of a hook and what its failure does are PVE::VZDump's `run_hook_script`.
"""

from __future__ import annotations

import json
import os
import selectors
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pvehook.host.clock import RehearsalClock, local_zone
from pvehook.host.node import Node
from pvehook.rehearsal.vzdump.commands import CommandError, Signals, check, run_command
from pvehook.rehearsal.vzdump.run import Guest, Mode, Run

DIED = 255
"""What PVE's worker exits with when its task died."""


class TaskError(Exception):
    """PVE's `die` in one guest's backup or in the job; the text is what it prints."""


@dataclass(slots=True)
class Task:
    """One guest's backup: what PVE keeps in `$task`."""

    guest: Guest
    mode: Mode
    env: dict[str, str]
    """VMTYPE, TARGET, LOGFILE, HOSTNAME as far as they are known."""
    log: list[str]
    """The guest's own task log."""
    to_resume: bool = False
    to_restart: bool = False


class PlayerPipes:
    """The worker's end of the two pipes."""

    def __init__(self, words: int, events: int) -> None:
        self.words = os.fdopen(words, "rb", buffering=0)
        self._events = events

    def send(self, event: str, **fields: Any) -> None:
        """One event."""
        data = json.dumps({"event": event, **fields}).encode() + b"\n"
        while data:
            data = data[os.write(self._events, data) :]


class Session:
    """What the job and each guest's backup share."""

    def __init__(self, run: Run, player: PlayerPipes) -> None:
        self.run = run
        self.player = player
        self.node = Node(run.root)
        self.signals = Signals()
        self.zone = local_zone(self.node)
        self._clock = RehearsalClock(run.clock_file)

    def job_hook(self, phase: str) -> None:
        def forward(line: bytes) -> None:
            text = self.log("INFO:", os.fsdecode(line))
            if text:
                self.player.send("notify", line=f"{self.time()} {text}")

        self._hook([phase], {}, forward)

    def guest_hook(self, phase: str, task: Task, into_guest_log: bool = True) -> None:
        owner = task if into_guest_log else None
        argv = [phase, task.mode, str(task.guest.vmid)]
        self._hook(argv, task.env, lambda line: self.log("INFO:", os.fsdecode(line), owner))

    def tolerated(self, phase: str, task: Task, into_guest_log: bool = True) -> int:
        """A phase whose failure is a warning: 1 if it failed."""
        try:
            self.guest_hook(phase, task, into_guest_log)
        except CommandError as error:
            self.log("WARN:", error)
            return 1
        return 0

    def _hook(self, argv: list[str], guest_env: dict[str, str], forward: Any) -> None:
        run = self.run
        env = {"LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}
        if run.storeid:
            env["STOREID"] = run.storeid
        if not run.to_pbs and not (run.storeid and argv == ["job-init"]):
            env["DUMPDIR"] = run.dumpdir
        env.update(guest_env)
        lines: list[str] = []

        def collect(line: bytes) -> None:
            lines.append(os.fsdecode(line))
            forward(line)

        where = " ".join([argv[0], *argv[2:]])
        self.pause(f"before {where}")
        self.player.send("calling", argv=argv, env=env)
        command = [run.hook, *argv]
        code = run_command(command, collect, self.signals, env)
        self.player.send("called", argv=argv, env=env, exit=code, lines=lines)
        self.pause(f"after {where}")
        check(command, code)

    # What it stands on

    def log(self, prefix: str, message: object, task: Task | None = None) -> str:
        """PVE's `debugmsg`: to the task log, and to `task`'s own. Empty messages and a lone 0 vanish."""
        text = str(message).rstrip("\n")
        if text in {"", "0"}:
            return ""
        line = f"{prefix} {text}".lstrip()
        self.player.send("log", line=line)
        if task is not None:
            task.log.append(f"{self.time()} {line}")
        return line

    def pause(self, at: str) -> None:
        """Wait for the player, if the run wants that. A signal does not end this; it counts where PVE polls."""
        if at in self.run.pauses:
            self.player.send("pause", at=at)
            self.take_word()

    def take_word(self) -> None:
        """Take the player's `go`. A player that is gone ends this process: nobody would ever end it."""
        if not self.player.words.readline():
            raise SystemExit(DIED)

    def wait(self, seconds: float, descriptor: int | None = None) -> bool:
        """Wait as PVE polls; True when `descriptor` can be read. Raises InterruptError on a signal."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.signals, selectors.EVENT_READ)
            if descriptor is not None:
                selector.register(descriptor, selectors.EVENT_READ)
            ready = [key.fd for key, _ in selector.select(max(0.0, seconds))]
        self.signals.check()
        return descriptor in ready

    def now_s(self) -> float:
        return self.run.at_s if self.run.at_s is not None else self._clock.now_s()

    def time(self) -> str:
        return datetime.fromtimestamp(self.now_s(), self.zone).strftime("%Y-%m-%d %H:%M:%S")
