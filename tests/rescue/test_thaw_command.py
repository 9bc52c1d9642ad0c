"""`pvehook thaw`: what systemd runs when a daemon has died, what an administrator types at 03:00, and who else thaws
what was left over: the hook without a daemon, and the next daemon."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import get_args

import pytest

from pvehook.deadline import Deadline
from pvehook.guest.agent import open_agent
from pvehook.rescue.freeze_record import FROZEN_BY_US, FrozenRecord, State, record_path, take_thaw_note
from pvehook.rescue.last_good import store_config
from pvehook.rescue.thaw import Thawed, patience, thawing, together
from pvehook.settings import Config, WindowConfig
from tests.guest import hostile
from tests.guest_files import SimulatedGuest
from tests.node_under_test import AS_WORKER, REPO, NodeUnderTest

STATES: tuple[State, ...] = get_args(State)
WAIT_S = 30.0
STOP_POST_S = 15.0
"""TimeoutStopSec of the unit, within which `thaw --left-over` has to be done."""


def thaw(node: NodeUnderTest, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`pvehook thaw ...` with nothing but the standard library: no site-packages, and none of ours that needs them."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('psutil', 'yaml', 'structlog')));"  # None: cannot be imported
        f"sys.path.insert(0, {str(REPO)!r}); from pvehook.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, "thaw", *arguments, "--root", str(node.root)],
        env={}, capture_output=True, text=True, check=False, timeout=STOP_POST_S,
    )  # fmt: skip


def leave_record(node: NodeUnderTest, state: State, vmid: int = 101) -> Path:
    """What a daemon that died in this state has left behind."""
    path = record_path(node.node, vmid)
    agent = node.node.path(f"/var/run/qemu-server/{vmid}.qga")
    FrozenRecord(path, vmid, 4711, agent, 1795312800.0).say(state)
    return Path(path)


@contextmanager
def frozen_vm(node: NodeUnderTest, vmid: int = 101) -> Iterator[SimulatedGuest]:
    with SimulatedGuest(str(node.root / "var/run/qemu-server"), vmid) as guest:
        with open_agent(guest.qga_path, Deadline.after(5)) as agent:
            agent.fsfreeze_freeze(None, Deadline.after(5))
        yield guest


# One guest by name


@pytest.mark.parametrize("state", FROZEN_BY_US)
def test_a_guest_that_the_record_calls_ours_is_thawed(node_without_daemon: NodeUnderTest, state: State) -> None:
    record = leave_record(node_without_daemon, state)
    with frozen_vm(node_without_daemon) as guest:
        done = thaw(node_without_daemon, "101")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "guest 101: a freeze by pvehook was left over; now it reports thawed, 2 filesystems\n"
        assert not guest.is_frozen
    assert not record.exists()


@pytest.mark.parametrize("time", [b"1e999", b"nan", b"0.000"])
def test_who_thaws_leaves_a_note_and_a_damaged_time_hinders_nobody(
    node_without_daemon: NodeUnderTest, time: bytes
) -> None:
    record = leave_record(node_without_daemon, "frozen")
    page = record.read_bytes()
    record.write_bytes(page[:4064] + time.ljust(16) + page[4080:])
    with frozen_vm(node_without_daemon) as guest:
        assert thaw(node_without_daemon, "101").returncode == 0
        assert not guest.is_frozen
    note = take_thaw_note(str(record))
    assert note is not None
    frozen_ms, by = note
    assert by == "thawed by `pvehook thaw`"
    assert (frozen_ms is not None) is (time == b"0.000")
    assert take_thaw_note(str(record)) is None


@pytest.mark.parametrize("state", [None, "armed", "thawed"])
def test_a_freeze_that_is_not_ours_is_thawed_only_by_force(
    node_without_daemon: NodeUnderTest, state: State | None
) -> None:
    if state:
        leave_record(node_without_daemon, state)
    with frozen_vm(node_without_daemon) as guest:
        refused = thaw(node_without_daemon, "101")
        assert refused.returncode == 1
        assert refused.stderr == "guest 101: pvehook knows of no freeze of its own; --force thaws it whoever froze it\n"
        assert guest.is_frozen
        forced = thaw(node_without_daemon, "101", "--force")
        assert (forced.returncode, forced.stdout) == (0, "guest 101: it reports thawed, 2 filesystems\n")
        assert not guest.is_frozen


def test_a_guest_that_is_not_frozen_gets_no_thaw(node_without_daemon: NodeUnderTest) -> None:
    with SimulatedGuest(str(node_without_daemon.root / "var/run/qemu-server"), 101) as guest:
        assert thaw(node_without_daemon, "101", "--force").returncode == 0
        assert "guest-fsfreeze-thaw" not in [each.command for each in guest.heard]


@pytest.mark.parametrize("arguments", [(), ("101", "--left-over"), ("99",), ("web",), ("101", "102")])
def test_what_cannot_be_meant_is_an_error_and_thaws_nobody(
    node_without_daemon: NodeUnderTest, arguments: tuple[str, ...]
) -> None:
    leave_record(node_without_daemon, "frozen")
    with frozen_vm(node_without_daemon) as guest:
        assert thaw(node_without_daemon, *arguments).returncode == 2
        assert guest.is_frozen


# Whatever was left over


@pytest.mark.parametrize("state", STATES)
def test_left_over_thaws_exactly_what_may_be_frozen_by_us(node_without_daemon: NodeUnderTest, state: State) -> None:
    record = leave_record(node_without_daemon, state)
    with frozen_vm(node_without_daemon) as guest:
        done = thaw(node_without_daemon, "--left-over")
        assert (done.returncode, done.stderr) == (0, "")
        assert guest.is_frozen is (state not in FROZEN_BY_US)
        assert record.exists() is (state not in FROZEN_BY_US)
    assert ("a freeze by pvehook was left over" in done.stdout) is (state in FROZEN_BY_US)


def test_nothing_left_over_is_nothing_to_say(node_without_daemon: NodeUnderTest) -> None:
    done = thaw(node_without_daemon, "--left-over")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("socket_file", ["taken away", "left behind"])
def test_a_vm_that_has_ended_is_not_asked_for_ever(node_without_daemon: NodeUnderTest, socket_file: str) -> None:
    record = leave_record(node_without_daemon, "frozen")
    if socket_file == "left behind":  # as by a QEMU that was killed
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(node_without_daemon.node.path("/var/run/qemu-server/101.qga"))
    done = thaw(node_without_daemon, "--left-over")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("now its VM has ended\n")
    assert not record.exists()


def test_guests_that_do_not_answer_are_said_to_be_still_frozen_and_keep_nobody_else_frozen(
    node_without_daemon: NodeUnderTest,
) -> None:
    """Two hang for 8 s each; one after the other that would be more than systemd gives."""
    with ExitStack() as stack:
        guests = {vmid: stack.enter_context(frozen_vm(node_without_daemon, vmid)) for vmid in (101, 102, 103)}
        records = {vmid: leave_record(node_without_daemon, "frozen", vmid) for vmid in guests}
        for vmid in (101, 102):
            guests[vmid].stick("agent")
        done = thaw(node_without_daemon, "--left-over")
        assert done.returncode == 1
        still = [line.partition(",")[0] for line in done.stderr.splitlines()]
        assert still == ["guest 101: STILL FROZEN", "guest 102: STILL FROZEN"]
        assert done.stdout.startswith("guest 103: a freeze by pvehook was left over; now it reports thawed")
        assert [vmid for vmid, record in records.items() if record.exists()] == [101, 102]
        for vmid in (101, 102):
            guests[vmid].unstick("agent")


def frozen_for_ever(client: socket.socket) -> None:
    """An agent that answers every thaw and stays frozen."""
    while True:
        request = hostile.read_line(client)
        command = request["execute"]
        answers = {"guest-fsfreeze-status": "frozen", "guest-fsfreeze-thaw": 2}
        if command == "guest-sync-delimited":
            arguments = request["arguments"]
            assert isinstance(arguments, dict)
            client.sendall(b"\xff" + json.dumps({"return": arguments["id"]}).encode() + b"\n")
        else:
            client.sendall(json.dumps({"return": answers[str(command)]}).encode() + b"\n")


def test_who_says_frozen_for_ever_is_given_up_after_the_patience(tmp_path: Path) -> None:
    with hostile.peer(str(tmp_path), frozen_for_ever) as path:
        (done,) = together([thawing(path, patience(0.0))])
    assert done[:2] == ("not-answered", 2)
    assert done.text == "it reports frozen, although its thaw was answered with 2 filesystems"
    assert isinstance(done, Thawed)


GARBAGE = {
    "empty": b"",
    "half": b"frozen         \n" + b'{"vmid": 101, "worker": 4711',
    "no state": b"melting        \n" + b'{"vmid": 101, "worker": 1, "agent": "AGENT", "armed_s": 1}',
    "not ascii": b"\xff" * 4096,
    "a list": b"frozen         \n[]",
    "wrong types": b"frozen         \n" + b'{"vmid": [], "worker": [7], "agent": null, "armed_s": {}}',
    "too deep": b"frozen         \n" + b"[" * 4000,
    "an infinite number": b"frozen         \n" + b'{"vmid": 1e999, "worker": 1, "agent": "AGENT", "armed_s": 1}',
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_record_of_garbage_is_left_alone_and_hides_no_other(
    node_without_daemon: NodeUnderTest, garbage: bytes
) -> None:
    leave_record(node_without_daemon, "frozen", 102)
    record = Path(record_path(node_without_daemon.node, 101))
    record.write_bytes(garbage.replace(b"AGENT", bytes(node_without_daemon.root) + b"/var/run/qemu-server/101.qga"))
    with frozen_vm(node_without_daemon, 101) as stranger, frozen_vm(node_without_daemon, 102) as ours:
        done = thaw(node_without_daemon, "--left-over")
        assert (done.returncode, done.stderr) == (0, "")
        assert stranger.is_frozen
        assert not ours.is_frozen
    assert record.exists()


# Who else thaws it


def written_by(record: Path, pid: int) -> None:
    """As if the daemon with this pid had written it."""
    page = record.read_bytes().rstrip(b"\0")
    record.write_bytes(page.replace(b'"daemon": %d' % os.getpid(), b'"daemon": %d' % pid).ljust(4096, b"\0"))


def ring_backup_end(node: NodeUnderTest) -> str:
    done = subprocess.run(
        [*AS_WORKER, node.hook, "backup-end", "snapshot", "101"],
        env={"VMTYPE": "qemu"}, capture_output=True, text=True, check=False, timeout=WAIT_S,
    )  # fmt: skip
    assert done.returncode == 0
    return done.stdout


def test_the_freeze_of_a_daemon_that_lives_is_left_to_it(node_without_daemon: NodeUnderTest) -> None:
    """It is perhaps only slow, and in the middle of its rendezvous."""
    store_config(node_without_daemon.node, Config(window=WindowConfig(open=("00:00-24:00",))))
    leave_record(node_without_daemon, "frozen")  # by this process, which lives
    with frozen_vm(node_without_daemon) as guest:
        assert "left over" not in ring_backup_end(node_without_daemon)
        assert guest.is_frozen


def test_without_a_daemon_the_next_phase_thaws_it(node_without_daemon: NodeUnderTest) -> None:
    store_config(node_without_daemon.node, Config(window=WindowConfig(open=("00:00-24:00",))))
    record = leave_record(node_without_daemon, "frozen")
    with subprocess.Popen(["true"]) as ended:
        pass
    written_by(record, ended.pid)
    with frozen_vm(node_without_daemon) as guest:
        said = ring_backup_end(node_without_daemon)
        assert "pvehook: guest 101: a freeze by pvehook was left over; now it reports thawed, 2 filesystems" in said
        assert not guest.is_frozen
    assert not record.exists()


@pytest.mark.parametrize("state", STATES)
def test_the_next_daemon_thaws_it_and_removes_the_record(node_without_daemon: NodeUnderTest, state: State) -> None:
    record = leave_record(node_without_daemon, state)
    with frozen_vm(node_without_daemon) as guest:
        daemon = node_without_daemon.start_daemon("--idle-exit", "1s")
        if state in FROZEN_BY_US:
            event = node_without_daemon.wait_for_event("freeze-left-over", vmid="101")
            assert event["PRIORITY"] == "4"
            assert event["MESSAGE"].endswith("it reports thawed, 2 filesystems")
        assert daemon.wait(WAIT_S) == 0
        assert guest.is_frozen is (state not in FROZEN_BY_US)
    assert not record.exists()
    assert ("freeze-left-over" in node_without_daemon.event_names()) is (state in FROZEN_BY_US)


def test_the_next_daemon_does_not_leave_before_a_hanging_guest_is_thawed(node_without_daemon: NodeUnderTest) -> None:
    record = leave_record(node_without_daemon, "frozen")
    with frozen_vm(node_without_daemon) as guest:
        guest.stick("agent")
        daemon = node_without_daemon.start_daemon("--idle-exit", "1s")
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.wait(2)
        assert record.exists()
        guest.unstick("agent")
        node_without_daemon.wait_for_event("freeze-left-over", vmid="101")
        assert not guest.is_frozen
        assert daemon.wait(WAIT_S) == 0
    assert not os.path.exists(record)
