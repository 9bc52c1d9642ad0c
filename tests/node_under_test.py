"""A node in a directory, with the real hook, the real daemon as a process, and a journal that can be read back."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pvehook.rehearsal.tree import RehearsalNode
from pvehook.rehearsal.vzdump.run import Guest, Mode, Run
from tests.native_freeze import NATIVE_FREEZE

REPO = Path(__file__).parent.parent
ALWAYS = 'window: {open: ["00:00-24:00"]}\n'
NEVER = "window: {open: []}\n"

AS_WORKER = ("/bin/sh", "-c", '"$0" "$@"; exit $?')
"""A process of its own as the hook's parent: the daemon keeps a run for it until it ends."""


class NodeUnderTest(RehearsalNode):
    """One node's tree and the daemon that serves it."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root), {"/etc/pvehook.yaml": ALWAYS})
        self.root = root
        self.vm_job = ""
        """See `Run.vm_job`."""

    def configure(self, text: str) -> None:
        self.write("/etc/pvehook.yaml", text)

    def set_clock(self, iso: str) -> None:
        """From now on the daemon's clock reads `iso`, and goes on from there."""
        self.run_clock_from(datetime.fromisoformat(iso).timestamp())

    def run(self, *guests: Guest, mode: Mode = "snapshot", pauses: tuple[str, ...] = (), upid_id: str = "") -> Run:
        """A run of vzdump on this node."""
        return Run(
            guests=guests or (Guest(101, name="web"),),
            hook=self.hook,
            root=str(self.root),
            mode=mode,
            compress="zstd",
            ionice=8,
            pauses=pauses,
            upid_id=upid_id,
            vm_job=self.vm_job,
            freeze=NATIVE_FREEZE,
        )
