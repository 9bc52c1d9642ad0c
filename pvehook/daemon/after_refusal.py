"""A refused guest, or a guest of a refused run, that is backed up all the same: the hook's exit code did not reach
vzdump, as where somebody's script calls the hook and ends well whatever the hook says."""

from __future__ import annotations

from typing import Final

from pvehook.admission.window_end import interrupt_vzdump
from pvehook.config.in_force import InForce
from pvehook.errors import NodeError
from pvehook.host.processes import ProcessId
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.records.journal import Log

GOES_ON_PHASES: Final = ("pre-stop", "backup-end")
"""One of them comes for every guest that is backed up, none after a refusal."""


def went_on(
    context: Context, worker: ProcessId, phase: str, guest: GuestRecord, in_force: InForce
) -> tuple[str, ...]:
    """In a phase of a refused guest: where it is backed up, that is reported, and cancelled where `window.enforce`
    says so. Lines for the task log."""
    if phase == "backup-abort" and guest.cancel_sent:  # vzdump has not read the reply in which it was said first
        return (f"guest {guest.vmid} was refused, but went on: it is cancelled (window.enforce: cancel)",)
    if phase not in GOES_ON_PHASES:
        return ()
    then = ""
    if phase == "pre-stop" and in_force.config.window.enforce == "cancel":
        try:
            interrupt_vzdump(context.node, worker)
            guest.cancel_sent = True
            then = ". It is cancelled (window.enforce: cancel)"
        except (NodeError, OSError) as error:
            then = f". It could not be cancelled (window.enforce: cancel): {error}"
    return report_ignored(context.log, f"guest {guest.vmid}", then)


def report_ignored(log: Log, name: str, then: str = "") -> tuple[str, ...]:
    """vzdump never goes on after a refusal that reached it."""
    text = (
        f"{name} was refused, but goes on: the hook's exit code did not reach vzdump. A script of your own that"
        f" calls the hook must end with the hook's exit code{then}"
    )
    log.critical("refusal-ignored", message=text)
    return (text,)
