"""The unique id of a Proxmox task, as found in a worker's command line.

    task UPID:pve1:0003A6C1:00C0FFEE:6921B2F0:vzdump:101:root@pam:
         UPID:NODE:PID     :PSTART  :STARTTIME:TYPE :ID :USER:

Source: PVE::Tools::upid_encode; numbers are hexadecimal, PSTART is the process's start in clock ticks since boot,
STARTTIME is seconds since the epoch, ID is the guest's number when the run has one guest, else empty.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_UPID = re.compile(r"(?:task )?(UPID:[^:]*:([0-9A-F]+):([0-9A-F]+):([0-9A-F]+):([^:]*):(?:([0-9]{1,9})|[^:]*):[^:]*:)")


class Upid(NamedTuple):
    text: str
    vmid: int | None
    """The guest, when the task was started for exactly one."""
    pid: int
    start_ticks: int
    """Of its process, in clock ticks since the boot."""
    started_s: int
    """Seconds since the epoch."""
    type: str
    """`vzdump` for a backup run."""

    @property
    def node(self) -> str:
        """The node that ran it."""
        return self.text.split(":")[1]


def parse_upid(text: str) -> Upid | None:
    """The UPID in `text` (bare or after `task `), or None when there is none."""
    match = _UPID.match(text)
    if match is None:
        return None
    pid, start_ticks, started_s = (int(number, 16) for number in match.group(2, 3, 4))
    return Upid(match[1], int(match[6]) if match[6] else None, pid, start_ticks, started_s, match[5])
