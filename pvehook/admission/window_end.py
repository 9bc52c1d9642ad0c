"""The window's end, for a guest whose backup runs: reported, and cancelled where `running_guest: cancel` says so."""

from __future__ import annotations

from pvehook.admission.gate import Gate
from pvehook.config.in_force import InForce
from pvehook.deadline import Deadline
from pvehook.errors import GuestError
from pvehook.guest.qmp import open_qmp
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.records.journal import Log
from pvehook.records.run_state import RunState
from pvehook.rules.admission import WINDOW_OPEN

CANCEL_S = 5.0


class WindowEnd:
    """One guest's. `check` it now and then; it never raises for a guest that does not answer."""

    def __init__(self, context: Context, gate: Gate, run: RunState, guest: GuestRecord, log: Log) -> None:
        self._context = context
        self._gate = gate
        self._run = run
        self._guest = guest
        self._log = log
        self._last_failure = ""

    def check(self, in_force: InForce) -> None:
        """A guest that the open window let in and whose backup still runs may have come to the window's end."""
        guest = self._guest
        if guest.result != "running" or guest.admitted_by != WINDOW_OPEN:
            return
        if self._gate.may_still_run(guest.vmid, self._run, in_force):
            return
        cancel = in_force.config.window.running_guest == "cancel"
        if guest.closed_at_s is None:
            guest.closed_at_s = self._context.clock.now_s()
            if not cancel:
                guest.closed_plan = "running_guest: finish lets it finish"
            elif guest.vmtype == "lxc":
                guest.closed_plan = "running_guest: cancel cannot reach a container's backup, it finishes"
            else:
                guest.closed_plan = "running_guest: cancel cancels it"
            self._log.warning(
                "window-closed-on-guest",
                message=f"the window closed while guest {guest.vmid} is in backup; {guest.closed_plan}",
                vmid=guest.vmid,
            )
        if cancel and guest.vmtype != "lxc":
            self._cancel()

    def _cancel(self) -> None:
        """Proxmox's own `backup-cancel`: vzdump sees its job end and aborts this guest cleanly. Sent again at each
        check, because it has no effect before the job has begun."""
        guest = self._guest
        deadline = Deadline.after(CANCEL_S)
        try:
            with open_qmp(self._context.node.path(f"/var/run/qemu-server/{guest.vmid}.qmp"), deadline) as qmp:
                qmp.backup_cancel(deadline)
        except GuestError as error:
            guest.closed_plan = f"running_guest: cancel failed: {error}"
            text = f"guest {guest.vmid}: its backup could not be cancelled: {error}"
            if text != self._last_failure:  # a backup may go on for hours, and each check tries again
                self._last_failure = text
                self._log.error("backup-cancel-failed", message=text, vmid=guest.vmid)
            return
        if not guest.cancel_sent:
            guest.cancel_sent = True
            self._log.warning(
                "backup-cancelled",
                message=f"guest {guest.vmid}: backup-cancel sent, the window has closed",
                vmid=guest.vmid,
            )
