"""Who waits at a unix socket: real listeners and clients, seen by both of the kernel's accounts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvehook.errors import NodeError
from pvehook.guest.sockets import fitting_address
from pvehook.host.node import Node
from pvehook.host.waiters import SockDiagWatch, SocketTableWatch, WaiterWatch, watch_waiters

TOP = Path(__file__).parent.parent.parent
NODE = Node()
Way = Callable[[Node, str], WaiterWatch]


def sock_diag_is_refused() -> str | None:
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4).close()
    except OSError as error:
        return str(error)
    return None


needs_sock_diag = pytest.mark.skipif(
    sock_diag_is_refused() is not None, reason=f"no netlink here: {sock_diag_is_refused()}"
)
both_ways = pytest.mark.parametrize("way", [pytest.param(SockDiagWatch, marks=needs_sock_diag), SocketTableWatch])


class Listener:
    """A server that accepts only when told to, as QEMU does while it serves somebody."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.accepted: list[socket.socket] = []
        self.clients: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX)
        with fitting_address(self.path) as address:
            self._socket.bind(address)
        self._socket.listen(8)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        self.clients.append(client)
        with fitting_address(self.path) as address:
            client.connect(address)
        return client

    def accept(self) -> None:
        self.accepted.append(self._socket.accept()[0])

    def close(self) -> None:
        for each in (self._socket, *self.clients, *self.accepted):
            each.close()


Listen = Callable[[Path], Listener]


@pytest.fixture
def listen() -> Iterator[Listen]:
    with ExitStack() as stack:

        def listen_at(path: Path) -> Listener:
            listener = Listener(path)
            stack.callback(listener.close)
            return listener

        yield listen_at


@pytest.fixture
def directory() -> Iterator[Path]:
    """pytest's own is named after the test: its paths come close to the 108 bytes of a unix socket."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@both_ways
def test_waiters_are_counted_and_accepting_takes_them_away(way: Way, directory: Path, listen: Listen) -> None:
    listener = listen(directory / "101.qga")
    with way(NODE, listener.path) as watch:
        seen = [watch.waiters_alive()]
        for act in (*[listener.connect] * 3, *[listener.accept] * 3):
            act()
            seen.append(watch.waiters_alive())
    assert seen == [0, 1, 2, 3, 2, 1, 0]


@both_ways
def test_a_client_that_closed_still_stands_in_the_queue_but_waits_no_more(
    way: Way, directory: Path, listen: Listen
) -> None:
    listener = listen(directory / "101.qga")
    listener.connect()
    listener.accept()
    patient, impatient = listener.connect(), listener.connect()
    impatient.sendall(b'{"execute":"guest-ping"}\n')
    with way(NODE, listener.path) as watch:
        assert watch.waiters_alive() == 2
        impatient.close()
        assert watch.waiters_alive() == 1
        patient.close()
        assert watch.waiters_alive() == 0
        listener.accept()
        assert watch.waiters_alive() == 0


@both_ways
def test_only_the_own_listeners_clients_count(way: Way, directory: Path, listen: Listen) -> None:
    (directory / "other").mkdir()
    names = ("101.qga", "101.qga.2", "1101.qga", "101xqga", "other/101.qga")
    own, *others = [listen(directory / name) for name in names]
    with way(NODE, own.path) as watch:
        for each in others:
            each.connect()
        assert watch.waiters_alive() == 0
        own.connect()
        assert watch.waiters_alive() == 1
    for each in others:
        with way(NODE, each.path) as watch:
            assert watch.waiters_alive() == 1


@both_ways
def test_another_spelling_of_the_path_finds_the_listener(way: Way, directory: Path, listen: Listen) -> None:
    """Proxmox says /var/run/qemu-server, and /var/run is a link to /run."""
    (directory / "run").mkdir()
    (directory / "var-run").symlink_to("run")
    listener = listen(directory / "var-run" / "101.qga")
    listener.connect()
    with way(NODE, str(directory / "run" / "101.qga")) as watch:
        assert watch.waiters_alive() == 1


@both_ways
def test_one_waiter_is_found_among_hundreds_of_sockets(way: Way, directory: Path, listen: Listen) -> None:
    """/proc/net/unix comes a page at a time: here it has many."""
    listener = listen(directory / "101.qga")
    for number in range(300):
        listen(directory / f"other-{number}.qga")
    listener.connect()
    with way(NODE, listener.path) as watch:
        assert watch.waiters_alive() == 1


@both_ways
def test_a_listener_that_is_gone_is_not_one_without_waiters(way: Way, directory: Path, listen: Listen) -> None:
    listener = listen(directory / "101.qga")
    with way(NODE, listener.path) as watch:
        listener.close()
        os.unlink(listener.path)
        listen(directory / "101.qga").connect()
        with pytest.raises(NodeError, match=r"101\.qga: its listener is gone .*restarted"):
            watch.waiters_alive()


@both_ways
def test_a_path_where_nobody_listens_is_an_error(way: Way, directory: Path, listen: Listen) -> None:
    path = directory / "101.qga"
    with pytest.raises(NodeError, match=r"101\.qga: .*is the VM running\?"):
        way(NODE, str(path))
    with socket.socket(socket.AF_UNIX) as bound_only:
        bound_only.bind(str(path))
        with pytest.raises(NodeError, match="nobody listens there; is the VM running"):
            way(NODE, str(path))
    listen(directory / "left").close()
    with pytest.raises(NodeError, match="nobody listens there; is the VM running"):
        way(NODE, str(directory / "left"))


@needs_sock_diag
def test_of_two_listeners_the_one_that_a_client_reaches_is_watched(directory: Path, listen: Listen) -> None:
    path = directory / "101.qga"
    old = listen(path)
    for _ in range(2):
        old.connect()
    path.unlink()
    new = listen(path)
    with watch_waiters(NODE, new.path) as watch:
        assert watch.waiters_alive() == 0
        new.connect()
        assert watch.waiters_alive() == 1


def test_names_alone_cannot_tell_two_listeners_apart(directory: Path, listen: Listen) -> None:
    path = directory / "101.qga"
    listen(path)
    path.unlink()
    listen(path)
    with pytest.raises(NodeError, match=r"101\.qga: 2 sockets listen under this path"):
        SocketTableWatch(NODE, str(path))


@needs_sock_diag
def test_a_path_too_long_for_a_socket_is_found_by_its_file(directory: Path, listen: Listen) -> None:
    deep = directory / ("d" * 120)
    deep.mkdir()
    listener = listen(deep / "101.qga")
    listener.connect()
    with watch_waiters(NODE, listener.path) as watch:
        assert watch.waiters_alive() == 1
    with pytest.raises(NodeError, match="nobody listens there"):
        SocketTableWatch(NODE, listener.path)


def test_without_the_list_of_sockets_it_says_so(directory: Path, listen: Listen) -> None:
    listener = listen(directory / "101.qga")
    with pytest.raises(NodeError, match="/proc/net/unix: cannot be read: No such file"):
        watch_waiters(Node(str(directory)), listener.path)


@both_ways
def test_nothing_stays_open(way: Way, directory: Path, listen: Listen) -> None:
    listener = listen(directory / "101.qga")
    before = os.listdir("/proc/self/fd")
    with way(NODE, listener.path):
        assert len(os.listdir("/proc/self/fd")) <= len(before) + 1
    with pytest.raises(NodeError):
        way(NODE, listener.path + "-not")
    assert os.listdir("/proc/self/fd") == before


REFUSED = """
import ctypes, struct, sys
from pvehook.host.node import Node
from pvehook.host.waiters import SockDiagWatch, watch_waiters

def instruction(code, yes, no, value):
    return struct.pack("=HBBI", code, yes, no, value)

# linux/bpf_common.h, seccomp.h: socket(AF_NETLINK, ...) fails with EPERM, all else is allowed.
LOAD, EQUALS, RETURN, ALLOW, EPERM = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050001
program = b"".join((
    instruction(LOAD, 0, 0, 0),
    instruction(EQUALS, 0, 3, int(sys.argv[2])),
    instruction(LOAD, 0, 0, 16),
    instruction(EQUALS, 0, 1, 16),
    instruction(RETURN, 0, 0, EPERM),
    instruction(RETURN, 0, 0, ALLOW),
))
held = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(held)))
libc = ctypes.CDLL(None, use_errno=True)
for arguments in ((38, 1, 0, 0, 0), (22, 2, ctypes.c_void_p(ctypes.addressof(filter)), 0, 0)):
    if libc.prctl(*arguments) != 0:
        sys.exit(f"prctl {arguments}: errno {ctypes.get_errno()}")

with watch_waiters(Node(), sys.argv[1]) as watch:
    print(watch.via, watch.waiting_sockets(), watch.waiters_alive(), sep="|")
try:
    SockDiagWatch(Node(), sys.argv[1])
except OSError as error:
    print(error)
"""
SOCKET_CALL = {"x86_64": "41", "aarch64": "198"}


@pytest.mark.skipif(os.uname().machine not in SOCKET_CALL, reason="the filter knows two machines' system calls")
def test_where_netlink_is_refused_the_list_of_sockets_is_read(directory: Path, listen: Listen) -> None:
    listener = listen(directory / "101.qga")
    listener.connect()
    listener.connect().close()
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, listener.path, SOCKET_CALL[os.uname().machine]],
        env={**os.environ, "PYTHONPATH": str(TOP)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    fallback, alone = done.stdout.splitlines()
    assert fallback == "/proc/net/unix|None|1"
    assert "Operation not permitted" in alone


ACTS = st.sampled_from(["connect", "connect", "close", "accept"])  # twice, so that queues grow


@needs_sock_diag
@settings(deadline=None, max_examples=60)
@given(steps=st.lists(st.tuples(ACTS, st.integers(0, 7)), max_size=25))
def test_both_ways_agree_with_what_was_done(steps: list[tuple[str, int]]) -> None:
    with ExitStack() as stack:
        listener = Listener(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "101.qga")
        stack.callback(listener.close)
        watches = [stack.enter_context(way(NODE, listener.path)) for way in (SockDiagWatch, SocketTableWatch)]
        queue: list[socket.socket] = []
        for what, which in steps:
            if what == "connect" and len(queue) < 8:
                queue.append(listener.connect())
            elif what == "close" and queue:
                queue[which % len(queue)].close()
            elif what == "accept" and queue:
                listener.accept()
                queue.pop(0)
            expected = sum(client.fileno() >= 0 for client in queue)
            assert [watch.waiters_alive() for watch in watches] == [expected, expected]


@both_ways
def test_a_place_that_was_given_up_is_taken_until_the_owner_comes(way: Way, tmp_path: Path) -> None:
    listener = Listener(tmp_path / "101.qmp")
    with way(NODE, listener.path) as watch:
        assert watch.places_left() == 0
        listener.connect()
        assert watch.places_left() == 0
        listener.connect().close()
        assert (watch.places_left(), watch.waiters_alive()) == (1, 1)
