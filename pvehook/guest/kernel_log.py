"""A guest's kernel log from now on, without a program started in the guest: /dev/kmsg through its agent.

    guest-file-open /dev/kmsg, guest-file-seek to its end      when the backup begins
    guest-file-read, one byte each                             later: exactly the records since
    GenericError: failed to read file: Resource temporarily unavailable      there are no more now (EAGAIN)
    GenericError: failed to read file: Broken pipe                           records were overwritten unread (EPIPE)

One byte, because the agent reads through stdio: a larger read that meets the end fails, and what it had is lost.
Several reads are on their way at once, so that a byte costs what the agent needs for it and not a round trip: 0.25 to
0.35 ms against 0.7 under TCG. But never so many that their requests are beyond 4096 bytes: with more than that the
answers stopped coming (tried with 7.2 and 10.0: 12800 reads in flights of 16 without a fault, while some of 60 and all
of 512 hung).

The agent's handle outlives our connection and our process; `KernelLogHandle` is what has to be kept.

A record's time is a clock of the guest's kernel that nobody corrects (see host/kernel_log.py). Its zero comes from the
guest's uptime; then it is moved, so that what was read lies between this read and the one before.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import Final, NamedTuple

from pvehook.contract.kernel_line import KernelLine, TimedLine, parse_kernel_line
from pvehook.contract.measured import Broken, Measured
from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.errors import GuestError, Refused
from pvehook.guest.agent import AgentConnection
from pvehook.guest.guest_counters import explain, parse_uptime_s, read_start

BYTES_LIMIT: Final = 64 * 1024
"""Of one read: some 800 lines of a real log, 20 s of reading under TCG, so the deadline may end it before. A line has 9
bytes or more, which bounds their number."""

_PATH: Final = "/dev/kmsg"
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_IN_FLIGHT: Final = 16
"""Reads; a request has some 85 bytes."""
_RESERVE_S: Final = 0.5
"""Before the deadline: an answer that comes after it would be a byte lost. A flight takes 5 ms."""
_RECORD_BYTES: Final = 8192  # PRINTK_MESSAGE_MAX: whatever is longer is no record

_NO_MORE: Final = "Resource temporarily unavailable"
_OVERWRITTEN: Final = "Broken pipe"
_TOO_LONG: Final = "Invalid argument"  # for the agent's buffer; the kernel goes on with the next one
_NO_HANDLE: Final = "has not been found"


class KernelLogHandle(NamedTuple):
    """An open kernel log in a guest. Plain values: it can be written down and used by another process."""

    handle: int
    boot_id: str
    """Of the guest's kernel: after another boot the same number may be anybody's file."""
    zero_epoch_s: float
    """When the clock of the guest's kernel log stood at 0: the host's time at the opening less the guest's uptime."""
    looked_epoch_s: float
    """The host's time at the opening, or of the last read: what is read next was written since."""
    rest: str = ""
    """The start of a record whose end was beyond a limit."""


class KernelLog(NamedTuple):
    lines: tuple[TimedLine, ...]
    missing: tuple[str, ...]
    """What is not among the lines, and why: overwritten before it was read, beyond a limit, not understood."""
    handle: KernelLogHandle
    """For the next read."""


def open_kernel_log(agent: AgentConnection, deadline: Deadline) -> Measured[KernelLogHandle]:
    """Opens the log at its end. To be closed with `close_kernel_log`."""
    try:
        boot_id = _boot_id(agent, deadline)
        uptime_s = parse_uptime_s(read_start(agent, "/proc/uptime", deadline))
        now_epoch_s = time.time()
        handle = agent.file_open(_PATH, deadline)
    except GuestError as error:
        return explain(agent, _PATH, error, deadline)
    except ValueError as error:
        return Broken(f"the guest's /proc/uptime: {printable(str(error))}")
    try:
        agent.file_seek_end(handle, deadline)
    except GuestError as error:
        with contextlib.suppress(GuestError):
            agent.file_close(handle, deadline)
        return explain(agent, _PATH, error, deadline)
    return KernelLogHandle(handle, boot_id, now_epoch_s - uptime_s, now_epoch_s)


def read_kernel_log(
    agent: AgentConnection, log: KernelLogHandle, deadline: Deadline, *, limit_bytes: int = BYTES_LIMIT
) -> Measured[KernelLog]:
    """The records since the opening or the last read. Near the deadline and past the limit it gives what it has, and
    says that there is more."""
    try:
        if _boot_id(agent, deadline) != log.boot_id:
            return Broken("the guest was started anew since its kernel log was opened")
        stream = _read_stream(agent, log.handle, deadline, limit_bytes)
    except GuestError as error:
        if isinstance(error, Refused) and error.description.endswith(_NO_HANDLE):
            return Broken("the guest's agent was started anew since the kernel log was opened")
        return explain(agent, _PATH, error, deadline)
    return _understood(log, *stream)


def close_kernel_log(agent: AgentConnection, log: KernelLogHandle, deadline: Deadline) -> None:
    """Closes the log in the guest, unless that has gone with another boot. Raises the errors of GuestError."""
    if _boot_id(agent, deadline) == log.boot_id:
        agent.file_close(log.handle, deadline)


def _read_stream(
    agent: AgentConnection, handle: int, deadline: Deadline, limit_bytes: int
) -> tuple[bytes, bool, bool, list[str]]:
    """What was read, whether there was nothing more to read, whether records were overwritten, and what else is
    missing. Raises what the first answer raises; later faults end the stream."""
    data = bytearray()
    missing = []
    ended = overwritten = False
    try:
        while not ended:
            if len(data) >= limit_bytes:
                missing.append(f"not read to its end: more than {limit_bytes} bytes")
                break
            if data and deadline.left_s() < _RESERVE_S:
                missing.append(f"not read to its end: {len(data)} bytes within {deadline.total_s:g} s")
                break
            flight = [agent.send_file_read(handle, 1, deadline) for _ in range(_IN_FLIGHT)]
            for read in flight:
                # The last one shows it: a record may be written between two reads of one flight.
                ended = False
                try:
                    data += agent.receive_file_read(read, deadline)
                except Refused as refusal:
                    if refusal.description.endswith(_NO_MORE):
                        ended = True
                    elif refusal.description.endswith(_OVERWRITTEN):
                        overwritten = True
                    elif refusal.description.endswith(_TOO_LONG):
                        missing.append("a record that is longer than the agent can read")
                    else:
                        raise
    except GuestError as error:
        if not data:
            raise
        missing.append(f"not read to its end: {error}")
    return bytes(data), ended, overwritten, missing


def _understood(log: KernelLogHandle, data: bytes, ended: bool, overwritten: bool, missing: list[str]) -> KernelLog:
    now_epoch_s = time.time()
    whole, _, rest = (log.rest + data.decode("ascii", "replace")).rpartition("\n")
    lines: list[KernelLine] = []
    numbers: list[int] = []
    damaged = 0
    for record in whole.split("\n") if whole else ():
        if record.startswith(" "):
            continue  # of a record's dictionary
        try:
            line, number = parse_kernel_line(record), _number(record)
        except ValueError:
            damaged += 1
            continue
        lines.append(line)
        numbers.append(number)
    if overwritten:
        lost = sum(max(after - before - 1, 0) for before, after in itertools.pairwise(numbers))
        missing.append(f"records overwritten before they were read: {lost or 'an unknown number'}")
    if damaged or len(rest) > _RECORD_BYTES:
        missing.append(f"lines that are none of a kernel's log: {damaged or 1}")
    zero_epoch_s = log.zero_epoch_s
    if lines:
        zero_epoch_s = max(zero_epoch_s, log.looked_epoch_s - lines[0].at_us / 1e6)
        zero_epoch_s = min(zero_epoch_s, now_epoch_s - lines[-1].at_us / 1e6)
    timed = tuple(
        # A guest may number its lines as it likes, but it wrote them between the reads.
        TimedLine(min(max(zero_epoch_s + line.at_us / 1e6, log.looked_epoch_s), now_epoch_s), line.text)
        for line in lines
    )
    looked_epoch_s = now_epoch_s if ended or not timed else timed[-1].at_s
    handle = log._replace(
        zero_epoch_s=zero_epoch_s,
        looked_epoch_s=looked_epoch_s,
        rest=rest if len(rest) <= _RECORD_BYTES else "",
    )
    return KernelLog(timed, tuple(missing), handle)


def _number(record: str) -> int:
    number = int(record.split(",", 2)[1])
    if not 0 <= number < 2**63:
        raise ValueError(f"no number of a kernel log: {record[:60]!r}")
    return number


def _boot_id(agent: AgentConnection, deadline: Deadline) -> str:
    return read_start(agent, _BOOT_ID, deadline).strip()
