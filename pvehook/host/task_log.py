"""Proxmox's log of a running task, as far as it is written.

    /var/log/pve/tasks/F/UPID:pve:0003A6C1:00C0FFEE:6921B2FF:vzdump::root@pam:      F: the last digit of its start time

    ERROR: Backup of VM 102 failed - unable to open archive

vzdump logs that line before `backup-abort` (`exec_backup_task` in PVE/VZDump.pm). Source of the path: `upid_decode` in
PVE::Tools.
"""

from __future__ import annotations

import os
import re
from typing import Final

from pvehook.contract.text import printable
from pvehook.host.node import Node

_TASKS: Final = "/var/log/pve/tasks"
_STARTED: Final = re.compile(r"UPID:[^:/]+:[0-9A-F]+:[0-9A-F]+:([0-9A-F]+):[^/]*")
_TAIL_BYTES: Final = 64 * 1024
_WHY_LIMIT: Final = 300


def why_backup_failed(node: Node, upid: str, vmid: int) -> str | None:
    """vzdump's own words about the last failure of this guest; None: there are none. Raises OSError for a log that
    cannot be read. A disk that hangs keeps it waiting."""
    started = _STARTED.fullmatch(upid)
    if started is None:
        return None
    with open(node.path(f"{_TASKS}/{started[1][-1]}/{upid}"), "rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(size - _TAIL_BYTES, 0))
        text = log.read(_TAIL_BYTES).decode("utf-8", "replace")
    found = re.findall(rf"^ERROR: Backup of VM {vmid} failed - (.*)$", text, re.MULTILINE)
    return printable(found[-1].strip(), _WHY_LIMIT) if found else None
