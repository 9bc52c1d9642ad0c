"""VMs of a fixture node that run: a process that /proc shows, a monitor and an agent."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from pvehook.contract.huge_pages import DEFRAG, ENABLED
from pvehook.guest.lockup_settings import SOFTLOCKUP_PANIC, WATCHDOG_THRESH
from tests.guest_files import SimulatedGuest

QEMU: Final = "/usr/bin/qemu-system-x86_64"
_PID_BASE: Final = 40_000
_SOUND: Final = {
    ENABLED: "always [madvise] never\n",
    DEFRAG: "always defer defer+madvise [madvise] never\n",
    WATCHDOG_THRESH: "10\n",
    SOFTLOCKUP_PANIC: "0\n",
}


def run_vm(root: Path, vmid: int, stack: ExitStack, *, is_replaced: bool = False, **how: Any) -> SimulatedGuest:
    """A VM that runs until `stack` ends; `how` as SimulatedGuest takes it. What its agent reads is as it should be.
    `is_replaced`: the program that it runs is not the one on the disk any more."""
    pid = _PID_BASE + vmid
    proc, sockets = root / f"proc/{pid}", root / "var/run/qemu-server"
    proc.mkdir(parents=True)
    sockets.mkdir(parents=True, exist_ok=True)
    (proc / "stat").write_text(f"{pid} (kvm) S 1 {pid} {pid} 0 -1 0 0 0 0 0 0 0 0 0 20 0 5 0 7700 0 0\n")
    (proc / "cmdline").write_bytes(b"/usr/bin/kvm\0-id\0%d\0" % vmid)
    os.symlink(QEMU + (" (deleted)" if is_replaced else ""), proc / "exe")
    (sockets / f"{vmid}.pid").write_text(f"{pid}\n")
    guest = stack.enter_context(SimulatedGuest(str(sockets), vmid, **how))
    guest.files.contents |= _SOUND
    return guest
