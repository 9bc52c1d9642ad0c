"""What the parts of a simulated VM share: whether it runs, what hangs in it, and what it has heard."""

from __future__ import annotations

import threading
import time
from typing import Literal, NamedTuple

from pvehook.rehearsal.vm.sockets import DenialError, Peer

Sticky = Literal["qmp", "agent", "freeze", "thaw"]
"""What can hang: the monitor, the agent before every request, or one command inside the guest."""

RunState = Literal["running", "paused", "prelaunch"]


class Heard(NamedTuple):
    """One command that reached the guest, at the moment it did. `at_s` is on the monotonic clock."""

    at_s: float
    channel: Literal["qmp", "qga"]
    command: str
    peer: Peer


class GuestState:
    """Whoever changes something here holds `changed` and notifies."""

    def __init__(self, running: bool) -> None:
        self.run_state: RunState = "running" if running else "prelaunch"
        self.heard: list[Heard] = []
        self.refused: dict[str, str] = {}
        self.changed = threading.Condition()
        self.stuck: set[Sticky] = set()
        self.ended = False

    def note(self, channel: Literal["qmp", "qga"], command: str, peer: Peer) -> None:
        """A command has arrived. Raises DenialError if it is one that is refused."""
        with self.changed:
            self.heard.append(Heard(time.monotonic(), channel, command, peer))
            self.changed.notify_all()
        if command in self.refused:
            raise DenialError("GenericError", self.refused[command])

    def wait_while_stuck(self, what: Sticky) -> None:
        """Inside the guest nothing goes on while its processors stand still; QEMU itself does."""
        with self.changed:
            self.changed.wait_for(
                lambda: self.ended or (what not in self.stuck and (what == "qmp" or self.run_state == "running"))
            )

    def pass_time(self, seconds: float) -> None:
        """Not a sleep: the end of the simulation ends it too."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended, seconds)

    def run(self, state: RunState) -> None:
        """`cont` and `stop`."""
        with self.changed:
            self.run_state = state
            self.changed.notify_all()
