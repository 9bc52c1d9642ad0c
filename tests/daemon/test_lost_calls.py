"""Calls that hang for good: the daemon is not deaf for ever, and what it cannot serve the hook does without it."""

from __future__ import annotations

import errno
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from pvehook.daemon.daemon import CALLS_AT_ONCE, LOST_AFTER_S, Daemon
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId, identify


class Log:
    """Keeps the events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **_: self.events.append((level, event))


class Context:
    def __init__(self) -> None:
        self.log = Log()
        self.node = Node("/nonexistent")


@pytest.fixture
def daemon() -> Daemon:
    return Daemon(cast(Any, Context()), cast(Any, None), cast(Any, None), cast(Any, None), idle_exit_s=60)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0pvehook-test-{time.monotonic_ns()}")
        listening.listen()
        yield listening


def events(daemon: Daemon) -> list[tuple[str, str]]:
    return cast(Log, daemon._log).events


def occupy(daemon: Daemon, ends_in_s: float) -> None:
    """All places are taken, by calls that are to end then."""
    for _ in range(CALLS_AT_ONCE):
        daemon._calls[cast(socket.socket, object())] = time.monotonic() + ends_in_s


def is_hung_up(call: socket.socket) -> bool:
    call.settimeout(10)
    return call.recv(1) == b""


@pytest.mark.parametrize(("ends_in_s", "leaves"), [(5.0, False), (600.0, False), (-LOST_AFTER_S - 1, True)])
def test_a_daemon_whose_calls_all_hang_for_good_makes_way_for_the_next(
    daemon: Daemon, listener: socket.socket, ends_in_s: float, leaves: bool
) -> None:
    occupy(daemon, ends_in_s)
    with socket.socket(socket.AF_UNIX) as call:
        call.connect(listener.getsockname())
        daemon._accept(listener)
        assert is_hung_up(call)  # the hook takes the degraded path at once
    assert daemon._leaving is leaves
    assert ("error", "too-many-calls") in events(daemon)
    assert (("critical", "calls-lost") in events(daemon)) is leaves


def test_without_a_descriptor_it_says_so_once_and_goes_on(daemon: Daemon) -> None:
    class Listener:
        def accept(self) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

    for _ in range(3):
        daemon._accept(cast(Any, Listener()))
    assert events(daemon) == [("error", "too-many-calls")]
    assert not daemon._leaving


def test_without_a_thread_the_hook_is_hung_up_on_and_the_place_is_free_again(
    daemon: Daemon, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", no_thread)
    with socket.socket(socket.AF_UNIX) as call:
        call.connect(listener.getsockname())
        daemon._accept(listener)
        assert is_hung_up(call)
    assert daemon._calls == {}
    assert events(daemon) == [("error", "fault")]


def test_a_run_that_ended_is_forgotten_also_where_its_last_phase_raises(daemon: Daemon) -> None:
    class EndedRun:
        ended = True

    worker = ProcessId(4711, 1)
    daemon._runs[worker] = cast(Any, EndedRun())
    with pytest.raises(ZeroDivisionError), daemon._run_of(worker):
        raise ZeroDivisionError
    assert daemon._runs == {}


def test_a_dead_workers_run_is_brought_to_its_end_as_soon_as_there_is_a_thread_for_it(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    class Run:
        died = threading.Event()

        def worker_died(self) -> None:
            self.died.set()

    worker = ProcessId(4711, 1)
    daemon._runs[worker] = cast(Any, Run())
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", no_thread)
        daemon._worker_died(worker)
        daemon._end_dead_runs()
    assert not Run.died.is_set()
    daemon._end_dead_runs()
    assert Run.died.wait(30)


def test_a_worker_that_could_not_be_watched_for_want_of_descriptors_lives_and_is_watched_later(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    class Run:
        ended = False
        died = threading.Event()

        def worker_died(self) -> None:
            self.died.set()

    with subprocess.Popen(["sleep", "60"]) as process:
        worker = identify(Node("/"), process.pid)
        assert worker is not None
        daemon._runs[worker] = cast(Any, Run())
        with monkeypatch.context() as patch:
            patch.setattr("os.pidfd_open", no_descriptor)
            daemon._end_dead_runs()
        assert list(daemon._runs) == [worker]
        assert daemon._dead == set()
        daemon._end_dead_runs()
        assert worker in daemon._pidfds
        process.kill()
    while not Run.died.is_set():  # as the main thread does
        for key, _ in daemon._selector.select(30):
            daemon._worker_died(key.data)
        daemon._end_dead_runs()
    assert Run.died.wait(30)
