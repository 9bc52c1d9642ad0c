"""QMP, QEMU's own protocol, in short connections: connect, ask, close.

Short, because QEMU serves one client at a time and vzdump itself comes by once a second (facts/vzdump.md).
Wire format (docs/interop/qmp-spec of QEMU), one JSON object on a line:

    {"QMP": {"version": {...}, "capabilities": []}}          the greeting, sent once the client is served
    {"execute": "query-status", "id": 2}
    {"event": "STOP", "timestamp": {...}}                    at any time
    {"return": {"status": "running", "running": true}, "id": 2}
    {"error": {"class": "CommandNotFound", "desc": "..."}, "id": 2}
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pvehook.contract.block_job import BlockJob
from pvehook.deadline import Deadline
from pvehook.errors import BadReply, Refused
from pvehook.guest.sockets import REPLY_LIMIT_BYTES, Connection, connect, parse_document
from pvehook.guest.validate import boolean, integer, is_number, items, mapping, request, returned, text

DISKS_REPLY_LIMIT_BYTES = 4 * 1024 * 1024
"""Of answers about all disks: 12 kB a disk with our histograms, 1 kB a node, and a disk with many snapshots has a node
for each; Proxmox allows 57 disks."""
ACCESS_DRIVER = "snapshot-access"


class BackupRun(NamedTuple):
    """What Proxmox's `query-backup` shows: the backup that runs or the last one. Empty before the first."""

    status: str
    """`active`, `done`, `error`; "" where there was none."""
    uuid: str
    start_s: int
    """Seconds since the epoch; 0 where there was none."""

    @property
    def is_active(self) -> bool:
        return self.status == "active"


class QmpConnection:
    """A connection in command mode. Every method raises the errors of pvehook.errors.GuestError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.answers = 0
        """How many commands were answered; the id of the last one."""

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        deadline: Deadline,
        limit_bytes: int = REPLY_LIMIT_BYTES,
    ) -> object:
        """The `return` of `command`; raises Refused when QEMU says no."""
        self.answers += 1
        self._connection.allow(limit_bytes)
        self._connection.send(request(command, arguments, id=self.answers), deadline)
        source = self.source(command)
        while True:
            reply = parse_document(self._connection.read_line(deadline), source=source)
            if is_number(reply.get("id"), self.answers):  # else an event, or somebody else's answer
                return returned(reply, source=source)

    def query_status(self, deadline: Deadline) -> str:
        """Whether the VM is `running`, `paused`, or what else QEMU calls it."""
        source = self.source("query-status")
        return text(mapping(self.execute("query-status", deadline=deadline), source=source), "status", source=source)

    def query_block_jobs(self, deadline: Deadline) -> tuple[BlockJob, ...]:
        source = self.source("query-block-jobs")
        return tuple(
            BlockJob(
                device=text(job, "device", source=source),
                type=text(job, "type", source=source),
                offset_bytes=integer(job, "offset", source=source),
                length_bytes=integer(job, "len", source=source),
                speed_bytes_per_s=integer(job, "speed", source=source),
            )
            for job in items(self.execute("query-block-jobs", deadline=deadline), source=source)
        )

    def query_backup_jobs(self, deadline: Deadline) -> tuple[BlockJob, ...]:
        """The block jobs of type `backup`, whoever started them."""
        return tuple(job for job in self.query_block_jobs(deadline) if job.type == "backup")

    def query_backup(self, deadline: Deadline) -> BackupRun | None:
        """None where QEMU has no such command."""
        source = self.source("query-backup")
        try:
            reply = mapping(self.execute("query-backup", deadline=deadline), source=source)
        except Refused as refusal:
            if refusal.kind == "CommandNotFound":
                return None
            raise
        return BackupRun(
            status=text(reply, "status", source=source) if "status" in reply else "",
            uuid=text(reply, "uuid", source=source) if "uuid" in reply else "",
            start_s=integer(reply, "start-time", source=source) if "start-time" in reply else 0,
        )

    def query_access_nodes(self, deadline: Deadline) -> frozenset[str]:
        """The block nodes through which a backup provider, or fleecing, reads the disks as they were at its start.
        None of them where QEMU refuses to list its nodes: a guest of a provider is then not seen to be in backup, any
        other is."""
        source = self.source("query-named-block-nodes")
        limit_bytes = DISKS_REPLY_LIMIT_BYTES
        try:
            reply = self.execute("query-named-block-nodes", {"flat": True}, deadline=deadline, limit_bytes=limit_bytes)
        except Refused:
            return frozenset()
        nodes = items(reply, source=source)
        return frozenset(text(node, "node-name", source=source) for node in nodes if node.get("drv") == ACCESS_DRIVER)

    def set_job_speed(self, device: str, bytes_per_s: int, deadline: Deadline) -> None:
        """Limits the block job called `device`; 0 is no limit. Raises NotActive when there is no such job any more."""
        arguments = {"device": device, "speed": bytes_per_s}
        self.execute("block-job-set-speed", arguments, deadline=deadline)

    def query_version(self, deadline: Deadline) -> str:
        """Which QEMU runs, which may not be the one that is installed: `pve-qemu-kvm_10.0.2-4` on Proxmox, else its
        number."""
        source = self.source("query-version")
        reply = mapping(self.execute("query-version", deadline=deadline), source=source)
        number = mapping(reply.get("qemu"), source=source)
        numbers = [str(integer(number, part, source=source)) for part in ("major", "minor", "micro")]
        return text(reply, "package", source=source) or ".".join(numbers)

    def query_cpus_fast(self, deadline: Deadline) -> tuple[int, ...]:
        """The host's thread ids of the vCPUs, the first vCPU first."""
        source = self.source("query-cpus-fast")
        threads = {
            integer(cpu, "cpu-index", source=source): integer(cpu, "thread-id", source=source)
            for cpu in items(self.execute("query-cpus-fast", deadline=deadline), source=source)
        }
        return tuple(threads[index] for index in sorted(threads))

    def is_agent_running(self, vmid: int, deadline: Deadline) -> bool:
        """Whether something in the guest has the agent's port open. It may hang all the same; where nothing has, the
        agent's socket accepts and stays silent, which alone would look like one that hangs."""
        source = self.source("query-chardev")
        ports = items(self.execute("query-chardev", deadline=deadline), source=source)
        # `unix:/var/run/qemu-server/101.qga,server=on`, `disconnected:` before it while nobody is connected.
        return any(
            boolean(port, "frontend-open", source=source)
            for port in ports
            if f"/{vmid}.qga," in text(port, "filename", source=source)
        )

    def backup_cancel(self, deadline: Deadline) -> None:
        """Ends the running backup with Proxmox's own command; stock QEMU does not know it (Refused)."""
        self.execute("backup-cancel", deadline=deadline)

    def source(self, command: str) -> str:
        return f"{self._connection.path}: {command}"


@contextlib.contextmanager
def open_qmp(path: str, deadline: Deadline) -> Iterator[QmpConnection]:
    """Connects, waits for the greeting, enters command mode; closes at the end. Raises TimedOut also when another
    client is being served: QEMU greets only whom it serves."""
    with connect(path) as connection:
        yield greet(connection, deadline)


def greet(connection: Connection, deadline: Deadline) -> QmpConnection:
    """Waits for the greeting on a connection that was made before, and enters command mode. Raises as `open_qmp`. After
    TimedOut the connection still waits its turn, and `greet` may be called again: who closes it and makes another one
    takes two of the three places in QEMU's queue, until QEMU comes to see that the first one is gone."""
    greeting = parse_document(connection.read_line(deadline), source=f"{connection.path}: greeting")
    if "QMP" not in greeting:
        raise BadReply(f"{connection.path}: this is no QMP, it does not greet")
    qmp = QmpConnection(connection)
    qmp.execute("qmp_capabilities", deadline=deadline)
    return qmp
