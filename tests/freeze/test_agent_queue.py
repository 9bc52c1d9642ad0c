"""Our place at the agent's socket behind PVE: whoever comes is served first, and the agent never finds nobody."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pvehook.freeze.agent_queue import AgentQueue
from pvehook.host.node import Node
from pvehook.host.waiters import WaiterWatch, Way

QUEUE = 2
"""Connections that can wait at QEMU's socket."""


class Served:
    """A socket like QEMU's, which accepts the next client when told to."""

    def __init__(self, directory: str, stack: ExitStack) -> None:
        self.path = str(Path(directory, "101.qga"))
        self._stack = stack
        self._listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.bind(self.path)
        self._listener.listen(QUEUE - 1)

    def client(self, says: bytes) -> socket.socket:
        client = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(self.path)
        client.sendall(says)
        return client

    def serve(self) -> socket.socket:
        served = self._stack.enter_context(self._listener.accept()[0])
        served.setblocking(False)
        return served

    def watch(self, way: Way = "sock_diag") -> WaiterWatch:
        return self._stack.enter_context(WaiterWatch(Node(), self.path, ways=[way]))


@pytest.fixture
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="pvehook-") as directory, ExitStack() as stack:
        yield Served(directory, stack)


def heard(peer: socket.socket) -> bytes | None:
    """What the client has said; None: nothing yet; empty: it has gone."""
    try:
        return peer.recv(100)
    except BlockingIOError:
        return None


def test_we_stand_behind_pve_and_let_its_next_question_pass(served: Served) -> None:
    watch = served.watch()
    line = AgentQueue(served.path, watch)
    ping = served.client(b"ping")
    line.stand()
    assert heard(served.serve()) == b"ping"
    line.yield_to_pve()  # we wait ourselves: whoever is being served is not behind us
    assert watch.waiters() == 1
    ping.close()
    ours = served.serve()
    line.yield_to_pve()  # nobody is behind us
    assert heard(ours) is None
    served.client(b"status")
    line.yield_to_pve()
    assert heard(ours) == b""
    assert heard(served.serve()) == b"status"
    assert watch.waiters() == 1
    line.leave()
    assert watch.waiters_alive() == 0


def test_what_is_given_away_is_the_connection_that_is_served(served: Served) -> None:
    line = AgentQueue(served.path, served.watch())
    line.stand()
    ours = served.serve()
    connection = line.give()
    assert connection is not None
    line.leave()
    assert heard(ours) is None
    connection.close()
    assert heard(ours) == b""
    assert line.give() is None


def test_a_waiter_that_has_closed_is_not_let_pass(served: Served) -> None:
    line = AgentQueue(served.path, served.watch())
    line.stand()
    ours = served.serve()
    served.client(b"").close()
    line.yield_to_pve()
    assert heard(ours) is None
    line.leave()


def test_where_nobody_can_tell_pve_from_us_we_do_not_stand(served: Served) -> None:
    watch = served.watch("/proc/net/unix")
    line = AgentQueue(served.path, watch)
    line.stand()
    assert watch.waiters() == 0
    assert line.give() is None


def test_a_full_line_costs_us_the_place_and_nobody_theirs(served: Served) -> None:
    watch = served.watch()
    line = AgentQueue(served.path, watch)
    line.stand()
    ours = served.serve()
    for number in range(QUEUE):
        served.client(b"%d" % number)
    line.yield_to_pve()
    assert heard(ours) == b""
    assert watch.waiters_alive() == QUEUE
    assert line.give() is None
    line.yield_to_pve()


def test_a_vm_that_ended_is_no_fault(served: Served) -> None:
    line = AgentQueue(served.path, served.watch())
    line.stand()
    served._stack.close()
    line.yield_to_pve()
    line.stand()
    assert line.give() is None
