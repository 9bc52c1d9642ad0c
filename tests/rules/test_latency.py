"""From QEMU's histograms to milliseconds."""

from __future__ import annotations

import bisect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvehook.contract.latency import DiskCounters, Histogram, RequestCounters, our_boundaries_ns
from pvehook.rules.latency import completed_between, count_from, disks_between, latency_of, quantile_ms, sum_of

MS = 1_000_000


def served(*latencies_ms: float, boundaries_ns: tuple[int, ...] = our_boundaries_ns()) -> RequestCounters:
    """Counters after these requests, as QEMU makes them."""
    counts = [0] * (len(boundaries_ns) + 1)
    for latency_ms in latencies_ms:
        counts[bisect.bisect_right(boundaries_ns, round(latency_ms * MS))] += 1
    total_ns = round(sum(latencies_ms) * MS)
    return RequestCounters(
        len(latencies_ms), 4096 * len(latencies_ms), total_ns, Histogram(boundaries_ns, tuple(counts))
    )


def test_our_boundaries_hold_what_counts_as_a_stall() -> None:
    assert {100 * MS, 1000 * MS, 10_000 * MS} <= set(our_boundaries_ns())
    assert len(our_boundaries_ns()) == 121


@given(st.lists(st.floats(0.11, 90_000), min_size=1, max_size=300))
def test_a_percentile_is_right_to_the_width_of_a_bin(latencies_ms: list[float]) -> None:
    latency = latency_of(served(*latencies_ms))
    ordered = sorted(latencies_ms)
    for part, shown in ((0.5, latency.p50_ms), (0.95, latency.p95_ms), (0.99, latency.p99_ms)):
        wanted = ordered[max(-(-int(part * 100) * len(ordered) // 100), 1) - 1]
        assert shown == pytest.approx(wanted, rel=0.13)
    assert latency.mean_ms == pytest.approx(sum(latencies_ms) / len(latencies_ms), rel=0.01)
    assert latency.over_1s == sum(round(each * MS) >= 1000 * MS for each in latencies_ms)
    assert latency.over_10s == sum(round(each * MS) >= 10_000 * MS for each in latencies_ms)


def test_no_request_is_no_percentile_and_not_zero() -> None:
    assert latency_of(served()) == (0, None, None, None, None, None, 0, 0)


def test_without_a_histogram_there_is_a_mean_and_nothing_else() -> None:
    latency = latency_of(RequestCounters(4, 0, 8 * MS, None))
    assert (latency.mean_ms, latency.p99_ms) == (2.0, None)


def test_the_difference_of_two_readings_is_what_was_completed_in_between() -> None:
    assert completed_between(served(1, 2000), served(1, 2000, 3)).operations == 1
    assert latency_of(completed_between(served(1, 2000), served(1, 2000, 3))).over_1s == 0


def test_counters_that_went_back_tell_nothing() -> None:
    assert completed_between(served(1, 2, 3), served(1)) == RequestCounters(0, 0, 0, None)


def test_a_histogram_that_was_armed_in_between_has_counted_since_then() -> None:
    unarmed = RequestCounters(5, 0, 5 * MS, None)
    after = served(1500)._replace(operations=6, total_time_ns=1505 * MS)
    assert latency_of(completed_between(unarmed, after)).over_1s == 1


def test_a_histogram_that_was_armed_anew_with_other_boundaries_is_left_out() -> None:
    other = served(1, 1500, boundaries_ns=(5 * MS,))
    assert completed_between(served(1), other).histogram is None


def test_requests_over_a_second_are_counted_from_the_next_boundary_where_there_is_none_at_a_second() -> None:
    theirs = served(1500, 2500, boundaries_ns=(10 * MS, 2000 * MS)).histogram
    assert theirs is not None
    assert count_from(theirs, 1000 * MS) == 1  # the one of 1.5 s may be any between 10 ms and 2 s


def test_disks_are_added_up_and_one_that_was_plugged_in_meanwhile_is_left_out() -> None:
    def disk(qdev: str, *writes_ms: float) -> DiskCounters:
        return DiskCounters(qdev, qdev, served(), served(*writes_ms), served())

    completed = disks_between(
        [disk("scsi0", 1), disk("scsi1")], [disk("scsi0", 1, 2), disk("scsi1", 3, 4), disk("scsi2", 5, 5, 5)]
    )
    assert completed["write"].operations == 3
    assert completed["read"].operations == 0


def test_histograms_with_other_boundaries_are_not_mixed() -> None:
    together = sum_of([served(1), served(1, boundaries_ns=(5 * MS,))])
    assert together.operations == 2
    assert together.histogram is not None
    assert sum(together.histogram.counts) == 1


def test_an_empty_histogram_has_no_quantile() -> None:
    assert quantile_ms(Histogram((MS,), (0, 0)), 0.99) is None
