"""What hooks/guest-hook does when Proxmox starts or stops a VM.

    pre-stop      a guest that pvehook has frozen is thawed before its shutdown, which would hang in blocked writes
    post-start    a VM that was just started cannot be frozen, so a record that says so is deleted; the daemon is told
                  of it, and notes what it tells of itself once its agent answers
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from pvehook.contract.call import encode_started
from pvehook.deadline import Deadline
from pvehook.errors import GuestError
from pvehook.guest.sockets import connect
from pvehook.host.node import Node
from pvehook.host.regular_file import remove_file
from pvehook.rescue.freeze_record import FROZEN_BY_US, read_record, record_path
from pvehook.rescue.thaw import thaw_guest

PATIENCE_S = 5.0
TELL_S = 0.2
"""For a line that the socket's buffer takes at once."""


def guest_hook(root: str, argv: Sequence[str], show: Callable[[str], None]) -> None:
    """Handles one call `VMID PHASE`; anything else is ignored. Shows one line where something was done."""
    if len(argv) != 2 or not (argv[0].isascii() and argv[0].isdigit() and len(argv[0]) <= 9):
        return
    node, vmid, phase = Node(root), int(argv[0]), argv[1]
    if phase == "post-start":
        remove_file(record_path(node, vmid))
        tell_daemon(node, vmid)
    elif phase == "pre-stop":
        left = read_record(record_path(node, vmid))
        if left is not None and left.state in FROZEN_BY_US:
            show(thaw_guest(node, vmid, force=False, patience_s=PATIENCE_S).text)


def tell_daemon(node: Node, vmid: int) -> None:
    """Waits for no answer: systemd may have to start the daemon for it. One that is not installed is not told."""
    with contextlib.suppress(GuestError), connect(node.hook_socket) as daemon:
        daemon.send(encode_started(vmid), Deadline.after(TELL_S))
