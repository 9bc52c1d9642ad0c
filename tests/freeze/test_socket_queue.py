"""Our place in the queue of a VM's socket behind PVE: whoever comes is served first, somebody is always there."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pvehook.freeze.socket_queue import SocketQueue
from pvehook.host.node import Node
from pvehook.host.waiters import SockDiagWatch, SocketTableWatch, WaiterWatch

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

    def watch(self, way: Callable[[Node, str], WaiterWatch] = SockDiagWatch) -> WaiterWatch:
        return self._stack.enter_context(way(Node(), self.path))


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


def test_we_wait_behind_pve_and_yield_to_its_next_command(served: Served) -> None:
    watch = served.watch()
    queue = SocketQueue(served.path, watch)
    ping = served.client(b"ping")
    queue.go_to_end()
    assert heard(served.serve()) == b"ping"
    queue.yield_to_pve()  # we wait ourselves: whoever is being served is not behind us
    assert watch.waiters_alive() == 1
    ping.close()
    ours = served.serve()
    queue.yield_to_pve()  # nobody is behind us
    assert heard(ours) is None
    served.client(b"status")
    queue.yield_to_pve()
    assert heard(ours) == b""
    assert heard(served.serve()) == b"status"
    assert watch.waiters_alive() == 1
    queue.close()
    assert watch.waiters_alive() == 0


def test_what_is_taken_is_the_connection_that_is_served(served: Served) -> None:
    queue = SocketQueue(served.path, served.watch())
    queue.go_to_end()
    ours = served.serve()
    connection = queue.take()
    assert connection is not None
    queue.close()
    assert heard(ours) is None
    connection.close()
    assert heard(ours) == b""
    assert queue.take() is None


def test_nobody_yields_to_a_waiter_that_has_closed(served: Served) -> None:
    queue = SocketQueue(served.path, served.watch())
    queue.go_to_end()
    ours = served.serve()
    served.client(b"").close()
    queue.yield_to_pve()
    assert heard(ours) is None
    queue.close()


def test_where_pve_cannot_be_told_from_us_we_do_not_queue(served: Served) -> None:
    watch = served.watch(SocketTableWatch)
    queue = SocketQueue(served.path, watch)
    queue.go_to_end()
    assert watch.waiters_alive() == 0
    assert queue.take() is None


def test_a_full_queue_costs_us_our_place_and_nobody_else_theirs(served: Served) -> None:
    watch = served.watch()
    queue = SocketQueue(served.path, watch)
    queue.go_to_end()
    ours = served.serve()
    for number in range(QUEUE):
        served.client(b"%d" % number)
    queue.yield_to_pve()
    assert heard(ours) == b""
    assert watch.waiters_alive() == QUEUE
    assert queue.take() is None
    queue.yield_to_pve()


def test_a_vm_that_ended_is_no_fault(served: Served) -> None:
    queue = SocketQueue(served.path, served.watch())
    queue.go_to_end()
    served._stack.close()
    queue.yield_to_pve()
    queue.go_to_end()
    assert queue.take() is None
