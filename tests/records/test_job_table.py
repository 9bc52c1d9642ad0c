"""The table that Proxmox mails: 80 columns, ASCII, the worst guest first, whatever the guests are called."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pvehook.contract.measured import Absent, Broken
from pvehook.records.beside_record import BesideBackup
from pvehook.records.guest_record import GuestRecord, Result
from pvehook.records.job_table import WIDTH, OverdueGuest, job_table
from pvehook.records.stall_record import StallRecord
from pvehook.rules.stalls import KernelEvent, Verdict
from tests.records.backups import HUNG, SOFT_LOCKUP, beside, charted, container, guest_view, record


def guest(vmid: int = 101, name: str | None = "web", result: Result = "ok", vmtype: str | None = "qemu") -> GuestRecord:
    shown = GuestRecord(vmid, "snapshot", vmtype, name, started_s=0.0, result=result, ended_s=724.0)
    shown.idle = {"vzdump": [1, 1, 1], "zstd": [1, 5, 5]}
    shown.effect_in_short = "compressor only, dump honoured"
    return shown


def refused() -> GuestRecord:
    shown = guest(104, "mail", "refused")
    shown.idle = {}
    return shown


def rows_of(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(("VM ", "CT ", "guest ")) and not line.startswith("guest  ")]


def test_a_run_at_a_glance() -> None:
    late = guest(103, "db")
    late.ended_s = 3890.0
    stalled = replace(charted(), guest=guest_view())
    table = job_table(
        [(guest(), record()), (late, stalled), (refused(), None), (guest(105, "erp"), record(hypervisor=HUNG))],
        (),
    )
    assert table == [
        "pvehook: 4 guests, worst first; write p99 in ms, before > during the backup",
        "guest             backup       took  stalled   write p99   idle  cause",
        "VM 103 db         ok           1h04      15s    4.1>1310    6/6  slow target",
        "VM 105 erp        ok          12m04        ?       4.1>?    6/6  -",
        "VM 101 web        ok          12m04       0s      4.1>24    6/6  -",
        "VM 104 mail       refused         -        -           -      -  window closed",
        "VM 103 db stalled: slow target: each first write of the guest waits for the",
        "  backup's copy (p99 of reads 2.1 ms (1810), of writes 1310 ms; mean write",
        "  before 4.1 ms, during 212 ms)",
        "idle priority: compressor only, dump honoured: 103, 105, 101",
        "- nothing to measure   ? could not be read",
    ]


def test_a_run_that_came_to_no_guest_has_no_table() -> None:
    assert job_table([], ()) == []


def test_where_nobody_looked_the_idle_threads_are_told_all_the_same() -> None:
    assert rows_of(job_table([(guest(), None)], ())) == [
        "VM 101 web        ok          12m04        -           -    6/6  -"
    ]


@pytest.mark.parametrize("result", ["ok", "failed", "refused", "cancelled", "worker-died", "running"])
def test_every_result_is_spelled_out(result: Result) -> None:
    assert f" {result} " in job_table([(guest(result=result), None)], ())[2] + " "


def test_the_worst_is_first_and_what_could_not_be_read_is_before_what_is_good() -> None:
    locked = record(verdict=Verdict("locked-up", 0.0, 0.0, ()), guest=guest_view(kernel=(SOFT_LOCKUP,)))
    run = [
        (guest(101), record()),
        (guest(102), record(hypervisor=HUNG)),
        (guest(103), record(stalled_s=5.0)),
        (guest(104), record(stalled_s=50.0)),
        (guest(105), locked),
        (guest(106), record(slowed_s=20.0)),
        (guest(107, result="failed"), None),
    ]
    order = [int(line.split()[1]) for line in rows_of(job_table(run, ()))[:7]]
    assert order == [105, 104, 103, 106, 102, 101, 107]


def test_zero_absent_and_broken_are_three_things() -> None:
    def stalled_of(stall: StallRecord) -> str:
        return rows_of(job_table([(guest(), stall)], ()))[0][36:45].strip()

    assert stalled_of(record()) == "0s"
    assert stalled_of(record(hypervisor=Absent("metrics are off"))) == "-"
    assert stalled_of(record(hypervisor=Broken("QMP did not answer within 5 s"))) == "?"


def test_a_container_has_no_p99_and_tells_what_it_waited() -> None:
    (row, *_) = rows_of(job_table([(guest(110, "mail", vmtype="lxc"), container())], ()))
    assert row == "CT 110 mail       ok          12m04      12s           -    6/6  shared disks"


def test_lockups_are_counted_and_the_first_is_quoted() -> None:
    lines = (SOFT_LOCKUP, KernelEvent(1.0, "rcu-stall", "rcu: INFO: rcu_sched self-detected stall on CPU"))
    locked = record(verdict=Verdict("locked-up", 0.0, 0.0, ()), guest=guest_view(kernel=lines))
    table = "\n".join(job_table([(guest(), locked)], ()))
    assert "VM 101 web locked up: 2 lines of its kernel about a lockup: watchdog: BUG: soft" in table
    assert "  lockup - CPU#1 stuck for 26s! [kworker/1:1:44]" in table


def test_a_slowed_guest_has_a_cause_and_no_lines_below() -> None:
    table = job_table([(guest(), record(slowed_s=20.0))], ())
    assert table[2].endswith("slow target")
    assert not any(line.startswith("VM 101 web slowed") for line in table)


@pytest.mark.parametrize(
    "name", ["n" * 500, "münchen", "数据库", "a b  c", "\\n\\x1b[2J", "x\n\x1b[2J\u202e", "", None]
)
@pytest.mark.parametrize("vmid", [100, 999_999_999])
def test_a_name_cannot_break_the_table(vmid: int, name: str | None) -> None:
    odd = guest(vmid, name)
    odd.effect_in_short = "ü" + "e" * 500
    hostile = SOFT_LOCKUP._replace(text="watchdog: \n\x1b[31m" + "x" * 5000)
    stall = record(vmid=vmid, verdict=Verdict("locked-up", 1e9, 1e9, ()), guest=guest_view(kernel=(hostile,)))
    lines = job_table([(guest(101), record()), (odd, stall), (guest(102), None)], ())
    for line in lines:
        assert len(line) <= WIDTH
        assert line.isascii()
        assert line.isprintable()
        assert line == line.rstrip()
    assert str(vmid) in lines[2]


def test_a_guest_that_vzdump_does_not_know_is_a_guest() -> None:
    assert job_table([(guest(199, None, "failed", None), None)], ())[2].startswith("guest 199 ")


def test_threads_that_are_not_idle_show() -> None:
    half = guest()
    half.idle = {"vzdump": [1, 1, 1], "zstd": [1, 5, 2]}
    assert " 3/6 " in job_table([(half, None)], ())[2]


def test_a_machine_of_many_cores_shows_its_whole_numbers() -> None:
    many = guest()
    many.idle = {"pigz": [1, 1128, 1128]}
    assert " 1128/1128 " in job_table([(many, None)], ())[2]


def test_guests_of_one_effect_share_its_line() -> None:
    other = guest(102)
    other.effect_in_short = "reading honoured, dump ignored (none)"
    table = job_table([(guest(), None), (other, None), (guest(103), None), (refused(), None)], ())
    assert table[-2:] == [
        "idle priority: compressor only, dump honoured: 101, 103",
        "idle priority: reading honoured, dump ignored (none): 102",
    ]


# Beside the backups of others


def test_who_suffered_beside_others_stands_among_the_rows_and_names_the_backup() -> None:
    told = [(guest(103, "db"), record(stalled_s=5.0)), (guest(110, "mail", vmtype="lxc"), None), (guest(), record())]
    suffering = [
        beside(),
        beside(vmid=120, name="shop", stalled_s=0.0, slowed_s=3.0),
        beside(vmid=121, stalled_s=0.0, slowed_s=0.0),
        beside(vmid=122, severity="unknown", stalled_s=HUNG),
    ]
    assert job_table(told, suffering) == [
        "pvehook: 3 guests, worst first; write p99 in ms, before > during the backup",
        "guest             backup       took  stalled   write p99   idle  cause",
        "VM 101 web        neighbour       -      17s     15>2405  beside VM 103's backup",
        "VM 103 db         ok          12m04       5s      4.1>24    6/6  slow target",
        "VM 120 shop       neighbour       -       0s     15>2405  beside VM 103's backup",
        "VM 101 web        ok          12m04       0s      4.1>24    6/6  -",
        "CT 110 mail       ok          12m04        -           -    6/6  -",
        "VM 101 web stalled beside the backups of VM 103 (12 s) and CT 110 (5 s); a",
        "  backup was slowed for it for 8 s",
        "VM 103 db stalled: slow target: each first write of the guest waits for the",
        "  backup's copy (p99 of reads 2.1 ms (1810), of writes 1310 ms; mean write",
        "  before 4.1 ms, during 212 ms)",
        "idle priority: compressor only, dump honoured: 103, 101, 110",
        "neighbour: suffered beside others' backups; p99 of all its requests",
    ]


def test_a_mail_does_not_grow_with_the_neighbours() -> None:
    suffering = [beside(vmid=200 + number, stalled_s=1.0 + number) for number in range(50)]
    table = job_table([(guest(), record())], suffering)
    assert [int(line.split()[1]) for line in table if " neighbour " in line] == list(range(249, 239, -1))
    assert "and 40 more guests suffered beside others' backups" in table
    assert len(table) < 40
    (line,) = [each for each in job_table([(guest(), None)], suffering[:11]) if each.startswith("and ")]
    assert line == "and 1 more guest suffered beside others' backups"


@pytest.mark.parametrize(
    ("vmid", "vmtype", "cause"),
    [
        (103, "qemu", "beside VM 103's backup"),
        (1030, "qemu", "beside VM 1030"),
        (999_999_999, "lxc", "beside CT 999999999"),
        (103, None, "beside guest 103"),
    ],
)
def test_the_number_of_the_guest_whose_backup_it_was_is_never_cut(vmid: int, vmtype: str | None, cause: str) -> None:
    worst = BesideBackup(vmid, vmtype, "shared", 60.0, 3.0, 9.0)
    (row,) = [line for line in job_table([(guest(), None)], [beside(beside=(worst,))]) if " neighbour " in line]
    assert row.endswith(f"15>2405  {cause}")
    assert len(row) <= WIDTH


def test_a_neighbours_figures_that_could_not_be_read_are_marked() -> None:
    shown = beside(severity="slowed", stalled_s=HUNG, p99_ms=HUNG, baseline_p99_ms=Absent("it made none"))
    table = job_table([(guest(), record())], [shown])
    assert "VM 101 web        neighbour       -        ?         ->?  beside VM 103's backup" in table
    assert table[-1] == "- nothing to measure   ? could not be read"


def test_no_table_without_a_backup() -> None:
    assert job_table([], [beside()]) == []


def overdue(vmid: int = 104, name: str = "mail") -> OverdueGuest:
    ways = ("to back it up now: " + "x" * 100, "to widen the window: y", "to split the job: z")
    return OverdueGuest(vmid, f"VM {vmid} {name}", "3d03h ago, Fri 2026-11-20 02:05", "refused 3 times: closed", ways)


def test_overdue_guests_stand_first_with_the_cause_and_what_helps() -> None:
    table = job_table([(guest(103), record(stalled_s=50.0)), (refused(), None)], (), [overdue()])
    assert table[:5] == [
        "pvehook: 1 guest OVERDUE for a backup:",
        "VM 104 mail: last good backup 3d03h ago, Fri 2026-11-20 02:05; refused 3 times:",
        "  closed",
        "  to back it up now: " + "x" * 100,  # to be copied, so it is not broken
        "  to widen the window: y",
    ]
    assert "2 guests, worst first" in table[5]
    assert [row.split()[1] for row in rows_of(table[7:9])] == ["104", "103"]
    assert table[7].endswith("  OVERDUE")


def test_overdue_guests_that_are_not_in_the_run_are_told_too_and_of_many_the_first() -> None:
    assert job_table([], (), [overdue()])[0] == "pvehook: 1 guest OVERDUE for a backup:"
    many = job_table([(guest(), record())], (), [overdue(vmid, "m\x1b\u00e4il") for vmid in range(200, 213)])
    assert many[0] == "pvehook: 13 guests OVERDUE for a backup:"
    assert "and 3 more: pvehook night" in many
    assert all(line.isascii() for line in many)
