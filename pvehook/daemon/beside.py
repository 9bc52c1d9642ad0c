"""A check that is repeated beside the phases of a guest's turn, in a thread of its own.

vzdump forks the compressor inside *archive*, where no phase is announced: so the check is made shortly after each
phase, then at growing pauses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pvehook.records.journal import Log

FIRST_WAIT_S = 0.1
"""After a phase: vzdump goes on and forks when it has our answer."""


class Beside:
    """`start` it with the turn, `stop` it with the turn. `check` returns the longest pause until the next one."""

    def __init__(self, name: str, check: Callable[[], float], log: Log) -> None:
        self._name = name
        self._check = check
        self._log = log
        self._woken = threading.Event()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Where no thread can be started, the phases make do without the check."""
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError as error:
            self._log.error("fault", message=f"{self._name}: no thread: {error}; the backup goes on")

    def wake(self) -> None:
        """Processes may have come or gone: check soon."""
        self._woken.set()

    def stop(self) -> None:
        """No further check is begun."""
        self._stopped.set()
        self._woken.set()

    def _run(self) -> None:
        wait_s = FIRST_WAIT_S
        longest_s = FIRST_WAIT_S
        while not self._stopped.is_set():
            if self._woken.wait(wait_s):
                self._woken.clear()
                wait_s = FIRST_WAIT_S
                continue
            try:
                longest_s = self._check()
            except Exception as fault:  # one check that fails must not be the last
                self._log.error("fault", message=f"{self._name}: {fault!r}; the backup goes on")
            wait_s = min(2 * wait_s, longest_s)
