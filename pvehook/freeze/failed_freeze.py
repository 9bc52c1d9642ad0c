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


def thaw_behind_freeze(
    agent: AgentConnection, is_held: Callable[[], bool], on_sent: Callable[[], None]
) -> Thawed | None:
    """Waits for the end of a freeze that hangs, as long as `is_held()`: whoever comes meanwhile waits behind us. None:
    it hangs on, and what was sent is still carried out when it ends; or nothing sensible comes on this connection.

    Thaw and status are sent again after ever longer pauses: an agent that was restarted meanwhile never saw them. Not
    with every wait, since a guest that hangs for an hour has to answer them all when it goes on."""
    status: Pending | None = None
    send_at_s, pause_s = 0.0, SEND_AGAIN_S
    while True:
        try:
            if time.monotonic() >= send_at_s:
                send_at_s = time.monotonic() + pause_s
                pause_s = min(2 * pause_s, SEND_AGAIN_AT_MOST_S)
                agent.send_thaw(Deadline.after(SEND_S))
                sent = agent.send("guest-fsfreeze-status", deadline=Deadline.after(SEND_S))
                status = status or sent
                on_sent()
            if status is None:
                time.sleep(SLICE_S)
            elif agent.receive_status(status, Deadline.after(SLICE_S)) == "thawed":
                return Thawed("thawed", None, "thawed behind the freeze", time.monotonic())
            else:
                status = None
        except TimedOut:
            on_sent()  # or it cannot be sent
        except GuestError:
            break
        if not is_held():
            break
    on_sent()  # from here on it is tried on other connections
    return None
