"""The gate reads files, and each of them may hang."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from pvehook.admission.gate import Gate
from pvehook.config.in_force import Configuration
from pvehook.contract.call import HookCall
from pvehook.host.clock import SystemClock
from pvehook.host.processes import ProcessId
from pvehook.host.timely_files import Readers
from pvehook.records.context import Context
from pvehook.records.run_state import RunState
from pvehook.rescue import allowances
from tests.node_under_test import ALWAYS, NEVER, NodeUnderTest


class Log:
    """Keeps the names of what was logged."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattr__(self, _level: str) -> Callable[..., None]:
        return lambda event, **_: self.events.append(event)


@pytest.fixture
def hanging_allowances(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    released = threading.Event()
    monkeypatch.setattr(allowances, "in_force", lambda *_: released.wait() and [])
    yield
    released.set()


@pytest.mark.parametrize(("window", "allowed"), [(ALWAYS, True), (NEVER, False)], ids=["open", "closed"])
@pytest.mark.usefixtures("hanging_allowances")
def test_allowances_that_hang_hold_no_phase_and_none_counts(
    node_without_daemon: NodeUnderTest, window: str, allowed: bool
) -> None:
    node, log = node_without_daemon, Log()
    node.configure(window)
    readers = Readers()
    gate = Gate(Context(node.node, SystemClock(), readers, cast(Any, log)), lambda _: ())
    call = HookCall("job-start", None, None, 1, None, None, None, None, None)
    answer = gate.ask(call, RunState(ProcessId(1, 1), "", 0.0), Configuration(node.node, readers.config).now())
    assert answer.allowed is allowed
    assert log.events == ["allowances-not-read"]
