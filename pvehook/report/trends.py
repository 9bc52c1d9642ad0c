"""Guests over their nights: who suffered most, and since when."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, tzinfo
from typing import Final, NamedTuple

from pvehook.contract.measured import Measured, value_of
from pvehook.contract.text import printable
from pvehook.records.figures import severity_key
from pvehook.records.guest_summary import guest_number
from pvehook.records.history import PastBackup
from pvehook.rules.regression import BackupFigures, Regression, find_regression

NAME_LIMIT: Final = 64

LEVELS_S: Final = (3.0, 10.0, 30.0, 100.0, 300.0)
"""Stalled seconds at which a backup's bar gets one step higher."""
LEVELS: Final = 3 + len(LEVELS_S)


class Trend(NamedTuple):
    """One guest's nights, the oldest first; at least one."""

    backups: tuple[PastBackup, ...]
    regression: Regression | None

    @property
    def last(self) -> PastBackup:
        return self.backups[-1]

    @property
    def title(self) -> str:
        """`VM 101 web`, fit to be shown."""
        return (
            f"{guest_number(self.last.vmtype, self.last.vmid)} {printable(self.last.name or '', NAME_LIMIT)}".rstrip()
        )


def trends(backups: Iterable[PastBackup], shown_from_s: float) -> list[Trend]:
    """Each guest with a backup at `shown_from_s` or later, the worst last backup first. A regression is searched
    for in all of the nights, which are the oldest first."""
    of_guest: dict[int, list[PastBackup]] = {}
    for backup in backups:
        of_guest.setdefault(backup.vmid, []).append(backup)
    found = []
    for own in of_guest.values():
        shown = tuple(backup for backup in own if backup.started_s >= shown_from_s)
        if shown:
            found.append(Trend(shown, find_regression([_for_rule(backup) for backup in own])))
    return sorted(found, key=_goodness)


def _for_rule(backup: PastBackup) -> BackupFigures:
    return BackupFigures(
        backup.started_s,
        value_of(backup.stalled_s),
        value_of(backup.slowed_s),
        value_of(backup.write_p99_ms),
        (backup.pve_manager, backup.qemu, backup.kernel),
    )


def _goodness(trend: Trend) -> tuple[float, ...]:
    last = trend.last
    whole_s = sum(backup.stalled_s for backup in trend.backups if isinstance(backup.stalled_s, float))
    worst_first = (*severity_key(last.severity, last.stalled_s, last.slowed_s), whole_s)
    return (*(-each for each in worst_first), last.vmid)


def worst_of(backups: Iterable[PastBackup]) -> PastBackup:
    """Of several backups of a day, or several nights that share a bar."""
    return max(backups, key=lambda backup: severity_key(backup.severity, backup.stalled_s, backup.slowed_s))


def level(backup: PastBackup) -> Measured[int]:
    """The height of a backup's bar, from 0 to LEVELS - 1: none, slowed, then by stalled seconds; locked up is the
    highest. Unknown has no height."""
    if backup.severity == "locked-up":
        return LEVELS - 1
    stalled_s = backup.stalled_s
    if not isinstance(stalled_s, float):
        return 1 if backup.severity in ("slowed", "stalled") else stalled_s
    if backup.severity != "stalled":
        return int(backup.severity == "slowed")
    return 2 + sum(stalled_s >= limit_s for limit_s in LEVELS_S)


def day(at_s: float, zone: tzinfo) -> str:
    """The day on which the backup began."""
    return f"{datetime.fromtimestamp(at_s, zone):%Y-%m-%d}"
