"""Whether a guest waited for a CPU or for its disk: with a real QEMU each shows in its own figures, not in the other's.

The vCPU's thread, as QEMU names it, shares one CPU with hogs; the threads that do its disk I/O have the others.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from pvehook.contract.latency import DiskCounters
from pvehook.contract.measured import Absent
from pvehook.deadline import Deadline
from pvehook.guest.block_stats import arm_histograms, read_disks
from pvehook.guest.qmp import QmpConnection, open_qmp
from pvehook.host.node import Node
from pvehook.host.processes import qemu_of, running_vms
from pvehook.host.run_delay import run_delay_ns
from pvehook.rules.latency import Latency, disks_between, latency_of
from tests.rig.qemu_guest import CannotStart, QemuGuest, qemu_guest

pytestmark = pytest.mark.rig

ANSWER_S = 30.0
HOGS = 3
HOG = "print('up', flush=True)\nwhile True: pass"

COMPUTE = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
WRITE = "for i in 1 2; do echo $i >/data/file; sync; done"


class Seen(NamedTuple):
    """What the host saw while the guest did something."""

    elapsed_s: float
    run_delay_s: float
    write: Latency

    def __str__(self) -> str:
        waited = f"{self.run_delay_s:.2f} s of {self.elapsed_s:.2f} s waited for a CPU"
        return (
            f"{waited}; {self.write.operations} writes, slowest {self.write.max_ms} ms, {self.write.over_1s} over 1 s"
        )


@pytest.fixture(scope="module")
def guest() -> Iterator[QemuGuest]:
    """A VM whose vCPU has one CPU, and whose other threads have the others."""
    cpus = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        try:
            vm = stack.enter_context(qemu_guest(101, disks=("/data",)))
        except CannotStart as error:
            pytest.skip(f"no real QEMU guest: {error}")
        for thread in os.listdir(f"/proc/{vm.pid}/task"):
            with contextlib.suppress(ProcessLookupError):  # a worker that has nothing to do leaves
                os.sched_setaffinity(int(thread), cpus - {min(cpus)} or cpus)
        for vcpu in vcpus(vm):
            os.sched_setaffinity(vcpu, {min(cpus)})
        if isinstance(absent := run_delay_ns(Node(vm.root), vm.pid, vcpus(vm)), Absent):
            pytest.skip(absent.why)
        with qmp(vm) as connection:
            armed = arm_histograms(connection, read_disks(connection, answer()), answer())
        assert armed.armed == ("scsi0",)
        yield vm


def answer() -> Deadline:
    return Deadline.after(ANSWER_S)


def qmp(vm: QemuGuest) -> contextlib.AbstractContextManager[QmpConnection]:
    return open_qmp(vm.qmp, answer())


def vcpus(vm: QemuGuest) -> tuple[int, ...]:
    with qmp(vm) as connection:
        return connection.query_cpus_fast(answer())


def figures(vm: QemuGuest) -> tuple[dict[int, int], tuple[DiskCounters, ...]]:
    delays_ns = run_delay_ns(Node(vm.root), vm.pid, vcpus(vm))
    assert isinstance(delays_ns, dict)
    with qmp(vm) as connection:
        return delays_ns, read_disks(connection, answer())


def watch(vm: QemuGuest, *commands: str) -> Seen:
    """Lets the guest run the commands, and says what was seen from outside meanwhile."""
    delays_ns, disks = figures(vm)
    began_s = time.monotonic()
    for command in commands:
        vm.run(command, timeout_s=120)
    elapsed_s = time.monotonic() - began_s
    later_ns, later_disks = figures(vm)
    assert delays_ns.keys() == later_ns.keys()
    run_delay_s = sum(later_ns[tid] - delays_ns[tid] for tid in later_ns) / 1e9
    return Seen(elapsed_s, run_delay_s, latency_of(disks_between(disks, later_disks)["write"]))


@contextlib.contextmanager
def hogs_beside(vm: QemuGuest) -> Iterator[None]:
    """Processes that always want the CPU on which the vCPU runs."""
    (vcpu,) = vcpus(vm)
    hogs: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(HOGS):
            hogs.append(subprocess.Popen([sys.executable, "-c", HOG], stdout=subprocess.PIPE))
            os.sched_setaffinity(hogs[-1].pid, os.sched_getaffinity(vcpu))
        for hog in hogs:
            assert hog.stdout is not None
            assert hog.stdout.readline() == b"up\n"
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.communicate()


@contextlib.contextmanager
def one_write_a_second(vm: QemuGuest) -> Iterator[None]:
    with qmp(vm) as connection:
        connection.execute("block_set_io_throttle", limits(iops_wr=1), deadline=answer())
    try:
        yield
    finally:
        with qmp(vm) as connection:
            connection.execute("block_set_io_throttle", limits(iops_wr=0), deadline=answer())


def limits(iops_wr: int) -> dict[str, object]:
    return {"id": "scsi0", "iops_wr": iops_wr} | dict.fromkeys(("iops", "iops_rd", "bps", "bps_rd", "bps_wr"), 0)


def test_qemu_is_found_by_the_number_of_its_vm(guest: QemuGuest) -> None:
    node = Node(guest.root)
    qemu = qemu_of(node, 101)
    assert qemu is not None
    assert qemu.pid == guest.pid
    assert running_vms(node) == {101: qemu}


def test_cpu_hogs_are_run_delay_and_no_disk_stall(guest: QemuGuest, capsys: pytest.CaptureFixture[str]) -> None:
    with hogs_beside(guest):
        seen = watch(guest, COMPUTE, WRITE)
    with capsys.disabled():
        print(f"\nwith {HOGS} hogs: {seen}")
    # Four want the CPU, so the vCPU waits for most of the time in which it computes.
    assert seen.run_delay_s > 0.3 * seen.elapsed_s
    assert seen.write.operations > 0
    assert seen.write.over_1s == 0


def test_a_throttled_disk_is_write_latency_and_no_run_delay(
    guest: QemuGuest, capsys: pytest.CaptureFixture[str]
) -> None:
    with one_write_a_second(guest):
        seen = watch(guest, WRITE)
    with capsys.disabled():
        print(f"\nwith one write a second: {seen}")
    assert seen.write.over_1s > 0
    assert seen.write.max_ms is not None
    assert seen.write.max_ms > 1000
    assert seen.run_delay_s < 0.1 * seen.elapsed_s


def test_a_guest_that_nothing_hinders_waits_for_neither(guest: QemuGuest, capsys: pytest.CaptureFixture[str]) -> None:
    seen = watch(guest, WRITE)
    with capsys.disabled():
        print(f"\nunhindered: {seen}")
    assert seen.write.operations > 0
    assert seen.write.over_1s == 0
