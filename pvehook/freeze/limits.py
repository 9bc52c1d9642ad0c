"""How long each part of a freeze may take, and what became of it.

The limits are those of design/freeze.md. With a slow agent they follow from the latency that it showed a moment before:
PVE sends sync and ping, then sync and status, each pair within a time of its own (facts/vzdump.md), and whatever we do
in between must leave the agent time for them.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from pvehook.settings import FreezeConfig

SLOW_AGENT_S: Final = 0.09
"""From this latency on PVE's ping is answered before the freeze, or two late answers more are spent frozen. With a fast
agent the ping comes after it: a freeze that hangs then keeps PVE from freezing, which costs PVE 3 s and not an hour."""

PVE_PING_S: Final = 3.0
PVE_STATUS_S: Final = 5.0
"""PVE's patience with each, from its connect on."""

PVE_NEXT_S: Final = 1.0
"""Between two of PVE's commands there are some milliseconds."""

VETO_ARM_S: Final = 0.1
"""A veto needs the monitor for nothing but its end."""

ANSWER_S: Final = 1.0
"""For answers around a freeze, of an agent that answers at once."""

ARM_ANSWERS_S: Final = 2.5
"""For the first two, while nothing is frozen: as long as the facts of a safe agent may have taken."""

THAW_RESERVE_S: Final = 0.5
"""The thaw is sent this long before the limit, and earlier with a slow agent."""


class Limits(NamedTuple):
    """In seconds. `latency_s` is the agent's, for one answer."""

    config: FreezeConfig
    is_windows: bool
    latency_s: float = 0.0

    @property
    def frozen_at_most_s(self) -> float:
        return self.config.windows_frozen_at_most_s if self.is_windows else self.config.frozen_at_most_s

    @property
    def is_slow(self) -> bool:
        return self.latency_s >= SLOW_AGENT_S

    @property
    def answers_s(self) -> float:
        """For sync, thaw and status."""
        return ANSWER_S + 3 * self.latency_s

    @property
    def thaw_after_s(self) -> float:
        """From the freeze on."""
        return self.frozen_at_most_s - THAW_RESERVE_S - 2 * self.latency_s

    def freeze_within_s(self, *, pinged: bool) -> float:
        """From PVE's arrival on; after that its next two answers must still be in time."""
        if pinged:
            return min(self.config.reply_within_s + self.latency_s, PVE_STATUS_S - 2.5 * self.latency_s)
        return min(self.config.reply_within_s, PVE_PING_S - 2.5 * self.latency_s)


class Outcome(NamedTuple):
    consistency: Literal["filesystem-consistent", "crash-consistent", "left-to-pve"]
    why: str
    frozen_ms: int | None = None
    """Freeze sent to thaw confirmed; None when nothing was frozen."""
    filesystems_frozen: int | None = None
    filesystems_thawed: int | None = None
    waited_for_pve_ms: int | None = None
    hung: bool = False
    """The freeze was not answered in its time."""
