"""What a run's start has forecast of one guest, kept in the run's state and at the end beside what came of it."""

from __future__ import annotations

from typing import NamedTuple

from pvehook.rules.forecast import Expected


class GuestForecast(NamedTuple):
    """Times are seconds since the epoch."""

    vmid: int
    expected: Expected | None
    """None: nothing is known of its backups, nor of its disks' size or how fast others are read."""
    end_s: float | None
    """When its backup is expected to end; None: that is not known, of it or of one before it."""
    backups_s: tuple[float, ...]
    """When its last good backups began, the last one first."""
    last_turn_s: float | None
    """The same of its last backup, also of one that failed."""


class RunForecast(NamedTuple):
    """Of one run, at its job-start."""

    made_s: float
    closes_s: float | None
    """When the window closes; None: it does not within three weeks."""
    guests: tuple[GuestForecast, ...]
    """In vzdump's order."""
