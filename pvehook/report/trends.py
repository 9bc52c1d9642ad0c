"""Guests over their nights: who suffered most, and since when."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime, tzinfo
from functools import lru_cache
from typing import Final, NamedTuple

from pvehook.contract.measured import Measured
from pvehook.contract.text import printable
from pvehook.records.figures import severity_key
from pvehook.records.guest_summary import guest_number
from pvehook.records.history import PastBackup
from pvehook.records.nights import Night, last_backups
from pvehook.rules.regression import Regression

NAME_LIMIT: Final = 64
QUARTER_S: Final = 900

LEVELS_S: Final = (3.0, 10.0, 30.0, 100.0, 300.0)  # stalled seconds at which a backup's bar gets one step higher
LEVELS: Final = 3 + len(LEVELS_S)


class Trend(NamedTuple):
    """One guest's nights, the oldest first; at least one."""

    last: PastBackup
    nights: list[Night]
    regression: Regression | None

    @property
    def stalled_s(self) -> float:
        """Of all nights, as far as it is known."""
        return sum(night.stalled_s for night in self.nights if isinstance(night.stalled_s, float))

    @property
    def title(self) -> str:
        """`VM 101 web`, fit to be shown."""
        last = self.last
        return f"{guest_number(last.vmtype, last.vmid)} {printable(last.name or '', NAME_LIMIT)}".rstrip()


def worst_first(
    history: sqlite3.Connection, since_s: float, until_s: float, vmid: int | None = None
) -> list[PastBackup]:
    """The last backup of each guest, or of the one, that has one in this time; the worst comes first."""
    found = last_backups(history, since_s, until_s, vmid)
    found.sort(key=lambda each: (_badness(each[0]), each[1]), reverse=True)
    return [last for last, _ in found]


def days_of(trends: Iterable[Trend], zone: tzinfo) -> list[str]:
    """The days of all their nights, the oldest first."""
    quarters = {int(night.started_s) // QUARTER_S for trend in trends for night in trend.nights}
    return sorted({day(quarter * QUARTER_S, zone) for quarter in quarters})


def worst_of_each(trend: Trend, days: Sequence[str], days_a_bar: int, zone: tzinfo) -> dict[int, Night]:
    """The worst night for each bar of so many days; 0 is the bar of the latest days. A bar without a night is left
    out."""
    bars = {name: (len(days) - 1 - index) // days_a_bar for index, name in enumerate(days)}
    found: dict[int, list[Night]] = {}
    for night in trend.nights:
        found.setdefault(bars[day(night.started_s, zone)], []).append(night)
    return {bar: max(nights, key=_badness) if len(nights) > 1 else nights[0] for bar, nights in found.items()}


def _badness(night: Night | PastBackup) -> tuple[int, float, float]:
    return severity_key(night.severity, night.stalled_s, night.slowed_s)


def level(night: Night) -> Measured[int]:
    """The height of a backup's bar, from 0 to LEVELS - 1: none, slowed, then by stalled seconds; locked up is the
    highest. Unknown has no height."""
    if night.severity == "locked-up":
        return LEVELS - 1
    stalled_s = night.stalled_s
    if not isinstance(stalled_s, float):
        return 1 if night.severity in ("slowed", "stalled") else stalled_s
    if night.severity != "stalled":
        return int(night.severity == "slowed")
    return 2 + sum(stalled_s >= limit_s for limit_s in LEVELS_S)


def day(at_s: float, zone: tzinfo) -> str:
    """The day on which the backup began."""
    return _quarter(int(at_s) // QUARTER_S, zone)[0][:10]


def instant(at_s: float, zone: tzinfo) -> str:
    """`2026-11-24T02:03:04+01:00`."""
    quarter, rest_s = divmod(int(at_s), QUARTER_S)
    hour, minute, offset = _quarter(quarter, zone)
    return f"{hour}:{minute + rest_s // 60:02}:{rest_s % 60:02}{offset}"


@lru_cache(maxsize=1 << 16)
def _quarter(number: int, zone: tzinfo) -> tuple[str, int, str]:
    """The hour, minute and offset of a quarter of an hour since 1970. All zones are whole quarters from UTC since 1972,
    and 200 000 nights are in few of them."""
    text = datetime.fromtimestamp(number * QUARTER_S, zone).isoformat(timespec="seconds")
    return text[:13], int(text[14:16]), text[19:]
