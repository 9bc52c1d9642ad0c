"""What one run of vzdump stands on: its task log, its clock, its signals, its hook, and the pipes to the player.

The environment of a hook and what its failure does are PVE::VZDump's `run_hook_script`.
"""

from __future__ import annotations

import json
import os
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO

from pvehook.host.clock import RehearsalClock, local_zone
from pvehook.host.node import Node
from pvehook.rehearsal.vzdump.commands import Signals, check, run_command
from pvehook.rehearsal.vzdump.run import Guest, Mode, Run

DIED = 255
"""What PVE's worker exits with when its task died."""


class TaskError(Exception):
    """PVE's `die` in one guest's backup or in the job; the text is what it prints."""


class Session:
    """What the job and each guest's backup share."""

    def __init__(self, run: Run, words: BinaryIO, events: int) -> None:
        """`words` and `events`: the worker's ends of the two pipes."""
        self.run = run
        self.words = words
        self._events = events
        self.node = Node(run.root)
        self.signals = Signals()
        self.zone = local_zone(self.node)
        self.now_s = RehearsalClock(run.clock_file).now_s
        self.log_file = ""
        """Proxmox's log of the task, below the node's tree; "": none yet."""

    def begin_log(self, upid: str) -> None:
        """As Proxmox names it; X is the last digit of the start time (`upid_decode` in PVE::Tools)."""
        directory = self.node.path(f"/var/log/pve/tasks/{upid.split(':')[4][-1]}")
        os.makedirs(directory, exist_ok=True)
        self.log_file = os.path.join(directory, upid)

    def send(self, event: str, **fields: Any) -> None:
        """One event to the player."""
        data = json.dumps({"event": event, **fields}).encode() + b"\n"
        while data:
            data = data[os.write(self._events, data) :]

    def log(self, prefix: str, message: object) -> str:
        """PVE's `debugmsg`: the line in the task log. Empty messages and a lone 0 vanish, and return ""."""
        text = str(message).rstrip("\n")
        if text in {"", "0"}:
            return ""
        line = f"{prefix} {text}".lstrip()
        self.send("log", line=line)
        if self.log_file:
            with open(self.log_file, "a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(f"{line}\n")
        return line

    def job_hook(self, phase: str) -> None:
        """A phase of the job; what the hook prints is in the notification too. Raises CommandError."""

        def forward(text: str) -> None:
            if line := self.log("INFO:", text):
                self.send("notify", line=f"{self.time_text()} {line}")

        self.hook([phase], {}, forward)

    def hook(self, argv: list[str], guest_env: dict[str, str], forward: Callable[[str], object]) -> None:
        """One call; each line that the hook prints goes to `forward`. Raises CommandError."""
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
            forward(lines[-1])

        where = " ".join([argv[0], *argv[2:]])
        self.pause(f"before {where}")
        self.send("calling", argv=argv, env=env)
        command = [run.hook, *argv]
        began_s = time.monotonic()
        code = run_command(command, collect, self.signals, env)
        self.send("called", argv=argv, env=env, exit=code, lines=lines, took_s=time.monotonic() - began_s)
        self.pause(f"after {where}")
        check(command, code)

    def pause(self, at: str) -> None:
        """Wait for the player, if the run wants that. A signal does not end this; it counts where PVE polls."""
        if at in self.run.pauses:
            self.send("pause", at=at)
            self.take_word()

    def take_word(self) -> None:
        """Take the player's `go`. A player that is gone ends this process: nobody would ever end it."""
        if not self.words.readline():
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

    def time_text(self) -> str:
        return datetime.fromtimestamp(self.now_s(), self.zone).strftime("%Y-%m-%d %H:%M:%S")


@dataclass(slots=True)
class Task:
    """One guest's backup: what PVE keeps in `$task`."""

    session: Session
    guest: Guest
    mode: Mode
    env: dict[str, str] = field(default_factory=dict)
    """VMTYPE, TARGET, LOGFILE, HOSTNAME as far as they are known."""
    lines: list[str] = field(default_factory=list)
    """The guest's own task log."""
    to_resume: bool = False
    to_restart: bool = False

    def log(self, prefix: str, message: object) -> None:
        """To the task log, and to the guest's own."""
        if line := self.session.log(prefix, message):
            self.lines.append(f"{self.session.time_text()} {line}")

    def info(self, message: str) -> None:
        self.log("INFO:", message)

    def send(self, event: str, **fields: Any) -> None:
        """One event about this guest to the player."""
        self.session.send(event, vmid=self.guest.vmid, **fields)

    def moment(self, event: str, **fields: str) -> None:
        """A moment around the start of the backup job, to the player."""
        self.send(event, at_s=time.monotonic(), **fields)

    def hook(self, phase: str) -> None:
        """A phase of this guest. Raises CommandError."""
        # the guest's own log is complete, and written, before `log-end`
        forward = self.session.log if phase == "log-end" else self.log
        argv = [phase, self.mode, str(self.guest.vmid)]
        self.session.hook(argv, self.env, lambda text: forward("INFO:", text))
