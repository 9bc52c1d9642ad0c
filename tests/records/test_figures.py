"""Every figure has one name, and says by itself whether it is a value, absent or broken."""

from __future__ import annotations

import pytest

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.records.figures import (
    before_and_during,
    decode_figure,
    encode_figure,
    figures,
    in_bytes,
    marked,
    severity_key,
    short_duration,
    short_number,
)
from pvehook.records.stall_record import Baseline
from pvehook.rules.latency import Latency
from pvehook.rules.stalls import KernelEvent, Verdict
from tests.records.backups import (
    HUNG,
    NO_AGENT,
    SOFT_LOCKUP,
    charted,
    container,
    guest_view,
    host_view,
    hypervisor_view,
    record,
)


def test_what_all_three_views_saw() -> None:
    known = figures(charted())
    assert not [name for name, figure in known.items() if not isinstance(figure, float)]
    assert known["write_p99_ms"] == 1310.0
    assert known["baseline_write_p99_ms"] == 4.1
    assert known["guest_lockups"] == 1.0


def test_a_view_that_is_missing_takes_its_figures_with_it_and_no_others() -> None:
    known = figures(record(guest=NO_AGENT))
    assert {name for name, figure in known.items() if figure == NO_AGENT} == {
        "guest_io_some_s",
        "guest_io_full_s",
        "guest_cpu_some_s",
        "guest_memory_full_s",
        "guest_steal_s",
        "guest_lockups",
    }
    known = figures(record(hypervisor=HUNG))
    assert all(known[name] == HUNG for name in ("stalled_s", "slowed_s", "write_p99_ms", "over_1s", "qmp_silence_ms"))
    assert known["run_delay_s"] == 1.2


def test_a_part_of_a_view_may_be_missing_alone() -> None:
    psi_off = Absent("the guest's kernel has no pressure information")
    known = figures(record(guest=guest_view(io=psi_off, kernel=Broken("no such file"))))
    assert known["guest_io_some_s"] == psi_off
    assert known["guest_lockups"] == Broken("no such file")
    assert known["guest_steal_s"] == 0.8


def test_a_disk_without_a_histogram_gives_no_percentile_and_no_zero() -> None:
    bare = Latency(400, 3.0)
    view = hypervisor_view(read=bare, write=bare, flush=bare, not_armed=("scsi0: it was refused",))
    known = figures(record(hypervisor=view))
    assert known["write_p99_ms"] == Broken("no latency histogram: scsi0: it was refused")
    assert known["over_1s"] == Broken("no latency histogram: scsi0: it was refused")


def test_a_guest_that_did_nothing_has_no_percentile_and_no_request_over_1_s() -> None:
    nothing = Latency()
    known = figures(record(hypervisor=hypervisor_view(read=nothing, write=nothing, flush=nothing)))
    assert known["write_p99_ms"] == Absent("it made no write")
    assert known["over_1s"] == 0.0


def test_a_mean_since_the_start_is_no_p99() -> None:
    mean = Latency(9000, 2.0)
    known = figures(record(baseline=Baseline(1e6, "since-start", mean, mean, mean)))
    assert isinstance(known["baseline_write_p99_ms"], Absent)


def test_a_container_stalls_by_its_cgroup_and_says_why_it_cannot_be_slowed() -> None:
    known = figures(container())
    assert known["stalled_s"] == 12.0
    assert known["slowed_s"] == Absent("of a container only the seconds in which all of it waited are seen")
    assert known["write_p99_ms"] == Absent("a container has no QEMU")
    unseen = container(host=host_view(guest_io=Broken("no cgroup")), verdict=Verdict("unknown", None, None, ()))
    assert figures(unseen)["stalled_s"] == Broken("no cgroup")


def test_lockups_and_long_interrupts_are_told_from_other_lines() -> None:
    lines = (
        SOFT_LOCKUP,
        KernelEvent(1.0, "long-interrupt", "perf: interrupt took too long (2501 > 2500)"),
        KernelEvent(2.0, "storage-timeout", "sd 2:0:0:0: [sda] tag#76 ABORT operation started"),
    )
    known = figures(record(guest=guest_view(kernel=lines), host=host_view(kernel=lines)))
    assert known["guest_lockups"] == 1.0
    assert known["host_perf_lines"] == 1.0


@pytest.mark.parametrize(
    ("figure", "as_text"),
    [
        (0.0, 0),
        (3.4, 3.4),
        (31.0, 31),
        (Absent("no agent"), "absent: no agent"),
        (Broken("hung\n\x1b[2J"), "broken: hung\\n\\x1b[2J"),
    ],
)
def test_a_figure_is_told_as_one_value_and_read_back(figure: Measured[float], as_text: object) -> None:
    assert encode_figure(figure) == as_text
    assert encode_figure(decode_figure(as_text)) == as_text


@pytest.mark.parametrize("value", [None, b"", "none", [1]])
def test_what_is_no_figure_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is no figure"):
        decode_figure(value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.001, "<0.01"),
        (0.04, "0.04"),
        (0.26, "0.3"),
        (3.0, "3"),
        (3.44, "3.4"),
        (24.4, "24"),
        (1310.2, "1310"),
    ],
)
def test_a_number_is_short_and_zero_looks_like_nothing_else(value: float, shown: str) -> None:
    assert short_number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (45.4, "45s"), (59.6, "1m00"), (724, "12m04"), (3890, "1h04"), (266400, "3d02h")],
)
def test_a_duration_fits_five_characters(seconds: float, shown: str) -> None:
    assert short_duration(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1000 B"), (8.5 * 2**20, "8.5 MiB"), (2**50, "1.02e+03 TiB")],
)
def test_bytes_have_their_unit(number: float, shown: str) -> None:
    assert in_bytes(number) == shown


def test_marks() -> None:
    assert [marked(each, short_number) for each in (0.0, NO_AGENT, HUNG)] == ["0", "-", "?"]
    assert before_and_during(4.1, 24.0) == "4.1>24"
    assert before_and_during(NO_AGENT, NO_AGENT) == "-"
    assert before_and_during(HUNG, HUNG) == "?"
    assert before_and_during(NO_AGENT, HUNG) == "->?"


def test_the_order_of_bad_nights() -> None:
    order = [
        severity_key("locked-up", 0.0, 0.0),
        severity_key("stalled", 50.0, 90.0),
        severity_key("stalled", 5.0, 900.0),
        severity_key("slowed", 0.0, 20.0),
        severity_key("unknown", HUNG, HUNG),
        severity_key("none", 0.0, 0.5),
        severity_key("none", 0.0, 0.0),
        severity_key("unknown", NO_AGENT, NO_AGENT),
    ]
    assert order == sorted(order, reverse=True)
