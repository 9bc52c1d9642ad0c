"""A backup that runs although the window is closed, and how it is cancelled.

The window closes in the middle of it       reported; `running_guest: cancel`: Proxmox's own `backup-cancel`
It was refused and goes on all the same     daemon/run.py; `enforce: cancel`: the signal of Proxmox's own Stop
"""

from __future__ import annotations

import os
import signal

from pvehook.admission.gate import Gate
from pvehook.config.in_force import InForce
from pvehook.deadline import Deadline
from pvehook.errors import GuestError, NodeError
from pvehook.guest.qmp import open_qmp
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId, vzdump_task_of
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.records.run_state import RunState
from pvehook.rules.admission import WINDOW_OPEN

CANCEL_S = 5.0


def check_window_end(context: Context, gate: Gate, run: RunState, guest: GuestRecord, in_force: InForce) -> None:
    """A guest that the open window let in and whose backup still runs may have come to the window's end. To be called
    now and then; it never raises for a guest that does not answer."""
    if guest.result != "running" or guest.admitted_by != WINDOW_OPEN or gate.may_still_run(guest.vmid, run, in_force):
        return
    cancel = in_force.config.window.running_guest == "cancel"
    if guest.closed_at_s is None:
        guest.closed_at_s = context.clock.now_s()
        if not cancel:
            guest.closed_plan = "running_guest: finish lets it finish"
        elif guest.vmtype == "lxc":
            guest.closed_plan = "running_guest: cancel cannot reach a container's backup, it finishes"
        else:
            guest.closed_plan = "running_guest: cancel cancels it"
        context.log.warning(
            "window-closed-on-guest",
            message=f"the window closed while guest {guest.vmid} is in backup; {guest.closed_plan}",
            vmid=guest.vmid,
        )
    if cancel and guest.vmtype != "lxc":
        _cancel(context, guest)


def _cancel(context: Context, guest: GuestRecord) -> None:
    """Proxmox's own `backup-cancel`: vzdump sees its job end and aborts this guest cleanly. Sent again at each check,
    because it has no effect before the job has begun."""
    deadline = Deadline.after(CANCEL_S)
    try:
        with open_qmp(context.node.path(f"/var/run/qemu-server/{guest.vmid}.qmp"), deadline) as qmp:
            qmp.backup_cancel(deadline)
    except GuestError as error:
        plan = f"running_guest: cancel failed: {error}"
        if plan != guest.closed_plan:  # a backup may go on for hours, and each check tries again
            guest.closed_plan = plan
            text = f"guest {guest.vmid}: its backup could not be cancelled: {error}"
            context.log.error("backup-cancel-failed", message=text, vmid=guest.vmid)
        return
    if not guest.cancel_sent:
        guest.cancel_sent = True
        text = f"guest {guest.vmid}: backup-cancel sent, the window has closed"
        context.log.warning("backup-cancelled", message=text, vmid=guest.vmid)


def interrupt_vzdump(node: Node, worker: ProcessId) -> None:
    """SIGTERM, while vzdump waits for its hook: then only this guest fails, with backup-abort and log-end, and the next
    one has its turn (facts/vzdump.md, "Signals"). Never SIGKILL: vzdump cleans up. Raises OSError, and NodeError for a
    caller that is no vzdump task, as where somebody calls the hook by hand."""
    if vzdump_task_of(node, worker.pid) != worker.pid:
        raise NodeError(f"process {worker.pid}, which called, is no vzdump task")
    os.kill(worker.pid, signal.SIGTERM)
