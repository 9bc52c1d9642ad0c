"""Every phase is answered before its hook stops waiting, also for a guest that does not answer at all."""

from __future__ import annotations

from pvehook.records.stall_record import StallRecord
from tests.daemon.caller import Caller
from tests.guest_files import SimulatedGuest
from tests.node_under_test import NodeUnderTest
from tests.watch.test_guest_monitor import record, running_vm, wait_for_looks

HOOK_S = 7.0
"""How long the hook waits in most phases (DEADLINE_S less RESERVE_S of pvehook/hook_call.py); in log-end 9 s."""


def backup_begins(vzdump: Caller, guest: SimulatedGuest) -> None:
    for phase in ("job-init", "job-start"):
        assert "exit 0" in vzdump.call(phase)
    vzdump.guest(101, "backup-start")
    wait_for_looks(guest)


def ends_with_a_record(node: NodeUnderTest, vzdump: Caller) -> StallRecord:
    vzdump.guest(101, "backup-end", within_s=HOOK_S)
    vzdump.guest(101, "log-end", within_s=HOOK_S + 2)
    assert "exit 0" in vzdump.call("job-end", within_s=HOOK_S + 2)
    assert "fault" not in node.event_names()
    return record(node)


def test_a_guest_that_hangs_from_its_backups_start_has_a_record(node: NodeUnderTest) -> None:
    with running_vm(node) as guest, Caller(node) as vzdump:
        backup_begins(vzdump, guest)
        guest.stick("qmp")
        guest.stick("agent")
        vzdump.guest(101, "pre-stop", "pre-restart", "post-restart", within_s=HOOK_S)
        found = ends_with_a_record(node, vzdump)
        guest.unstick("qmp")
        guest.unstick("agent")
    assert found.result == "ok"


def test_a_guest_that_hangs_after_its_freeze_was_armed_has_a_record(node: NodeUnderTest) -> None:
    with running_vm(node) as guest, Caller(node) as vzdump:
        backup_begins(vzdump, guest)
        vzdump.guest(101, "pre-stop", "pre-restart", "post-restart", within_s=HOOK_S)
        guest.stick("qmp")
        guest.stick("agent")
        found = ends_with_a_record(node, vzdump)
        guest.unstick("qmp")
        guest.unstick("agent")
    assert found.result == "ok"
