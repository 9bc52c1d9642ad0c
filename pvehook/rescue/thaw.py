"""Thawing until it works: for `pvehook thaw`, systemd's ExecStopPost, the next daemon, the next phase and the
guests' hookscript.

A thaw counts when `guest-fsfreeze-status` reports `thawed`, not when the command was answered. It is never sent to
a guest that is not frozen, and never ends a freeze that no record calls ours, unless it is forced.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeVar

from pvehook.contract.text import counted
from pvehook.deadline import Deadline
from pvehook.errors import GuestError, TimedOut, Unreachable
from pvehook.guest.agent import receive_sync, send_sync
from pvehook.guest.sockets import Connection, connect
from pvehook.host.node import Node
from pvehook.rescue.freeze_record import (
    FROZEN_BY_US,
    FreezeRecord,
    freeze_records,
    has_thaw_note,
    leave_thaw_note,
    read_record,
    record_path,
    remove_record,
)
from pvehook.rescue.left_over import Report, has_ended

ATTEMPT_S = 1.0
"""One attempt: a thaw takes 4 to 20 ms (facts/qemu.md), and an agent that hangs in a freeze answers when that ends."""

PVES_OWN_FREEZE_S = 2.0
"""From PVE's ping to the end of its own freeze takes some 0.3 s of a sound guest (measured)."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0

AT_ONCE_S = 0.001
"""For the rest of an answer that has begun to come."""

LEFT_OVER_PATIENCE_S = 8.0
"""`thaw --left-over` gives one guest this long; systemd then starts the next daemon, which keeps trying."""


class Thawed(NamedTuple):
    """`filesystems`: how many were thawed, 0 when the guest was thawed already; None: a thaw was sent, and it reports
    thawed, but did not say how many."""

    outcome: Literal["thawed", "was-thawed", "gone", "not-answered"]
    filesystems: int | None
    text: str
    at_s: float
    """When it was known, on the monotonic clock: at the answer to the thaw itself where there was one."""


Wait = tuple[Connection | None, float]
"""What a thaw waits for: something to read on this connection, or this moment on the monotonic clock."""
T = TypeVar("T")
Waiting = Generator[Wait, None, T]
"""Work that yields whenever it has to wait, so that one thread does any number of them: a guest that never answers, or
that reports `frozen` for ever, costs no thread."""
NO_WAIT: Wait = (None, 0.0)


def thawing(
    agent_path: str, give_up: Callable[[], bool] = lambda: False, *, was_sent: bool = False
) -> Waiting[Thawed]:
    """Thaws the guest behind this socket, again and again until it reports `thawed`, its VM ends, or `give_up()`; never
    given up otherwise: a guest that stays frozen is the worst that can happen. `was_sent`: a thaw before this one was
    not answered; its disk may be slow, and a thaw writes."""
    pause_s, fault, reached, at_s = FIRST_PAUSE_S, "not tried", 0, 0.0
    while True:
        try:
            deadline = Deadline.after(ATTEMPT_S)
            with connect(agent_path) as connection:
                sync = send_sync(connection, deadline)
                agent = yield from _received(connection, deadline, partial(receive_sync, connection, sync))
                status = agent.send("guest-fsfreeze-status", deadline=deadline)
                if (yield from _received(connection, deadline, partial(agent.receive_status, status))) == "thawed":
                    # By a thaw after which it still reported frozen, or one that was answered too late.
                    how: Literal["thawed", "was-thawed"] = "thawed" if was_sent else "was-thawed"
                    filesystems = None if was_sent and not reached else reached
                    return Thawed(how, filesystems, _reports_thawed(filesystems), at_s or time.monotonic())
                thaw, was_sent = agent.send_thaw(deadline), True
                reached += yield from _received(connection, deadline, partial(agent.receive_count, thaw))
                at_s = time.monotonic()
                status = agent.send("guest-fsfreeze-status", deadline=deadline)
                if (yield from _received(connection, deadline, partial(agent.receive_status, status))) == "thawed":
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
        yield None, time.monotonic() + pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _received(connection: Connection, deadline: Deadline, receive: Callable[[Deadline], T]) -> Waiting[T]:
    """What `receive` receives. Raises GuestError as that does."""
    at_once_s = 0.0  # it may have come with the answer before
    while deadline.left_s() > 0:
        with contextlib.suppress(TimedOut):
            return receive(Deadline.after(at_once_s))
        yield connection, deadline.at_s
        at_once_s = AT_ONCE_S
    return receive(deadline)


def go_on(waits: dict[Waiting[T], Wait], at_most_s: float) -> dict[Waiting[T], T]:
    """Waits until one of these can go on, at most this long, and lets all that can. Those that have ended are taken
    out, and returned with their results; one that raises is out too, as nothing of it can be waited for any more."""
    poller = select.poll()
    for connection, _ in waits.values():
        if connection is not None:
            poller.register(connection, select.POLLIN)
    first_s = min(until_s for _, until_s in waits.values())
    wait_s = max(0.0, min(first_s - time.monotonic(), at_most_s))
    readable = {fd for fd, _ in poller.poll(math.ceil(wait_s * 1000))}
    ended = {}
    for each, (connection, until_s) in list(waits.items()):
        if time.monotonic() >= until_s or (connection is not None and connection.fileno() in readable):
            del waits[each]
            try:
                waits[each] = next(each)
            except StopIteration as end:
                ended[each] = end.value
    return ended


def together(works: Sequence[Waiting[T]]) -> list[T]:
    """Does all of them at once, and returns their results in order."""
    waits: dict[Waiting[T], Wait] = dict.fromkeys(works, NO_WAIT)
    ended: dict[Waiting[T], T] = {}
    while waits:
        ended |= go_on(waits, ATTEMPT_S)
    return [ended[each] for each in works]


def _reports_thawed(filesystems: int | None) -> str:
    return "it reports thawed" + ("" if filesystems is None else f", {counted(filesystems, 'filesystem')}")


def patience(seconds: float) -> Callable[[], bool]:
    """A `give_up` that is true after this long."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def thaw_left_over(
    node: Node, patience_s: float = LEFT_OVER_PATIENCE_S, *, spare_living_daemon: bool = False
) -> list[Report]:
    """Thaws every guest that a record calls frozen by us. A record goes when its guest reports thawed or ends.
    `spare_living_daemon`: leaves the freezes of a living daemon alone, which may only be slow; one that hangs is killed
    by systemd's watchdog."""
    left = [each for each in freeze_records(node) if each.state in FROZEN_BY_US]
    by = "systemd's `pvehook thaw --left-over`"
    if spare_living_daemon:
        left = [each for each in left if not os.path.exists(node.path(f"/proc/{each.daemon_pid}"))]
        by = "the hook, without a daemon"

    def thaw(each: FreezeRecord) -> Waiting[Report]:
        try:
            if not spare_living_daemon:  # else vzdump is in its next phase already, and PVE's own freeze is over
                yield from pves_own_freeze(node, each)
            return (yield from _thaw_left(each, patience_s, by))
        except Exception as fault:  # with one guest: the others are thawed all the same
            return Report(each.vmid, False, f"guest {each.vmid}: STILL FROZEN, as far as we know: {fault!r}")

    return together([thaw(each) for each in left])


def thaw_guest(node: Node, vmid: int, *, force: bool, patience_s: float = LEFT_OVER_PATIENCE_S) -> Report:
    """Thaws one guest; without `force` only a freeze that a record calls ours."""
    left = read_record(record_path(node, vmid))
    if left is not None and left.state in FROZEN_BY_US:
        return together([_thaw_left(left, patience_s, "`pvehook thaw`")])[0]
    if not force:
        unknown = f"guest {vmid}: pvehook knows of no freeze of its own; --force thaws it whoever froze it"
        return Report(vmid, False, unknown)
    (done,) = together([thawing(node.path(f"/var/run/qemu-server/{vmid}.qga"), patience(patience_s))])
    return Report(vmid, done.outcome in ("thawed", "was-thawed"), f"guest {vmid}: {done.text}")


def pves_own_freeze(node: Node, left: FreezeRecord) -> Waiting[None]:
    """`freezing` means that our freeze was about to be sent, and perhaps never was. Then PVE, which waited behind us,
    freezes by itself now and thaws a moment later, not to be taken for ours: a living worker gets this moment."""
    if left.state == "freezing" and os.path.exists(node.path(f"/proc/{left.worker_pid}")):
        yield None, time.monotonic() + PVES_OWN_FREEZE_S


def _thaw_left(left: FreezeRecord, patience_s: float, by: str) -> Waiting[Report]:
    done = yield from thawing(left.agent_path, patience(patience_s))
    if done.outcome == "not-answered":
        return Report(left.vmid, False, f"guest {left.vmid}: STILL FROZEN, as far as we know: {done.text}")
    note_thaw(left, done, by)
    remove_record(left)
    return Report(left.vmid, True, f"guest {left.vmid}: a freeze by pvehook was left over; now {done.text}")


def note_thaw(left: FreezeRecord, done: Thawed, by: str) -> None:
    """For the guest's summary. For how long a guest was frozen that thawed by itself, or by others, is not known."""
    if done.outcome == "thawed":
        leave_thaw_note(left, f"thawed by {by}", done.at_s)
    elif not has_thaw_note(left):  # of two who thaw at once, the one who did it counts
        was = "its VM had ended" if done.outcome == "gone" else "it was thawed already"
        after_s = done.at_s - left.frozen_from_s
        after = f", {after_s:.1f} s after its freeze" if math.isfinite(after_s) else ""
        leave_thaw_note(left, f"{was} when {by} came to thaw it{after}")
