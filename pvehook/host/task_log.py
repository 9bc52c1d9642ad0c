"""Proxmox's list of tasks and their logs, of a running task as far as it is written.

    /var/log/pve/tasks/index, index.1, active                    contract/task_log.py
    /var/log/pve/tasks/F/UPID:pve:0003A6C1:00C0FFEE:6921B2FF:vzdump::root@pam:      F: the last digit of its start time

    ERROR: Backup of VM 102 failed - unable to open archive

vzdump logs that line before `backup-abort` (`exec_backup_task` in PVE/VZDump.pm). Source of the path: `upid_decode` in
PVE::Tools.
"""

from __future__ import annotations

import os
import re
from typing import Final

from pvehook.contract.task_log import ListedTask, parse_task_list
from pvehook.contract.text import printable
from pvehook.host.node import Node
from pvehook.host.regular_file import read_regular_file

TASKS: Final = "/var/log/pve/tasks"
_LIST_LIMIT_BYTES: Final = 1 << 20
"""Proxmox begins a new `index` at 50 kB."""
LOG_LIMIT_BYTES: Final = 8 << 20
"""A guest's backup leaves some 10 kB."""
_STARTED: Final = re.compile(r"UPID:[^:/]+:[0-9A-F]+:[0-9A-F]+:([0-9A-F]+):[^/]*")
_TAIL_BYTES: Final = 64 * 1024
_WHY_LIMIT: Final = 300


def vzdump_tasks(node: Node) -> list[ListedTask]:
    """The runs of vzdump that Proxmox lists, running ones too, the newest first; none where there is no Proxmox VE. All
    of them ran here: the list is the node's own, whatever it was called. Raises OSError. May hang as any disk may."""
    tasks: dict[str, ListedTask] = {}
    for name in ("active", "index.1", "index"):
        try:
            data = read_regular_file(node.path(f"{TASKS}/{name}"), _LIST_LIMIT_BYTES)
        except FileNotFoundError:
            continue
        for task in parse_task_list(data.decode("ascii", "replace")):
            if task.upid.type == "vzdump" and (task.ended_s is not None or task.upid.text not in tasks):
                tasks[task.upid.text] = task
    return sorted(tasks.values(), key=lambda task: task.upid.started_s, reverse=True)


def task_log(node: Node, upid: str) -> bytes:
    """A task's log, or its first LOG_LIMIT_BYTES. Raises OSError. May hang as any disk may."""
    path = _path(node, upid)
    if path is None:
        raise OSError(f"{upid} is no task")
    return read_regular_file(path, LOG_LIMIT_BYTES)


def why_backup_failed(node: Node, upid: str, vmid: int) -> str | None:
    """vzdump's own words about the last failure of this guest; None: there are none. Raises OSError for a log that
    cannot be read. A disk that hangs keeps it waiting."""
    path = _path(node, upid)
    if path is None:
        return None
    with open(path, "rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(size - _TAIL_BYTES, 0))
        text = log.read(_TAIL_BYTES).decode("utf-8", "replace")
    found = re.findall(rf"^ERROR: Backup of VM {vmid} failed - (.*)$", text, re.MULTILINE)
    return printable(found[-1].strip(), _WHY_LIMIT) if found else None


def _path(node: Node, upid: str) -> str | None:
    started = _STARTED.fullmatch(upid)
    return node.path(f"{TASKS}/{started[1][-1]}/{upid}") if started else None
