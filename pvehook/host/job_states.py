"""Which scheduled job a vzdump task is, as Proxmox's scheduler writes it down.

    /var/lib/pve-manager/jobs/vzdump-JOBID.json    {"state": "started", "upid": "UPID:...", "config": {"schedule": ...}}

From the task's start to a moment later it is `{"state": "starting"}`, without the task (PVE/Jobs.pm, read there).
"""

from __future__ import annotations

import glob
import json
import os
from typing import Final, NamedTuple

from pvehook.host.node import Node

JOB_STATES: Final = "/var/lib/pve-manager/jobs"
_LIMIT_BYTES, _MOST_JOBS = 65536, 200


class JobState(NamedTuple):
    job_id: str
    """As in jobs.cfg."""
    upid: str
    """Of its last task; empty: it is starting, or never ran."""
    is_starting: bool
    schedule: str
    """A calendar event; empty: not told."""


def job_states(node: Node) -> list[JobState]:
    """Those that can be read. May hang as any disk may."""
    directory = node.path(JOB_STATES)
    found = []
    for name in sorted(glob.glob("vzdump-*.json", root_dir=directory))[:_MOST_JOBS]:
        try:
            with open(os.path.join(directory, name), encoding="utf-8") as file:
                state = json.loads(file.read(_LIMIT_BYTES))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(state, dict):
            config = state.get("config")
            schedule = config.get("schedule") if isinstance(config, dict) else None
            found.append(
                JobState(
                    name.removeprefix("vzdump-").removesuffix(".json"),
                    str(state.get("upid") or ""),
                    state.get("state") == "starting",
                    str(schedule or ""),
                )
            )
    return found
