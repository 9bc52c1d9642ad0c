"""A daemon that does not take calls up: vzdump waits for it once, then hardly at all, and the window still counts."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.rehearsal.vzdump.player import play
from pvehook.rehearsal.vzdump.run import Guest
from pvehook.rescue.last_good import store_config
from pvehook.settings import Config, WindowConfig
from tests.node_under_test import AS_WORKER, NodeUnderTest

ALWAYS_OPEN = Config(window=WindowConfig(open=("00:00-24:00",)))
NEVER_OPEN = Config(window=WindowConfig(open=()))
FIRST = "the daemon does not answer (not taken up within 2.5 s)"
AGAIN = "the daemon does not answer (not taken up within 0.1 s)"

NO_ANSWERS = [
    b"",
    b"taken-up\n",
    b"not-served\nanother version\n",
    b"exit 999\n",
    b"exit 256\n",
    b"exit -1\n",
    b"exit 0" + b"0" * 5000 + b"\n",
]


@pytest.fixture
def listener(node_without_daemon: NodeUnderTest) -> Iterator[socket.socket]:
    """systemd holds the socket, and nobody accepts."""
    Path(node_without_daemon.node.run_dir).mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(node_without_daemon.node.hook_socket)
        listener.listen(64)
        yield listener


def waits(node: NodeUnderTest) -> list[str]:
    """Of each call of one run: the line that says how long it was waited for."""
    played = play(node.run(Guest(101), Guest(102)))
    assert played.exit_code == 0
    lines = [next(line for line in call.lines if "does not answer" in line) for call in played.calls]
    return [line.removeprefix("pvehook: ").partition(";")[0] for line in lines]


def test_a_run_waits_once_and_then_only_tries(node_without_daemon: NodeUnderTest, listener: socket.socket) -> None:
    """15 phases of two guests: 2.5 s and 14 times 0.1 s, where each waited 7 s."""
    store_config(node_without_daemon.node, ALWAYS_OPEN)
    assert waits(node_without_daemon) == [FIRST] + [AGAIN] * 14


def test_the_next_run_waits_again(node_without_daemon: NodeUnderTest, listener: socket.socket) -> None:
    store_config(node_without_daemon.node, ALWAYS_OPEN)
    for _ in range(2):
        assert waits(node_without_daemon)[:2] == [FIRST, AGAIN]


@pytest.mark.parametrize("mark", [b"", b"one\n", b"\xff" * 9000, b"9" * 5000])
def test_a_mark_that_is_none_costs_nothing(
    node_without_daemon: NodeUnderTest, listener: socket.socket, mark: bytes
) -> None:
    store_config(node_without_daemon.node, ALWAYS_OPEN)
    Path(node_without_daemon.node.run_dir, "not-taken-up").write_bytes(mark)
    assert waits(node_without_daemon)[:2] == [FIRST, AGAIN]


def test_a_closed_window_refuses_all_the_same(node_without_daemon: NodeUnderTest, listener: socket.socket) -> None:
    store_config(node_without_daemon.node, NEVER_OPEN)
    played = play(node_without_daemon.run())
    assert [(call.argv[0], call.exit_code) for call in played.calls] == [("job-init", 1)]


def test_a_daemon_that_comes_back_is_asked_and_the_mark_goes(node_without_daemon: NodeUnderTest) -> None:
    node = node_without_daemon
    mark = Path(node.node.run_dir, "not-taken-up")
    node.start_daemon()
    mark.write_bytes(b"1")
    done = subprocess.run([*AS_WORKER, node.hook, "job-init"], env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert not mark.exists()


@pytest.mark.parametrize("phase", ["job-init", "job-start", "backup-start"])
@pytest.mark.parametrize("answer", NO_ANSWERS, ids=lambda answer: repr(answer[:12]))
def test_what_is_not_served_where_the_window_is_asked_is_decided_without_the_daemon(
    node_without_daemon: NodeUnderTest, listener: socket.socket, phase: str, answer: bytes
) -> None:
    store_config(node_without_daemon.node, NEVER_OPEN)
    arguments = ("snapshot", "101") if phase == "backup-start" else ()
    with subprocess.Popen(
        [*AS_WORKER, node_without_daemon.hook, phase, *arguments], env={}, stdout=subprocess.PIPE, text=True
    ) as hook:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)
        output, _ = hook.communicate(timeout=30)
    assert hook.returncode == 1
    assert "the daemon does not answer (" in output
    assert "refused: it is" in output
