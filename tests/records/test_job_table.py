"""The table that Proxmox mails: 80 columns, ASCII, one line a guest, whatever the guests are called."""

from __future__ import annotations

import pytest

from pvehook.records.guest_record import GuestRecord
from pvehook.records.job_table import WIDTH, job_table


def guest(vmid: int = 101, name: str | None = "web", result: str = "ok", vmtype: str | None = "qemu") -> GuestRecord:
    record = GuestRecord(vmid, "snapshot", vmtype, name, started_s=0.0, result=result)
    record.idle = {"vzdump": [1, 1, 1], "zstd": [1, 5, 5]}
    record.effect_in_short = "compressor only, dump honoured"
    return record


def test_a_run_at_a_glance() -> None:
    refused = guest(103, "db", "refused")
    refused.idle = {}
    nothing_set = guest(104, None)
    nothing_set.idle = {}
    assert job_table([guest(), guest(110, "mail", "failed", "lxc"), refused, nothing_set]) == [
        "pvehook: guest                backup      idle   effect of idle I/O priority",
        "         VM 101 web           ok          6/6    compressor only, dump honoured",
        "         CT 110 mail          failed      6/6    compressor only, dump honoured",
        "         VM 103 db            refused     -      -",
        "         VM 104               ok          -      compressor only, dump honoured",
    ]


def test_a_run_that_came_to_no_guest_has_no_table() -> None:
    assert job_table([]) == []


@pytest.mark.parametrize("result", ["ok", "failed", "refused", "cancelled", "worker-died", "running"])
def test_every_result_is_spelled_out(result: str) -> None:
    assert f" {result} " in job_table([guest(result=result)])[1] + " "


@pytest.mark.parametrize("name", ["n" * 500, "münchen", "数据库", "a b  c", "\\n\\x1b[2J", "", None])
@pytest.mark.parametrize("vmid", [100, 999_999_999])
def test_a_name_cannot_break_the_table(vmid: int, name: str | None) -> None:
    odd = guest(vmid, name)
    odd.effect_in_short = "ü" + "e" * 500
    lines = job_table([guest(), odd, guest()])
    assert len(lines) == 4
    for line in lines:
        assert len(line) <= WIDTH
        assert line.isascii()
        assert line.isprintable()
        assert line == line.rstrip()
    assert str(vmid) in lines[2]


def test_a_guest_that_vzdump_does_not_know_is_a_guest() -> None:
    assert "guest 199 " in job_table([guest(199, None, "failed", None)])[1]


def test_threads_that_are_not_idle_show() -> None:
    half = guest()
    half.idle = {"vzdump": [1, 1, 1], "zstd": [1, 5, 2]}
    assert " 3/6 " in job_table([half])[1]


def test_a_machine_of_many_cores_shows_its_whole_numbers() -> None:
    many = guest()
    many.idle = {"pigz": [1, 1128, 1128]}
    assert " 1128/1128 " in job_table([many])[1]
