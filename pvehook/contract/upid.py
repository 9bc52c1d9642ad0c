"""The unique id of a Proxmox task, as found in a worker's command line.

    task UPID:pve1:0003A6C1:00C0FFEE:6921B2F0:vzdump:101:root@pam:
         UPID:NODE:PID     :PSTART  :STARTTIME:TYPE :ID :USER:

Source: PVE::Tools::upid_encode; numbers are hexadecimal, PSTART is the process's start in clock ticks since boot,
STARTTIME is seconds since the epoch, ID is the guest's number when the run has one guest, else empty.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_UPID = re.compile(r"(?:task )?(UPID:[^:]*(?::[0-9A-F]+){3}:[^:]*:(?:([0-9]{1,9})|[^:]*):[^:]*:)")


class Upid(NamedTuple):
    text: str
    vmid: int | None
    """The guest, when the task was started for exactly one."""


def parse_upid(text: str) -> Upid | None:
    """The UPID in `text` (bare or after `task `), or None when there is none."""
    match = _UPID.match(text)
    return Upid(match[1], int(match[2]) if match[2] else None) if match else None
