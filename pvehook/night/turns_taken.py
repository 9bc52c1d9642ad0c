"""What is kept of each guest's turn in a run, whatever became of it, and what started the run."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, tzinfo
from typing import Final

from pvehook.contract.measured import value_of
from pvehook.host.node import Node
from pvehook.host.processes import ancestors_of
from pvehook.records.attempt import Attempt, AttemptResult, Trigger
from pvehook.records.figures import figures
from pvehook.records.guest_record import GuestRecord
from pvehook.records.run_state import RunState
from pvehook.records.stall_record import StallRecord
from pvehook.rules.schedule import starts_between

_SCHEDULERS: Final = frozenset({"pvescheduler", "cron", "crond", "anacron", "CRON"})
_PEOPLES: Final = ("pvedaemon", "pveproxy", "sshd", "login", "bash", "zsh", "fish", "tmux", "screen")
"""From the web page, or from a shell, which cron has too: that is asked first."""
ON_TIME_S: Final = 600.0
"""pvescheduler looks once a minute, at one job after the other. What it starts so long after its time was missed."""


def trigger_of(node: Node, run: RunState, zone: tzinfo) -> Trigger:
    """What started a run, by its job's schedule and its worker's ancestors."""
    if run.schedule is not None:
        try:
            now = datetime.fromtimestamp(run.started_s, zone)
            return "schedule" if starts_between(run.schedule, now - timedelta(seconds=ON_TIME_S), now) else "missed"
        except (ValueError, OverflowError, OSError):  # not understood, or a clock beyond all years
            return "schedule"
    names = ancestors_of(node, run.worker.pid)
    if run.job_id is not None or _SCHEDULERS & set(names):
        return "schedule"
    return "hand" if any(name.startswith(_PEOPLES) for name in names) else "unknown"


def attempt_of(run: RunState, guest: GuestRecord, record: StallRecord | None, why_failed: str | None) -> Attempt:
    """Of a guest whose turn is over. `why_failed`: vzdump's own words, where they are known."""
    result: AttemptResult = "unknown" if guest.result == "running" else guest.result
    known = figures(record) if record is not None else {}
    governor = record.governor if record is not None else None
    planned = run.forecast.guests if run.forecast is not None else ()
    forecast = next((each for each in planned if each.vmid == guest.vmid), None)
    expected = forecast.expected if forecast is not None else None
    return Attempt(
        vmid=guest.vmid,
        started_s=guest.started_s,
        ended_s=guest.started_s if guest.ended_s is None else guest.ended_s,
        node=os.uname().nodename,
        job=run.upid,
        job_id=run.job_id,
        trigger=run.trigger,
        name=guest.name,
        vmtype=guest.vmtype,
        mode=guest.mode,
        result=result,
        reason=_reason(guest, why_failed),
        copied_bytes=value_of(known["backup_bytes"]) if known else None,
        cost_s=governor.cost_s if governor is not None else None,
        expected_s=expected.expected_s if expected is not None else None,
        expected_least_s=expected.shortest_s if expected is not None else None,
        expected_most_s=expected.longest_s if expected is not None else None,
        expected_end_s=forecast.end_s if forecast is not None else None,
    )


def _reason(guest: GuestRecord, why_failed: str | None) -> str:
    if guest.result == "ok":
        return ""
    return {
        "refused": guest.why_refused or "the backup window was closed",
        "failed": why_failed or "vzdump failed it",
        "cancelled": "it went on after a refusal, or past the window's end, and was cancelled as configured",
        "worker-died": "vzdump's worker ended in the middle of it: killed, or stopped by hand",
    }.get(guest.result, "its end was not seen: pvehook's daemon was away")
