"""The freezes of the whole daemon: what it must not leave before it has ended, and one thread for all left-over thaws.

A guest can report `frozen` for ever, or hang in its freeze for an hour: whatever waits for it is in one table (see
`Waiting`), so that any number of such guests cost one thread.
"""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable
from typing import Literal, get_args

from pvehook.freeze.watchdog import Watchdog
from pvehook.rescue.thaw import NO_WAIT, Wait, Waiting, go_on

Step = Literal[
    "recorded",
    "held",
    "armed",
    "pve-arrived",
    "freezing",
    "frozen",
    "released",
    "backup-begun",
    "thawing",
    "thawed",
    "settled",
]
STEPS: tuple[Step, ...] = get_args(Step)
"""Every step that a freeze passes, in order. The kill matrix of the tests is made from this list."""

TABLE_S = 0.1
"""How long one more thaw may wait until it is taken into the table."""


class OpenFreezes:
    """Used by all threads. `at_step` is the seam by which tests stop at a step."""

    def __init__(self, at_step: Callable[[Step], None] = lambda step: None) -> None:
        self.at_step = at_step
        self.watchdog = Watchdog()
        self._open = 0
        self._thaws: dict[int, list[threading.Event]] = {}
        self._table: dict[Waiting[None], Wait] = {}
        self._added: dict[Waiting[None], Wait] = {}
        self._is_served = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        with self._lock:
            self._open += 1

    def end(self) -> None:
        with self._lock:
            self._open -= 1

    @property
    def any(self) -> bool:
        return self._open > 0

    def cancel(self, vmid: int) -> None:
        """A new rendezvous with this guest begins: thaws of earlier ones are given up."""
        with self._lock:
            for cancelled in self._thaws.pop(vmid, ()):
                cancelled.set()

    def thaw(self, vmid: int, work: Callable[[threading.Event], Waiting[None]]) -> None:
        """Thaws one guest, and the daemon waits for it. `work` gives up when its event is set."""
        cancelled = threading.Event()
        self.begin()
        with self._lock:
            self._thaws.setdefault(vmid, []).append(cancelled)
            self._added[self._until_end(work(cancelled))] = NO_WAIT
        self.serve_added()

    def serve_added(self) -> None:
        """Starts the table's thread where it is needed; where none can be, the daemon's next beat tries again."""
        if self._added and not self._is_served:
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._serve, name="thaws", daemon=True).start()

    def run(self, work: Waiting[None]) -> None:
        """Does the work in the calling thread until it has to wait, from then on together with all others."""
        with contextlib.suppress(StopIteration):
            wait = next(work)
            with self._lock:
                self._added[work] = wait
            self._serve()

    def _until_end(self, work: Waiting[None]) -> Waiting[None]:
        try:
            yield from work
        finally:
            self.end()

    def _serve(self) -> None:
        """Until the table is empty. Nothing, if another thread does."""
        with self._lock:
            if self._is_served:
                return
            self._is_served = True
        while True:
            with self._lock:
                self._table |= self._added
                self._added.clear()
                self._is_served = bool(self._table)
                if not self._table:
                    return
            try:
                go_on(self._table, TABLE_S)
            except Exception:  # of one guest, which is out of the table now: it costs the others nothing
                traceback.print_exc()
