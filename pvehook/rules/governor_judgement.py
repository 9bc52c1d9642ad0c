"""What the governor's law asks of a reading: does the guest suffer, does slowing its backup pay, and if not, why."""

from __future__ import annotations

from pvehook.rules import governor_constants as c
from pvehook.rules.governor_readings import Reading
from pvehook.rules.governor_state import Bounds, Culprit, Throttling, Trying


def suffers(reading: Reading, bounds: Bounds) -> bool:
    return reading.latency_ms > c.SUFFERS_ABOVE * bounds.target_ms and reading.in_flight >= c.SUFFERS_IN_FLIGHT


def evidence(reading: Reading, bounds: Bounds) -> float:
    """Of a reading of a guest that suffers. Three requests per second that take 0.3 s each are one in flight, by chance
    for some seconds: of a guest that was idle a reading counts for less."""
    is_clear = reading.latency_ms > c.CLEARLY_ABOVE * bounds.target_ms and reading.in_flight >= c.CLEARLY_IN_FLIGHT
    if bounds.was_idle:
        return c.IDLE_CLEAR_EVIDENCE if is_clear else c.IDLE_EVIDENCE
    return c.CLEAR_EVIDENCE if is_clear else c.EVIDENCE


def pays(
    phase: Trying | Throttling, latency_ms: float, copied_per_s: float, bounds: Bounds, at_least: float = 0.0
) -> bool:
    """Whether the guest is better off by more than the backup lasts longer. `at_least`: the part of its speed that the
    backup is taken to have kept."""
    before = phase.before
    # Slowed since its start it was never seen at its worst, so what is near the target is good enough.
    good_ms = bounds.target_ms * (c.SUFFERS_ABOVE if phase.from_start else 1.0)
    if latency_ms <= min(good_ms, c.NEVER_GOOD_MS):
        return True
    part = max(copied_per_s / before.copied_per_s if before.copied_per_s > 0 else 1.0, at_least)
    return part < 1 and latency_ms <= before.latency_ms * part


def culprit_of(before: Reading, now: Reading, bounds: Bounds) -> Culprit:
    """Copy-before-write holds up writes alone; disks that are shared hold up reads as well. Others who use them pause
    now and then, so both readings have to say the same."""
    for reading in (before, now):
        quick_reads = reading.read_ms is not None and reading.read_ms <= bounds.target_ms
        slow_writes = reading.write_ms is not None and reading.write_ms > bounds.target_ms
        if not (quick_reads and slow_writes):
            return "other-load"
    return "slow-target"
