"""A VM that was started tells what it is once its agent answers: nobody waits for that, and no backup is disturbed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pvehook.contract.huge_pages import ENABLED
from pvehook.daemon import started_guests
from pvehook.daemon.started_guests import StartedGuests
from pvehook.host.clock import SystemClock
from pvehook.host.regular_file import replace_file
from pvehook.host.timely_files import Readers
from pvehook.records.context import Context
from pvehook.records.guest_facts import kept_guest_facts
from tests.guest_files import SimulatedGuest
from tests.hooks.test_guest_hook import call
from tests.node_under_test import NodeUnderTest

WAIT_S = 30.0


class Log:
    """Keeps the events, and wakes who waits for one."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.changed = threading.Condition()

    def __getattr__(self, level: str) -> Callable[..., None]:
        def log(event: str, **_: object) -> None:
            with self.changed:
                self.events.append(event)
                self.changed.notify_all()

        return log

    def wait_for(self, event: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: event in self.events, WAIT_S)


class Runs:
    """Whether a run of vzdump is under way, and how often that was asked."""

    def __init__(self) -> None:
        self.under_way = False
        self.changed = threading.Condition()
        self._asked = 0

    def __call__(self) -> bool:
        with self.changed:
            self._asked += 1
            self.changed.notify_all()
        return self.under_way

    def wait_for_rounds(self, count: int) -> None:
        with self.changed:
            until = self._asked + count
            assert self.changed.wait_for(lambda: self._asked >= until, WAIT_S)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(started_guests, "PAUSE_S", 0.01)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
def started(node_without_daemon: NodeUnderTest, log: Log, runs: Runs) -> Iterator[StartedGuests]:
    context = Context(node_without_daemon.node, SystemClock(), Readers(), cast(Any, log))
    yield StartedGuests(context, runs)
    for each in threading.enumerate():
        if each.name == "started-guests":
            each.join(WAIT_S)


def configure(node: NodeUnderTest, text: str) -> None:
    """As a whole or not at all, as on /etc/pve."""
    replace_file(str(node.root / "etc/pve/qemu-server/101.conf"), text)


def vm(node: NodeUnderTest, **how: object) -> SimulatedGuest:
    configure(node, "agent: 1\nname: web\n")
    guest = SimulatedGuest(str(node.root / "var/run/qemu-server"), 101, **how)  # type: ignore[arg-type]
    guest.files.contents |= {ENABLED: "[always] madvise never\n", "/etc/os-release": "ID=debian\n"}
    return guest


def asked(guest: SimulatedGuest) -> bool:
    """Whether its agent was."""
    return any(each.channel == "qga" for each in guest.heard)


def test_at_its_start_the_hook_tells_the_daemon_which_asks_once_the_agent_answers(node: NodeUnderTest) -> None:
    with vm(node):
        assert call(Path(node.hook).with_name("guest-hook"), "101", "post-start") == ""
        event = node.wait_for_event("guest-facts", vmid="101")
    assert (event["PVEHOOK_SYSTEM"], event["PVEHOOK_HUGE_PAGES"]) == ("debian", "always")
    facts = kept_guest_facts(node.node, 101)
    assert facts is not None
    assert facts.huge_pages.enabled == "always"


def test_the_hook_waits_for_no_daemon(node_without_daemon: NodeUnderTest) -> None:
    """One that never comes to accept."""
    hook = Path(node_without_daemon.hook).with_name("guest-hook")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(node_without_daemon.node.hook_socket)
        listener.listen(0)
        for _ in range(4):  # the queue is full by then
            assert call(hook, "101", "post-start") == ""


def test_while_a_run_is_under_way_no_agent_is_asked(
    node_without_daemon: NodeUnderTest, started: StartedGuests, log: Log, runs: Runs
) -> None:
    runs.under_way = True
    with vm(node_without_daemon) as guest:
        started.add(101)
        runs.wait_for_rounds(3)
        assert not asked(guest)
        assert started.any
        runs.under_way = False
        log.wait_for("guest-facts")
    assert kept_guest_facts(node_without_daemon.node, 101) is not None


def test_nor_one_of_a_guest_that_proxmox_has_locked(
    node_without_daemon: NodeUnderTest, started: StartedGuests, log: Log, runs: Runs
) -> None:
    with vm(node_without_daemon) as guest:
        configure(node_without_daemon, "agent: 1\nlock: backup\n")
        started.add(101)
        runs.wait_for_rounds(3)
        assert not asked(guest)
        configure(node_without_daemon, "agent: 1\n")
        log.wait_for("guest-facts")


def test_a_guest_in_which_no_agent_runs_is_given_up_without_a_byte_at_its_socket(
    node_without_daemon: NodeUnderTest, started: StartedGuests, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with vm(node_without_daemon, has_agent=False) as guest:
        started.add(101)
        runs.wait_for_rounds(3)
        assert started.any
        assert not asked(guest)
        monkeypatch.setattr(started_guests, "PATIENCE_S", 0.0)
        started.add(101)
        until_none_is_left(started)
    assert kept_guest_facts(node_without_daemon.node, 101) is None


def until_none_is_left(started: StartedGuests) -> None:
    for each in threading.enumerate():
        if each.name == "started-guests":
            each.join(WAIT_S)
    assert not started.any


@pytest.mark.parametrize("what", ["off", "agent off", "gone"])
def test_a_guest_that_never_will_is_left_at_once(
    node_without_daemon: NodeUnderTest, started: StartedGuests, what: str
) -> None:
    with vm(node_without_daemon) as guest:
        if what == "agent off":
            configure(node_without_daemon, "name: web\n")
        elif what == "gone":
            (node_without_daemon.root / "etc/pve/qemu-server/101.conf").unlink()
        started.add(102 if what == "off" else 101)
        until_none_is_left(started)
        assert not asked(guest)


def test_a_fault_of_ours_costs_this_guests_facts_and_no_more(
    node_without_daemon: NodeUnderTest, started: StartedGuests, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    with vm(node_without_daemon):
        with monkeypatch.context() as broken:
            broken.setattr(started_guests, "parse_vm", fails)
            started.add(101)
            log.wait_for("fault")
            until_none_is_left(started)
        started.add(101)
        log.wait_for("guest-facts")


def test_what_cannot_be_written_is_told(
    node_without_daemon: NodeUnderTest, started: StartedGuests, log: Log
) -> None:
    (node_without_daemon.root / "var/lib/pvehook/guests").write_text("in the way")
    with vm(node_without_daemon):
        started.add(101)
        log.wait_for("guest-facts-not-kept")
        until_none_is_left(started)
