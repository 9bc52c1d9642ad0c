"""Who is served when, and which bytes reach whom: the same of a simulated guest and of a real QEMU.

What the freeze's rendezvous builds on. The real one is QEMU with Debian's qemu-ga 10.0 in a booted guest;
tests/rig/test_qemu_guest.py has the 7.2.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pvehook.deadline import Deadline
from pvehook.errors import Busy, Refused, TimedOut
from pvehook.guest.agent import open_agent
from pvehook.guest.qmp import open_qmp
from pvehook.guest.sockets import Connection, connect, parse_document
from tests.guest_files import SimulatedGuest
from tests.rig.qemu_guest import CannotStart, qemu_guest

SHORT_S = 0.1
LONG_S = 30.0


class Sockets(NamedTuple):
    qmp: str
    qga: str


@pytest.fixture(scope="module", params=["simulated", pytest.param("qemu", marks=pytest.mark.rig)])
def vm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sockets]:
    with contextlib.ExitStack() as stack:
        if request.param == "simulated":
            directory = str(tmp_path_factory.mktemp("vm"))
            guest = stack.enter_context(SimulatedGuest(directory, 101, agent_version="10.0.2"))
            yield Sockets(guest.qmp_path, guest.qga_path)
            return
        try:
            real = stack.enter_context(qemu_guest(101, agent="10.0"))
        except CannotStart as error:
            pytest.skip(f"no real QEMU guest: {error}")
        yield Sockets(real.qmp, real.qga)


def raw(path: str) -> socket.socket:
    """A client with no manners."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    return client


def ask_raw(client: socket.socket, command: str) -> None:
    client.sendall(json.dumps({"execute": command}).encode() + b"\n")


def read(connection: Connection, seconds: float = LONG_S) -> dict[str, object]:
    line = connection.read_line(Deadline.after(seconds))
    return parse_document(line.lstrip(b"\xff"), source=connection.path)


def sync(connection: Connection, fresh: int) -> list[dict[str, object]]:
    """Synchronises by hand and returns what came before the own answer."""
    request = {"execute": "guest-sync-delimited", "arguments": {"id": fresh}}
    connection.send(b"\xff" + json.dumps(request).encode() + b"\n", Deadline.after(LONG_S))
    before = []
    while (reply := read(connection)) != {"return": fresh}:
        before.append(reply)
    return before


def is_served(connection: Connection, name: str) -> bool:
    """Waits for the client's turn: QEMU greets, an agent answers a sync."""
    if name == "qmp":
        return "QMP" in read(connection)
    sync(connection, 1)
    return True


@pytest.mark.parametrize("name", ["qmp", "qga"])
def test_a_second_client_connects_but_waits_until_the_first_has_closed(vm: Sockets, name: str) -> None:
    opened = open_qmp if name == "qmp" else open_agent
    path: str = getattr(vm, name)
    with opened(path, Deadline.after(LONG_S)):
        with pytest.raises(TimedOut), opened(path, Deadline.after(SHORT_S)):
            pass
        second = connect(path)
    with second:
        assert is_served(second, name)


@pytest.mark.parametrize("name", ["qmp", "qga"])
def test_two_may_wait_and_a_third_is_turned_away(vm: Sockets, name: str) -> None:
    path: str = getattr(vm, name)
    with connect(path) as first:
        assert is_served(first, name)
        with connect(path) as second, connect(path) as third:
            with pytest.raises(Busy):
                connect(path)
            first.close()
            assert is_served(second, name)
            second.close()
            assert is_served(third, name)


def test_qmp_greets_only_whom_it_serves(vm: Sockets) -> None:
    with connect(vm.qmp) as first:
        assert "QMP" in read(first)
        with connect(vm.qmp) as second:
            with pytest.raises(TimedOut):
                read(second, SHORT_S)
            first.close()
            assert "QMP" in read(second)


def test_bytes_of_a_waiter_that_gave_up_are_answered_to_the_next_client(vm: Sockets) -> None:
    with open_agent(vm.qga, Deadline.after(LONG_S)):
        with raw(vm.qga) as gave_up:
            ask_raw(gave_up, "guest-fsfreeze-status")
        waiting = connect(vm.qga)
    with waiting:
        assert {"return": "thawed"} in sync(waiting, 4711)


def test_the_client_is_not_taken_in_by_an_answer_to_somebody_else(vm: Sockets) -> None:
    deadline = Deadline.after(LONG_S)
    with open_agent(vm.qga, deadline), raw(vm.qga) as gave_up:
        ask_raw(gave_up, "guest-info")
    with open_agent(vm.qga, deadline) as agent:
        assert agent.fsfreeze_status(deadline) == "thawed"


def test_half_a_line_of_somebody_else_spoils_the_next_until_the_sync(vm: Sockets) -> None:
    with open_agent(vm.qga, Deadline.after(LONG_S)), raw(vm.qga) as gave_up:
        gave_up.sendall(b'{"execute": "guest-pi')
    with connect(vm.qga) as next_one:
        next_one.send(b'{"execute": "guest-fsfreeze-status"}\n', Deadline.after(LONG_S))
        before = sync(next_one, 4712)
        assert before
        assert {"return": "thawed"} not in before
        next_one.send(b'{"execute": "guest-fsfreeze-status"}\n', Deadline.after(LONG_S))
        assert read(next_one) == {"return": "thawed"}


def test_a_freeze_outlives_its_client(vm: Sockets) -> None:
    deadline = Deadline.after(LONG_S)
    with open_agent(vm.qga, deadline) as agent:
        agent.send_freeze(None, deadline)
    with open_agent(vm.qga, deadline) as agent:
        assert agent.fsfreeze_status(deadline) == "frozen"
        with pytest.raises(Refused, match=r"CommandNotFound.*guest-get-fsinfo has been disabled"):
            agent.get_fsinfo(deadline)
        commands = agent.guest_info(deadline).commands
        assert (commands["guest-get-fsinfo"], commands["guest-fsfreeze-thaw"]) == (False, True)
        assert agent.fsfreeze_thaw(deadline) > 0
        assert agent.fsfreeze_thaw(deadline) == 0


def test_mountpoints_match_exactly_and_others_freeze_nothing(vm: Sockets) -> None:
    deadline = Deadline.after(LONG_S)
    with open_agent(vm.qga, deadline) as agent:
        mountpoint = agent.get_fsinfo(deadline)[0].mountpoint
        for wrong in ([], ["/nowhere"], [mountpoint + "/"]):
            assert agent.fsfreeze_freeze(wrong, deadline) == 0
            assert agent.fsfreeze_status(deadline) == "thawed"
        assert agent.fsfreeze_freeze([mountpoint], deadline) == 1
        assert agent.fsfreeze_thaw(deadline) == 1


def test_a_job_that_does_not_exist_has_no_speed(vm: Sockets) -> None:
    deadline = Deadline.after(LONG_S)
    with open_qmp(vm.qmp, deadline) as qmp:
        assert qmp.query_status(deadline) == "running"
        assert qmp.query_block_jobs(deadline) == ()
        with pytest.raises(Refused, match="DeviceNotActive: Block job 'drive-scsi0' not found"):
            qmp.execute("block-job-set-speed", {"device": "drive-scsi0", "speed": 0}, deadline=deadline)


def test_the_sockets_carry_proxmoxs_names(vm: Sockets) -> None:
    assert [Path(path).name for path in vm] == ["101.qmp", "101.qga"]
