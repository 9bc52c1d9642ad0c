"""What a guest suffers beside the backups of others, counted."""

from __future__ import annotations

import bisect

import pytest

from pvehook.contract.latency import Histogram, RequestCounters, our_boundaries_ns
from pvehook.contract.measured import Absent, value_of
from pvehook.records.beside_record import BesideRecord
from pvehook.watch.suffering import GRAIN_S, Beside, Suffering, Sufferings

WEB = Beside(101, "qemu", "shared")
DB = Beside(102, "qemu", "unknown")


def new(vmid: int = 105) -> Suffering:
    return Suffering(vmid=vmid, name="db", vmtype="qemu", started_s=1000.0, started_at_s=50.0)


def writes(latency_ms: float, count: int = 1, *, histogram: bool = True) -> dict[str, RequestCounters]:
    boundaries = our_boundaries_ns()
    counts = [0] * (len(boundaries) + 1)
    counts[bisect.bisect_right(boundaries, round(latency_ms * 1e6))] = count
    total_ns = round(latency_ms * 1e6) * count
    return {"write": RequestCounters(count, 0, total_ns, Histogram(boundaries, tuple(counts)) if histogram else None)}


def record(suffering: Suffering) -> BesideRecord:
    return suffering.record("node", "UPID:", 2000.0)


def test_by_whose_backup_the_worst_first() -> None:
    guest = new()
    guest.take_requests(WEB, 61.0, 60.0, writes(300.0))
    guest.take_requests(DB, 71.0, 70.0, writes(1500.0))
    guest.take_requests(Beside(103, "lxc", "shared"), 81.0, 80.0, writes(5.0, 100))
    guest.take_slowing(WEB, 7.0)
    found = record(guest)
    assert [each.vmid for each in found.beside] == [102, 101]  # nothing was suffered beside 103
    assert found.beside[0].stalled_s == pytest.approx(1.5, rel=0.01)
    assert (found.beside[1].slowed_backup_s, found.beside[1].stalled_s, found.watched_s) == (7.0, 0.0, 3.0)
    assert value_of(found.slowed_s) == pytest.approx(1.8, rel=0.01)
    assert value_of(found.p99_ms) == pytest.approx(300.0, rel=0.13)
    assert found.severity == "stalled"


def test_a_guest_that_was_well_has_no_record() -> None:
    all_of = Sufferings("")
    for vmid, latency_ms in ((105, 5.0), (106, 300.0), (107, 2600.0)):
        with all_of.counted(vmid, lambda vmid=vmid: new(vmid)) as guest:  # type: ignore[misc]
            guest.take_requests(WEB, 61.0, 60.0, writes(latency_ms))
    assert [each.vmid for each in all_of.records("UPID:", 2000.0)] == [107]


def test_without_histograms_one_request_took_as_long_as_their_mean() -> None:
    guest = new()
    guest.take_requests(WEB, 61.0, 60.0, writes(2600.0, 3, histogram=False))
    found = record(guest)
    assert value_of(found.stalled_s) == pytest.approx(2.6)
    assert found.p99_ms == Absent("its requests were not seen one by one")


def test_by_block_devices_it_is_at_least_so_long() -> None:
    guest = new()
    guest.take_wait(WEB, 61.0, 60.0, 0.09)
    guest.take_wait(WEB, 64.0, 63.0, 2.0)
    found = record(guest)
    assert (found.seen_by, found.stalled_s, found.slowed_s) == ("block-devices", 2.0, 2.0)


def test_marks_say_when_it_was() -> None:
    guest = new()
    guest.take_wait(WEB, 62.0, 50.0, 11.0)  # from the 1st to the 12th second
    marks = record(guest).marks
    assert [each.at_s for each in marks] == [GRAIN_S, 2 * GRAIN_S, 3 * GRAIN_S]
    assert [each.stalled_s for each in marks] == pytest.approx([4.0, 5.0, 2.0])


def test_a_container_by_its_pressure() -> None:
    guest = new()
    guest.take_pressure(WEB, 61.0, 60.0, 0.4, 0.9)
    guest.take_pressure(WEB, 62.0, 61.0, 0.8, 1.0)
    found = record(guest)
    assert (found.seen_by, found.severity) == ("pressure", "stalled")
    assert value_of(found.stalled_s) == pytest.approx(1.2)
    assert value_of(found.slowed_s) == pytest.approx(1.9)


def test_what_began_anew_is_not_counted_twice() -> None:
    """Counted by its devices while the monitor hung, then by its monitor: no more time than there was."""
    guest = new()
    for second in range(60, 70):
        guest.take_wait(WEB, second + 1.0, float(second), 1.0)
    guest.take_requests(WEB, 71.0, 59.0, writes(10_500.0))
    stalled_s = value_of(record(guest).stalled_s)
    assert stalled_s is not None
    assert stalled_s <= 12.0
