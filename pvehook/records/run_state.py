"""What must survive the daemon: one recovery note per run, written at each phase, and every few seconds where guests
suffer meanwhile.

    /run/pvehook/jobs/4711-8812345.json         worker's pid and start time (clock ticks since boot)
        {"worker": {"pid": 4711, "start_ticks": 8812345}, "upid": "UPID:...", "started_s": 1795312800.0,
         "began": true, "admitted": true,
         "storeid": "local", "dumpdir": "/var/lib/vz/dump", "waiting": [101, 102],
         "beside": "[...]", "forecast": {"made_s": ..., "closes_s": ..., "guests": [...]},
         "guest": {"vmid": 101, "mode": "snapshot", ...} or null, "done": [{...}, ...]}

A new daemon loads these, goes on with the runs whose worker lives and ends the others.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace

from pvehook.host.node import Node
from pvehook.host.processes import ProcessId
from pvehook.host.regular_file import files_in, remove_file, replace_file
from pvehook.host.volumes import Backup
from pvehook.records.attempt import Trigger
from pvehook.records.encoding import decode, encode
from pvehook.records.guest_forecast import RunForecast
from pvehook.records.guest_record import GuestRecord


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
    schedule: str | None = None
    """Of its job; None: it has none, or it is not known."""
    trigger: Trigger = "unknown"
    waiting: list[int] = field(default_factory=list)
    """VMs whose histograms are armed: at the run's end they are removed."""
    beside: str = ""
    """What guests have suffered beside others' backups so far (watch/suffering.py), as JSON."""
    forecast: RunForecast | None = None
    """None: its guests are not known, or the window does not bind this run."""
    guest: GuestRecord | None = None
    done: list[GuestRecord] = field(default_factory=list)
    encoded: list[str] = field(default_factory=list)
    """`done` as it stands in the note: encoded once, or the phases of a long run would take longer and longer."""

    def backup_of(self, guest: GuestRecord) -> Backup:
        """What is read and where it is written, for those who look the disks up."""
        return Backup(guest.vmid, guest.vmtype, guest.mode, self.storeid, self.dumpdir)


def save(node: Node, run: RunState) -> None:
    """Writes the run's note. Raises OSError."""
    run.encoded += [json.dumps(encode(guest)) for guest in run.done[len(run.encoded) :]]
    rest = encode(replace(run, done=[], encoded=[]))
    del rest["done"], rest["encoded"]
    text = f'{json.dumps(rest)[:-1]}, "done": [{", ".join(run.encoded)}]}}\n'
    replace_file(_path(node, run.worker), text)


def remove(node: Node, run: RunState) -> None:
    """The run has ended."""
    remove_file(_path(node, run.worker))


def load_all(node: Node, *, tidy: bool = True) -> list[RunState]:
    """The runs that an earlier daemon left. A note that cannot be read is removed: it was ours, and without it
    the run starts anew at its next phase. Without `tidy` it is left: a daemon may be writing it just now."""
    runs = []
    for path in files_in(os.path.join(node.run_dir, "jobs"), ""):
        try:
            if not path.endswith(".json"):
                raise ValueError("a new file that was not yet put in place of the old one")
            with open(path, encoding="utf-8") as file:
                runs.append(decode(RunState, json.load(file)))
        except (OSError, ValueError, RecursionError):
            if tidy:
                remove_file(path)
    return runs


def _path(node: Node, worker: ProcessId) -> str:
    return os.path.join(node.run_dir, "jobs", f"{worker.pid}-{worker.start_ticks}.json")
