"""Whether a guest's nights got worse with a change of a version: pure.

    kernel      6.8   6.8   6.8   6.8   6.8   6.8   6.8 | 6.14  6.14  6.14  6.14  6.14  6.14  6.14
    stalled_s     0     0   1.2     0     0     0     0 |  9.1   4.0   7.7  12.5     8   6.1   9.9

Backups with the same versions make a stretch; each side needs a week of them, so that both have every day of it. A
regression is reported when a figure's median is worse by a half and by a least amount, when chance would hardly order
the backups that way, and when both hold for the first backups after the change and for the guest's latest ones. So one
bad night, noise, a slow drift and what has been fixed since are no regression; nor is what got worse without a change
of version, which has other causes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, get_args

NIGHTS_LEAST: Final = 7  # on each side, with a known figure
NIGHTS_LOOKED_AT: Final = 14  # of each side, next to the change, and of the latest
WORSE_BY: Final = 1.5  # the median after, in medians before
DEVIATIONS: Final = 3.0  # chance alone sets nights of equal kind this far apart once in 700 times

What = Literal["pve-manager", "QEMU", "kernel"]
Figure = Literal["stalled_s", "slowed_s", "write_p99_ms"]
LEAST_MORE: Final[dict[Figure, float]] = {"stalled_s": 1.0, "slowed_s": 5.0, "write_p99_ms": 10.0}
"""The median has to grow by this much: nobody notices less."""
_NAMES: Final = {"stalled_s": "stalled seconds", "slowed_s": "slowed seconds", "write_p99_ms": "write p99 in ms"}


class BackupFigures(NamedTuple):
    """One night of one guest. None: not known."""

    started_s: float
    stalled_s: float | None
    slowed_s: float | None
    write_p99_ms: float | None
    versions: tuple[str | None, str | None, str | None]
    """In the order of `What`."""


class Change(NamedTuple):
    """A version that is another one since."""

    what: What
    before: str
    after: str


class Worse(NamedTuple):
    """A figure's medians."""

    figure: Figure
    before: float
    after: float


class Regression(NamedTuple):
    """What got worse, with which change."""

    since_s: float
    """The first night after it."""
    changes: tuple[Change, ...]
    worse: tuple[Worse, ...]
    backups_before: int
    backups_after: int


def find_regression(backups: Sequence[BackupFigures]) -> Regression | None:
    """The latest one that still holds; `nights` of one guest, the oldest first."""
    stretches = _stretches(backups)
    for index in range(len(stretches) - 1, 0, -1):
        before, after = stretches[index - 1], stretches[index]
        since_s = after[0].started_s
        since = [backup for backup in backups if backup.started_s >= since_s]
        changes = _changes(before[-1], after[0])
        worse = _worse(before[-NIGHTS_LOOKED_AT:], after[:NIGHTS_LOOKED_AT], since[-NIGHTS_LOOKED_AT:])
        if changes and worse:
            return Regression(since_s, changes, worse, len(before), len(since))
    return None


def in_words(regression: Regression) -> str:
    """`stalled seconds 0.2 -> 8 a night since QEMU 9.2 -> 10.0 (7 nights before, 9 after)`."""
    figures = [f"{_NAMES[each.figure]} {_short(each.before)} -> {_short(each.after)}" for each in regression.worse]
    changes = ", ".join(f"{each.what} {each.before} -> {each.after}" for each in regression.changes)
    number = f"{regression.backups_before} nights before, {regression.backups_after} after"
    return f"{', '.join(figures)} a night since {changes} ({number})"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _stretches(backups: Sequence[BackupFigures]) -> list[list[BackupFigures]]:
    """Runs of nights with the same versions. One that is too short, say between two upgrades of the same week, is left
    out: what came before it is compared with what came after it."""
    stretches: list[list[BackupFigures]] = []
    for backup in backups:
        if not stretches or _changes(stretches[-1][-1], backup):
            stretches.append([])
        stretches[-1].append(backup)
    return [stretch for stretch in stretches if len(stretch) >= NIGHTS_LEAST]


def _changes(before: BackupFigures, after: BackupFigures) -> tuple[Change, ...]:
    if before.versions == after.versions:  # which they are nearly always
        return ()
    pairs = zip(get_args(What), before.versions, after.versions, strict=True)
    return tuple(Change(what, old, new) for what, old, new in pairs if old and new and old != new)


def _worse(*sides: Sequence[BackupFigures]) -> tuple[Worse, ...]:
    """The figures that got worse: before the change, right after it, and lately."""
    found = []
    for figure, least_more in LEAST_MORE.items():
        old, new, now = ([v for each in side if (v := getattr(each, figure)) is not None] for side in sides)
        if _is_worse(old, new, least_more) and _is_worse(old, now, least_more):
            found.append(Worse(figure, statistics.median(old), statistics.median(now)))
    return tuple(found)


def _is_worse(before: Sequence[float], after: Sequence[float], least_more: float) -> bool:
    if min(len(before), len(after)) < NIGHTS_LEAST:
        return False
    old, new = statistics.median(before), statistics.median(after)
    if new < max(WORSE_BY * old, old + least_more):
        return False
    # Mann and Whitney's U by its normal approximation: it uses the order only, so one extreme backup counts once.
    # Equal pairs count for neither side, which can only keep it from being called.
    pairs = len(before) * len(after)
    worse_pairs = sum(later > earlier for later in after for earlier in before)
    deviation = math.sqrt(pairs * (len(before) + len(after) + 1) / 12)
    return worse_pairs - pairs / 2 >= DEVIATIONS * deviation
