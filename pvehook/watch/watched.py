"""What `pvehook governor status` tells of one guest beside a backup (watch_status.py)."""

from __future__ import annotations

from pvehook.contract.text import printable
from pvehook.rules.governor_readings import effective_latency_ms
from pvehook.rules.latency import latency_of, sum_of
from pvehook.rules.stalls import SLOWED_AFTER_S
from pvehook.watch.patient import Patient
from pvehook.watch.watch_status import WatchedGuest


def watched(
    patient: Patient, standing: tuple[float, bool] | None, totals_s: tuple[float, float], now_s: float
) -> WatchedGuest:
    """`standing`: with the governor. `totals_s`: its stalled and slowed seconds so far."""
    together = latency_of(sum_of(patient.latest.values()))
    wanted_ms, is_aside = standing or (None, False)
    limit_ms = min(wanted_ms or SLOWED_AFTER_S * 1000, SLOWED_AFTER_S * 1000)
    is_slow = together.mean_ms is not None and effective_latency_ms(together.mean_ms, together.p99_ms) > limit_ms
    aside = None
    if not patient.is_spared:
        aside = "a rule excludes it from being spared for others' backups"
    elif not patient.has_monitor and not patient.device_names:
        aside = "only its pressure is known, which does not steer"
    elif is_aside:
        aside = "slowing the backup did not help it"
    seen_by, unwatched = patient.seen_by, None
    if seen_by is None and patient.has_monitor:
        unwatched = printable(patient.why_missed, 200) or "it was not looked at yet"
    elif seen_by is None:
        unwatched = "the node shows neither its pressure nor block devices of its own"
    return WatchedGuest(
        vmid=patient.vmid,
        name=patient.name,
        vmtype=patient.guest.vmtype,
        exposure=patient.exposure,
        seen_by=seen_by,
        suffers=patient.is_pressed or (is_slow and (not patient.has_monitor or patient.waits(now_s))),
        stalled_s=totals_s[0],
        slowed_s=totals_s[1],
        mean_ms=together.mean_ms,
        p99_ms=together.p99_ms,
        target_ms=wanted_ms,
        put_aside=aside,
        not_watched=unwatched,
    )
