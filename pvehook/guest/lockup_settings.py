"""When a Linux guest's kernel takes itself for locked up, and whether it then goes on.

    /proc/sys/kernel/watchdog_thresh     10    a soft lockup is reported after twice that, in seconds; 0: never
    /proc/sys/kernel/softlockup_panic    0     0: it goes on; N: it panics after N times twice watchdog_thresh

Source: Documentation/admin-guide/sysctl/kernel.rst and lockup-watchdogs.rst of Linux. Until commit e700f5d15607 of 2026
softlockup_panic is 0 or 1.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from pvehook.contract.measured import Measured
from pvehook.deadline import Deadline
from pvehook.guest.agent import AgentConnection
from pvehook.guest.guest_counters import read_parsed

WATCHDOG_THRESH: Final = "/proc/sys/kernel/watchdog_thresh"
SOFTLOCKUP_PANIC: Final = "/proc/sys/kernel/softlockup_panic"
WATCHDOG_THRESH_DEFAULT_S: Final = 10


class LockupSettings(NamedTuple):
    """Absent: a kernel without a detector, or an agent that may read no files."""

    watchdog_thresh_s: Measured[int]
    softlockup_panic: Measured[int]


def read_lockup_settings(agent: AgentConnection, deadline: Deadline) -> LockupSettings:
    """Reads both files on this connection. What fails is reported in its place; nothing is raised."""
    paths = (WATCHDOG_THRESH, SOFTLOCKUP_PANIC)
    return LockupSettings(*(read_parsed(agent, path, _number, deadline) for path in paths))


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}\n?", text, re.ASCII):
        raise ValueError(f"no number: {text[:60]!r}")
    return int(text)
