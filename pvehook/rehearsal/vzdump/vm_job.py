"""The backup job inside the VM, as vzdump starts, watches and cancels it over QMP."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

from pvehook.host.node import Node
from pvehook.rehearsal.vzdump.commands import CommandError
from pvehook.rehearsal.vzdump.qmp_client import ask_monitor
from pvehook.rehearsal.vzdump.run import Guest, Run

START_S = 30.0
_START_AT_PBS_S = 125.0
"""PVE's patience for `backup`, the longer one because QEMU connects to the backup server first."""


class VmJob:
    """One guest's backup job: Proxmox's `backup`. Every method raises CommandError."""

    def __init__(self, run: Run, guest: Guest) -> None:
        self.run = run
        self.guest = guest

    def prepare(self) -> None:
        """All that can be done before the guest is frozen."""
        with contextlib.suppress(CommandError):
            self.ask("query-proxmox-support")

    def start(self, held: bool) -> str:
        """Start it, and return its name for the log. A `held` one does not come to its end before `let_go`, unless, as
        here, how long it lasts is the VM's affair."""
        patience_s = _START_AT_PBS_S if self.run.to_pbs else START_S
        arguments = {"backup-file": "/dev/fdname/backup", "speed": 0, "devlist": "drive-scsi0"}
        answer = self.ask("backup", patience_s=patience_s, **arguments)
        return str(answer.get("UUID", "")) if isinstance(answer, dict) else ""

    def let_go(self) -> None:
        """It may end now."""

    def runs(self) -> bool:
        """Whether it still does; CommandError if it has failed or was cancelled."""
        status = self.ask("query-backup")
        if status.get("status") == "error":
            raise CommandError(status.get("errmsg", "unknown error"))
        return bool(status.get("status") == "active")

    def cancel(self) -> None:
        """End it, if there is one."""
        self.ask("backup-cancel")

    def ask(self, command: str, **arguments: Any) -> Any:
        """One command of QMP, see `ask_monitor`."""
        return ask_monitor(Node(self.run.root), self.guest.vmid, command, **arguments)


def vm_job(run: Run, guest: Guest) -> VmJob:
    """The job of the class that the run names."""
    kind: type[VmJob] = named(run.vm_job) if run.vm_job else VmJob
    return kind(run, guest)


def named(part: str) -> Any:
    """What MODULE:NAME means."""
    module, _, name = part.partition(":")
    return getattr(importlib.import_module(module), name)
