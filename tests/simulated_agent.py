"""The guest agent of a simulated VM: one thread, so one command after the other, whoever is connected."""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final, NamedTuple

from pvehook.contract.guest_facts import Filesystem
from pvehook.rehearsal.vm.sockets import JOIN_S, DenialError, GuestState, Peer, Port, Requests, reply_to

_WHILE_FROZEN: Final = (
    *("guest-fsfreeze-status", "guest-fsfreeze-thaw", "guest-info", "guest-ping"),
    *("guest-sync", "guest-sync-delimited"),
)

_OS: Final = {
    "version-id": "12",
    "kernel-release": "6.1.0-40-amd64",
    "kernel-version": "#1 SMP PREEMPT_DYNAMIC",
    "machine": "x86_64",
}

_NOBODY: Final = Peer(0, 0)

_Handler = Callable[[Mapping[str, object]], object]


class FrozenInterval(NamedTuple):
    """One freeze that took hold. All moments are on the monotonic clock."""

    asked_at_s: float
    """The freeze command reached the guest. Writers are held up from some moment after this."""
    since_s: float
    """The freeze was complete."""
    until_s: float | None
    """The thaw was complete; None: the guest is still frozen."""
    mountpoints: frozenset[str]
    frozen_by: Peer
    thawed_by: Peer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTraits:
    """What kind of guest the agent runs in."""

    filesystems: Sequence[Filesystem] = (Filesystem("sda2", "/home", "ext4"), Filesystem("sda1", "/", "ext4"))
    agent_version: str = "7.2.22"
    os_id: str = "debian"
    blocked: Collection[str] = ()
    """The agent's commands that the guest's administrator has switched off."""
    freeze_s: float = 0.0
    """How long a freeze takes."""
    sync_s: float = 0.0
    """How long a `sync` by guest-exec takes."""
    agent_latency_s: float = 0.0
    """What passes before each command is carried out, as on a host that is too busy."""


class _AgentPort(Port):
    """The socket of a guest's port."""

    def reply_to_whoever_is_next(self, data: bytes) -> None:
        """What the client being served does not take waits for the next one."""
        client: socket.socket | None = None
        while client := self._client_after(client):
            try:
                client.sendall(data)
            except OSError:  # it has hung up
                continue
            return

    def _client_after(self, gone: socket.socket | None) -> socket.socket | None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._client not in (None, gone))
            return None if self._ended else self._client


class SimulatedAgent:
    """Serves one agent socket."""

    def __init__(self, path: str, state: GuestState, traits: AgentTraits) -> None:
        self.intervals: list[FrozenInterval] = []
        self.executed: list[tuple[str, ...]] = []
        self._state = state
        self._traits = traits
        self._processes: dict[int, float] = {}
        """What guest-exec started, by pid: the moment it ends. Gone once its end was reported, as in qemu-ga."""
        self._pids = count(1201)
        self._peer = _NOBODY
        """Who asked what is being carried out."""
        self._received: queue.SimpleQueue[tuple[bytes, Peer]] = queue.SimpleQueue()
        self._port = _AgentPort(path, lambda: None, lambda data, peer: self._received.put((data, peer)))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.commands: dict[str, _Handler] = {
            "guest-sync": self._sync,
            "guest-sync-delimited": self._sync,
            "guest-ping": lambda _: {},
            "guest-info": self._info,
            "guest-get-osinfo": lambda _: dict.fromkeys(("id", "name", "pretty-name"), traits.os_id) | _OS,
            "guest-get-fsinfo": lambda _: [{**entry._asdict(), "disk": []} for entry in traits.filesystems],
            "guest-fsfreeze-status": lambda _: "frozen" if self.frozen else "thawed",
            "guest-fsfreeze-freeze": self._freeze,
            "guest-fsfreeze-freeze-list": self._freeze,
            "guest-fsfreeze-thaw": self._thaw,
            "guest-exec": self._exec,
            "guest-exec-status": self._exec_status,
        }

    def open(self) -> None:
        self._port.open()
        self._thread.start()

    def close(self) -> None:
        """The state has ended before: nothing hangs any more."""
        self._port.close()
        self._received.put((b"", _NOBODY))
        self._thread.join(JOIN_S)

    @property
    def frozen(self) -> frozenset[str]:
        """The mountpoints that are frozen now."""
        last = self.intervals[-1] if self.intervals else None
        return last.mountpoints if last is not None and last.until_s is None else frozenset()

    def _run(self) -> None:
        requests = Requests()
        while True:
            data, self._peer = self._received.get()
            if not data:
                return
            for request in requests.cut(data):
                self._state.wait_while_stuck("agent")
                if request != b"\xff":  # a byte that is passed over, no command
                    self._state.pass_time(self._traits.agent_latency_s)
                self._port.reply_to_whoever_is_next(self._answer(request))

    def _answer(self, request: bytes) -> bytes:
        reply, command = reply_to(request, self._carry_out)
        mark = b"\xff" if command == "guest-sync-delimited" and "return" in reply else b""
        return mark + json.dumps(reply).encode() + b"\n"

    def _carry_out(self, command: str, arguments: Mapping[str, object]) -> object:
        self._state.note("qga", command, self._peer)
        if command not in self.commands:
            raise DenialError("CommandNotFound", f"The command {command} has not been found")
        is_kept_by_freeze = bool(self.frozen) and command not in _WHILE_FROZEN
        if is_kept_by_freeze or command in self._traits.blocked:
            old = int(self._traits.agent_version.split(".")[0]) < 10
            why = ": the command is not allowed"
            if old:
                why = ": the agent is in frozen state" if is_kept_by_freeze else ""
            raise DenialError("CommandNotFound", f"Command {command} has been disabled{why}")
        return self.commands[command](arguments)

    def _sync(self, arguments: Mapping[str, object]) -> object:
        if type(arguments.get("id")) is not int:
            raise DenialError("GenericError", "Invalid parameter type for 'id', expected: integer")
        return arguments["id"]

    def _info(self, arguments: Mapping[str, object]) -> object:
        off = {*self._traits.blocked, *self._state.refused}
        allowed = {name for name in self.commands if not self.frozen or name in _WHILE_FROZEN} - off
        commands = [{"name": name, "enabled": name in allowed, "success-response": True} for name in self.commands]
        return {"version": self._traits.agent_version, "supported_commands": commands}

    def _freeze(self, arguments: Mapping[str, object]) -> object:
        asked_at_s = time.monotonic()
        wanted = arguments.get("mountpoints", [entry.mountpoint for entry in self._traits.filesystems])
        if not isinstance(wanted, list):
            raise DenialError("GenericError", "Invalid parameter type for 'mountpoints', expected: array")
        self._state.wait_while_stuck("freeze")
        self._state.pass_time(self._traits.freeze_s)
        reached = [entry.mountpoint for entry in self._traits.filesystems if entry.mountpoint in wanted]
        if reached:
            now_s = time.monotonic()
            with self._state.changed:
                self.intervals.append(
                    FrozenInterval(asked_at_s, now_s, None, frozenset(reached), self._peer, thawed_by=None)
                )
                self._state.changed.notify_all()
        return len(reached)

    def _thaw(self, arguments: Mapping[str, object]) -> object:
        self._state.wait_while_stuck("thaw")
        thawed = len(self.frozen)
        if thawed:
            with self._state.changed:
                self.intervals[-1] = self.intervals[-1]._replace(until_s=time.monotonic(), thawed_by=self._peer)
                self._state.changed.notify_all()
        return thawed

    def _exec(self, arguments: Mapping[str, object]) -> object:
        path, words = arguments.get("path"), arguments.get("arg", [])
        if not isinstance(path, str) or not isinstance(words, list):
            raise DenialError("GenericError", "Invalid parameter type for 'path', expected: string")
        if os.path.basename(path) != "sync":  # the only program there is
            why = f"Failed to execute child process “{path}” (No such file or directory)"
            raise DenialError("GenericError", f"Guest agent command failed, error was '{why}'")
        pid = next(self._pids)
        with self._state.changed:
            self.executed.append((path, *map(str, words)))
            self._processes[pid] = time.monotonic() + self._traits.sync_s
            self._state.changed.notify_all()
        return {"pid": pid}

    def _exec_status(self, arguments: Mapping[str, object]) -> object:
        pid = arguments.get("pid")
        if type(pid) is not int or pid not in self._processes:
            raise DenialError("GenericError", f"PID {pid} does not exist")
        if time.monotonic() < self._processes[pid]:
            return {"exited": False}
        del self._processes[pid]
        return {"exited": True, "exitcode": 0}
