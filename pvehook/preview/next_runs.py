"""When Proxmox starts each backup job next. Its calendar events are its own language, so it is asked."""

from __future__ import annotations

import json
import os
import subprocess

from pvehook.host.node import Node

PVESH = "/usr/bin/pvesh"
PVESH_DEADLINE_S = 20.0


def next_runs_of(node: Node) -> dict[str, float]:
    """Job id to its next run in seconds since the epoch, as Proxmox computes it; empty when it cannot be asked."""
    if not node.is_real or not os.path.exists(PVESH):
        return {}
    try:
        answer = subprocess.run(  # noqa: S603  (a fixed command)
            [PVESH, "get", "/cluster/backup", "--output-format", "json"],
            capture_output=True,
            check=True,
            timeout=PVESH_DEADLINE_S,
        )
        return {str(job["id"]): float(job["next-run"]) for job in json.loads(answer.stdout) if "next-run" in job}
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, KeyError):
        return {}
