"""What a guest says of itself, by the files its agent reads: no program is started in it.

    /proc/pressure/{cpu,io,memory}      see contract/pressure.py
    /proc/stat                          cpu  12 0 209 3 1 0 0 0 0 0      the eighth is steal, in ticks, of all CPUs
    /proc/uptime                        88412.34 170001.12

Source: proc(5). A tick in these files is 1/100 s on every Linux, whatever the kernel's own (USER_HZ). All of it only
grows while the guest runs; an uptime that went back says that it was started anew.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from pvehook.contract.measured import Broken, Measured
from pvehook.contract.pressure import PressureTotals, parse_pressure
from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.errors import GuestError
from pvehook.guest.agent import FILE_READ_LIMIT_BYTES, AgentConnection
from pvehook.guest.file_access import explain

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
        cpu=_read(agent, "/proc/pressure/cpu", parse_pressure, deadline),
        io=_read(agent, "/proc/pressure/io", parse_pressure, deadline),
        memory=_read(agent, "/proc/pressure/memory", parse_pressure, deadline),
        steal_s=_read(agent, "/proc/stat", _steal_s, deadline),
        uptime_s=_read(agent, "/proc/uptime", parse_uptime_s, deadline),
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


def _read(agent: AgentConnection, path: str, parse: Callable[[str], T], deadline: Deadline) -> Measured[T]:
    try:
        return parse(read_start(agent, path, deadline))
    except GuestError as error:
        return explain(agent, path, error, deadline)
    except ValueError as error:
        return Broken(f"the guest's {path}: {printable(str(error))}")
