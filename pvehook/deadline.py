"""One end for many waits: absolute, on the monotonic clock, passed down from the hook's call.

    phase = Deadline.at(call.until_s)              the hook's own end of patience
    agent.ping(phase.within(3.0))                  three seconds, or what is left of the phase

The clock is CLOCK_MONOTONIC, which all processes of the system share: the hook reads it, the daemon goes by it.
Standard library only: every room may import this.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock."""

    total_s: float
    """How long it was to go when it was set: for messages."""
    at_s: float

    @classmethod
    def after(cls, seconds: float) -> Self:
        """So many seconds from now."""
        return cls(seconds, time.monotonic() + seconds)

    @classmethod
    def at(cls, monotonic_s: float) -> Self:
        """At this moment, which may have passed."""
        return cls(max(monotonic_s - time.monotonic(), 0.0), monotonic_s)

    def within(self, seconds: float) -> Deadline:
        """So many seconds from now, or this deadline, whichever comes first."""
        return min(Deadline.after(seconds), self, key=lambda each: each.at_s)

    def left_s(self) -> float:
        """Seconds to go; 0.0 once it has passed."""
        return max(0.0, self.at_s - time.monotonic())
