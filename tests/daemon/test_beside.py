"""The check beside the phases of a guest's turn: repeated, woken, and survived."""

from __future__ import annotations

import queue
import threading
from typing import Any, cast

import pytest

from pvehook.daemon.guest_turn import Beside

WAIT_S = 30.0


class Log:
    def __init__(self) -> None:
        self.faults: list[str] = []

    def error(self, _event: str, *, message: str) -> None:
        self.faults.append(message)


def test_it_goes_on_after_a_check_that_fails_and_ends_when_stopped() -> None:
    checked: queue.SimpleQueue[int] = queue.SimpleQueue()
    log = Log()

    def check() -> float:
        checked.put(1)
        raise ZeroDivisionError

    beside = Beside("turn-101", check, cast(Any, log))
    before = set(threading.enumerate())
    beside.start()
    (thread,) = set(threading.enumerate()) - before
    for _ in range(2):
        checked.get(timeout=WAIT_S)
    beside.stop()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert "ZeroDivisionError" in log.faults[0]


def test_a_check_follows_a_wake_and_not_only_its_pause() -> None:
    checked: queue.SimpleQueue[int] = queue.SimpleQueue()

    def check() -> float:
        checked.put(1)
        return 3600.0

    beside = Beside("turn-101", check, cast(Any, Log()))
    beside.start()
    for _ in range(3):
        checked.get(timeout=WAIT_S)
        beside.wake()
    beside.stop()


def test_without_a_thread_the_phases_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    log = Log()
    beside = Beside("turn-101", lambda: 1.0, cast(Any, log))
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", no_thread)
        beside.start()
    beside.wake()
    beside.stop()
    assert log.faults == ["turn-101: no thread: can't start new thread; the backup goes on"]
