"""A guest may report `frozen` for as long as it likes. Whoever owns 66 such guests costs the node one thread, and the
next guest's backup nothing."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import fields

import psutil
import pytest

from pvehook.freeze.open_freezes import OpenFreezes
from pvehook.guest.sockets import Connection
from pvehook.host.timely_files import Readers
from pvehook.rehearsal.vzdump.player import play
from pvehook.rehearsal.vzdump.run import Guest
from pvehook.rescue.freeze_record import freeze_records
from pvehook.rescue.thaw import NO_WAIT, Wait, Waiting, go_on
from tests.freeze.test_freeze import WEB, running_vm, wait_for_no_record
from tests.freeze.test_hostile_agent import HostileAgent, Lie, returns
from tests.guest_files import SimulatedGuest
from tests.node_under_test import NodeUnderTest
from tests.rescue.test_thaw_command import leave_record

HOSTILE = range(201, 267)
THREADS_AT_MOST = 20
"""Of the daemon, with its main loop, the threads of one run and the one of all left-over thaws. Its unit's TasksMax is
64."""
STUBBORN = (102, 103, 104, 105)
ITS_OWN_THREADS = 4 + len(fields(Readers))
"""At most: the main loop, and the readers of what may hang, those of the configuration and of past runs among them."""
WAIT_S = 60.0


class FrozenForEver(HostileAgent):
    """Answers each thaw, and reports `frozen` all the same."""

    def __init__(self, path: str) -> None:
        self.was_thawed = threading.Event()
        """Somebody has sent a thaw."""
        super().__init__(path, {"guest-fsfreeze-status": returns("frozen")})
        self.lies["guest-fsfreeze-thaw"] = self._thaw

    def _thaw(self, client: socket.socket, number: int) -> None:
        self.was_thawed.set()
        returns(2)(client, number)


def test_66_guests_that_report_frozen_for_ever_do_not_keep_an_honest_one_from_its_freeze(
    node_without_daemon: NodeUnderTest,
) -> None:
    node = node_without_daemon
    os.makedirs(node.root / "var/run/qemu-server", exist_ok=True)
    with ExitStack() as stack:
        agents = [FrozenForEver(str(node.root / f"var/run/qemu-server/{vmid}.qga")) for vmid in HOSTILE]
        for vmid, agent in zip(HOSTILE, agents, strict=True):
            stack.callback(agent.close)
            leave_record(node, "frozen", vmid)
        daemon = psutil.Process(node.start_daemon().pid)
        assert all(agent.was_thawed.wait(WAIT_S) for agent in agents)
        with running_vm(node) as guest:
            played = play(node.run(WEB))
            done = node.wait_for_event("freeze-done", vmid="101")
            assert daemon.num_threads() <= THREADS_AT_MOST
            assert not guest.is_frozen
        assert played.exit_code == 0
        assert done["PVEHOOK_CONSISTENCY"] == "filesystem-consistent"
        assert done["PVEHOOK_FILESYSTEMS_FROZEN"] == done["PVEHOOK_FILESYSTEMS_THAWED"] == "2"
        assert node.wait_for_event("guest-done", vmid="101")["PVEHOOK_RESULT"] == "ok"
        assert len(freeze_records(node.node)) == len(HOSTILE)
        for agent in agents:
            agent.lies.clear()
        # All of them are thawed in one moment; the journal's queue need not take an event of each.
        wait_for_no_record(node, WAIT_S)
        node.wait_for_event("freeze-left-over", outcome="thawed")


def test_freezes_of_ours_that_are_never_ended_share_one_thread(node_without_daemon: NodeUnderTest) -> None:
    node = node_without_daemon
    daemon = psutil.Process(node.start_daemon().pid)
    directory = node.root / "var/run/qemu-server"
    with ExitStack() as stack:
        agents = []
        for vmid in STUBBORN:
            (node.root / f"etc/pve/qemu-server/{vmid}.conf").write_text("agent: 1\n")
            stack.enter_context(SimulatedGuest(str(directory), vmid, backup_s=0.1))
            agents.append(HostileAgent(str(directory / f"{vmid}.qga"), {}))
            stack.callback(agents[-1].close)
            agents[-1].lies["guest-fsfreeze-thaw"] = returns(1)
            agents[-1].lies["guest-fsfreeze-freeze"] = freezes_for_ever(agents[-1])
        played = play(node.run(*(Guest(vmid, agent=True) for vmid in STUBBORN)))
        assert played.exit_code == 0
        for vmid in STUBBORN:
            node.wait_for_event("freeze-not-thawed", vmid=str(vmid))
        node.wait_for_event("job-ended")
        until_s = time.monotonic() + WAIT_S
        while daemon.num_threads() > ITS_OWN_THREADS + 1:
            assert time.monotonic() < until_s, daemon.threads()
            time.sleep(0.05)
        assert len(freeze_records(node.node)) == len(STUBBORN)
        for agent in agents:
            agent.lies.clear()
        for vmid in STUBBORN:
            node.wait_for_event("freeze-done", vmid=str(vmid))
    wait_for_no_record(node)


def freezes_for_ever(agent: HostileAgent) -> Lie:
    def freeze(client: socket.socket, number: int) -> None:
        agent.lies["guest-fsfreeze-status"] = returns("frozen")
        returns(1)(client, number)

    return freeze


def test_work_that_fails_is_out_and_what_waits_beside_it_goes_on() -> None:
    """Its connection is closed by then: the table could never wait for anything again."""
    waited: list[str] = []

    def fails(connection: Connection) -> Waiting[None]:
        with connection:
            yield connection, time.monotonic()
            raise ZeroDivisionError

    def goes_on() -> Waiting[None]:
        yield None, time.monotonic()
        waited.append("once")
        yield None, time.monotonic()
        waited.append("twice")

    here, there = socket.socketpair()
    with there:
        waits: dict[Waiting[None], Wait] = {fails(Connection("agent", here)): NO_WAIT, goes_on(): NO_WAIT}
        faults = 0
        for _ in range(4):
            try:
                if waits:
                    go_on(waits, 1.0)
            except ZeroDivisionError:
                faults += 1
    assert (faults, waited, waits) == (1, ["once", "twice"], {})


def test_a_thaw_that_found_no_thread_is_done_at_the_next_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    done = threading.Event()

    def work(_: threading.Event) -> Waiting[None]:
        yield NO_WAIT
        done.set()

    freezes = OpenFreezes()
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", no_thread)
        freezes.thaw(101, work)
        freezes.serve_added()
    assert not done.is_set()
    assert freezes.any
    freezes.serve_added()
    assert done.wait(30)
