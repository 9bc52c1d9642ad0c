"""Nobody waits for our looks at a monitor."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.deadline import Deadline
from pvehook.errors import Busy, GuestError, TimedOut, Unreachable
from pvehook.guest.qmp import open_qmp
from pvehook.guest.sockets import connect
from pvehook.host.node import Node
from pvehook.watch.short_look import LONGEST_PAUSE_S, LookBudget, pause_after, short_look
from tests.guest_files import SimulatedGuest


@pytest.fixture
def node(tmp_path: Path) -> Node:
    (tmp_path / "var/run/qemu-server").mkdir(parents=True)
    (tmp_path / "proc").symlink_to("/proc")
    return Node(str(tmp_path))


def guest_on(node: Node) -> SimulatedGuest:
    return SimulatedGuest(node.path("/var/run/qemu-server"), 105, has_agent=False)


def test_a_look_is_given_up_for_somebody_who_waits_behind_it(node: Node) -> None:
    with guest_on(node) as guest, short_look(node, 105, hung=False) as qmp:
        guest.stick("qmp")
        with connect(guest.qmp_path), pytest.raises(Busy, match="behind us"):
            qmp.query_status(Deadline.after(60))


def test_a_monitor_that_does_not_greet_is_given_up_at_once(node: Node) -> None:
    with guest_on(node) as guest, open_qmp(guest.qmp_path, Deadline.after(5)):
        with pytest.raises(TimedOut), short_look(node, 105, hung=False):
            pytest.fail("somebody else is served")
        # Our place in its queue is still taken: there is no second one.
        with pytest.raises(Busy), short_look(node, 105, hung=True):
            pytest.fail("somebody else is served")
    with pytest.raises(Unreachable), short_look(node, 105, hung=True):
        pytest.fail("it is off")


def test_looks_share_a_budget() -> None:
    budget = LookBudget(at_once=30.0)
    taken = 0
    while not budget.take(100.0, 8.0):
        taken += 1
    assert taken == 30
    assert budget.take(100.0, 8.0) == pytest.approx(1 / 8)
    assert sum(not budget.take(100.0 + tenth / 10, 8.0) for tenth in range(1, 101)) in (79, 80, 81)


@pytest.mark.parametrize(
    ("error", "misses", "pause_s"),
    [
        (TimedOut("-"), 1, 1.0),
        (TimedOut("-"), 3, 4.0),
        (TimedOut("-"), 99, LONGEST_PAUSE_S),
        (Busy("-"), 1, 0.25),
        (Unreachable("-"), 1, 2.0),
    ],
)
def test_a_monitor_that_does_not_answer_is_left_alone_for_longer_and_longer(
    error: GuestError, misses: int, pause_s: float
) -> None:
    assert pause_after(error, misses) == pause_s
