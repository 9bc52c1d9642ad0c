"""Keeps a backup that nobody suffers from a little below what the disks give, where a busy guest shares them. Pure.

A backup at its own speed keeps a queue of all its workers' requests in front of the disks, of 16 MiB with QEMU's 16.
A guest that has nothing to ask does not feel it; when it begins again, its first requests wait behind all of that, and
half a second passes until that is seen and the queue is gone. A little below the disks' speed there is no queue.

    growing    reached: 2, 4, 8, ... % more each second. Not reached: 5 % below the last limit that was, and held
    held       for 20 s. Reached in any second of them: growing. In none: 5 % below the best of them, and held

So holes in a disk and other people's pauses are not slept through, and a target that stops for some seconds, as one
does while the kernel writes out an archive, does not make the backup slower.
"""

from __future__ import annotations

from typing import NamedTuple

from pvehook.rules import governor_constants as c


class Pace(NamedTuple):
    """Of one backup, while it runs at its own speed. Speeds are bytes per second."""

    limit_per_s: float | None = None
    """None: not known yet, it runs without."""
    good_per_s: float = 0.0
    """The last limit that was reached."""
    growth: float = c.PACE_GROWTH
    """The next step, a part of the limit; 0: it is held."""
    held_s: float = 0.0
    best_per_s: float = 0.0
    """Since it is held."""
    seconds: float = 0.0
    copied_bytes: int = 0
    """In these seconds, which are not a reading yet."""

    def measured(self, copied_bytes: int, period_s: float) -> Pace:
        """With one more sample of the backup at this pace."""
        seconds, copied = self.seconds + period_s, self.copied_bytes + copied_bytes
        if seconds < (c.PACE_READING_S if self.limit_per_s else c.PACE_FIRST_S):
            return self._replace(seconds=seconds, copied_bytes=copied)
        return self._replace(seconds=0.0, copied_bytes=0)._read(copied / seconds, seconds)

    def paused(self) -> Pace:
        """Somebody suffers, and another limit is in force: what is known stays, what was begun does not."""
        return self._replace(seconds=0.0, copied_bytes=0)

    def _read(self, reached: float, seconds: float) -> Pace:
        limit = self.limit_per_s
        if limit is None:
            limit = c.PACE_PART * reached
            return self._replace(limit_per_s=limit or None, good_per_s=limit)
        is_reached = reached >= c.PACE_REACHED * limit
        if self.growth:
            if not is_reached:
                return self._held(c.PACE_PART * self.good_per_s)
            step = min(self.growth, c.PACE_MOST_GROWTH)
            return self._replace(limit_per_s=limit * (1 + step), good_per_s=limit, growth=2 * step)
        held_s, best = self.held_s + seconds, max(self.best_per_s, reached)
        if held_s < c.PACE_HELD_S:
            return self._replace(held_s=held_s, best_per_s=best)
        if best >= c.PACE_REACHED * limit:
            return self._replace(growth=c.PACE_GROWTH, good_per_s=limit)
        return self._held(c.PACE_PART * best if best else limit)

    def _held(self, limit_per_s: float) -> Pace:
        return self._replace(limit_per_s=limit_per_s, growth=0.0, held_s=0.0, best_per_s=0.0)
