"""The node's kernel log: this machine's real one, and what it cannot be told to do without filling it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from pvehook.contract.kernel_line import TimedLine
from pvehook.contract.measured import Absent, Broken
from pvehook.deadline import Deadline
from pvehook.host.clock import SystemClock
from pvehook.host.kernel_log import BYTES_LIMIT, LINES_LIMIT, HostKernelLog, PastLog, open_kernel_log, read_past_log
from pvehook.host.node import Node

TOP = Path(__file__).parent.parent.parent
UNIT = TOP / "hooks/systemd/pvehook.service"
NO_LOG = Absent("this node has no kernel log of its own (/dev/kmsg): a container?")


class SetClock:
    """A clock that says what it was told."""

    def __init__(self, now_s: float) -> None:
        self.told_s = now_s

    def now_s(self) -> float:
        return self.told_s

    def steady_s(self) -> float:
        return self.told_s


# The log of this machine


def real_log() -> HostKernelLog:
    log = open_kernel_log(Node(), SystemClock())
    if not isinstance(log, HostKernelLog):
        pytest.skip(f"no kernel log to read here: {log.why}")
    return log


def say_in_kernel_log(text: str) -> None:
    try:
        with open("/dev/kmsg", "w", encoding="ascii") as kmsg:
            kmsg.write(f"<6>{text}\n")
    except OSError as error:
        pytest.skip(f"nothing can be written into the kernel log here: {error}")


def texts(lines: list[TimedLine], token: str) -> list[str]:
    return [line.text for line in lines if token in line.text]


def test_what_is_written_from_now_on_is_read_once_and_in_order() -> None:
    token = f"pvehook test {uuid.uuid4()}"
    say_in_kernel_log(f"{token} before")
    with closing(real_log()) as log:
        assert texts(log.read_new(), token) == []
        say_in_kernel_log(f"{token} first")
        say_in_kernel_log(f"{token} second")
        assert texts(log.read_new(), token) == [f"{token} first", f"{token} second"]
        assert texts(log.read_new(), token) == []
        assert (log.lost, log.fault) == (0, None)


def test_a_line_has_the_time_at_which_it_was_written() -> None:
    token = f"pvehook test {uuid.uuid4()}"
    with closing(real_log()) as log:
        before_s = time.time()
        say_in_kernel_log(token)
        after_s = time.time()
        (line,) = [each for each in log.read_new() if token in each.text]
        # The kernel's clock and ours may be some parts in a million apart since the start.
        assert before_s - 0.1 <= line.at_s <= after_s + 0.1


def test_two_readers_do_not_take_each_others_lines() -> None:
    token = f"pvehook test {uuid.uuid4()}"
    with closing(real_log()) as one, closing(real_log()) as other:
        say_in_kernel_log(token)
        assert texts(one.read_new(), token) == texts(other.read_new(), token) == [token]


def test_what_was_written_before_is_read_from_the_start() -> None:
    token = f"pvehook test {uuid.uuid4()}"
    real_log().close()
    say_in_kernel_log(f"{token} first")
    say_in_kernel_log(f"{token} second")
    past = read_past_log(Node(), Deadline.after(10.0))
    assert isinstance(past, PastLog)
    assert [line.text for line in past.lines if token in line.text] == [f"{token} first", f"{token} second"]


def test_a_past_that_cannot_be_read_in_time_is_broken() -> None:
    real_log().close()
    past = read_past_log(Node(), Deadline.after(0.0))
    assert past == Broken("/dev/kmsg could not all be read in time, only 0 lines")


OPEN_IT = """
from pvehook.host.clock import SystemClock
from pvehook.host.kernel_log import open_kernel_log
from pvehook.host.node import Node
print(open_kernel_log(Node(), SystemClock()))
"""


def opened_with(capabilities: str) -> str:
    """What a root with these capabilities (as setpriv spells them) is told when it opens the log."""
    real_log().close()
    if Path("/proc/sys/kernel/dmesg_restrict").read_text().strip() != "1":
        pytest.skip("kernel.dmesg_restrict is off: everybody may read the kernel log here")
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv to take a capability away")
    return subprocess.run(
        ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}", sys.executable, "-c", OPEN_IT],
        cwd=TOP, capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip


def test_the_units_own_capabilities_are_enough() -> None:
    (line,) = re.findall(r"^CapabilityBoundingSet=(.+)$", UNIT.read_text(), re.MULTILINE)
    units = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in line.split())
    assert "HostKernelLog" in opened_with(f"-all,{units}")


def test_without_the_capability_it_is_broken_and_says_what_to_do() -> None:
    shown = opened_with("-syslog,-sys_admin")
    assert shown.startswith("Broken(why='/dev/kmsg may not be read (Operation not permitted): ")
    assert "CAP_SYSLOG" in shown


# No log


def test_a_container_has_none(tmp_path: Path) -> None:
    assert read_past_log(Node(str(tmp_path)), Deadline.after(1.0)) == NO_LOG
    assert open_kernel_log(Node(str(tmp_path)), SystemClock()) == NO_LOG


@pytest.mark.parametrize("stand_in", ["fifo", "/dev/null", "file"])
def test_what_containers_put_in_its_place_is_none(tmp_path: Path, stand_in: str) -> None:
    kmsg = tmp_path / "dev/kmsg"
    kmsg.parent.mkdir()
    if stand_in == "fifo":
        os.mkfifo(kmsg)
    elif stand_in == "file":
        kmsg.write_text("6,1,2,-;no kernel wrote this\n")
    else:
        kmsg.symlink_to(stand_in)
    assert open_kernel_log(Node(str(tmp_path)), SystemClock()) == NO_LOG


def test_what_cannot_be_opened_is_broken(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kmsg").symlink_to("kmsg")
    log = open_kernel_log(Node(str(tmp_path)), SystemClock())
    assert isinstance(log, Broken)
    assert "Too many levels of symbolic links" in log.why


# What would need a log that is overwritten, broken or full: each read is played


class Kmsg:
    """Plays reads of /dev/kmsg: records, and errors in between. Then there is nothing more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: list[bytes | OSError] = []
        self.fd = os.open("/dev/null", os.O_RDONLY)
        real_read = os.read
        monkeypatch.setattr(os, "read", lambda fd, size: self._read() if fd == self.fd else real_read(fd, size))

    def write(self, number: int, text: str = "line", at_us: int = 1_000_000) -> None:
        self.reads.append(f"6,{number},{at_us},-;{text}\n SUBSYSTEM=test\n".encode())

    def _read(self) -> bytes:
        if not self.reads:
            raise BlockingIOError
        result = self.reads.pop(0)
        if isinstance(result, OSError):
            raise result
        return result


@pytest.fixture
def kmsg(monkeypatch: pytest.MonkeyPatch) -> Kmsg:
    return Kmsg(monkeypatch)


def test_overwritten_records_are_counted_by_their_numbers(kmsg: Kmsg) -> None:
    with closing(HostKernelLog(kmsg.fd, SystemClock())) as log:
        kmsg.write(7, "seen")
        kmsg.reads.append(BrokenPipeError())
        kmsg.write(20, "the oldest left")
        assert [line.text for line in log.read_new()] == ["seen", "the oldest left"]
        assert (log.lost, log.fault) == (12, None)
        kmsg.write(21)
        log.read_new()
        assert log.lost == 12


def test_overwritten_before_the_first_one_seen_counts_as_one(kmsg: Kmsg) -> None:
    with closing(HostKernelLog(kmsg.fd, SystemClock())) as log:
        kmsg.reads.append(BrokenPipeError())
        kmsg.write(20)
        log.read_new()
        assert log.lost == 1


def test_a_look_is_bounded_in_lines(kmsg: Kmsg) -> None:
    with closing(HostKernelLog(kmsg.fd, SystemClock())) as log:
        for number in range(LINES_LIMIT + 3):
            kmsg.write(number, str(number))
        assert len(log.read_new()) == LINES_LIMIT
        assert [line.text for line in log.read_new()] == [str(LINES_LIMIT + more) for more in range(3)]


def test_a_look_is_bounded_in_bytes(kmsg: Kmsg) -> None:
    with closing(HostKernelLog(kmsg.fd, SystemClock())) as log:
        for number in range(100):
            kmsg.write(number, "x" * 8000)
        assert len(log.read_new()) == BYTES_LIMIT // 8000 + 1
        assert log.read_new()


def test_a_log_that_only_says_overwritten_ends_a_look(kmsg: Kmsg) -> None:
    with closing(HostKernelLog(kmsg.fd, SystemClock())) as log:
        kmsg.reads = [BrokenPipeError()] * 10_000
        assert log.read_new() == []


@pytest.mark.parametrize(
    "record", [b"", b"no record\n", b"6,1;text\n", b"6,1,soon,-;text\n", b"6,x,1,-;text\n", b"\xff" * 9]
)
def test_what_is_no_record_is_a_fault_and_what_came_before_it_counts(kmsg: Kmsg, record: bytes) -> None:
    with closing(HostKernelLog(kmsg.fd, SystemClock())) as log:
        kmsg.write(1, "good")
        kmsg.reads.append(record)
        kmsg.write(3, "not read any more")
        assert [line.text for line in log.read_new()] == ["good"]
        assert log.fault is not None
        assert log.read_new() == []


def test_an_error_of_the_kernel_is_a_fault(kmsg: Kmsg) -> None:
    with closing(HostKernelLog(kmsg.fd, SystemClock())) as log:
        kmsg.reads.append(OSError(22, "Invalid argument"))
        assert log.read_new() == []
        assert log.fault == Broken("/dev/kmsg cannot be read: Invalid argument")


@pytest.mark.parametrize("ahead_s", [-600.0, 0.0, 600.0])
def test_a_kernels_clock_that_has_gone_off_is_put_right(kmsg: Kmsg, ahead_s: float) -> None:
    """After months `local_clock` is minutes away from CLOCK_MONOTONIC."""
    clock = SetClock(1_000_000.0)
    with closing(HostKernelLog(kmsg.fd, clock)) as log:
        kernel_s = time.monotonic() + ahead_s
        for look in range(3):
            clock.told_s += 10.0
            kmsg.write(2 * look, at_us=round((kernel_s + 10 * look + 4) * 1e6))
            kmsg.write(2 * look + 1, at_us=round((kernel_s + 10 * look + 6) * 1e6))
            first, second = (line.at_s for line in log.read_new())
            assert clock.told_s - 10.0 <= first < second <= clock.told_s
            assert second - first == pytest.approx(2.0)


def test_lines_left_for_the_next_look_keep_their_time(kmsg: Kmsg) -> None:
    clock = SetClock(1_000_000.0)
    with closing(HostKernelLog(kmsg.fd, clock)) as log:
        kernel_s = time.monotonic()
        for number in range(LINES_LIMIT + 1):
            kmsg.write(number, at_us=round((kernel_s + 5) * 1e6))
        clock.told_s += 10.0
        log.read_new()
        clock.told_s += 10.0
        (left,) = log.read_new()
        assert left.at_s == pytest.approx(1_000_005.0, abs=0.5)
