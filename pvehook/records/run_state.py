"""What must survive the daemon: one small file per running job, written at each phase.

    /run/pvehook/jobs/4711-8812345.json         worker's pid and start time (clock ticks since boot)
        {"worker": [4711, 8812345], "upid": "UPID:...", "started_s": 1795312800.0, "began": true, "admitted": true,
         "storeid": "local", "dumpdir": "/var/lib/vz/dump", "waiting": [102],
         "guest": {"vmid": 101, "mode": "snapshot", ...} or null, "done": [{...}, ...]}

A new daemon loads these, goes on with the jobs whose worker lives and ends the others.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from pvehook.host.atomic_file import replace_file
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId
from pvehook.records.guest_record import FreezeSummary, GuestRecord


@dataclass(slots=True)
class RunState:
    """One vzdump run."""

    worker: ProcessId
    upid: str
    started_s: float
    began: bool = False
    """job-start was seen and not refused."""
    admitted: bool = False
    """It was let through for all of its guests, not only until each one asks."""
    storeid: str | None = None
    dumpdir: str | None = None
    job_id: str | None = None
    waiting: list[int] = field(default_factory=list)
    """VMs whose histograms are armed and whose turn has not come: at the job's end they are removed."""
    guest: GuestRecord | None = None
    done: list[GuestRecord] = field(default_factory=list)


def save(node: Node, job: RunState) -> None:
    """Writes the job's file. Raises OSError."""
    replace_file(_path(node, job.worker), json.dumps(asdict(job)) + "\n")


def remove(node: Node, job: RunState) -> None:
    """The job has ended."""
    try:
        os.unlink(_path(node, job.worker))
    except FileNotFoundError:
        pass


def load_all(node: Node, *, tidy: bool = True) -> list[RunState]:
    """The jobs that an earlier daemon left. A file that cannot be read is removed: it was ours, and without it
    the job starts anew at its next phase. Without `tidy` it is left: a daemon may be writing it just now."""
    jobs = []
    directory = os.path.join(node.run_dir, "jobs")
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    for name in names:
        path = os.path.join(directory, name)
        try:
            if not name.endswith(".json"):
                raise ValueError("a new file that was not yet put in place of the old one")
            with open(path, encoding="utf-8") as file:
                jobs.append(_from_json(json.load(file)))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            if tidy:
                try:
                    os.unlink(path)
                except OSError:
                    pass
    return jobs


def _path(node: Node, worker: ProcessId) -> str:
    return os.path.join(node.run_dir, "jobs", f"{worker.pid}-{worker.start_ticks}.json")


def _from_json(body: dict[str, Any]) -> RunState:
    pid, start_ticks = body["worker"]
    guest = body["guest"]
    return RunState(
        **{
            **body,
            "worker": ProcessId(int(pid), int(start_ticks)),
            "guest": _guest(guest) if guest is not None else None,
            "done": [_guest(each) for each in body["done"]],
        }
    )


def _guest(body: dict[str, Any]) -> GuestRecord:
    freeze = body["freeze"]
    return GuestRecord(**{**body, "freeze": FreezeSummary(**freeze) if freeze is not None else None})
