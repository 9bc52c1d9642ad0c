"""The unique id of a Proxmox task, as found in a worker's command line.

    task UPID:pve1:0003A6C1:00C0FFEE:6921B2F0:vzdump:101:root@pam:
         UPID:NODE:PID     :PSTART  :STARTTIME:TYPE :ID :USER:

Source: PVE::Tools::upid_encode; numbers are hexadecimal, PSTART is the process's start in clock ticks since boot,
STARTTIME is seconds since the epoch, ID is the guest's number when the run has one guest, else empty.
"""

from __future__ import annotations

from typing import NamedTuple


class Upid(NamedTuple):
    """One task's identity."""

    text: str
    node: str
    pid: int
    start_ticks: int
    started_s: int
    kind: str
    id: str
    user: str

    @property
    def vmid(self) -> int | None:
        """The guest, when the task was started for exactly one."""
        return int(self.id) if self.id.isascii() and self.id.isdigit() else None


def parse_upid(text: str) -> Upid | None:
    """The UPID in `text` (bare or after `task `), or None when there is none."""
    words = text.removeprefix("task ").strip().split(":")
    if len(words) < 8 or words[0] != "UPID":
        return None
    try:
        pid, start_ticks, started_s = (int(word, 16) for word in words[2:5])
    except ValueError:
        return None
    return Upid(":".join(words[:8]) + ":", words[1], pid, start_ticks, started_s, words[5], words[6], words[7])
