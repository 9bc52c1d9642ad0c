"""The only place that reads the wall clock. Rules get instants; everything else gets a Clock."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, tzinfo
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pvehook.host.node import Node


class Clock(Protocol):
    """What time it is."""

    def now_s(self) -> float:
        """Seconds since the epoch."""
        ...

    def steady_s(self) -> float:
        """Seconds since the boot. Nobody sets it, so a duration is a difference of these, also over two daemons."""
        ...


class SystemClock:
    """The node's clock."""

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
        self._stands_at_s: tuple[float, ...] = ()
        self._offset_s = 0.0

    def now_s(self) -> float:
        self._read()
        return self._stands_at_s[0] if self._stands_at_s else time.time() + self._offset_s

    def steady_s(self) -> float:
        self._read()
        return self._stands_at_s[-1] if self._stands_at_s else time.time() + self._offset_s

    def _read(self) -> None:
        try:
            with open(self._clock_file, encoding="ascii") as file:
                text = file.read(64)
            if text.startswith("@"):
                now, *steady = map(float, text[1:].split())
                self._stands_at_s = (now, *steady)
            else:
                self._offset_s, self._stands_at_s = float(text), ()
        except (OSError, ValueError):
            pass


def local_zone(node: Node) -> tzinfo:
    """The node's own time zone from /etc/localtime; UTC when it has none.

    The link is read rather than followed where it can be: so the zone has a name to show.
    """
    localtime = node.path("/etc/localtime")
    try:
        target = os.readlink(localtime)
        return ZoneInfo(target.partition("zoneinfo/")[2])
    except (OSError, ValueError, ZoneInfoNotFoundError):
        pass
    try:
        with open(localtime, "rb") as file:
            return ZoneInfo.from_file(file, key=None)
    except Exception:  # a file cut short raises struct.error; no state of this file may cost a phase
        return UTC


def at(clock: Clock, zone: tzinfo) -> datetime:
    """Now, as people in `zone` read it."""
    return datetime.fromtimestamp(clock.now_s(), zone)
