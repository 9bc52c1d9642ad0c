"""What the journal says of a guest that suffered beside the backups of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvehook.contract.measured import Absent
from pvehook.records.beside_record import BesideBackup, BesideRecord
from pvehook.records.beside_summary import beside_done_fields, beside_message, report_suffering
from pvehook.records.journal import journal_log
from pvehook.rehearsal.journal_receiver import JournalReceiver
from tests.records.backups import HUNG, beside


def others(number: int) -> tuple[BesideBackup, ...]:
    return tuple(BesideBackup(103 + each, "qemu", "shared", 60.0, 9.0 - each, 9.0) for each in range(number))


def test_who_suffered_how_much_beside_whom_and_what_was_done_about_it() -> None:
    assert beside_message(beside()) == (
        "VM 101 (web): stalled for 17 s, slowed for 41 s beside the backups of VM 103 and CT 110; "
        "p99 of its requests 15 ms before and 2405 ms beside them; a backup was slowed for it for 8 s"
    )


@pytest.mark.parametrize(
    ("number", "named"),
    [
        (0, "beside others' backups"),
        (1, "beside VM 103's backup"),
        (3, "beside the backups of VM 103, VM 104 and VM 105"),
        (20, "beside the backups of VM 103, VM 104, VM 105 and 17 more"),
    ],
)
def test_three_backups_are_named_at_most(number: int, named: str) -> None:
    message = beside_message(beside(beside=others(number)))
    assert f"slowed for 41 s {named}; " in message
    assert message.endswith("; no backup was slowed for it")


def test_what_is_not_known_is_said() -> None:
    shown = beside(name=None, stalled_s=3.0, p99_ms=HUNG, baseline_p99_ms=HUNG, unknown=("scsi0: a share",))
    assert beside_message(shown) == (
        "VM 101: stalled for 3 s, slowed for 41 s beside the backups of VM 103 and CT 110; a backup was slowed for it "
        "for 8 s; whether it shares their disks is not known (scsi0: a share)"
    )
    no_baseline = beside(baseline_p99_ms=Absent("it made no request"), beside=others(1))
    assert "; p99 of its requests 2405 ms beside them;" in beside_message(no_baseline)


def test_the_journal_gets_every_figure_or_why_it_is_missing() -> None:
    fields = beside_done_fields(beside(p99_ms=HUNG))
    assert fields == {
        "vmid": 101,
        "guest": "web",
        "vmtype": "qemu",
        "severity": "stalled",
        "stalled_s": 17,
        "slowed_s": 41,
        "p99_ms": "broken: QMP did not answer within 5 s",
        "baseline_p99_ms": 15,
        "watched_s": 7000,
        "slowed_backup_s": 8,
        "seen_by": "requests",
        "beside": ["VM 103: 12 s stalled, 30 s slowed, shared", "CT 110: 5 s stalled, 11 s slowed, shared"],
        "not_known": None,
    }


@pytest.mark.parametrize(
    ("shown", "priority"),
    [
        (beside(), "4"),
        (beside(severity="locked-up"), "4"),
        (beside(stalled_s=0.2), "6"),
        (beside(stalled_s=0.0, slowed_s=0.0), None),
        (beside(severity="unknown"), None),
    ],
    ids=["stalled", "locked up", "slowed", "well", "not known"],
)
def test_a_guest_that_stalled_is_a_warning_and_one_that_was_well_no_event(
    tmp_path: Path, shown: BesideRecord, priority: str | None
) -> None:
    with JournalReceiver(str(tmp_path / "socket")) as journal:
        log = journal_log(str(tmp_path / "socket"))
        report_suffering(log, shown)
        log.info("later", message="m")
        journal.wait_for(lambda event: event["PVEHOOK_EVENT"] == "later", "what came later")
        found = [each.fields for each in journal.events if each.fields["PVEHOOK_EVENT"] == "guest-suffered"]
    assert [each["PRIORITY"] for each in found] == ([] if priority is None else [priority])
