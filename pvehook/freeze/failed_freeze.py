"""A freeze that hangs or fails, thawed on the connection that is held: it also keeps PVE from the agent.

A freeze that was not answered in its time cannot be cancelled, only be thawed the moment it ends. The agent is serial:
a thaw that is sent now waits in the guest behind the freeze. After one that was answered with an error, or with nothing
sensible, only the status can tell whether anything is frozen.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from pvehook.deadline import Deadline
from pvehook.errors import GuestError, TimedOut
from pvehook.guest.agent import AgentConnection, Pending
from pvehook.rescue.thaw import Thawed

SEND_S = 0.5
SLICE_S = 0.05
"""How long one wait for an answer lasts before it is checked whether anything else has happened."""

SEND_AGAIN_S, SEND_AGAIN_AT_MOST_S = 0.5, 5.0
"""Between two thaws that wait behind the freeze."""


def thaw_failed(agent: AgentConnection, within_s: float) -> bool | None:
    """After a freeze that was answered badly: whether anything was frozen, and is not any more. None: no sensible
    answer; the thaw is sent then."""
    deadline = Deadline.after(within_s)
    try:
        if agent.fsfreeze_status(deadline) == "thawed":
            return False
        agent.fsfreeze_thaw(deadline)
        if agent.fsfreeze_status(deadline) == "thawed":
            return True
    except GuestError:
        with contextlib.suppress(GuestError):
            agent.send_thaw(Deadline.after(SEND_S))
    return None


class HungFreeze:
    """One freeze that hangs, on its held connection."""

    def __init__(self, agent: AgentConnection, close: Callable[[], None], thaw_anew: Callable[[], Thawed]) -> None:
        """`close` gives the held connection up; `thaw_anew` then thaws on connections of its own."""
        self._agent = agent
        self._close = close
        self._thaw_anew = thaw_anew
        self._status: Pending | None = None
        self._send_at_s, self._pause_s = 0.0, SEND_AGAIN_S

    def wait_for_thaw(self) -> Thawed:
        """However long it takes: whoever comes meanwhile waits behind us."""
        while (thawed := self.poll()) is None:
            pass
        return thawed

    def poll(self) -> Thawed | None:
        """Waits SLICE_S for the thaw; None: the freeze still hangs.

        Thaw and status are sent again after ever longer pauses: an agent that was restarted meanwhile never saw them.
        Not in every poll, since a guest that hangs for an hour has to answer them all when it goes on."""
        try:
            now_s = time.monotonic()
            if now_s >= self._send_at_s:
                self._agent.send_thaw(Deadline.after(SEND_S))
                sent = self._agent.send_status(Deadline.after(SEND_S))
                self._status = self._status or sent
                self._send_at_s = now_s + self._pause_s
                self._pause_s = min(2 * self._pause_s, SEND_AGAIN_AT_MOST_S)
            if self._status is None:
                time.sleep(SLICE_S)
                return None
            if self._agent.receive_status(self._status, Deadline.after(SLICE_S)) == "thawed":
                return Thawed("thawed", 0, "thawed behind the freeze", time.monotonic())
            self._status = None
        except TimedOut:
            pass
        except GuestError:
            # Nothing sensible comes on this connection any more; kept open it would be in our own way.
            self._close()
            return self._thaw_anew()
        return None
