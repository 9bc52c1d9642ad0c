"""A VM as QEMU's monitor shows it, without a VM; tests/guest_files.py adds the guest agent.

    with SimulatedGuest("/tmp/node/run/qemu-server", 101) as guest:
        ...                                  # the program talks to 101.qmp
        guest.wait_until(lambda: guest.backup_runs, timeout_s=2)
        guest.stick("qmp")                   # a fault, until `unstick`

Held against the real thing: tests/guest/test_socket_semantics.py runs on this and on a real QEMU with a real
qemu-ga. What is simulated is what can be seen at the socket: who is served when, which bytes reach whom, what
is answered. Texts and shapes are those of QEMU 7.2 and 10.0; `backup`, `backup-cancel` and `query-backup` are
Proxmox's own and follow its patches to QEMU.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

from pvehook.contract.latency import RequestKind
from pvehook.rehearsal.vm import backup_job
from pvehook.rehearsal.vm.disks import EMPTY_CD_DRIVE, SimulatedDisk
from pvehook.rehearsal.vm.sockets import DenialError, GuestState, Peer, Port, Requests, Sticky, reply_to

_VERSION: Final = {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "simulated"}

_PROXMOX_SUPPORT: Final = {"pbs-dirty-bitmap": True, "query-bitmap-info": True, "backup-max-workers": True}

_Handler = Callable[[Mapping[str, object]], object]


class SimulatedGuest:
    """Serves `DIRECTORY/VMID.qmp` until the block is left.

    `backup_s` is how long a backup takes: None is until `finish_backup`.
    A guest that is not `running` waits for `cont`, as a VM that vzdump started for its backup does.
    A `block-job-set-speed` is noted and shown, it does not change the time a backup takes. Its disks count what
    `serve_requests` lets them serve and nothing else.
    `monitor_latency_s` pass before each command of QMP is carried out, as on a host that is too busy.
    """

    def __init__(
        self,
        directory: str,
        vmid: int,
        *,
        backup_s: float | None = None,
        running: bool = True,
        disks: Sequence[str] = ("scsi0",),
        monitor_latency_s: float = 0.0,
    ) -> None:
        self.qmp_path = os.path.join(directory, f"{vmid}.qmp")
        self.migrating = False
        """What `query-migrate` shows. To be set by whoever wants that."""
        self.vcpu_threads: tuple[int, ...] = (threading.get_native_id(),)
        """What `query-cpus-fast` shows. Whoever made this guest stands for its vCPU."""
        self._monitor_latency_s = monitor_latency_s
        self._state = GuestState(running)
        self._disks = {disk.name: disk for disk in map(SimulatedDisk, disks)}
        self._backup = backup_job.BackupJob(backup_s)
        self._monitor = Requests()
        self._in_command_mode = False
        self._qmp = Port(self.qmp_path, self._greet, self._monitor_reads)
        self.heard = self._state.heard
        """Every command that has come so far, syncs included, in order."""
        self.refused = self._state.refused
        """Commands that are answered with an error, and its text. To be filled by whoever wants that."""
        self._monitor_commands: dict[str, _Handler] = {
            "query-status": lambda _: {"status": self._state.run_state, "running": self._state.run_state == "running"},
            "stop": lambda _: self._state.run("paused"),
            "cont": lambda _: self._state.run("running"),
            "query-migrate": lambda _: {"status": "active", "ram": {}} if self.migrating else {},
            "query-block": lambda _: [disk.as_block() for disk in self._disks.values()],
            "query-blockstats": self._blockstats,
            "block-latency-histogram-set": self._set_histograms,
            "qom-get": self._qom_get,
            "query-version": lambda _: _VERSION,
            "query-cpus-fast": self._cpus,
            "query-block-jobs": lambda _: self._backup.as_block_jobs(),
            "block-job-set-speed": lambda given: self._backup.set_speed(given.get("device"), given.get("speed")),
            "query-proxmox-support": lambda _: _PROXMOX_SUPPORT,
            "backup": lambda _: self._change(self._backup.start),
            "backup-cancel": lambda _: self._change(self._backup.cancel),
            "query-backup": lambda _: self._backup.as_backup(),
            "backup-access-setup": lambda _: self._change(self._backup.start_provider),
            "backup-access-teardown": lambda _: self._change(self._backup.end_provider),
            "query-named-block-nodes": lambda _: self._backup.as_nodes(),
        }

    def __enter__(self) -> Self:
        self._qmp.open()
        return self

    def __exit__(self, *_: object) -> None:
        with self._state.changed:
            self._state.ended = True
            self._state.changed.notify_all()
        self._qmp.close()

    @property
    def has_histograms(self) -> bool:
        """Whether any of its disks has one."""
        with self._state.changed:
            return any(disk.has_histograms for disk in self._disks.values())

    @property
    def backup_runs(self) -> bool:
        return self._backup.state == "active"

    @property
    def speeds_set(self) -> tuple[int, ...]:
        """Every speed that the backup's job was given, in bytes a second, in order."""
        return tuple(self._backup.speeds_set)

    def serve_requests(
        self, kind: RequestKind, latency_ms: float, count: int, *, disk: str = "scsi0", size_bytes: int = 4096
    ) -> None:
        """`count` requests of the guest were completed, each after `latency_ms`."""
        with self._state.changed:
            self._disks[disk].serve(kind, latency_ms, count, size_bytes)

    def plug(self, disk: str) -> None:
        """As hot-plug does: from now on the VM has one more disk."""
        with self._state.changed:
            self._disks[disk] = SimulatedDisk(disk)

    def unplug(self, disk: str) -> None:
        """The disk is gone."""
        with self._state.changed:
            del self._disks[disk]

    def stick(self, what: Sticky) -> None:
        """From now on this hangs, until `unstick`."""
        with self._state.changed:
            self._state.stuck.add(what)

    def unstick(self, what: Sticky) -> None:
        self._change(lambda: self._state.stuck.discard(what))

    def start_foreign_job(self, device: str) -> None:
        """An administrator's own `blockdev-backup`, which is no backup of Proxmox's."""
        job = {"device": device, "type": "backup", "status": "running", "io-status": "ok"}
        self._backup.foreign.append({**job, "offset": 0, "len": 1, "speed": 0, "busy": True, "paused": False})

    def pause(self) -> None:
        """As `qm suspend` does."""
        self._state.run("paused")

    def finish_backup(self) -> None:
        """The backup job comes to its good end, as if all was read."""
        self._change(self._backup.finish)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until `condition` is true, looking after every command; False when time is up."""
        with self._state.changed:
            return self._state.changed.wait_for(condition, timeout_s)

    # The monitor: in the thread of its socket, because a client's bytes end with the client.

    def _greet(self) -> None:
        self._monitor = Requests()
        self._in_command_mode = False
        # No capabilities: Proxmox runs its monitor without out-of-band commands.
        self._send({"QMP": {"version": _VERSION, "capabilities": []}})

    def _monitor_reads(self, data: bytes, peer: Peer) -> None:
        for request in self._monitor.cut(data):
            self._state.wait_while_stuck("qmp")
            self._state.pass_time(self._monitor_latency_s)
            reply, _ = reply_to(request, lambda command, given: self._monitor_command(command, given, peer))
            self._send(reply)

    def _send(self, document: object) -> None:
        self._qmp.reply(json.dumps(document).encode() + b"\r\n")

    def _monitor_command(self, command: str, arguments: Mapping[str, object], peer: Peer) -> object:
        self._state.note("qmp", command, peer)
        if command == "qmp_capabilities":
            self._in_command_mode = True
            return {}
        if not self._in_command_mode:
            raise DenialError("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'")
        if command not in self._monitor_commands:
            raise DenialError("CommandNotFound", f"The command {command} has not been found")
        answer = self._monitor_commands[command](arguments)
        return {} if answer is None else answer  # as QMP answers a command that has nothing to return

    def _change(self, action: Callable[[], object]) -> object:
        with self._state.changed:
            answer = action()
            self._state.changed.notify_all()
        return answer

    def _cpus(self, arguments: Mapping[str, object]) -> object:
        return [
            {"cpu-index": index, "thread-id": thread, "qom-path": f"/machine/unattached/device[{index}]", "props": {}}
            for index, thread in enumerate(self.vcpu_threads)
        ]

    def _blockstats(self, arguments: Mapping[str, object]) -> object:
        with self._state.changed:
            return [*(disk.as_stats() for disk in self._disks.values()), EMPTY_CD_DRIVE]

    def _set_histograms(self, arguments: Mapping[str, object]) -> None:
        device = arguments.get("id")
        disk = next((disk for disk in self._disks.values() if disk.qdev == device), None)
        if disk is None:
            raise DenialError("DeviceNotFound", f"Device '{device}' not found")
        self._change(lambda: disk.set_histograms(arguments))

    def _qom_get(self, arguments: Mapping[str, object]) -> object:
        path, wanted = arguments.get("path"), arguments.get("property")
        name = str(path).removeprefix("/machine/peripheral/")
        if name not in self._disks:
            raise DenialError("DeviceNotFound", f"Device '{path}' not found")
        kind = "virtio-blk-pci" if name.startswith("virtio") else "scsi-hd"
        if wanted != "type":
            raise DenialError("GenericError", f"Property '{kind}.{wanted}' not found")
        return kind
