"""What systemd hands over and what it is told, with real sockets and a real process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.host.systemd import listening_socket, notify

TOP = Path(__file__).parents[2]

SERVICE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
for pair in sys.argv[2:]:
    name, value = pair.split("=")
    os.environ[name] = value.replace("MINE", str(os.getpid()))
from pvehook.host.systemd import listening_socket
listener = listening_socket()
if listener is None:
    print("none")
else:
    connection, _ = listener.accept()
    connection.sendall(b"served")
    print(listener.getsockname(), os.get_inheritable(3), sorted(n for n in os.environ if n.startswith("LISTEN")))
"""


def started_with(listener: socket.socket, *environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SERVICE, str(listener.fileno()), *environment]
    return subprocess.Popen(command, cwd=TOP, pass_fds=(listener.fileno(),), stdout=subprocess.PIPE, text=True)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        yield listener


def test_the_socket_that_systemd_bound_is_served(listener: socket.socket) -> None:
    service = started_with(listener, "LISTEN_PID=MINE", "LISTEN_FDS=1", "LISTEN_FDNAMES=hook")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(listener.getsockname())
        assert client.recv(100) == b"served"
    output, _ = service.communicate(timeout=20)
    assert output == f"{listener.getsockname()} False []\n"


@pytest.mark.parametrize(
    "environment",
    [
        (),
        ("LISTEN_FDS=1",),
        ("LISTEN_PID=1", "LISTEN_FDS=1"),  # for another process: it was inherited
        ("LISTEN_PID=MINE", "LISTEN_FDS=0"),
        ("LISTEN_PID=MINE", "LISTEN_FDS=2"),
    ],
)
def test_what_was_not_handed_to_us_is_not_taken(listener: socket.socket, environment: tuple[str, ...]) -> None:
    output, _ = started_with(listener, *environment).communicate(timeout=20)
    assert output == "none\n"


def test_outside_of_systemd_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert listening_socket() is None


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_abstract: bool) -> None:
    name = f"pvehook-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(20)
        systemd.bind("\0" + name if is_abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if is_abstract else name)
        notify("READY=1")
        notify("WATCHDOG=1")
        assert [systemd.recv(100), systemd.recv(100)] == [b"READY=1", b"WATCHDOG=1"]


def test_a_systemd_that_does_not_read_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for number in range(1000):  # the kernel's queue holds far less (net.unix.max_dgram_qlen)
            notify(f"WATCHDOG={number}")
        systemd.setblocking(False)
        received = 0
        try:
            while systemd.recv(100):
                received += 1
        except BlockingIOError:
            pass
        assert 0 < received < 1000  # it was full, so the calls above would have waited for ever


@pytest.mark.parametrize("address", ["", "/nowhere/notify"])
def test_where_nobody_listens_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")
