"""Turns of invented nights, as the daemon writes them down."""

from __future__ import annotations

from typing import Any

from pvehook.records.attempt import Attempt
from pvehook.records.stall_record import StallRecord
from tests.records.backups import DAY_S, NOW_S

TWO_S = NOW_S - 4 * 3600
"""2026-11-24 02:00 UTC, when the last night's run began."""
UPID = "UPID:pve1:00001267:0086789C:6923D2A0:vzdump::root@pam:"
CLOSED = "the backup window was closed (outside 02:00-05:00)"
NAMES = ("web", "build", "db", "files", "mail", "win-dc1", "git", "backup", "monitoring", "erp-test")


def turn(vmid: int, minute: float = 0, lasted: float = 10, age: float = 0, **changes: Any) -> Attempt:
    """It began at 02:00 and so many minutes, `age` nights before the last one, and lasted so many minutes."""
    started_s = TWO_S - age * DAY_S + minute * 60
    result = changes.get("result", "ok")
    values: dict[str, Any] = {
        "vmid": vmid,
        "started_s": started_s,
        "ended_s": started_s + (0 if result == "refused" else lasted * 60),
        "node": "pve1",
        "job": UPID.replace("6923D2A0", f"{int(TWO_S - age * DAY_S):08X}"),
        "job_id": "nightly",
        "trigger": "schedule",
        "name": NAMES[vmid % 10],
        "vmtype": "lxc" if vmid % 10 == 3 else "qemu",
        "mode": "snapshot",
        "result": result,
        "reason": f"at 05:00 {CLOSED}" if result == "refused" else "",
    }
    return Attempt(**{**values, **changes})


def refused_at_boot(*vmids: int, minute: float = 270, **changes: Any) -> list[Attempt]:
    """A run that Proxmox makes up for when the node boots at 06:30, refused before its first guest."""
    missed: dict[str, Any] = {"trigger": "missed", "job": UPID.replace("1267", "1999"), "name": None, "vmtype": None}
    why = f"at 06:30 {CLOSED}"
    return [turn(vmid, minute, result="refused", reason=why, **{**missed, **changes}) for vmid in vmids]


def turn_of(record: StallRecord, **changes: Any) -> Attempt:
    """The turn in which this was seen."""
    times = {"started_s": record.started_s, "ended_s": record.ended_s}
    return turn(record.vmid, **{"name": record.name, "vmtype": record.vmtype, **times, **changes})
