"""`wait SECONDS`: a phase that is meant to take longer (a pre-flush) is waited for, beyond the hook's own deadline.

The hook under test is the real one with one number changed: every phase has 1 s, of which nothing is kept back for the
degraded path. So its two clocks, the socket's and SIGALRM's, both run out after 1 s unless both are put forward.
"""

from __future__ import annotations

import select
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pvehook.rehearsal.vzdump.player import play
from pvehook.rehearsal.vzdump.run import Guest
from pvehook.rescue.last_good import store_config
from pvehook.settings import Config, WindowConfig
from tests.guest_files import SimulatedGuest
from tests.node_under_test import ALWAYS, AS_WORKER, REPO, NodeUnderTest

PAST_DEADLINE_S = 2.0
"""How long the daemon's answer takes; a hook that has not been told to wait is gone by then."""

Script = Callable[[socket.socket], None]


def impatient_hook(node: NodeUnderTest) -> str:
    """The installed program with these numbers in it: a directory of links to the repository, but for one module."""
    text = (REPO / "pvehook/hook_call.py").read_text()
    for line, instead in (("RESERVE_S = 3\n", "RESERVE_S = 0\n"), ('    "pre-stop": 10,\n', '    "pre-stop": 1,\n')):
        assert text.count(line) == 1
        text = text.replace(line, instead)
    program = Path(node.hook).parent.parent / "pvehook"
    program.unlink()
    program.mkdir()
    for part in (REPO / "pvehook").iterdir():
        if part.name not in ("hook_call.py", "__pycache__"):
            (program / part.name).symlink_to(part)
    (program / "hook_call.py").write_text(text)
    return node.hook


def call_at(node: NodeUnderTest, script: Script) -> str:
    """What vzdump sees of a pre-stop whose daemon does this."""
    store_config(node.node, Config(window=WindowConfig(open=("00:00-24:00",))))
    Path(node.node.run_dir).mkdir(parents=True, exist_ok=True)
    hook = impatient_hook(node)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(node.node.hook_socket)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                script(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        done = subprocess.run(
            [*AS_WORKER, hook, "pre-stop", "snapshot", "101"],
            env={"VMTYPE": "qemu"}, capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        thread.join(10)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def answers_late(*before: bytes) -> Script:
    """Sends these at once and its answer late, unless the hook has hung up by then."""

    def script(connection: socket.socket) -> None:
        for data in before:
            connection.sendall(data)
        hung_up, _, _ = select.select([connection], [], [], PAST_DEADLINE_S)
        if not hung_up:
            connection.sendall(b"exit 0\npvehook: flushed\n")

    return script


@pytest.mark.parametrize("before", [(b"wait 5\n",), (b"wa", b"it 5", b"\n"), (b"wait 007\n",)])
def test_a_hook_that_is_told_to_wait_waits_past_its_deadline(
    node_without_daemon: NodeUnderTest, before: tuple[bytes, ...]
) -> None:
    assert call_at(node_without_daemon, answers_late(*before)) == "pvehook: flushed\n"


@pytest.mark.parametrize(
    "before",
    [
        (),
        (b"wait 5",),  # never finished
        (b"wait 0\n",),
        (b"wait \n",),
        (b"wait -5\n",),
        (b"wait 5.5\n",),
        (b"wait five\n",),
        (b"wait 5 5\n",),
        (b"wait " + b"9" * 5000 + b"\n",),  # more digits than Python turns into a number
        (b"wait \xb2\n",),
        (b"waiting 5\n",),
    ],
)
def test_any_other_word_moves_no_deadline_and_is_no_fault(
    node_without_daemon: NodeUnderTest, before: tuple[bytes, ...]
) -> None:
    said = call_at(node_without_daemon, answers_late(*before))
    assert "flushed" not in said
    # The two clocks run out in the same moment here; either may be first.
    waited = "no answer within 1 s" if before else "not taken up within 1.0 s"
    assert waited in said or "no answer within 1 s" in said or "pre-stop was given up after 1 s" in said
    assert "fault" not in said


@pytest.mark.parametrize("before", [b"wait five\n", b"wait 5\n"])
def test_the_answer_may_come_in_one_piece_with_it(node_without_daemon: NodeUnderTest, before: bytes) -> None:
    def script(connection: socket.socket) -> None:
        connection.sendall(before + b"exit 0\npvehook: at once\n")

    assert call_at(node_without_daemon, script) == "pvehook: at once\n"


def test_no_daemon_can_make_it_wait_for_ever(node_without_daemon: NodeUnderTest) -> None:
    """Only the first `wait` counts: after it, the second is an answer that is none."""

    def script(connection: socket.socket) -> None:
        connection.sendall(b"wait 5\n")
        connection.sendall(b"wait 5\n")

    assert "the daemon does not answer (the answer broke off)" in call_at(node_without_daemon, script)


def test_a_pre_flush_longer_than_the_phases_deadline_is_waited_for(node_without_daemon: NodeUnderTest) -> None:
    """The whole way: the daemon asks for the time, the guest's sync takes it, the guest is frozen then."""
    node = node_without_daemon
    node.configure(ALWAYS + "freeze: {pre_flush: yes, pre_flush_within: 20s}\n")
    (node.root / "etc/pve/qemu-server/101.conf").write_text("agent: 1\nname: web\n")
    node.hook = impatient_hook(node)
    node.start_daemon()
    with SimulatedGuest(str(node.root / "var/run/qemu-server"), 101, backup_s=0.1, sync_s=PAST_DEADLINE_S) as guest:
        played = play(node.run(Guest(101, name="web", agent=True)))
        assert guest.executed == (("sync",),)
        done = node.wait_for_event("freeze-done", vmid="101")
    assert played.exit_code == 0
    assert not any("given up" in line or "does not answer" in line for line in played.task_log)
    assert int(node.wait_for_event("freeze-verdict", vmid="101")["PVEHOOK_PRE_FLUSH_MS"]) >= PAST_DEADLINE_S * 1000
    assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"
