"""What is told of one guest at its end: a sentence in the journal, lines in vzdump's task log."""

from __future__ import annotations

from typing import Any

import pytest

from pvehook.contract.measured import Absent
from pvehook.records.guest_record import GuestRecord
from pvehook.records.guest_summary import (
    guest_done_fields,
    guest_title,
    idle_in_words,
    stall_in_words,
    summary_lines,
    summary_message,
)
from tests.records.backups import HUNG, NO_AGENT, SLOW_TARGET, SOFT_LOCKUP, charted, guest_view, record


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
    assert summary_message(guest()) == (
        "VM 101 (web): backup ok; idle I/O priority on vzdump, zstd (2 processes, 6 of 6 threads, read back); "
        "effect: compressor only, dump honoured"
    )
    assert summary_lines(guest()) == [
        "VM 101 (web): idle I/O priority on vzdump, zstd (2 processes, 6 of 6 threads, read back)",
        "VM 101 (web): effect: On the dump /var/lib/vz/dump: honoured (sda has mq-deadline).",
    ]


def test_one_process_is_not_several() -> None:
    assert "(1 process, 1 of 1 threads" in idle_in_words(guest(idle={"vzdump": [1, 1, 1]}))


def test_nothing_set_is_said_and_is_not_the_same_as_not_begun() -> None:
    assert idle_in_words(guest(idle={})) == "no backup process was set to the idle I/O class"
    assert "class" not in summary_message(guest(idle={}, result="refused"))


def test_a_refused_guest_was_told_already() -> None:
    assert summary_lines(guest(result="refused")) == []
    assert summary_message(guest(result="refused")) == "VM 101 (web): refused, the window is closed"


@pytest.mark.parametrize("result", ["failed", "cancelled", "worker-died"])
def test_another_end_is_named(result: str) -> None:
    assert f"backup {result};" in summary_message(guest(result=result))


def test_what_could_not_be_set_is_said_with_its_reason() -> None:
    lines = summary_lines(guest(not_idle=["zstd: Operation not permitted"]))
    assert "VM 101 (web): NOT in the idle I/O class: zstd: Operation not permitted" in lines


def test_a_vm_that_was_put_back_is_told_in_both() -> None:
    restored = guest(restored=["kvm 4711: 3 of 3 threads back at normal priority"])
    assert summary_lines(restored)[-1] == "VM 101 (web): kvm 4711: 3 of 3 threads back at normal priority"
    assert "1 of its processes restored to normal priority" in summary_message(restored)


def test_a_guest_that_ran_over_the_windows_end_says_by_how_much() -> None:
    late = guest(closed_at_s=1000.0, ended_s=1000.0 + 25 * 60, closed_plan="running_guest: finish lets it finish")
    (line,) = [line for line in summary_lines(late) if "past" in line]
    assert line.endswith("ran 25 minutes past the window's end (running_guest: finish lets it finish)")


def test_a_cancelled_guest_is_called_that() -> None:
    lines = summary_lines(guest(result="cancelled", closed_at_s=1000.0, cancel_sent=True))
    assert "1 minute past the window's end and was cancelled" in lines[-1]


def test_a_guest_inside_the_window_says_nothing_of_its_end() -> None:
    assert not any("past the window" in line for line in summary_lines(guest(closed_at_s=None)))


def test_what_the_guest_suffered_is_told_in_both() -> None:
    bad = charted()
    sentence = (
        "stalled for 15 s, slowed for 91 s, p99 of writes 4.1 ms before and 1310 ms during, 1 line of its kernel about "
        "a lockup; slow target: each first write of the guest waits for the backup's copy "
        "(p99 of reads 2.1 ms (1810), of writes 1310 ms; mean write before 4.1 ms, during 212 ms)"
    )
    assert summary_message(guest(), bad).endswith(f"; {sentence}")
    assert summary_lines(guest(), bad)[-2:] == [
        f"VM 101 (web): {sentence}",
        "VM 101 (web): its kernel logged: watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/1:1:44]",
    ]


def test_not_stalled_not_looked_at_and_not_read_are_three_sentences() -> None:
    assert stall_in_words(record()) == "not stalled, slowed for 0 s, p99 of writes 4.1 ms before and 24 ms during"
    assert stall_in_words(record(hypervisor=Absent("metrics are off"))) == (
        "whether it stalled was not seen: metrics are off"
    )
    assert stall_in_words(record(hypervisor=HUNG)) == (
        "whether it stalled could not be read: QMP did not answer within 5 s"
    )


def test_a_kernel_that_says_much_is_not_quoted_without_end() -> None:
    lines = tuple(SOFT_LOCKUP._replace(text=f"line {number}\n\x1b[2J") for number in range(50))
    shown = summary_lines(guest(), record(guest=guest_view(kernel=lines)))
    quoted = [line for line in shown if "its kernel logged" in line]
    assert quoted == [f"VM 101 (web): its kernel logged: line {number}\\n\\x1b[2J" for number in range(3)]
    assert "50 lines of its kernel about a lockup" in shown[-4]


def test_the_journal_gets_every_figure_or_why_it_is_missing() -> None:
    fields = guest_done_fields(guest(), record(guest=NO_AGENT, baseline=HUNG))
    assert fields["severity"] == "none"
    assert fields["stalled_s"] == 0
    assert fields["write_p99_ms"] == 24
    assert fields["guest_io_some_s"] == "absent: the guest runs no agent"
    assert fields["guest_lockups"] == "absent: the guest runs no agent"
    assert fields["baseline_write_p99_ms"] == "broken: QMP did not answer within 5 s"
    assert fields["qemu"] == "10.0.2"
    assert {"over_1s", "over_10s", "run_delay_s", "host_io_full_s", "host_perf_lines", "sampler_cpu_s"} <= set(fields)


def test_causes_and_kernel_lines_are_in_the_journal() -> None:
    fields = guest_done_fields(guest(), charted())
    assert fields["causes"] == [f"slow-target: {SLOW_TARGET.evidence}"]
    assert fields["kernel_lines"] == ["watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/1:1:44]"]
    assert fields["guest_lockups"] == 1
