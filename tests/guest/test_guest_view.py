"""What a VM tells of its disks and of itself: the same of a simulated guest and of a real QEMU with a real guest.

The real one has Debian's qemu-ga 10.0; tests/rig/test_guest_view_real.py has what only the real one can show.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pvehook.contract.latency import our_boundaries_ns
from pvehook.contract.measured import Broken
from pvehook.contract.pressure import PressureTotals
from pvehook.deadline import Deadline
from pvehook.errors import NotActive, Refused
from pvehook.guest.agent import open_agent
from pvehook.guest.block_stats import arm_histograms, disarm_histograms, read_disks
from pvehook.guest.guest_counters import read_guest_counters
from pvehook.guest.kernel_log import (
    KernelLog,
    KernelLogHandle,
    close_kernel_log,
    open_kernel_log,
    read_kernel_log,
)
from pvehook.guest.qmp import QmpConnection, open_qmp
from tests.guest_files import SimulatedGuest
from tests.rig.qemu_guest import CannotStart, QemuGuest, qemu_guest

ANSWER_S = 30.0
LOCKUP = "watchdog: BUG: soft lockup - CPU#0 stuck for 26s!"
THEIRS = [1_000_000, 10_000_000]


class Vm(NamedTuple):
    qmp: str
    qga: str
    write: Callable[[], None]
    """The guest writes to its disk and waits until it is there."""
    log: Callable[[str], None]
    """The guest's kernel writes a line."""
    flood: Callable[[], None]
    """It writes more of them than it keeps."""
    start_job: Callable[[QmpConnection, Deadline], None]
    """A backup of scsi0 that stays, at whatever speed, until `end_job` ends it."""
    end_job: Callable[[QmpConnection, Deadline], None]


@pytest.fixture(scope="module", params=["simulated", pytest.param("qemu", marks=pytest.mark.rig)])
def vm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    with contextlib.ExitStack() as stack:
        if request.param == "simulated":
            directory = str(tmp_path_factory.mktemp("vm"))
            yield _simulated(stack.enter_context(SimulatedGuest(directory, 101, agent_version="10.0.2")))
            return
        try:
            real = stack.enter_context(qemu_guest(101, agent="10.0", cd_drive="empty"))
        except CannotStart as error:
            pytest.skip(f"no real QEMU guest: {error}")
        yield _real(real)


def _simulated(guest: SimulatedGuest) -> Vm:
    def write() -> None:
        guest.serve_requests("write", 1.5, 3)
        guest.serve_requests("flush", 0.2, 1)

    def flood() -> None:
        for number in range(600):
            guest.files.log(f"flood {number}")

    def start_job(qmp: QmpConnection, deadline: Deadline) -> None:
        qmp.execute("backup", {"backup-file": "/dev/fdname/backup"}, deadline=deadline)

    def end_job(qmp: QmpConnection, deadline: Deadline) -> None:
        qmp.backup_cancel(deadline)

    return Vm(guest.qmp_path, guest.qga_path, write, guest.files.log, flood, start_job, end_job)


def _real(guest: QemuGuest) -> Vm:
    guest.run("echo on >/proc/sys/kernel/printk_devkmsg")  # else ten lines in five seconds

    def write() -> None:
        guest.run("dd if=/dev/urandom of=/data/file bs=64k count=20 conv=fsync 2>/dev/null")

    def log(text: str) -> None:
        guest.run(f'echo "<3>{text}" >/dev/kmsg')

    def flood() -> None:
        filled = "x" * 800
        guest.run(f'i=0; while [ $i -lt 600 ]; do echo "<3>flood {filled}" >/dev/kmsg; i=$((i+1)); done')

    def start_job(qmp: QmpConnection, deadline: Deadline) -> None:
        target = {"driver": "null-co", "node-name": "target", "size": 64 * 1024 * 1024}
        backup = {"job-id": "drive-scsi0", "device": "drive-scsi0", "target": "target", "sync": "full"}
        qmp.execute("blockdev-add", target, deadline=deadline)
        qmp.execute("blockdev-backup", {**backup, "speed": 65536}, deadline=deadline)
        # With the speed unlimited (0) it would be over before anybody looks.
        qmp.execute("block-job-pause", {"device": "drive-scsi0"}, deadline=deadline)

    def end_job(qmp: QmpConnection, deadline: Deadline) -> None:
        qmp.execute("block-job-cancel", {"device": "drive-scsi0", "force": True}, deadline=deadline)
        while qmp.query_block_jobs(deadline):
            pass

    return Vm(guest.qmp, guest.qga, write, log, flood, start_job, end_job)


@pytest.fixture
def deadline() -> Deadline:
    return Deadline.after(ANSWER_S)


@pytest.fixture
def qmp(vm: Vm, deadline: Deadline) -> Iterator[QmpConnection]:
    """Without histograms before and after."""
    with open_qmp(vm.qmp, deadline) as qmp:
        qmp.execute("block-latency-histogram-set", {"id": "scsi0"}, deadline=deadline)
        yield qmp
        qmp.execute("block-latency-histogram-set", {"id": "scsi0"}, deadline=deadline)


# Disks


def test_the_guests_own_disks_are_read_and_no_cd_drive(vm: Vm, qmp: QmpConnection, deadline: Deadline) -> None:
    (before,) = read_disks(qmp, deadline)
    vm.write()
    (after,) = read_disks(qmp, deadline)
    assert (before.qdev, before.name) == (after.qdev, after.name) == ("scsi0", "scsi0")
    assert after.write.operations > before.write.operations
    assert after.write.bytes > before.write.bytes
    assert after.write.total_time_ns > before.write.total_time_ns
    assert after.flush.operations > before.flush.operations
    assert after.write.histogram is None
    assert read_disks(qmp, deadline, known={"scsi0"}) == (after,)


def test_an_armed_histogram_counts_each_request_from_then_on(vm: Vm, qmp: QmpConnection, deadline: Deadline) -> None:
    armed = arm_histograms(qmp, read_disks(qmp, deadline), deadline)
    assert armed == (("scsi0",), (), ())
    (before,) = read_disks(qmp, deadline)
    vm.write()
    (after,) = read_disks(qmp, deadline)
    for old, new in ((before.read, after.read), (before.write, after.write), (before.flush, after.flush)):
        assert old.histogram is not None
        assert new.histogram is not None
        assert new.histogram.boundaries_ns == our_boundaries_ns()
        assert sum(new.histogram.counts) - sum(old.histogram.counts) == new.operations - old.operations
    assert after.write.operations > before.write.operations


def test_a_histogram_of_ours_that_was_left_behind_is_taken_over(qmp: QmpConnection, deadline: Deadline) -> None:
    arm_histograms(qmp, read_disks(qmp, deadline), deadline)
    assert arm_histograms(qmp, read_disks(qmp, deadline), deadline).armed == ("scsi0",)


def test_an_armed_histogram_is_removed_once(qmp: QmpConnection, deadline: Deadline) -> None:
    arm_histograms(qmp, read_disks(qmp, deadline), deadline)
    assert disarm_histograms(qmp, ["scsi0"], deadline) == ("scsi0",)
    (disk,) = read_disks(qmp, deadline)
    assert (disk.read.histogram, disk.write.histogram, disk.flush.histogram) == (None, None, None)
    assert disarm_histograms(qmp, ["scsi0"], deadline) == ()


@pytest.mark.parametrize("kind", ["boundaries", "boundaries-write", "boundaries-flush"])
def test_an_administrators_own_histogram_stays(vm: Vm, qmp: QmpConnection, deadline: Deadline, kind: str) -> None:
    qmp.execute("block-latency-histogram-set", {"id": "scsi0", kind: THEIRS}, deadline=deadline)
    before = read_disks(qmp, deadline)
    assert arm_histograms(qmp, before, deadline) == ((), ("scsi0",), ())
    assert disarm_histograms(qmp, ["scsi0"], deadline) == ()
    assert read_disks(qmp, deadline) == before


def test_a_histogram_that_an_administrator_put_in_place_of_ours_stays(qmp: QmpConnection, deadline: Deadline) -> None:
    arm_histograms(qmp, read_disks(qmp, deadline), deadline)
    theirs = {"id": "scsi0", "boundaries-write": THEIRS}
    qmp.execute("block-latency-histogram-set", theirs, deadline=deadline)
    assert disarm_histograms(qmp, ["scsi0"], deadline) == ()
    (disk,) = read_disks(qmp, deadline)
    assert disk.write.histogram is not None
    assert disk.write.histogram.boundaries_ns == tuple(THEIRS)


def test_a_histogram_without_boundaries_tells_nothing_and_is_no_ones(qmp: QmpConnection, deadline: Deadline) -> None:
    qmp.execute("block-latency-histogram-set", {"id": "scsi0", "boundaries": []}, deadline=deadline)
    disks = read_disks(qmp, deadline)
    assert disks[0].write.histogram is None
    assert arm_histograms(qmp, disks, deadline).armed == ("scsi0",)


def test_a_disk_that_has_gone_is_refused_with_qemus_reason(qmp: QmpConnection, deadline: Deadline) -> None:
    (disk,) = read_disks(qmp, deadline)
    armed = arm_histograms(qmp, [disk._replace(qdev="scsi7"), disk], deadline)
    assert (armed.armed, armed.theirs) == (("scsi0",), ())
    ((qdev, why),) = armed.refused
    assert (qdev, "DeviceNotFound: Device 'scsi7' not found" in why) == ("scsi7", True)
    assert disarm_histograms(qmp, ["scsi7"], deadline) == ()


# Jobs and the VM


def test_the_speed_of_a_job_is_set_and_seen_until_it_has_ended(vm: Vm, qmp: QmpConnection, deadline: Deadline) -> None:
    vm.start_job(qmp, deadline)
    for speed in (1_000_000, 0, 2_000_000):
        qmp.set_job_speed("drive-scsi0", speed, deadline)
        assert [job.speed_bytes_per_s for job in qmp.query_block_jobs(deadline)] == [speed]
    vm.end_job(qmp, deadline)
    with pytest.raises(NotActive, match="Block job 'drive-scsi0' not found"):
        qmp.set_job_speed("drive-scsi0", 0, deadline)


def test_it_tells_its_version_and_the_threads_of_its_cpus(qmp: QmpConnection, deadline: Deadline) -> None:
    version = qmp.query_version(deadline)
    number = re.search(r"(\d+)\.\d+", version)
    assert version == "simulated" if number is None else int(number[1]) >= 7
    (thread,) = qmp.query_cpus_fast(deadline)
    assert Path(f"/proc/{thread}/schedstat").exists()


def test_an_agent_that_runs_is_told_from_none(vm: Vm, qmp: QmpConnection, deadline: Deadline) -> None:
    assert qmp.is_agent_running(101, deadline)
    assert not qmp.is_agent_running(1, deadline)


# The guest itself


def test_a_guest_tells_what_it_waited_for(vm: Vm, deadline: Deadline) -> None:
    with open_agent(vm.qga, deadline) as agent:
        first, second = read_guest_counters(agent, deadline), read_guest_counters(agent, deadline)
    for totals in (first.cpu, first.io, first.memory):
        assert isinstance(totals, PressureTotals)
    assert first.steal_s == second.steal_s == 0.0
    assert isinstance(first.uptime_s, float)
    assert isinstance(second.uptime_s, float)
    assert 0 < first.uptime_s <= second.uptime_s


def test_a_frozen_guest_is_not_one_without_files(vm: Vm, deadline: Deadline) -> None:
    with open_agent(vm.qga, deadline) as agent:
        agent.fsfreeze_freeze(None, deadline)
        try:
            seen = [*read_guest_counters(agent, deadline), open_kernel_log(agent, deadline)]
        finally:
            agent.fsfreeze_thaw(deadline)
    for each in seen:
        assert isinstance(each, Broken)
        assert "frozen" in each.why


def test_a_file_that_is_not_there_and_one_that_was_closed(vm: Vm, deadline: Deadline) -> None:
    with open_agent(vm.qga, deadline) as agent:
        with pytest.raises(Refused, match=r"failed to open file '/proc/no' \(mode: 'r'\): No such file or directory$"):
            agent.file_open("/proc/no", deadline)
        handle = agent.file_open("/proc/uptime", deadline)
        agent.file_close(handle, deadline)
        for again in (lambda: agent.file_close(handle, deadline), lambda: agent.file_read(handle, 1, deadline)):
            with pytest.raises(Refused, match=f"handle '{handle}' has not been found"):
                again()


def test_a_read_of_more_than_there_is_meets_a_files_end_and_loses_a_log(vm: Vm, deadline: Deadline) -> None:
    with open_agent(vm.qga, deadline) as agent:
        handle = agent.file_open("/proc/uptime", deadline)
        assert agent.file_read(handle, 2000, deadline).endswith(b"\n")
        assert agent.file_read(handle, 2000, deadline) == b""
        agent.file_close(handle, deadline)
        log = agent.file_open("/dev/kmsg", deadline)
        agent.file_seek_end(log, deadline)
        vm.log("lost, because more was asked for")
        for _ in range(2):
            with pytest.raises(Refused, match=r"failed to read file: Resource temporarily unavailable$"):
                agent.file_read(log, 2000, deadline)
        agent.file_close(log, deadline)


# Its kernel's log


def opened(vm: Vm, deadline: Deadline) -> KernelLogHandle:
    with open_agent(vm.qga, deadline) as agent:
        handle = open_kernel_log(agent, deadline)
    assert isinstance(handle, KernelLogHandle)
    return handle


def look(vm: Vm, handle: KernelLogHandle, deadline: Deadline, **limits: int) -> KernelLog:
    with open_agent(vm.qga, deadline) as agent:
        seen = read_kernel_log(agent, handle, deadline, **limits)
    assert isinstance(seen, KernelLog)
    return seen


def closed(vm: Vm, handle: KernelLogHandle, deadline: Deadline) -> None:
    with open_agent(vm.qga, deadline) as agent:
        close_kernel_log(agent, handle, deadline)


def test_a_line_from_after_the_opening_is_read_with_its_time_and_none_from_before(vm: Vm, deadline: Deadline) -> None:
    vm.log("from before")
    handle = opened(vm, deadline)
    before_s = time.time()
    vm.log(LOCKUP)
    after_s = time.time()
    # What is kept is plain: another process can go on with it.
    handle = KernelLogHandle(**json.loads(json.dumps(handle._asdict())))
    seen = look(vm, handle, deadline)
    closed(vm, seen.handle, deadline)
    ((at_s, text),) = seen.lines
    assert text == LOCKUP
    assert before_s - 1 <= at_s <= after_s + 1
    assert seen.missing == ()


def test_each_look_brings_what_is_new(vm: Vm, deadline: Deadline) -> None:
    handle = opened(vm, deadline)
    texts: list[tuple[str, ...]] = []
    for lines in (("one", "two"), (), ("three",)):
        for line in lines:
            vm.log(line)
        seen = look(vm, handle, deadline)
        texts.append(tuple(line.text for line in seen.lines))
        handle = seen.handle
    closed(vm, handle, deadline)
    assert texts == [("one", "two"), (), ("three",)]


def test_a_look_that_ends_within_a_record_says_so_and_the_next_one_goes_on(vm: Vm, deadline: Deadline) -> None:
    handle = opened(vm, deadline)
    for number in range(10):
        vm.log(f"line {number}")
    texts: list[str] = []
    for _ in range(4):
        seen = look(vm, handle, deadline, limit_bytes=48)
        assert "more than 48 bytes" in " ".join(seen.missing)
        texts += [line.text for line in seen.lines]
        handle = seen.handle
    seen = look(vm, handle, deadline)
    closed(vm, handle, deadline)
    assert seen.missing == ()
    assert texts + [line.text for line in seen.lines] == [f"line {number}" for number in range(10)]


def test_records_that_were_overwritten_unread_are_told_of(vm: Vm, deadline: Deadline) -> None:
    handle = opened(vm, deadline)
    vm.log("lost")
    vm.flood()
    seen = look(vm, handle, deadline, limit_bytes=3000)
    closed(vm, handle, deadline)
    assert seen.lines[0].text.startswith("flood")
    assert "overwritten" in " ".join(seen.missing)


def test_a_closed_log_is_closed_in_the_guest(vm: Vm, deadline: Deadline) -> None:
    handle = opened(vm, deadline)
    closed(vm, handle, deadline)
    with open_agent(vm.qga, deadline) as agent:
        seen = read_kernel_log(agent, handle, deadline)
    assert isinstance(seen, Broken)
    assert "started anew" in seen.why
