"""What a guest's own view costs an agent that does not answer: nothing, once that is known."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from pvehook.contract.measured import Absent, Broken
from pvehook.deadline import Deadline
from pvehook.host.clock import SystemClock
from pvehook.host.timely_files import Readers
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.watch.guest_sampler import GuestSampler
from tests.node_under_test import NodeUnderTest


@pytest.fixture
def agent(node_without_daemon: NodeUnderTest) -> Iterator[socket.socket]:
    (node_without_daemon.root / "etc/pve/qemu-server/101.conf").write_text("agent: 1\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(node_without_daemon.root / "var/run/qemu-server/101.qga"))
        listener.listen()
        yield listener


def was_asked(agent: socket.socket) -> bool:
    return bool(select.select([agent], [], [], 0)[0])


def sampler(node: NodeUnderTest) -> GuestSampler:
    context = Context(node.node, SystemClock(), Readers(), cast(Any, None))
    guest = GuestRecord(101, "snapshot", "qemu", None, started_s=0.0)
    return GuestSampler(context, guest, with_kernel_log=True, start=None)


@pytest.mark.parametrize("known", [Broken("it does not answer"), Absent("the VM does not run: it is paused")])
def test_an_agent_that_is_known_to_be_silent_is_not_asked_again(
    node_without_daemon: NodeUnderTest, agent: socket.socket, known: Absent | Broken
) -> None:
    guest = sampler(node_without_daemon)
    guest.begin(Deadline.after(60), known)
    assert not was_asked(agent)
    assert guest.view(Deadline.after(60)) == known


def test_one_that_nobody_has_asked_yet_is_asked(node_without_daemon: NodeUnderTest, agent: socket.socket) -> None:
    guest = sampler(node_without_daemon)
    guest.begin(Deadline.after(0.05), None)
    assert was_asked(agent)
    assert isinstance(guest.view(Deadline.after(60)), Broken)
