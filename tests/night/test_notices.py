"""Which notices a run gives, and that they read well: which guest, how long, beside whom, what to do."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from pvehook.cli import parser
from pvehook.night.notices import ALERTS, SHOWN, alert_notice, overdue_notices, run_notices
from pvehook.records.job_table import OverdueGuest
from pvehook.records.notice import Notice
from pvehook.records.stall_record import FreezeOutcome
from pvehook.rules.stalls import Verdict
from pvehook.settings import FreezeConfig
from scripts.events import EVENTS
from tests.records.backups import beside, charted, container, record

FREEZE = FreezeConfig()
LATE = OverdueGuest(
    104,
    "VM 104 mail",
    "3d03h ago, Fri 2026-11-20 02:05",
    "refused 3 times: at 05:12 the backup window was closed (outside 02:00-05:00)",
    (
        'to back it up now: pvehook allow --vmid 104 --for 4h --reason "no backup since 2026-11-20" && vzdump 104',
        'to widen the window: in /etc/pvehook.yaml: window: {open: ["02:00-07:00"]}',
    ),
)


def only(notices: list[Notice]) -> Notice:
    (notice,) = notices
    return notice


def test_a_guest_that_stalled_in_both_parts_of_its_night_is_one_notice() -> None:
    notice = only(run_notices([charted(stalled_s=3.4)], [beside()], FREEZE, {}))
    assert (notice.event, notice.severity, notice.vmids) == ("guest-stalled", "warning", (101,))
    assert notice.title == "VM 101 (web) stalled for 20 s during the backups"
    own, others = notice.lines
    assert own.startswith("VM 101 (web), in its own backup: stalled for 3.4 s, slowed for 91 s, p99 of writes 4.1 ms")
    assert "slow target: each first write of the guest waits for the backup's copy" in own
    assert others.startswith("VM 101 (web): stalled for 17 s, slowed for 41 s beside the backups of VM 103 and CT 110;")
    assert notice.advice == (
        ("for VM 101: performance: max-workers=1 in /etc/vzdump.conf would help more", ""),
        ("VM 101 (web) in detail", "pvehook report --vmid 101"),
        ("the whole night", "pvehook night"),
    )


def test_several_guests_are_one_notice_the_worst_first_and_a_lockup_is_worse_than_any_stall() -> None:
    locked_up = record(vmid=102, name="db", verdict=Verdict("locked-up", 2.0, 9.0, ()))
    notice = only(run_notices([locked_up, container()], [beside()], FREEZE, {}))
    assert notice.vmids == (102, 101, 110)
    assert notice.title == "3 guests stalled during the backups; the worst: VM 102 (db) locked up"


def test_a_good_night_gives_none() -> None:
    good = [record(), record(vmid=102, stalled_s=0.4, slowed_s=8.0)]
    assert run_notices(good, [beside(stalled_s=0.0)], FREEZE, {}) == []


def test_what_is_known_tonight_is_not_told_again_and_what_is_new_is() -> None:
    runs = ([record(stalled_s=3.0), record(vmid=102, stalled_s=2.0)], [beside(vmid=103)])
    assert only(run_notices(*runs, FREEZE, {"guest-stalled": {101, 103}})).vmids == (102,)
    assert run_notices(*runs, FREEZE, {"guest-stalled": {101, 102, 103}}) == []
    assert only(run_notices(*runs, FREEZE, {"guest-overdue": {101, 102, 103}})).vmids == (103, 101, 102)
    assert only(overdue_notices([LATE, LATE._replace(vmid=105)], {"guest-overdue": {104}})).vmids == (105,)
    assert overdue_notices([LATE], {"guest-overdue": {104}}) == []


@pytest.mark.parametrize(("frozen_ms", "is_told"), [(184, False), (None, False), (11_900, False), (16_300, True)])
def test_a_freeze_over_its_limit_is_an_error_and_the_thaw_at_the_limit_is_none(
    frozen_ms: int | None, is_told: bool
) -> None:
    frozen = record(freeze=FreezeOutcome("freeze", "crash-consistent", frozen_ms, "the limit was reached"))
    notices = run_notices([frozen], [], FREEZE, {})
    assert [(each.event, each.severity) for each in notices] == [("guest-frozen", "error")] * is_told
    if is_told:
        assert notices[0].title == "VM 101 (web) frozen for 16 s"
        assert notices[0].lines == ("VM 101 (web): frozen for 16 s, the limit is 10 s; the limit was reached",)
        assert run_notices([frozen], [], FREEZE, {"guest-frozen": {101}}) == []


def test_an_overdue_guest_is_told_with_its_cause_and_the_commands_that_help() -> None:
    notice = only(overdue_notices([LATE], {}))
    assert (notice.severity, notice.title) == ("error", "VM 104 mail is overdue for a backup")
    assert notice.lines == (
        "VM 104 mail: last good backup 3d03h ago, Fri 2026-11-20 02:05; refused 3 times: at 05:12 the backup window "
        "was closed (outside 02:00-05:00)",
    )
    assert notice.advice[:2] == (
        (
            "VM 104 mail: to back it up now",
            'pvehook allow --vmid 104 --for 4h --reason "no backup since 2026-11-20" && vzdump 104',
        ),
        ("VM 104 mail: to widen the window", 'in /etc/pvehook.yaml: window: {open: ["02:00-07:00"]}'),
    )


def test_a_whole_node_is_one_notice_of_bounded_length() -> None:
    notice = only(overdue_notices([LATE._replace(vmid=vmid) for vmid in range(100, 300)], {}))
    assert notice.title == "200 guests are overdue for a backup"
    assert len(notice.vmids) == 200
    assert len(notice.lines) == SHOWN + 1
    assert notice.lines[-1] == "and 190 more: pvehook night"
    assert len(notice.advice) <= 5
    stalled = only(run_notices([record(vmid=vmid, stalled_s=3.0) for vmid in range(100, 300)], [], FREEZE, {}))
    assert len(stalled.lines) == SHOWN + 1


# At once


@pytest.mark.parametrize("event", ALERTS)
def test_an_alert_is_an_event_of_the_journal_that_is_an_error(event: str) -> None:
    levels, _ = EVENTS[event]
    assert {"error", "critical"} & set(levels.split())
    notice = alert_notice(event, "error", {"vmid": 101, "message": "VM 101 (web): it is so"})
    assert notice is not None
    assert (notice.severity, notice.vmids, notice.lines) == ("error", (101,), ("VM 101 (web): it is so",))
    assert "{" not in notice.title + "".join(text + command for text, command in notice.advice)
    assert "101" in notice.title


@pytest.mark.parametrize(
    ("event", "level", "fields"),
    [
        ("governor-left-over", "warning", {"vmid": 101}),  # its speed was restored
        ("guest-done", "warning", {"vmid": 101}),
        ("fault", "error", {"vmid": 101}),
        ("freeze-alert", "critical", {}),
    ],
)
def test_all_else_is_none(event: str, level: str, fields: dict[str, Any]) -> None:
    assert alert_notice(event, level, fields) is None


def test_the_commands_are_ones_that_the_program_has() -> None:
    alerts = [alert_notice(event, "error", {"vmid": 101, "message": ""}) for event in ALERTS]
    runs = run_notices([charted(stalled_s=3.4)], [], FREEZE, {})
    frozen = record(freeze=FreezeOutcome("freeze", "crash-consistent", 20_000, ""))
    notices = [*alerts, *runs, *run_notices([frozen], [], FREEZE, {}), *overdue_notices([LATE], {})]
    commands = [command for each in notices if each is not None for _, command in each.advice]
    ours = [command.split(" && ")[0] for command in commands if command.startswith("pvehook ")]
    assert len(ours) > 8
    for command in ours:
        assert parser().parse_args(shlex.split(command)[1:]).run, command
