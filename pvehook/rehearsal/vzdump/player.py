"""Plays one run of vzdump against a hook: `play(run)`, or step by step with `Player`.

    with Player(run) as player:            # run.pauses names "archive 101"
        player.wait_for("archive 101")
        ...inspect player.children(101), do something...
        player.go_on()
        played = player.finish()

The player only starts and watches; what vzdump does is in worker.py, in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pvehook.host.node import Node
from pvehook.rehearsal import PROGRAM
from pvehook.rehearsal.vm import fake_vm_process
from pvehook.rehearsal.vzdump.run import Run, to_json

WAIT_S = 30.0
"""For everything that is waited for. A hook has no deadline in PVE; in a rehearsal it has this one."""

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the hook, complete."""

    argv: tuple[str, ...]
    """Without the script's own path."""
    env: dict[str, str]
    exit_code: int
    """Negative: the signal that ended it."""
    lines: tuple[str, ...]
    """Its output, both streams, as split by PVE."""
    took_s: float


@dataclass(frozen=True, slots=True)
class Played:
    """What vzdump did and showed."""

    calls: tuple[Call, ...]
    task_log: tuple[str, ...]
    notification: tuple[str, ...]
    exit_code: int
    """Of the worker: 0, 255 when the task died, negative when a signal ended it."""
    upid: str
    events: tuple[dict[str, Any], ...] = ()
    """All of the worker's, see worker.py."""


class Player:
    """One run in play. Leaving the `with` block ends everything that it started."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.pid = 0
        """The worker's."""
        self._events: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._at_end = False

    def __enter__(self) -> Player:
        """Start the worker; returns when its title is its UPID."""
        node = Node(self.run.root)
        os.makedirs(node.path(self.run.dumpdir), exist_ok=True)
        vms = (guest.vmid for guest in self.run.guests if guest.kind == "qemu")
        # fake VMs that somebody else started
        self._ran_before = frozenset(vmid for vmid in vms if fake_vm_process.running_pid(node, vmid) is not None)
        code = f"import sys; sys.path.insert(0, {PROGRAM!r}); from pvehook.rehearsal.vzdump.worker import main; main()"
        # -S: the worker needs the standard library only, and starts before a hook's deadline matters
        self._worker = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": _PATH},
            start_new_session=True,
        )
        self.pid = self._worker.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._write(to_json(self.run))
            self.wait_until(lambda event: event["event"] == "started", "the worker's start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the worker with its hook and the VMs that it started, if they still run."""
        with self._worker as worker:
            if worker.poll() is None:
                os.killpg(self.pid, signal.SIGKILL)
            self._reader.join(WAIT_S)
        node = Node(self.run.root)
        started_here = {event["vmid"] for event in self._events if event["event"] == "vm"}
        for guest in self.run.guests:
            # a worker that was killed may have started one without sending it
            if guest.kind == "qemu" and (guest.vmid in started_here or guest.vmid not in self._ran_before):
                fake_vm_process.stop(node, guest.vmid)

    def wait_until(self, is_it: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The first event, past or to come, for which `is_it` holds. Raises TimeoutError, EOFError."""

        def found() -> dict[str, Any] | None:
            return next((event for event in self._events if is_it(event)), None)

        with self._news:
            self._news.wait_for(lambda: found() is not None or self._at_end, WAIT_S)
            event = found()
            if event is not None:
                return event
            if self._at_end:
                raise EOFError(f"the run ended before {what}; its last events: {self._events[-3:]}")
            raise TimeoutError(f"no {what} within {WAIT_S:g} s; the last events: {self._events[-3:]}")

    def wait_for(self, pause: str) -> None:
        """Wait until the worker stands at `pause`, one of `run.pauses`."""
        if pause not in self.run.pauses:
            raise ValueError(f"{pause!r} is not among the pauses of this run: {', '.join(self.run.pauses)}")
        self.wait_until(lambda event: event["event"] == "pause" and event["at"] == pause, pause)

    def wait_for_event(self, name: str, vmid: int) -> dict[str, Any]:
        """Wait until `vmid` has this event, one of worker.py's list."""
        return self.wait_until(lambda event: event["event"] == name and event["vmid"] == vmid, f"{name} of {vmid}")

    def go_on(self) -> None:
        """Let the worker go on from where it stands."""
        self._write("go")

    def send_signal(self, number: int) -> None:
        """A signal to the worker."""
        self._worker.send_signal(number)

    def finish(self) -> Played:
        """Wait for the end of the run. Raises TimeoutExpired."""
        code = self._worker.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return self.so_far(code)

    def so_far(self, exit_code: int = 0) -> Played:
        """What has been seen up to now."""
        events = self.events()
        calls = tuple(
            Call(tuple(event["argv"]), event["env"], event["exit"], tuple(event["lines"]), event["took_s"])
            for event in events
            if event["event"] == "called"
        )
        return Played(
            calls,
            tuple(event["line"] for event in events if event["event"] == "log"),
            tuple(event["line"] for event in events if event["event"] == "notify"),
            exit_code,
            next((event["upid"] for event in events if event["event"] == "started"), ""),
            tuple(events),
        )

    def events(self) -> list[dict[str, Any]]:
        """All that the worker has sent so far; worker.py lists what there is."""
        with self._news:
            return list(self._events)

    def children(self, vmid: int) -> dict[str, int]:
        """The archive's processes of `vmid`, name to pid, once they run."""
        return dict(self.wait_for_event("children", vmid)["pids"])

    def started_vm(self, vmid: int) -> int:
        """The pid of the VM that vzdump started for `vmid`."""
        return int(self.wait_for_event("vm", vmid)["pid"])

    def _write(self, line: str) -> None:
        assert self._worker.stdin is not None  # noqa: S101 - both are pipes, as requested above
        os.write(self._worker.stdin.fileno(), line.encode() + b"\n")

    def _read(self) -> None:
        assert self._worker.stdout is not None  # noqa: S101
        for line in self._worker.stdout:
            with self._news:
                self._events.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._at_end = True
            self._news.notify_all()


def play(run: Run) -> Played:
    """One run without anybody acting in its middle."""
    with Player(run) as player:
        return player.finish()
