"""Thawing until it works: for `pvehook thaw`, systemd's ExecStopPost, the next daemon, the next phase and the
guests' hookscript.

A thaw counts when `guest-fsfreeze-status` reports `thawed`, not when the command was answered. It is never sent to
a guest that is not frozen, and never ends a freeze that no record calls ours, unless it is forced.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from pvehook.deadline import Deadline
from pvehook.errors import GuestError, Unreachable
from pvehook.guest.agent import open_agent
from pvehook.host.node import Node
from pvehook.rescue.freeze_record import (
    FROZEN_BY_US,
    FreezeRecord,
    freeze_records,
    read_record,
    record_path,
    remove_record,
)
from pvehook.rescue.left_over import Report, at_once, has_ended

ATTEMPT_S = 1.0
"""One attempt: a thaw takes 4 to 20 ms (facts/qemu.md), and an agent that hangs in a freeze answers when that ends."""

PVES_OWN_FREEZE_S = 2.0
"""From PVE's ping to the end of its own freeze takes some 0.3 s of a sound guest (measured)."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0

LEFT_OVER_PATIENCE_S = 8.0
"""`thaw --left-over` gives one guest this long; systemd then starts the next daemon, which keeps trying."""


class Thawed(NamedTuple):
    """The result. `filesystems`: how many were thawed, 0 when the guest was thawed already."""

    outcome: Literal["thawed", "was-thawed", "gone", "not-answered"]
    filesystems: int
    text: str
    at_s: float
    """When it was known, on the monotonic clock: at the answer to the thaw itself where there was one."""


def thaw_until_thawed(agent_path: str, give_up: Callable[[], bool] = lambda: False) -> Thawed:
    """Thaws the guest behind this socket, again and again until it reports `thawed`, its VM ends, or `give_up()`; never
    given up otherwise: a guest that stays frozen is the worst that can happen."""
    pause_s, fault, reached, at_s = FIRST_PAUSE_S, "not tried", 0, 0.0
    while True:
        try:
            deadline = Deadline.after(ATTEMPT_S)
            with open_agent(agent_path, deadline) as agent:
                if agent.fsfreeze_status(deadline) == "thawed":
                    # `reached`: by a thaw after which it still reported frozen.
                    how: Literal["thawed", "was-thawed"] = "thawed" if reached else "was-thawed"
                    return Thawed(how, reached, _reports_thawed(reached), at_s or time.monotonic())
                reached += agent.fsfreeze_thaw(deadline)
                at_s = time.monotonic()
                if agent.fsfreeze_status(deadline) == "thawed":
                    return Thawed("thawed", reached, _reports_thawed(reached), at_s)
                fault = f"it reports frozen, although its thaw was answered with {reached} filesystems"
        except Unreachable as error:
            fault = str(error)
            if has_ended(agent_path, error):
                return Thawed("gone", reached, "its VM has ended", time.monotonic())
        except (GuestError, OSError) as error:  # OSError: no file descriptor left, no memory; that passes
            fault = str(error)
        if give_up():
            return Thawed("not-answered", reached, fault, time.monotonic())
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _reports_thawed(filesystems: int) -> str:
    return f"it reports thawed, {filesystems} filesystem{'s' if filesystems != 1 else ''}"


def patience(seconds: float) -> Callable[[], bool]:
    """A `give_up` that is true after this long."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def thaw_left_over(
    node: Node, patience_s: float = LEFT_OVER_PATIENCE_S, *, spare_living_daemon: bool = False
) -> list[Report]:
    """Thaws every guest that a record calls frozen by us. A record goes when its guest reports thawed or ends.

    `spare_living_daemon`: leave the freezes of a living daemon alone, which may only be slow; one that hangs is killed
    by systemd's watchdog."""
    left = [each for each in freeze_records(node) if each.state in FROZEN_BY_US]
    if spare_living_daemon:
        left = [each for each in left if not os.path.exists(node.path(f"/proc/{each.daemon_pid}"))]

    def thaw(each: FreezeRecord) -> Report:
        if not spare_living_daemon:  # else vzdump is in its next phase already, and PVE's own freeze is over
            wait_for_pve(node, each)
        return _thaw_left(each, patience_s)

    return at_once(thaw, left)


def thaw_guest(node: Node, vmid: int, *, force: bool, patience_s: float = LEFT_OVER_PATIENCE_S) -> Report:
    """Thaws one guest; without `force` only a freeze that a record calls ours."""
    left = read_record(record_path(node, vmid))
    if left is not None and left.state in FROZEN_BY_US:
        return _thaw_left(left, patience_s)
    if not force:
        unknown = f"guest {vmid}: pvehook knows of no freeze of its own; --force thaws it whoever froze it"
        return Report(vmid, False, unknown)
    done = thaw_until_thawed(node.path(f"/var/run/qemu-server/{vmid}.qga"), patience(patience_s))
    return Report(vmid, done.outcome in ("thawed", "was-thawed"), f"guest {vmid}: {done.text}")


def wait_for_pve(node: Node, left: FreezeRecord) -> None:
    """`freezing` means that our freeze was about to be sent, and perhaps never was. Then PVE, which waited behind us,
    freezes by itself now and thaws a moment later, not to be taken for ours: a living worker gets this moment."""
    if left.state == "freezing" and os.path.exists(node.path(f"/proc/{left.worker_pid}")):
        time.sleep(PVES_OWN_FREEZE_S)


def _thaw_left(left: FreezeRecord, patience_s: float) -> Report:
    done = thaw_until_thawed(left.agent_path, patience(patience_s))
    if done.outcome == "not-answered":
        return Report(left.vmid, False, f"guest {left.vmid}: STILL FROZEN, as far as we know: {done.text}")
    remove_record(left)
    return Report(left.vmid, True, f"guest {left.vmid}: a freeze by pvehook was left over; now {done.text}")
