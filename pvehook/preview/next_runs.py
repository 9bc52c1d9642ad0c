"""When Proxmox starts each backup job next. Its calendar events are its own language, so it is asked."""

from __future__ import annotations

from typing import Any, Final, cast

from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.pvesh import pvesh_get

PVESH_S: Final = 20.0


def next_runs_of(node: Node) -> dict[str, float]:
    """Job id to its next run in seconds since the epoch, as Proxmox computes it; empty when it cannot be asked, or for
    a directory tree: pvesh would tell of this machine's jobs."""
    if not node.is_real:
        return {}
    try:
        jobs = cast(list[dict[str, Any]], pvesh_get(node, "/cluster/backup", {}, PVESH_S))
        return {str(job["id"]): float(job["next-run"]) for job in jobs if "next-run" in job}
    except (NodeError, ValueError, TypeError, KeyError):
        return {}
