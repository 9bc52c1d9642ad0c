"""The only place that reads the wall clock. Rules get instants; everything else gets a Clock."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pvehook.host.node import Node


class Clock(Protocol):
    def now_s(self) -> float:
        """Seconds since the epoch."""
        ...

    def steady_s(self) -> float:
        """Seconds since the boot. Nobody sets it, so a duration is a difference of these, also over two daemons."""
        ...


class SystemClock:
    def now_s(self) -> float:
        return time.time()

    def steady_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class RehearsalClock:
    """A clock that a file sets: a rehearsal plays a night in seconds.

    `-3600.5` is added to the node's clock; at `@1795373786` the clock stands still, and at `@1795373786 1795377386` the
    steady one stands elsewhere: somebody has set the clock. The file is read each time. While it is being replaced (or
    gone) the last text counts.
    """

    def __init__(self, clock_file: str) -> None:
        self._clock_file = clock_file
        self._stands_at_s: list[float] = []
        self._offset_s = 0.0

    def now_s(self) -> float:
        return self._times_s()[0]

    def steady_s(self) -> float:
        return self._times_s()[-1]

    def _times_s(self) -> list[float]:
        with suppress(OSError, ValueError), open(self._clock_file, encoding="ascii") as file:
            text = file.read(64)
            if text.startswith("@"):
                now, *steady = map(float, text[1:].split())
                self._stands_at_s = [now, *steady]
            else:
                self._offset_s, self._stands_at_s = float(text), []
        return self._stands_at_s or [time.time() + self._offset_s]


def local_zone(node: Node) -> tzinfo:
    """The node's own time zone from /etc/localtime; UTC when it has none."""
    localtime = node.path("/etc/localtime")
    with suppress(OSError, ValueError, ZoneInfoNotFoundError):
        # The link is read rather than followed where it can be: so the zone has a name to show.
        return ZoneInfo(os.readlink(localtime).partition("zoneinfo/")[2])
    try:
        with open(localtime, "rb") as file:
            return ZoneInfo.from_file(file, key=None)
    except Exception:  # a file cut short raises struct.error; no state of this file may cost a phase
        return UTC


def at(clock: Clock, zone: tzinfo) -> datetime:
    """Now, as people in `zone` read it."""
    return datetime.fromtimestamp(clock.now_s(), zone)
