"""A daemon that is stopped in the middle of a freeze: systemd's watchdog ends it in time, and the guest is thawed.

The test plays systemd's part of pvehook.service: it follows the watchdog's notifications, kills the daemon when the
time is up, and runs ExecStopPost.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pvehook.rehearsal.vzdump.player import Player
from tests.freeze.test_freeze import WEB, running_vm
from tests.freeze.test_kill_matrix import THAWED_WITHIN_S, thaw_left_over
from tests.node_under_test import ALWAYS, NodeUnderTest

WATCHDOG_S = 8.0


class Systemd:
    """The service manager's watchdog."""

    def __init__(self, node: NodeUnderTest, directory: str) -> None:
        self.path = str(Path(directory, "notify"))
        self.timeouts_s: list[float] = []
        self.killed = threading.Event()
        self._node = node
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ended = True
        self._thread.join(WATCHDOG_S * 2)
        self._socket.close()

    def _run(self) -> None:
        timeout_s = WATCHDOG_S
        until_s = time.monotonic() + timeout_s
        while not self._ended:
            if time.monotonic() >= until_s:
                self._node.kill_daemon()
                self.killed.set()
                thaw_left_over(self._node)
                return
            if not select.select([self._socket], [], [], 0.05)[0]:
                continue
            fields = dict(each.split("=", 1) for each in self._socket.recv(4096).decode().splitlines())
            if "WATCHDOG_USEC" in fields:
                timeout_s = int(fields["WATCHDOG_USEC"]) / 1e6
                self.timeouts_s.append(timeout_s)
            if "WATCHDOG" in fields or "WATCHDOG_USEC" in fields:
                until_s = time.monotonic() + timeout_s


@contextmanager
def under_systemd(node: NodeUnderTest, *arguments: str) -> Iterator[Systemd]:
    with tempfile.TemporaryDirectory(prefix="pvehook-") as directory:
        systemd = Systemd(node, directory)
        usec = str(round(WATCHDOG_S * 1e6))
        node.start_daemon(*arguments, NOTIFY_SOCKET=systemd.path, WATCHDOG_USEC=usec)
        systemd.start()
        try:
            yield systemd
        finally:
            systemd.close()


@pytest.mark.parametrize("step", ["freezing", "frozen", "released", "backup-begun", "thawing"])
def test_a_daemon_that_is_stopped_while_its_guest_is_frozen_ends_in_time(
    node_without_daemon: NodeUnderTest, step: str
) -> None:
    node = node_without_daemon
    with under_systemd(node, "--halt-at", step) as systemd, running_vm(node) as guest, Player(node.run(WEB)) as player:
        _, status = os.waitpid(node.daemon.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert systemd.killed.wait(THAWED_WITHIN_S)
        assert guest.wait_until(lambda: not guest.is_frozen, THAWED_WITHIN_S)
        player.finish()
        lasted_s = [each.until_s - each.since_s for each in guest.frozen_intervals if each.until_s is not None]
        print(f"frozen for {max(lasted_s, default=0.0):.2f} s")
        assert max(lasted_s, default=0.0) <= THAWED_WITHIN_S


def test_a_daemon_that_is_stopped_late_in_a_freeze_ends_in_time(node_without_daemon: NodeUnderTest) -> None:
    """9 s into it, when its last ping would have lasted for long."""
    node = node_without_daemon
    with under_systemd(node) as systemd, running_vm(node) as guest:
        with Player(node.run(WEB, pauses=("before backup 101",))) as player:
            player.wait_for("before backup 101")
            assert guest.is_frozen
            frozen_s = guest.frozen_intervals[-1].since_s
            guest.wait_until(lambda: time.monotonic() >= frozen_s + 9.0, 9.0)
            node.daemon.send_signal(signal.SIGSTOP)
            assert guest.wait_until(lambda: not guest.is_frozen, THAWED_WITHIN_S)
            thawed_s = guest.frozen_intervals[-1].until_s
            assert thawed_s is not None
            print(f"frozen for {thawed_s - frozen_s:.2f} s")
            assert thawed_s - frozen_s <= THAWED_WITHIN_S
            player.go_on()
            player.finish()
        assert systemd.killed.is_set()


def test_a_guest_that_does_not_answer_its_thaw_does_not_cost_the_daemon_its_life(
    node_without_daemon: NodeUnderTest,
) -> None:
    node = node_without_daemon
    node.configure(ALWAYS + "freeze: {frozen_at_most: 3s}\n")
    with under_systemd(node) as systemd, running_vm(node) as guest:
        guest.stick("thaw")
        with Player(node.run(WEB, pauses=("before backup 101",))) as player:
            player.wait_for("before backup 101")
            heard = [each.command for each in guest.heard]
            assert "guest-fsfreeze-thaw" not in heard
            assert guest.wait_until(lambda: guest.heard[-1].command == "guest-fsfreeze-thaw", 10)
            assert systemd.killed.wait(WATCHDOG_S) is False
            guest.unstick("thaw")
            player.go_on()
            player.finish()
        node.wait_for_event("freeze-done", vmid="101")
        assert systemd.timeouts_s[-1] == WATCHDOG_S
