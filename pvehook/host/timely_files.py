"""Reading files that may hang: /etc/pve is a FUSE file system, and a node in trouble answers late or never. A read that
hangs cannot be taken back, so it happens in a thread of its own, and whoever asked goes on without."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from pvehook.errors import NodeError

T = TypeVar("T")

FILE_LIMIT_BYTES = 1 << 20


class TimelyReader:
    """One thread asks the files, in order. While it hangs, every question fails at once instead of piling up another
    hanging thread; when the file system comes back, it goes on."""

    def __init__(self) -> None:
        self._questions: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._reading = ""
        """What the thread asks now; empty while it waits for a question."""
        self._hanging = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def within(self, deadline_s: float, what: str, question: Callable[[], T]) -> T:
        """What `question` returns, or raises. Raises NodeError when that takes over `deadline_s` seconds."""
        done = threading.Event()
        result: list[T] = []
        failure: list[Exception] = []

        def ask() -> None:
            with self._lock:
                self._reading = what
            try:
                result.append(question())
            except Exception as error:  # handed to the one who asked
                failure.append(error)
            with self._lock:
                self._reading, self._hanging = "", False
                done.set()

        with self._lock:
            if self._hanging:
                raise NodeError(f"{what} was not asked: {self._reading} still does not answer")
            if self._thread is None:
                # A daemon thread: a read that hangs must not keep the process from leaving.
                thread = threading.Thread(target=self._answer, name="timely-reader", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # out of threads
                    raise NodeError(f"{what} was not read: {error}") from error
                self._thread = thread
            self._questions.put(ask)
        if not done.wait(deadline_s):
            with self._lock:
                if not done.is_set():
                    self._hanging = True
                    if self._reading in ("", what):
                        raise NodeError(f"{what} did not answer within {deadline_s:g} s")
                    raise NodeError(f"{what} was not asked within {deadline_s:g} s: {self._reading} does not answer")
        if failure:
            raise failure[0]
        return result[0]

    def _answer(self) -> None:
        while True:
            self._questions.get()()

    def text(self, path: str, deadline_s: float) -> str | None:
        """The file's text, or None when there is no such file; bytes that are no UTF-8 become lone surrogates. Raises
        NodeError when it cannot be read in time, or is over 1 MiB."""

        def read() -> bytes:
            with open(path, "rb") as file:
                return file.read(FILE_LIMIT_BYTES + 1)

        try:
            data = self.within(deadline_s, path, read)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NodeError(f"{path} cannot be read: {error}") from error
        if len(data) > FILE_LIMIT_BYTES:
            raise NodeError(f"{path} cannot be read: larger than {FILE_LIMIT_BYTES} bytes")
        return data.decode("utf-8", "surrogateescape")  # somebody else's file is bytes: PVE's own readers take any


@dataclass(frozen=True)
class Readers:
    """The daemon's, one for each thing that may hang by itself or for long. All runs share them: a run's own would
    leave a thread behind for each run while what it asks hangs."""

    config: TimelyReader = field(default_factory=TimelyReader)
    """/etc/pve and /etc."""
    allowances: TimelyReader = field(default_factory=TimelyReader)
    """A /etc/pve that hangs must cost no exception from the window."""
    history: TimelyReader = field(default_factory=TimelyReader)
    """/var/lib/pvehook, and node_exporter's directory."""
    night: TimelyReader = field(default_factory=TimelyReader)
    """Questions to the jobs and the history in one, behind which `config` is asked."""
    guests: TimelyReader = field(default_factory=TimelyReader)
    """The configurations of all running guests."""
    guest_disks: TimelyReader = field(default_factory=TimelyReader)
    """What these stand on: the disks under a storage may take 8 s to be found, and nobody else waits behind them."""
    priority: TimelyReader = field(default_factory=TimelyReader)
    """The disks of a backup, for whether its I/O priority has an effect."""
    pacer: TimelyReader = field(default_factory=TimelyReader)
    """The disks of a backup and of its archive."""
