"""A real guest as a VM of a node under test, and what its freeze looks like from inside and from below.

    with witnessed(vm) as witness:          # a process in the guest that writes to /data all the time
        played = play(node.run(WEB))
        job = witness.job("drive-scsi0")    # when QEMU's block job came to be, by QEMU's own clock
        assert witness.blocked_around(job)  # a write that began before it and ended after it
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pvehook.deadline import Deadline
from pvehook.guest.agent import open_agent
from pvehook.guest.sockets import Connection, connect, parse_document
from pvehook.rehearsal.vzdump.run import Guest
from tests.node_under_test import NodeUnderTest
from tests.rig.qemu_guest import QemuGuest
from tests.vm_jobs import STOCK

WEB = Guest(101, name="web", agent=True)
DISKS = ("/data", "/srv")
CONFIG = "agent: 1\nname: web\nscsi0: local:101/vm-101-disk-0.raw\nscsi1: local:101/vm-101-disk-1.raw\n"

ANSWER_S = 30.0
MIB = 1024 * 1024

_WRITER = (
    "rm -f /tmp/stop /tmp/writes; (until [ -e /tmp/stop ]; do began=$EPOCHREALTIME; echo $began >>/data/written;"
    " echo $began $EPOCHREALTIME; usleep 1000; done) >/tmp/writes 2>&1 & echo $! >/tmp/writer"
)
"""/tmp is memory and is never frozen. A shell's own `echo`: a process each time would take the guest's whole CPU."""
_ROUNDS = 20


def put_on_node(vm: QemuGuest, node: NodeUnderTest) -> None:
    """From now on `vm` is VM 101 of `node`, which has no other."""
    sockets = node.root / "var/run/qemu-server"
    node.vm_job = STOCK
    sockets.rmdir()
    sockets.symlink_to(Path(vm.root, "run/qemu-server"))
    (node.root / "etc/pve/qemu-server/101.conf").write_text(CONFIG)


def dirty(vm: QemuGuest, mib: int) -> None:
    """Leaves that much in the guest's memory that is not on its first disk yet, however slow this machine is."""
    vm.run("cd /proc/sys/vm && echo 90 >dirty_ratio && echo 80 >dirty_background_ratio")
    vm.run("cd /proc/sys/vm && echo 0 >dirty_writeback_centisecs && echo 360000 >dirty_expire_centisecs")
    # ext4's journal commits every 5 s and may take the data with it (data=ordered): on a slow machine it was all on the
    # disk before the freeze came, and the freeze that should hang did not.
    vm.run("mount -o remount,commit=3600 /data && sync")
    # Into a new file: what ext4 has truncated it writes out as soon as it is closed.
    vm.run(f"rm -f /data/dirty && dd if=/dev/zero of=/data/dirty bs=1M count={mib} 2>/dev/null")


def ask(monitor: str, command: str, **arguments: object) -> Any:
    """One command by a monitor of the test's own: vzdump's is left to vzdump and to us."""
    deadline = Deadline.after(ANSWER_S)
    answer: dict[str, Any] = {}
    with connect(monitor) as qemu:
        for each, given in (("qmp_capabilities", {}), (command, arguments)):
            qemu.allow()
            qemu.send(json.dumps({"execute": each, "arguments": given}).encode() + b"\n", deadline)
            answer = {}
            while "return" not in answer:
                assert "error" not in answer, answer
                qemu.allow()
                answer = parse_document(qemu.read_line(deadline), source=monitor)
    return answer["return"]


def assert_alive(vm: QemuGuest, within_s: float = ANSWER_S) -> None:
    """Its agent answers, and all its disks can be written to."""
    vm.run(" && ".join(f"echo alive >{disk}/alive" for disk in DISKS), timeout_s=within_s)
    deadline = Deadline.after(within_s)
    with open_agent(vm.qga, deadline) as agent:
        agent.ping(deadline)
        assert agent.fsfreeze_status(deadline) == "thawed"


def needs_recovery(image: Path) -> bool:
    """Whether the copy of an ext4 holds a journal that was not played back: then nobody had frozen it."""
    shown = subprocess.run(["dumpe2fs", "-h", str(image)], capture_output=True, text=True, timeout=ANSWER_S, check=True)
    features = next(line for line in shown.stdout.splitlines() if line.startswith("Filesystem features:"))
    return "needs_recovery" in features


class Span(NamedTuple):
    """From when to when, in seconds since the epoch, on the host's clock."""

    from_s: float
    until_s: float

    @property
    def lasted_s(self) -> float:
        return self.until_s - self.from_s

    def covers(self, other: Span) -> bool:
        return self.from_s < other.from_s and other.until_s < self.until_s


class Witness:
    """Who writes in the guest, and who watches QEMU."""

    def __init__(self, vm: QemuGuest, qemu: Connection) -> None:
        self._vm = vm
        self._qemu = qemu
        self._ahead_s = self._guests_clock_is_ahead()

    def throttle(self, bytes_per_s: int) -> None:
        """How fast the guest writes to its first disk; 0 lifts it. A backup's own reading is not slowed down."""
        limits = {"bps": 0, "bps_rd": 0, "bps_wr": bytes_per_s, "iops": 0, "iops_rd": 0, "iops_wr": 0}
        self._ask("block_set_io_throttle", {"id": "scsi0", **limits})

    def job(self, name: str) -> Span:
        """From QEMU's making the next block job of this name to its running. QEMU stamps its events itself."""
        return Span(self._job_becomes(name, "created"), self._job_becomes(name, "running"))

    def blocked_around(self, moment: Span) -> list[Span]:
        """Writes to /data that began before `moment` and ended after it."""
        return [each for each in self.writes() if each.covers(moment)]

    def longest_write_s(self) -> float:
        """How long a writer had to wait at most."""
        return max(each.lasted_s for each in self.writes())

    def writes(self) -> list[Span]:
        """Every write that has ended, each from just before to just after it."""
        # The last line may be half written.
        lines = self._vm.run("cat /tmp/writes", timeout_s=ANSWER_S).split("\n")[:-1]
        pairs = [line.split() for line in lines]
        return [Span(float(began) - self._ahead_s, float(ended) - self._ahead_s) for began, ended in pairs]

    def wait_for_a_write(self, within_s: float) -> None:
        """Until one that began now has ended: the guest can write again. Raises TimedOut."""
        asked_s = time.time()
        deadline = Deadline.after(within_s)
        while self.writes()[-1].from_s < asked_s:
            self._vm.run("usleep 5000", timeout_s=deadline.left_s())

    def _guests_clock_is_ahead(self) -> float:
        """By the quickest of some exchanges; right to half of what that took, a few milliseconds."""
        exchanges = []
        for _ in range(_ROUNDS):
            asked_s = time.time()
            guest_s = float(self._vm.run("echo $EPOCHREALTIME"))
            answered_s = time.time()
            exchanges.append((answered_s - asked_s, guest_s - (asked_s + answered_s) / 2))
        return min(exchanges)[1]

    def _job_becomes(self, name: str, status: str) -> float:
        deadline = Deadline.after(ANSWER_S)
        while True:
            self._qemu.allow()
            shown = parse_document(self._qemu.read_line(deadline), source=self._qemu.path)
            if shown.get("event") == "JOB_STATUS_CHANGE" and shown["data"] == {"id": name, "status": status}:
                stamp = shown["timestamp"]
                assert isinstance(stamp, dict)
                return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6

    def _ask(self, command: str, arguments: dict[str, object]) -> None:
        deadline = Deadline.after(ANSWER_S)
        self._qemu.send(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n", deadline)
        while True:
            self._qemu.allow()
            shown = parse_document(self._qemu.read_line(deadline), source=self._qemu.path)
            assert "error" not in shown, shown
            if "return" in shown:
                return


@contextlib.contextmanager
def witnessed(vm: QemuGuest) -> Iterator[Witness]:
    """Starts the writer and watches; at the end the disk is as fast as before and the writer has ended."""
    with connect(vm.events) as qemu:
        qemu.read_line(Deadline.after(ANSWER_S))  # the greeting
        qemu.send(b'{"execute": "qmp_capabilities"}\n', Deadline.after(ANSWER_S))
        witness = Witness(vm, qemu)
        vm.run(_WRITER)
        try:
            yield witness
        finally:
            witness.throttle(0)
            vm.run("touch /tmp/stop; while [ -d /proc/$(cat /tmp/writer) ]; do usleep 5000; done")
