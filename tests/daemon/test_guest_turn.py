"""One guest's turn: the table of states and events, cell by cell, and the orders in which vzdump's phases come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast, get_args
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvehook.config.in_force import InForce
from pvehook.daemon import guest_turn
from pvehook.daemon.guest_turn import TABLE, Event, GuestTurn, Phase, RunParts
from pvehook.deadline import Deadline
from pvehook.host.clock import SystemClock
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId
from pvehook.host.timely_files import Readers
from pvehook.priority.io_priority_effect import EffectOfIdle
from pvehook.records.context import Context
from pvehook.records.guest_record import FreezeSummary, GuestRecord, TurnState
from pvehook.records.run_state import RunState
from pvehook.rules.window import Window
from pvehook.settings import DEFAULT

EVENTS: tuple[Event, ...] = get_args(Event)
STATES: tuple[TurnState, ...] = get_args(TurnState)
RUNNING = ("new", "admitted", "prepared", "armed", "archiving")

IN_FORCE = InForce(DEFAULT, cast(Window, None), "files", ())


class Log:
    """Keeps what was logged, by event."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self.events.append((level, event, fields))


class Guest:
    """A turn whose freeze, monitor and priorities only say what is asked of them."""

    def __init__(self, record: GuestRecord, *, armed: bool = True) -> None:
        self.done: list[str] = []
        self.log = Log()
        self.freeze_ends: Callable[[], None] = lambda: None
        self.while_arming: Callable[[], None] = lambda: None
        self._armed = armed
        self.records = Mock(**{"why_failed.return_value": None})
        node = Node("/nonexistent")
        run = RunState(ProcessId(1, 1), "UPID", 0.0)
        parts = RunParts(
            Context(node, SystemClock(), Readers(), cast(Any, self.log)),
            run,
            cast(Any, None),
            cast(Any, SimpleNamespace(share=lambda _vmid, _deadline: None)),
            cast(Any, None),
            cast(Any, self.records),
            cast(Any, None),
            lambda: None,
        )
        fakes = {
            "GuestFreeze": lambda *args: FakeFreeze(self, args[5]),
            "IdlePriority": lambda *_: Fake(self, "idle"),
            "GuestMonitor": lambda *_: Fake(self, "monitor"),
            "Beside": self.beside,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, fake in fakes.items():
                patch.setattr(guest_turn, name, fake)
            self.turn = GuestTurn(parts, record, IN_FORCE)
        self.turn_module_fakes = fakes

    def beside(self, _name: str, check: Callable[[], float], _log: Log) -> Fake:
        self.check = check
        return Fake(self, "beside")

    def handle(self, *events: Event) -> list[str]:
        """The lines of the last one."""
        lines: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(guest_turn, "GuestMonitor", self.turn_module_fakes["GuestMonitor"])
            for event in events:
                lines = self.turn.handle(event, Phase(IN_FORCE, Deadline.after(60)))
        return lines

    @property
    def record(self) -> GuestRecord:
        return self.turn.guest

    @property
    def states(self) -> list[str]:
        """All that it came to, in order."""
        changes = [fields["message"] for _, name, fields in self.log.events if name == "guest-state"]
        return [message.split(" -> ")[1].split()[0] for message in changes]

    def count(self, what: str) -> int:
        return self.done.count(what)


class Fake:
    """Notes the name of every method that is called."""

    def __init__(self, guest: Guest, name: str) -> None:
        self._guest = guest
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., None]:
        return lambda *_: self._guest.done.append(f"{self._name}.{method}")


class FakeFreeze:
    silent_agent = None

    def __init__(self, guest: Guest, on_over: Callable[[], None]) -> None:
        self._guest = guest
        guest.freeze_ends = on_over

    def prepare(self, *_: object) -> list[str]:
        self._guest.done.append("freeze.prepare")
        return ["a verdict"]

    def arm(self, *_: object) -> list[str]:
        self._guest.done.append("freeze.arm")
        self._guest.while_arming()
        if not self._guest._armed:
            self._guest.freeze_ends()
        return []

    def __getattr__(self, method: str) -> Callable[..., None]:
        return lambda *_: self._guest.done.append(f"freeze.{method}")


def record(state: TurnState = "new", mode: str = "snapshot", vmtype: str = "qemu") -> GuestRecord:
    guest = GuestRecord(101, mode, vmtype, "web", started_s=0.0, state=state)
    if state not in ("new", "admitted", "refused"):
        guest.freeze = FreezeSummary("freeze", [])
    known = {"over": "ok", "accounted": "ok", "refused": "refused"}
    guest.result = cast(Any, known.get(state, "running"))
    return guest


ACTIONS = {
    "begin": "idle.begin monitor.begin beside.start",
    "prepare": "freeze.prepare monitor.read_guest_counters",
    "arm": "monitor.archive_begins freeze.arm",
    "archive": "monitor.archive_begins",
    "end": "monitor.finish freeze.over",
    "thaw": "freeze.worker_died",
    "settle": "beside.stop freeze.settle idle.finish",
    "account": "monitor.record",
}

EXPECTED: dict[Event, dict[str, str]] = {
    "admit": {"new": "admitted begin running"},
    "refuse": {"new": "refused - refused"},
    "pre-stop": {"new": "prepared begin,prepare running", "admitted": "prepared prepare running"},
    "pre-restart": {"new": "admitted begin running"},
    "post-restart": {
        "new": "archiving begin,archive running",
        "admitted": "archiving archive running",
        "prepared": "armed arm running",
    },
    "freeze-over": {"prepared": "archiving archive running", "armed": "archiving archive running"},
    "backup-end": dict.fromkeys(RUNNING, "over end ok"),
    "backup-abort": {**dict.fromkeys(RUNNING, "over end failed"), "over": "- - failed"},
    "log-end": {
        **dict.fromkeys(RUNNING, "accounted end,settle,account unknown"),
        "over": "accounted settle,account ok",
        "refused": "accounted settle,account refused",
    },
    "lost": {
        **dict.fromkeys(RUNNING, "accounted end,settle,account unknown"),
        "over": "accounted settle,account ok",
        "refused": "accounted settle,account refused",
    },
    "worker-died": {
        **dict.fromkeys(RUNNING, "accounted thaw,end,settle,account worker-died"),
        "over": "accounted thaw,settle,account ok",
        "refused": "accounted settle,account refused",
    },
    "resumed": {
        "admitted": "- begin running",
        "prepared": "- begin running",
        "armed": "archiving begin,archive running",
        "archiving": "archiving begin,archive running",
        "over": "- begin,end ok",
    },
}
"""Next state, actions, result; `-` is none. What is not here changes nothing."""


def test_every_event_has_a_cell_for_every_state() -> None:
    assert set(TABLE) == set(EVENTS) == set(EXPECTED)
    assert all(set(row) == set(STATES) for row in TABLE.values())


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_what_an_event_does_in_a_state(event: Event, state: TurnState) -> None:
    guest = Guest(record(state))
    begun = state in ("admitted", "prepared", "armed", "archiving", "over", "accounted") and event != "resumed"
    if begun:
        guest.turn._monitor = cast(Any, Fake(guest, "monitor"))
    before = guest.record.result
    to, actions, result = EXPECTED[event].get(state, f"- - {before}").split()
    guest.handle(event)
    assert guest.record.state == (state if to == "-" else to)
    assert guest.record.result == result
    watched = begun or "begin" in actions
    wanted = [each for action in actions.split(",") if action != "-" for each in ACTIONS[action].split()]
    assert [each for each in guest.done if each != "beside.wake"] == [
        each for each in wanted if watched or not each.startswith("monitor.")
    ]
    assert guest.states == ([] if to == "-" else [to])


def test_an_unknown_state_and_an_unknown_event_are_refused() -> None:
    with pytest.raises(ValueError, match="no row"):
        Guest(record(cast(Any, "asleep"))).handle("log-end")
    with pytest.raises(ValueError, match="no row"):
        Guest(record()).handle(cast(Any, "pre-breakfast"))


# The orders of vzdump (facts/vzdump.md)

SNAPSHOT: tuple[Event, ...] = ("admit", "pre-stop", "pre-restart", "post-restart", "backup-end", "log-end")
SUSPEND_VM: tuple[Event, ...] = ("admit", "pre-stop", "backup-end", "pre-restart", "post-restart", "log-end")
STOP_RUNNING = SUSPEND_VM
STOP_STOPPED: tuple[Event, ...] = ("admit", "backup-end", "log-end")


@pytest.mark.parametrize(
    ("mode", "vmtype", "order", "armed"),
    [
        ("snapshot", "qemu", SNAPSHOT, 1),
        ("snapshot", "lxc", SNAPSHOT, 1),
        ("suspend", "lxc", SNAPSHOT, 1),
        ("suspend", "qemu", SUSPEND_VM, 0),
        ("stop", "qemu", STOP_RUNNING, 0),
        ("stop", "qemu", STOP_STOPPED, 0),
        ("stop", "lxc", STOP_RUNNING, 0),
    ],
)
def test_an_order_of_vzdump_ends_with_one_summary(
    mode: str, vmtype: str, order: tuple[Event, ...], armed: int
) -> None:
    guest = Guest(record(mode=mode, vmtype=vmtype))
    assert guest.handle(*order)
    assert (guest.record.state, guest.record.result) == ("accounted", "ok")
    assert guest.count("freeze.arm") == armed
    assert guest.count("monitor.record") == guest.count("freeze.settle") == 1
    assert [name for _, name, _ in guest.log.events].count("guest-done") == 1


@pytest.mark.parametrize(("mode", "event"), [("suspend", "pre-stop"), ("stop", "pre-stop"), ("stop", "admit")])
def test_an_archive_that_no_phase_announces_is_sampled_as_one_that_begins(mode: str, event: Event) -> None:
    """The governor wants ten samples a second when the job may come, and post-restart comes after it there."""
    guest = Guest(record(mode=mode))
    guest.handle("admit", *(("pre-stop",) if event == "pre-stop" else ()))
    assert "monitor.archive_begins" in guest.done
    other = Guest(record(mode=mode, vmtype="lxc"))
    other.handle("admit", *(("pre-stop",) if event == "pre-stop" else ()))
    assert "monitor.archive_begins" not in other.done


def test_a_second_post_restart_arms_no_second_freeze() -> None:
    guest = Guest(record())
    guest.handle("admit", "pre-stop", "post-restart", "post-restart")
    assert guest.count("freeze.arm") == 1


def test_a_foreign_job_does_not_take_the_veto_away() -> None:
    """Nothing but the freeze itself and vzdump's phases moves a guest on."""
    guest = Guest(record())
    guest.handle("admit", "pre-stop", "pre-restart", "post-restart")
    assert guest.states[-1] == "armed"
    guest.freeze_ends()
    assert guest.states[-1] == "archiving"


def test_a_freeze_that_is_none_leaves_the_monitor_to_the_sampler_at_once() -> None:
    guest = Guest(record(), armed=False)
    guest.handle("admit", "pre-stop", "post-restart")
    assert guest.record.state == "archiving"


def test_an_abort_that_overlaps_the_arming_leaves_nothing_armed() -> None:
    """A SIGTERM to vzdump interrupts it inside the hook: backup-abort comes while post-restart is being answered."""
    guest = Guest(record())
    guest.handle("admit", "pre-stop")
    guest.while_arming = lambda: cast(None, guest.handle("backup-abort"))
    guest.handle("post-restart")
    assert guest.done.index("freeze.arm") < len(guest.done) - 1 - guest.done[::-1].index("freeze.over")
    guest.handle("log-end")
    assert guest.record.result == "failed"


def test_two_phases_at_once_move_a_guest_once() -> None:
    guest = Guest(record("over"))
    guest.turn._monitor = cast(Any, Fake(guest, "monitor"))
    threads = [threading.Thread(target=guest.handle, args=("log-end",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert guest.count("monitor.record") == 1


def test_an_abort_without_a_start_is_a_failure_with_a_summary() -> None:
    guest = Guest(record())
    assert guest.handle("backup-abort", "log-end")
    assert guest.record.result == "failed"
    assert not [each for each in guest.done if each.startswith(("monitor", "idle.begin", "beside.start"))]


def test_a_refused_guest_stays_refused_through_abort_and_end() -> None:
    guest = Guest(record())
    assert guest.handle("refuse", "backup-abort", "log-end") == []
    assert guest.record.result == "refused"


def test_a_backup_that_we_cancelled_is_cancelled_and_not_failed() -> None:
    guest = Guest(record())
    guest.handle("admit")
    guest.record.cancel_sent = True
    guest.handle("backup-abort", "log-end")
    assert guest.record.result == "cancelled"


def test_a_script_that_fails_the_finished_backup_fails_the_guest() -> None:
    guest = Guest(record())
    guest.handle("admit", "pre-stop", "post-restart", "backup-end", "backup-abort", "log-end")
    assert guest.record.result == "failed"


@pytest.mark.parametrize("state", ["admitted", "prepared", "armed", "archiving", "over"])
def test_a_restarted_daemon_brings_the_turn_to_its_end(state: TurnState) -> None:
    guest = Guest(record(state))
    guest.handle("resumed")
    assert guest.count("monitor.begin") == 1
    guest.handle("backup-end", "log-end")
    assert (guest.record.state, guest.record.result) == ("accounted", "ok")
    assert guest.count("freeze.arm") == 0


def test_an_action_that_fails_keeps_no_other_from_being_done() -> None:
    guest = Guest(record())
    guest.handle("admit")
    guest.turn._freeze = cast(Any, None)  # every call of it is a fault of ours
    with pytest.raises(AttributeError):
        guest.handle("worker-died")
    assert {"monitor.finish", "idle.finish", "monitor.record"} <= set(guest.done)
    assert guest.record.result == "worker-died"


@given(st.lists(st.sampled_from([event for event in EVENTS if event != "resumed"]), max_size=12))
def test_whatever_comes_in_whatever_order_ends_with_one_result_and_one_summary(events: list[Event]) -> None:
    guest = Guest(record())
    guest.handle(*events, "log-end")
    assert guest.record.state == "accounted"
    assert guest.record.result != "running"
    done = [name for _, name, _ in guest.log.events].count("guest-done")
    assert done == guest.count("freeze.settle") == guest.count("beside.stop") == 1
    assert guest.records.keep_attempts.call_count == 1
    assert guest.count("monitor.begin") <= 1
    assert guest.count("freeze.arm") <= 1


def test_a_disk_that_hangs_does_not_hold_up_the_check_of_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VM that vzdump started in mode stop would stay in the idle class for as long."""
    asked, goes_on = threading.Event(), threading.Event()

    def hangs(*_: object) -> EffectOfIdle:
        asked.set()
        assert goes_on.wait(60)
        return EffectOfIdle("reading yes", ("On the disks: yes.",), "yes", "yes")

    monkeypatch.setattr(guest_turn, "effect_of_idle", hangs)
    guest = Guest(GuestRecord(101, "stop", "qemu", "web", started_s=0.0))
    guest.handle("admit")
    for _ in range(3):
        guest.check()
    assert asked.wait(60)
    assert guest.count("idle.check") == 3
    assert guest.record.effect_in_short == "not found out in time"
    goes_on.set()
    while not guest.record.effect:
        pass
    assert guest.record.effect == ["On the disks: yes."]
