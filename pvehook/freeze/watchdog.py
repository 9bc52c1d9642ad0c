"""systemd's watchdog, set so that a daemon that is stopped (SIGSTOP, a hang of all threads) keeps no guest frozen.

While a guest is frozen by us, the thread that has to thaw it sends the pings, and not the main loop. The watchdog runs
out HANG_S after its last ping, and in any case just before the freeze's own limit; systemd then kills the daemon, and
ExecStopPost thaws (hooks/systemd/pvehook.service). As soon as the thaw is sent, a stopped daemon harms nobody any more,
and the unit's own timeout is in force again: a guest that does not answer its thaw must not cost the daemon its life.

    WATCHDOG_USEC=3000000         the freeze is about to be sent, then each half second
    WATCHDOG_USEC=750000          9 s later
    WATCHDOG_USEC=8000000         its thaw was sent
"""

from __future__ import annotations

import ctypes
import os
import threading
import time

from pvehook.host import systemd

HANG_S = 3.0
"""More than a freeze's answer may take: the thread waits for it without a ping."""

BEFORE_LIMIT_S = 0.25
"""A thaw is sent half a second before the limit. Killing the daemon and starting ExecStopPost takes 0.2 s, and 1 s on a
machine with eight times as much to do as it has processors (measured), so a freeze stays below its limit and one
second."""

PING_EVERY_S = 0.5

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # Linux include/uapi/asm-generic/mman.h


class Watchdog:
    """Used by the main loop and by the freezes' threads. Outside of the service it does nothing."""

    def __init__(self) -> None:
        usec = os.environ.get("WATCHDOG_USEC", "")
        self._normal_s = int(usec) / 1e6 if usec.isdecimal() else None
        self._until_s: dict[int, float] = {}
        self._pinged_s = 0.0
        self._lock = threading.Lock()

    def ping(self) -> None:
        with self._lock:
            if not self._until_s:
                systemd.notify("WATCHDOG=1")

    def freezes(self, vmid: int, at_most_s: float) -> None:
        """A freeze is about to be sent, and its thaw will be sent within this time."""
        with self._lock:
            self._until_s[vmid] = time.monotonic() + at_most_s - BEFORE_LIMIT_S
            self._set()

    def still_freezes(self) -> None:
        """To be called every few milliseconds by the thread that thaws: it is alive."""
        with self._lock:
            if self._until_s and time.monotonic() >= self._pinged_s + PING_EVERY_S:
                self._set()

    def thaw_sent(self, vmid: int) -> None:
        """... or nothing was frozen. A second time it does nothing."""
        with self._lock:
            if self._until_s.pop(vmid, None) is not None:
                self._set()

    def _set(self) -> None:
        if self._normal_s is None:
            return
        self._pinged_s = time.monotonic()
        left_s = self._normal_s
        if self._until_s:
            left_s = min(HANG_S, *(each - self._pinged_s for each in self._until_s.values()))
        systemd.notify(f"WATCHDOG_USEC={round(max(left_s, 0.001) * 1e6)}\nWATCHDOG=1")


def lock_memory() -> None:
    """Keeps the daemon's memory in memory: a page that must be read back from a stalled disk would hold up a thaw. Not
    allowed outside of the service (RLIMIT_MEMLOCK), and then no fault."""
    ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
