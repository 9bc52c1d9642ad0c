"""A VM as its two sockets show it: QEMU's monitor and the guest agent, without a VM.

    with SimulatedGuest("/tmp/node/run/qemu-server", 101, freeze_s=0.2) as guest:
        ...                                  # the program talks to 101.qmp and 101.qga
        guest.wait_until(lambda: guest.is_frozen, timeout_s=2)
        guest.stick("thaw")                  # a fault, until `unstick`

Held against the real thing: tests/guest/test_socket_semantics.py runs on this and on a real QEMU with a real
qemu-ga. What is simulated is what can be seen at the sockets: who is served when, which bytes reach whom, what
is answered. Texts and shapes are those of QEMU 7.2 and 10.0; `backup`, `backup-cancel` and `query-backup` are
Proxmox's own and follow its patches to QEMU.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

from pvehook.contract.guest_facts import Filesystem
from pvehook.rehearsal import backup_job
from pvehook.rehearsal.guest_sockets import JOIN_S, DenialError, Port, Requests, line, reply_to

PLAIN_FILESYSTEMS: Final = (Filesystem("sda2", "/home", "ext4"), Filesystem("sda1", "/", "ext4"))

Sticky = Literal["qmp", "agent", "freeze", "thaw"]
"""What can hang: the monitor, the agent before every request, or one command inside the guest."""

_WHILE_FROZEN: Final = (
    *("guest-fsfreeze-status", "guest-fsfreeze-thaw", "guest-info", "guest-ping"),
    *("guest-sync", "guest-sync-delimited"),
)

_Handler = Callable[[Mapping[str, object]], object]


class Heard(NamedTuple):
    """One command that reached the guest. `at_s` is on the monotonic clock."""

    at_s: float
    channel: Literal["qmp", "qga"]
    command: str


class SimulatedGuest:
    """Serves `DIRECTORY/VMID.qmp` and `DIRECTORY/VMID.qga` until the block is left.

    `freeze_s` is how long a freeze takes, `backup_s` how long a backup: None is until `finish_backup`.
    A guest that is not `running` waits for `cont`, as a VM that vzdump started for its backup does.
    A `block-job-set-speed` is noted and shown, it does not change the time a backup takes.
    """

    def __init__(
        self,
        directory: str,
        vmid: int,
        *,
        filesystems: Sequence[Filesystem] = PLAIN_FILESYSTEMS,
        agent_version: str = "7.2.22",
        freeze_s: float = 0.0,
        backup_s: float | None = None,
        running: bool = True,
    ) -> None:
        self.qmp_path = os.path.join(directory, f"{vmid}.qmp")
        self.qga_path = os.path.join(directory, f"{vmid}.qga")
        self.heard: list[Heard] = []
        self.refused: dict[str, str] = {}
        """Commands that are answered with an error, and its text. To be filled by whoever wants that."""
        self._filesystems = tuple(filesystems)
        self._agent_version = agent_version
        self._freeze_s = freeze_s
        self._running = running
        self._frozen: frozenset[str] = frozenset()
        self._backup = backup_job.BackupJob(backup_s)
        self._stuck: set[Sticky] = set()
        self._ended = False
        self._changed = threading.Condition()
        self._to_agent: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._monitor = Requests()
        self._in_command_mode = False
        self._qmp = Port(self.qmp_path, self._greet, self._monitor_reads)
        self._qga = Port(self.qga_path, lambda: None, self._to_agent.put)
        self._agent = threading.Thread(target=self._run_agent, daemon=True)
        self._agent_commands: dict[str, _Handler] = {
            "guest-sync": self._sync,
            "guest-sync-delimited": self._sync,
            "guest-ping": self._ping,
            "guest-info": self._info,
            "guest-get-fsinfo": self._fsinfo,
            "guest-fsfreeze-status": self._freeze_status,
            "guest-fsfreeze-freeze": self._freeze,
            "guest-fsfreeze-freeze-list": self._freeze,
            "guest-fsfreeze-thaw": self._thaw,
        }
        self._monitor_commands: dict[str, _Handler] = {
            "query-status": self._status,
            "cont": self._continue,
            "query-block": self._block,
            "query-blockstats": self._blockstats,
            "query-block-jobs": self._block_jobs,
            "block-job-set-speed": self._set_speed,
            "backup": self._start_backup,
            "backup-cancel": self._cancel_backup,
            "query-backup": self._query_backup,
        }

    def __enter__(self) -> Self:
        self._qmp.open()
        self._qga.open()
        self._agent.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._qmp.close()
        self._qga.close()
        self._to_agent.put(b"")
        self._agent.join(JOIN_S)

    @property
    def is_frozen(self) -> bool:
        return bool(self._frozen)

    @property
    def frozen_mountpoints(self) -> frozenset[str]:
        return self._frozen

    @property
    def backup_runs(self) -> bool:
        return self._backup.state == "active"

    def stick(self, what: Sticky) -> None:
        """From now on this hangs, until `unstick`."""
        with self._changed:
            self._stuck.add(what)

    def unstick(self, what: Sticky) -> None:
        with self._changed:
            self._stuck.discard(what)
            self._changed.notify_all()

    def finish_backup(self) -> None:
        """The backup job comes to its good end, as if all was read."""
        with self._changed:
            self._backup.finish()
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until `condition` is true, looking after every command; False when time is up."""
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)

    # The agent: one thread, so one command after the other, whoever is connected.

    def _run_agent(self) -> None:
        requests = Requests()
        while data := self._to_agent.get():
            for request in requests.cut(data):
                self._pass("agent")
                self._qga.reply_to_whoever_is_next(self._agent_answers(request))

    def _agent_answers(self, request: bytes) -> bytes:
        reply, command = reply_to(request, self._agent_command)
        mark = b"\xff" if command == "guest-sync-delimited" and "return" in reply else b""
        return mark + json.dumps(reply).encode() + b"\n"

    def _agent_command(self, command: str, arguments: Mapping[str, object]) -> object:
        self._note("qga", command)
        if command not in self._agent_commands:
            raise DenialError("CommandNotFound", f"The command {command} has not been found")
        if self._frozen and command not in _WHILE_FROZEN:
            old = int(self._agent_version.split(".")[0]) < 10
            why = "the agent is in frozen state" if old else "the command is not allowed"
            raise DenialError("CommandNotFound", f"Command {command} has been disabled: {why}")
        return self._agent_commands[command](arguments)

    def _sync(self, arguments: Mapping[str, object]) -> object:
        if type(arguments.get("id")) is not int:
            raise DenialError("GenericError", "Invalid parameter type for 'id', expected: integer")
        return arguments["id"]

    def _ping(self, arguments: Mapping[str, object]) -> object:
        return {}

    def _info(self, arguments: Mapping[str, object]) -> object:
        commands = [
            {
                "name": name,
                "enabled": name not in self.refused and (not self._frozen or name in _WHILE_FROZEN),
                "success-response": True,
            }
            for name in self._agent_commands
        ]
        return {"version": self._agent_version, "supported_commands": commands}

    def _fsinfo(self, arguments: Mapping[str, object]) -> object:
        return [{**entry._asdict(), "disk": []} for entry in self._filesystems]

    def _freeze_status(self, arguments: Mapping[str, object]) -> object:
        return "frozen" if self._frozen else "thawed"

    def _freeze(self, arguments: Mapping[str, object]) -> object:
        wanted = arguments.get("mountpoints", [entry.mountpoint for entry in self._filesystems])
        if not isinstance(wanted, list):
            raise DenialError("GenericError", "Invalid parameter type for 'mountpoints', expected: array")
        self._pass("freeze")
        with self._changed:
            # Not a sleep: the end of the simulation ends it too.
            self._changed.wait_for(lambda: self._ended, self._freeze_s)
            reached = [entry.mountpoint for entry in self._filesystems if entry.mountpoint in wanted]
            self._frozen = frozenset(reached)
            self._changed.notify_all()
        return len(reached)

    def _thaw(self, arguments: Mapping[str, object]) -> object:
        self._pass("thaw")
        with self._changed:
            count = len(self._frozen)
            self._frozen = frozenset()
            self._changed.notify_all()
        return count

    # The monitor: in the thread of its socket, because a client's bytes end with the client.

    def _greet(self) -> None:
        self._monitor = Requests()
        self._in_command_mode = False
        version = {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "simulated"}
        # No capabilities: Proxmox runs its monitor without out-of-band commands.
        self._qmp.reply(line({"QMP": {"version": version, "capabilities": []}}))

    def _monitor_reads(self, data: bytes) -> None:
        for request in self._monitor.cut(data):
            self._pass("qmp")
            reply, _ = reply_to(request, self._monitor_command)
            self._qmp.reply(line(reply))

    def _monitor_command(self, command: str, arguments: Mapping[str, object]) -> object:
        self._note("qmp", command)
        if command == "qmp_capabilities":
            self._in_command_mode = True
            return {}
        if not self._in_command_mode:
            raise DenialError("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'")
        if command not in self._monitor_commands:
            raise DenialError("CommandNotFound", f"The command {command} has not been found")
        return self._monitor_commands[command](arguments)

    def _status(self, arguments: Mapping[str, object]) -> object:
        return {"status": "running" if self._running else "prelaunch", "running": self._running}

    def _continue(self, arguments: Mapping[str, object]) -> object:
        self._running = True
        return {}

    def _block(self, arguments: Mapping[str, object]) -> object:
        size = backup_job.TOTAL_BYTES
        image = {"filename": "/dev/pve/vm-101-disk-0", "format": "raw", "virtual-size": size}
        inserted = {"node-name": "#block101", "drv": "raw", "ro": False, "image": image}
        return [{"device": backup_job.DEVICE, "qdev": "scsi0", "io-status": "ok", "inserted": inserted}]

    def _blockstats(self, arguments: Mapping[str, object]) -> object:
        read_bytes = self._backup.read_bytes
        stats = {"rd_bytes": read_bytes, "rd_operations": read_bytes // 65536, "rd_total_time_ns": read_bytes}
        stats |= {"wr_bytes": 0, "wr_operations": 0, "wr_total_time_ns": 0, "flush_operations": 0}
        return [{"device": backup_job.DEVICE, "qdev": "scsi0", "node-name": "#block101", "stats": stats}]

    def _block_jobs(self, arguments: Mapping[str, object]) -> object:
        return self._backup.as_block_jobs()

    def _set_speed(self, arguments: Mapping[str, object]) -> object:
        self._backup.set_speed(arguments.get("device"), arguments.get("speed"))
        return {}

    def _start_backup(self, arguments: Mapping[str, object]) -> object:
        with self._changed:
            started = self._backup.start()
            self._changed.notify_all()
        return started

    def _cancel_backup(self, arguments: Mapping[str, object]) -> object:
        with self._changed:
            self._backup.cancel()
            self._changed.notify_all()
        return {}

    def _query_backup(self, arguments: Mapping[str, object]) -> object:
        return self._backup.as_backup()

    def _note(self, channel: Literal["qmp", "qga"], command: str) -> None:
        with self._changed:
            self.heard.append(Heard(time.monotonic(), channel, command))
            self._changed.notify_all()
        if command in self.refused:
            raise DenialError("GenericError", self.refused[command])

    def _pass(self, what: Sticky) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or what not in self._stuck)
