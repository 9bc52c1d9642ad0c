"""From QEMU's histograms to milliseconds: differences, sums, percentiles.

A percentile is the geometric middle of its bin: right to 6 % with pvehook's own boundaries, which are 12 % apart.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable
from operator import sub
from typing import Final, NamedTuple

from pvehook.contract.latency import REQUEST_KINDS, DiskCounters, Histogram, RequestCounters

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000


class Latency(NamedTuple):
    """How long requests of one kind took. The percentiles are None without a request or without a histogram."""

    operations: int = 0
    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    """The upper end of the slowest request's bin; for the last bin, which has none, its lower end."""
    over_1s: int = 0
    over_10s: int = 0


def completed_between(before: RequestCounters, after: RequestCounters) -> RequestCounters:
    """What was completed between two readings. A counter that went back (the VM was restarted, a histogram was armed or
    removed in between) gives nothing rather than a wrong number."""
    if after.operations < before.operations or after.total_time_ns < before.total_time_ns:
        return RequestCounters(0, 0, 0, None)
    return RequestCounters(
        after.operations - before.operations,
        max(after.bytes - before.bytes, 0),
        after.total_time_ns - before.total_time_ns,
        _difference(before.histogram, after.histogram),
    )


def sum_of(counters: Iterable[RequestCounters]) -> RequestCounters:
    """Several disks or kinds together, without histograms whose boundaries differ from the first one's."""
    operations = number_of_bytes = total_time_ns = 0
    histograms: list[Histogram] = []
    for each in counters:
        operations += each.operations
        number_of_bytes += each.bytes
        total_time_ns += each.total_time_ns
        if each.histogram is not None:
            histograms.append(each.histogram)
    histogram = histograms[0] if histograms else None
    if histogram is not None and len(histograms) > 1:
        bounds = histogram.boundaries_ns
        # Most are empty, a kind that is not used or a disk that rests: this is done for each sample of each guest.
        counted = [each.counts for each in histograms if each.boundaries_ns == bounds and any(each.counts)]
        counts = tuple(map(sum, zip(*counted, strict=True))) if len(counted) > 1 else (*counted, histogram.counts)[0]
        histogram = Histogram(bounds, counts)
    return RequestCounters(operations, number_of_bytes, total_time_ns, histogram)


def disks_between(before: Iterable[DiskCounters], after: Iterable[DiskCounters]) -> dict[str, RequestCounters]:
    """What all disks together completed between two readings, by kind, without disks that were added or removed."""
    earlier = {disk.qdev: disk for disk in before}
    pairs = [(earlier[disk.qdev], disk) for disk in after if disk.qdev in earlier]
    return {
        kind: sum_of(completed_between(getattr(old, kind), getattr(new, kind)) for old, new in pairs)
        for kind in REQUEST_KINDS
    }


def latency_of(counters: RequestCounters) -> Latency:
    """The figures of one kind of request."""
    if not counters.operations:
        return Latency()
    mean_ms = counters.total_time_ns / counters.operations / NS_PER_MS
    histogram = counters.histogram
    if histogram is None or not any(histogram.counts):
        return Latency(counters.operations, mean_ms)
    slowest = max(index for index, count in enumerate(histogram.counts) if count)
    return Latency(
        counters.operations,
        mean_ms,
        quantile_ms(histogram, 0.5),
        quantile_ms(histogram, 0.95),
        quantile_ms(histogram, 0.99),
        histogram.boundaries_ns[min(slowest, len(histogram.boundaries_ns) - 1)] / NS_PER_MS,
        count_from(histogram, NS_PER_S),
        count_from(histogram, 10 * NS_PER_S),
    )


def quantile_ms(histogram: Histogram, part: float) -> float | None:
    """What `part` of the requests did not exceed; None for an empty histogram."""
    up_to = list(itertools.accumulate(histogram.counts))
    wanted = math.ceil(part * up_to[-1])
    return middle_ns(histogram, bisect.bisect_left(up_to, wanted)) / NS_PER_MS if wanted else None


def count_from(histogram: Histogram, at_least_ns: int) -> int:
    """Requests in bins that begin at `at_least_ns` or later: a lower bound where the boundaries do not hold it."""
    first = bisect.bisect_left(histogram.boundaries_ns, at_least_ns) + 1
    return sum(histogram.counts[first:])


def middle_ns(histogram: Histogram, index: int) -> float:
    """The geometric middle of a bin; of the first, half its end, of the last, which has no end, its beginning."""
    bounds = histogram.boundaries_ns
    if index == 0:
        return bounds[0] / 2
    if index == len(bounds):
        return bounds[-1]
    return math.sqrt(bounds[index - 1] * bounds[index])


def _difference(before: Histogram | None, after: Histogram | None) -> Histogram | None:
    if after is None:
        return None
    if before is None:
        return after  # armed in between: it has counted nothing but what came since
    if before.boundaries_ns != after.boundaries_ns:
        return None
    if before.counts == after.counts:  # a disk that rests, or a kind that is not used
        return Histogram(after.boundaries_ns, (0,) * len(after.counts))
    counts = tuple(map(sub, after.counts, before.counts))
    return Histogram(after.boundaries_ns, counts) if min(counts) >= 0 else None
