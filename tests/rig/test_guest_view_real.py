"""What only a real VM can show: each way of opening a disk, pressure that is off, an agent that was restarted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from pvehook.contract.latency import our_boundaries_ns
from pvehook.contract.measured import Absent, Broken
from pvehook.contract.pressure import PressureTotals
from pvehook.deadline import Deadline
from pvehook.errors import TimedOut
from pvehook.guest.agent import open_agent
from pvehook.guest.block_stats import arm_histograms, disarm_histograms, read_disks
from pvehook.guest.guest_counters import GuestCounters, read_guest_counters
from pvehook.guest.kernel_log import KernelLogHandle, open_kernel_log, read_kernel_log
from pvehook.guest.qmp import open_qmp
from pvehook.rules.latency import count_from
from tests.rig.qemu_guest import Aio, Attach, CannotStart, CdDrive, QemuGuest, qemu_guest

pytestmark = pytest.mark.rig

ANSWER_S = 30.0
SHORT_S = 0.3
SLOW_BYTES_PER_S = 400_000
VIRTIO = "/machine/peripheral/virtio0/virtio-backend"
AGENT = "qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run"


@contextlib.contextmanager
def started(**wanted: object) -> Iterator[QemuGuest]:
    with contextlib.ExitStack() as stack:
        try:
            guest = stack.enter_context(qemu_guest(101, **wanted))  # type: ignore[arg-type]
        except CannotStart as error:
            pytest.skip(f"no real QEMU guest: {error}")
        yield guest


def inside(guest: QemuGuest) -> GuestCounters:
    deadline = Deadline.after(ANSWER_S)
    with open_agent(guest.qga, deadline) as agent:
        return read_guest_counters(agent, deadline)


def end_agent(guest: QemuGuest) -> None:
    guest.run("agent=$(pidof qemu-ga); kill -KILL $agent; while [ -d /proc/$agent ]; do usleep 5000; done")


def restart_agent(guest: QemuGuest, options: str = "") -> None:
    """Another process; what the one before had opened is gone with it, its numbers are not given out again."""
    end_agent(guest)
    guest.run(f"{AGENT} {options} &")


@pytest.mark.parametrize(
    ("aio", "attach", "cd_drive"),
    [
        ("threads", "blockdev", "loaded"),
        *(("io_uring", "drive", "loaded"), ("io_uring", "blockdev", "empty")),
        *(("native", "drive", "empty"), ("native", "blockdev", "none")),
    ],
)
def test_every_way_of_opening_a_disk_tells_how_long_its_requests_took(
    aio: Aio, attach: Attach, cd_drive: CdDrive
) -> None:
    with started(aio=aio, attach=attach, cd_drive=cd_drive, spare_disk=True) as guest:
        deadline = Deadline.after(ANSWER_S)
        with open_qmp(guest.qmp, deadline) as qmp:
            armed = arm_histograms(qmp, read_disks(qmp, deadline), deadline)
            assert (set(armed.armed), armed.theirs, armed.refused) == ({"scsi0", VIRTIO}, (), ())
            if attach == "drive":
                limits = {"bps": 0, "bps_rd": 0, "bps_wr": SLOW_BYTES_PER_S, "iops": 0, "iops_rd": 0, "iops_wr": 0}
                qmp.execute("block_set_io_throttle", {"id": "scsi0", **limits}, deadline=deadline)
            else:
                limits = {"bps-write": SLOW_BYTES_PER_S}
                group = {"path": "/objects/throttle-drive-scsi0", "property": "limits", "value": limits}
                qmp.execute("qom-set", group, deadline=deadline)
        guest.run("dd if=/dev/urandom of=/data/file bs=1M count=2 conv=fsync 2>/dev/null")
        deadline = Deadline.after(ANSWER_S)
        with open_qmp(guest.qmp, deadline) as qmp:
            disks = {disk.name: disk for disk in read_disks(qmp, deadline)}
            assert disks.keys() == {"scsi0", "virtio0"}
            written = disks["scsi0"].write.histogram
            assert written is not None
            assert written.boundaries_ns == our_boundaries_ns()
            # 2 MiB at 400 kB/s: some of it waited for more than a second, whatever carries it out.
            assert count_from(written, 1_000_000_000) > 0
            untouched = disks["virtio0"].write.histogram
            assert untouched is not None
            assert sum(untouched.counts) == 0
            assert set(disarm_histograms(qmp, armed.armed, deadline)) == {"scsi0", VIRTIO}


def test_pressure_that_is_off_is_absent_and_pressure_without_a_wait_is_zero() -> None:
    with started(disks=(), kernel_options="psi=0") as guest:
        seen = inside(guest)
        for each in (seen.cpu, seen.io, seen.memory):
            assert isinstance(each, Absent)
            assert "psi=1" in each.why
        assert seen.steal_s == 0.0
        assert isinstance(seen.uptime_s, float)
    with started(disks=(), kernel_options="psi=1") as guest:
        assert inside(guest).memory == PressureTotals(0, 0)
        assert isinstance(inside(guest).cpu, PressureTotals)


def test_a_guest_whose_agent_has_ended_is_distinguished_from_one_whose_agent_hangs() -> None:
    with started(disks=()) as guest, open_qmp(guest.qmp, deadline := Deadline.after(ANSWER_S)) as qmp:
        guest.run("kill -STOP $(pidof qemu-ga)")
        assert qmp.is_agent_running(101, deadline)
        with pytest.raises(TimedOut), open_agent(guest.qga, Deadline.after(SHORT_S)):
            pass
        guest.run("kill -CONT $(pidof qemu-ga)")
        end_agent(guest)
        assert not qmp.is_agent_running(101, deadline)
        with pytest.raises(TimedOut), open_agent(guest.qga, Deadline.after(SHORT_S)):
            pass


def test_an_agent_that_was_restarted_has_lost_the_log_and_one_that_may_read_nothing_says_so() -> None:
    with started(agent="7.2") as guest:
        deadline = Deadline.after(ANSWER_S)
        with open_agent(guest.qga, deadline) as agent:
            log = open_kernel_log(agent, deadline)
            assert isinstance(log, KernelLogHandle)
        restart_agent(guest)
        with open_agent(guest.qga, deadline) as agent:
            seen = read_kernel_log(agent, log, deadline)
            assert isinstance(seen, Broken)
            assert "agent was started anew" in seen.why
            again = open_kernel_log(agent, deadline)
            assert isinstance(again, KernelLogHandle)
            assert again.handle != log.handle
        restart_agent(guest, "--blacklist=guest-file-open,guest-file-read")
        with open_agent(guest.qga, deadline) as agent:
            for each in (*read_guest_counters(agent, deadline), open_kernel_log(agent, deadline)):
                assert isinstance(each, Absent)
                assert "Command guest-file-open has been disabled" in each.why
