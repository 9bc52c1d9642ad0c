"""What a guest says of itself, by the files its agent reads: no program is started in it.

    /proc/pressure/{cpu,io,memory}      see contract/pressure.py
    /proc/stat                          cpu  12 0 209 3 1 0 0 0 0 0      the eighth is steal, in ticks, of all CPUs
    /proc/uptime                        88412.34 170001.12

Source: proc(5). A tick in these files is 1/100 s on every Linux, whatever the kernel's own (USER_HZ). All of it only
grows while the guest runs; an uptime that went back says that it was started anew.

Why a file was not read, as qemu-ga 7.2 and 10.0 say it (facts/qemu.md): there is no such file, or a fault.

    GenericError: failed to open file '/proc/pressure/io' (mode: 'r'): No such file or directory    an old kernel, psi=0
    GenericError: failed to read file: Operation not supported                                  there, but off
    CommandNotFound: Command guest-file-open has been disabled: the command is not allowed      RHEL and its family
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.pressure import PressureTotals, parse_pressure
from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.errors import GuestError, Refused
from pvehook.guest.agent import FILE_READ_LIMIT_BYTES, AgentConnection

_NOT_THERE: Final = ("No such file or directory", "Operation not supported")
_TICKS_PER_S: Final = 100
_STAT: Final = re.compile(r"cpu +(?:\d{1,19} ){7}(?P<steal>\d{1,19})\b")
_UPTIME: Final = re.compile(r"(?P<seconds>\d{1,15}\.\d{2}) ")

T = TypeVar("T")


class GuestCounters(NamedTuple):
    """Each on its own: one may be absent while the others are there."""

    cpu: Measured[PressureTotals]
    io: Measured[PressureTotals]
    memory: Measured[PressureTotals]
    steal_s: Measured[float]
    """Of all vCPUs together, since boot: the node had no CPU for them."""
    uptime_s: Measured[float]


def read_guest_counters(agent: AgentConnection, deadline: Deadline) -> GuestCounters:
    """Reads all of it on this connection. What fails is reported in its place; nothing is raised."""
    return GuestCounters(
        cpu=read_parsed(agent, "/proc/pressure/cpu", parse_pressure, deadline),
        io=read_parsed(agent, "/proc/pressure/io", parse_pressure, deadline),
        memory=read_parsed(agent, "/proc/pressure/memory", parse_pressure, deadline),
        steal_s=read_parsed(agent, "/proc/stat", _steal_s, deadline),
        uptime_s=read_parsed(agent, "/proc/uptime", parse_uptime_s, deadline),
    )


def read_start(agent: AgentConnection, path: str, deadline: Deadline) -> str:
    """The first FILE_READ_LIMIT_BYTES of a file of the guest. Raises the errors of GuestError."""
    handle = agent.file_open(path, deadline)
    try:
        return agent.file_read(handle, FILE_READ_LIMIT_BYTES, deadline).decode("ascii", "replace")
    finally:
        with contextlib.suppress(GuestError):
            agent.file_close(handle, deadline)


def parse_uptime_s(text: str) -> float:
    """Seconds since the guest's boot. Raises ValueError for what is no /proc/uptime."""
    shown = _UPTIME.match(text)
    if shown is None:
        raise ValueError(f"no uptime in {text[:60]!r}")
    return float(shown["seconds"])


def _steal_s(text: str) -> float:
    shown = _STAT.match(text)
    if shown is None:
        raise ValueError(f"no CPU times in {text[:60]!r}")
    return int(shown["steal"]) / _TICKS_PER_S


def read_parsed(agent: AgentConnection, path: str, parse: Callable[[str], T], deadline: Deadline) -> Measured[T]:
    """One file, or why there is none of it. `parse` raises ValueError for what it does not understand."""
    try:
        return parse(read_start(agent, path, deadline))
    except GuestError as error:
        return explain(agent, path, error, deadline)
    except ValueError as error:
        return Broken(f"the guest's {path}: {printable(str(error))}")


def explain(agent: AgentConnection, path: str, fault: GuestError, deadline: Deadline) -> Absent | Broken:
    """What `fault`, met with the guest's file `path`, says about the guest."""
    if not isinstance(fault, Refused):
        return Broken(str(fault))
    if fault.kind == "CommandNotFound":
        return _no_file_commands(agent, fault, deadline)
    if fault.description.endswith(_NOT_THERE):
        hint = "; `psi=1` on its kernel's command line switches it on" if path.startswith("/proc/pressure/") else ""
        return Absent(f"the guest has no {path}{hint}")
    with contextlib.suppress(GuestError):
        if agent.os_id(deadline) == "mswindows":
            return Absent(f"the guest runs Windows, which has no {path}")
    return Broken(str(fault))


def _no_file_commands(agent: AgentConnection, fault: Refused, deadline: Deadline) -> Absent | Broken:
    # Since 10.0 an agent says the same of a frozen guest and of its administrator's block.
    try:
        is_frozen = agent.fsfreeze_status(deadline) == "frozen"
    except Refused:
        is_frozen = False  # the status is blocked as well
    except GuestError as error:
        return Broken(str(error))
    if is_frozen:
        return Broken("the guest's filesystems are frozen: until they are thawed its agent reads no files")
    return Absent(f"the guest's administrator lets its agent read no files ({printable(fault.description, 120)})")
