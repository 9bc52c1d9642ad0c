"""What is told of one guest at its end: a sentence in the journal, lines in vzdump's task log."""

from __future__ import annotations

from typing import Any

import pytest

from pvehook.records.guest_account import account_lines, account_message, guest_title, idle_in_words
from pvehook.records.guest_record import GuestRecord


def guest(**changes: Any) -> GuestRecord:
    values: dict[str, Any] = {
        "vmid": 101,
        "mode": "snapshot",
        "vmtype": "qemu",
        "name": "web",
        "started_s": 1000.0,
        "ended_s": 1060.0,
        "result": "ok",
        "idle": {"zstd": [1, 5, 5], "vzdump": [1, 1, 1]},
        "effect": ["On the dump /var/lib/vz/dump: honoured (sda has mq-deadline)."],
        "effect_in_short": "compressor only, dump honoured",
    }
    return GuestRecord(**{**values, **changes})


@pytest.mark.parametrize(
    ("vmtype", "name", "title"),
    [("qemu", "web", "VM 101 (web)"), ("lxc", None, "CT 101"), (None, None, "guest 101"), ("new", "", "guest 101")],
)
def test_a_guests_title(vmtype: str | None, name: str | None, title: str) -> None:
    assert guest_title(guest(vmtype=vmtype, name=name)) == title


def test_a_good_backup_says_what_was_done_and_what_it_can_do() -> None:
    assert account_message(guest()) == (
        "VM 101 (web): backup ok; idle I/O priority on vzdump, zstd (2 processes, 6 of 6 threads, read back); "
        "effect: compressor only, dump honoured"
    )
    assert account_lines(guest()) == [
        "VM 101 (web): idle I/O priority on vzdump, zstd (2 processes, 6 of 6 threads, read back)",
        "VM 101 (web): effect: On the dump /var/lib/vz/dump: honoured (sda has mq-deadline).",
    ]


def test_one_process_is_not_several() -> None:
    assert "(1 process, 1 of 1 threads" in idle_in_words(guest(idle={"vzdump": [1, 1, 1]}))


def test_nothing_set_is_said_and_is_not_the_same_as_not_begun() -> None:
    assert idle_in_words(guest(idle={})) == "no backup process was put to idle I/O priority"
    assert idle_in_words(guest(idle={}, result="refused")) == "not begun"


def test_a_refused_guest_was_told_already() -> None:
    assert account_lines(guest(result="refused")) == []
    assert account_message(guest(result="refused")) == "VM 101 (web): refused, the window is shut"


@pytest.mark.parametrize("result", ["failed", "cancelled", "worker-died"])
def test_another_end_is_named(result: str) -> None:
    assert f"backup {result};" in account_message(guest(result=result))


def test_what_could_not_be_set_is_said_with_its_reason() -> None:
    lines = account_lines(guest(not_idle=["zstd: Operation not permitted"]))
    assert "VM 101 (web): NOT at idle: zstd: Operation not permitted" in lines


def test_a_vm_that_was_put_back_is_told_in_both() -> None:
    restored = guest(restored=["kvm 4711: 3 of 3 threads back at normal priority"])
    assert account_lines(restored)[-1] == "VM 101 (web): kvm 4711: 3 of 3 threads back at normal priority"
    assert "1 of its processes put back to normal priority" in account_message(restored)


def test_a_guest_that_ran_over_the_windows_end_says_by_how_much() -> None:
    late = guest(shut_at_s=1000.0, ended_s=1000.0 + 25 * 60, shut_plan="running_guest: finish lets it finish")
    (line,) = [line for line in account_lines(late) if "past" in line]
    assert line.endswith("ran 25 minutes past the window's end (running_guest: finish lets it finish)")


def test_a_cancelled_guest_is_called_that() -> None:
    lines = account_lines(guest(result="cancelled", shut_at_s=1000.0, cancel_sent=True))
    assert "1 minutes past the window's end and was cancelled" in lines[-1]


def test_a_guest_inside_the_window_says_nothing_of_its_end() -> None:
    assert not any("past the window" in line for line in account_lines(guest(shut_at_s=None)))
