"""What counts as a stall, how bad a night was, and why."""

from __future__ import annotations

import random

import pytest

from pvehook.contract.latency import RequestCounters
from pvehook.contract.measured import Absent, Broken
from pvehook.rules.latency import latency_of
from pvehook.rules.stalls import (
    STALLED_AFTER_S,
    Count,
    GuestView,
    HostView,
    HypervisorView,
    KernelEvent,
    PressureSeconds,
    Seen,
    count_stall,
    judge,
)
from tests.rules.test_latency import served

NOTHING = PressureSeconds(0.0, 0.0)
QUIET_HOST = HostView(0.0, 0.0, 0.0, 0.0, 0.0, NOTHING, NOTHING, Absent("a VM"), (), 3.0)
QUIET_GUEST = GuestView(NOTHING, NOTHING, NOTHING, 0.0, ())


def view(
    reads_ms: list[float], writes_ms: list[float], stalled_s: float = 0.0, slowed_s: float = 0.0
) -> HypervisorView:
    reads, writes = latency_of(served(*reads_ms)), latency_of(served(*writes_ms))
    return HypervisorView(reads, writes, latency_of(served()), stalled_s, slowed_s, 100, 5.0, "running")


QUIET = view([1.0] * 50, [2.0] * 50)


def seen(**changes: object) -> Seen:
    quiet = Seen(duration_s=100.0, vcpus=2, guest=QUIET_GUEST, hypervisor=QUIET, host=QUIET_HOST)
    return quiet._replace(**changes)  # type: ignore[arg-type]


# Counting


def counted(ends: list[tuple[float, float]], every_s: float = 0.5) -> float:
    """`stalled_s` of a serial writer whose requests ended at these times and took so long (both in seconds)."""
    count, at_s, left = Count(STALLED_AFTER_S), 0.0, list(ends)
    while left:
        since_s, at_s = at_s, at_s + every_s
        now = [took_s * 1000 for end_s, took_s in left if end_s <= at_s]
        left = [each for each in left if each[0] > at_s]
        count = count_stall(count, at_s, since_s, {"write": served(*now)})
    return count.total_s


def one_after_the_other(took_s: list[float]) -> list[tuple[float, float]]:
    at_s, ends = 5.0, []
    for each in took_s:
        at_s += each
        ends.append((at_s, each))
    return ends


def test_the_example_of_the_definition() -> None:
    assert counted(one_after_the_other([2.6, 2.7])) == pytest.approx(5.3, abs=0.5)


def test_quick_requests_are_no_stall() -> None:
    assert counted(one_after_the_other([0.9] * 20)) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_a_serial_writers_stalls_are_counted_as_it_felt_them(seed: int) -> None:
    rng = random.Random(seed)
    took_s = [rng.choice((0.002, 0.05, 0.4, rng.uniform(1.05, 8))) for _ in range(60)]
    felt_s = sum(each for each in took_s if each > STALLED_AFTER_S)
    assert counted(one_after_the_other(took_s)) == pytest.approx(felt_s, rel=0.05)


def test_time_that_several_requests_cover_counts_once() -> None:
    assert counted([(8.0, 3.0)] * 16) == pytest.approx(3.0, rel=0.07)
    assert counted([(8.0, 3.0), (8.3, 3.1), (8.45, 3.2)]) == pytest.approx(3.45, abs=0.5)


@pytest.mark.parametrize("seed", range(20))
def test_no_more_is_counted_than_time_has_passed(seed: int) -> None:
    rng = random.Random(seed)
    ends = sorted((rng.uniform(5, 30), rng.uniform(0.1, 9)) for _ in range(200))
    assert counted(ends) <= 30 + 4 + 0.5  # the first began 4 s before the clock


def test_a_reading_without_a_histogram_counts_nothing() -> None:
    count = count_stall(Count(STALLED_AFTER_S), 1.0, 0.5, {"write": RequestCounters(3, 0, 9_000_000_000, None)})
    assert count.total_s == 0.0


# Judging


def test_a_quiet_night() -> None:
    verdict = judge(seen())
    assert (verdict.severity, verdict.stalled_s, verdict.causes) == ("none", 0.0, ())


def test_time_frozen_is_time_stalled_in_every_figure() -> None:
    assert judge(seen(frozen_ms=999)).stalled_s == 0.0
    frozen = judge(seen(frozen_ms=9700))
    assert (frozen.severity, frozen.stalled_s, frozen.slowed_s) == ("stalled", 9.7, 9.7)
    unseen = judge(seen(frozen_ms=9700, hypervisor=Broken("QMP did not answer")))
    assert (unseen.severity, unseen.stalled_s, unseen.slowed_s) == ("stalled", 9.7, None)


@pytest.mark.parametrize(
    ("changes", "severity"),
    [
        ({"hypervisor": QUIET._replace(stalled_s=1.0)}, "stalled"),
        ({"hypervisor": QUIET._replace(stalled_s=0.9, slowed_s=0.9)}, "none"),
        ({"hypervisor": QUIET._replace(slowed_s=1.0)}, "slowed"),
        ({"frozen_ms": 1000}, "stalled"),
        ({"frozen_ms": 999}, "none"),
        ({"hypervisor": Broken("QMP hung"), "guest": Absent("no agent")}, "unknown"),
        ({"guest": Absent("no agent"), "host": Broken("no /proc")}, "none"),
    ],
)
def test_how_bad_it_was(changes: dict[str, object], severity: str) -> None:
    assert judge(seen(**changes)).severity == severity


@pytest.mark.parametrize("kind", ["soft-lockup", "hard-lockup", "rcu-stall", "hung-task"])
def test_a_lockup_in_the_guests_log_is_the_worst(kind: str) -> None:
    guest = QUIET_GUEST._replace(kernel=(KernelEvent(1.0, kind, "text"),))
    assert judge(seen(guest=guest)).severity == "locked-up"


def test_another_line_of_the_guests_log_is_not() -> None:
    guest = QUIET_GUEST._replace(kernel=(KernelEvent(1.0, "storage-timeout", "text"),))
    assert judge(seen(guest=guest)).severity == "none"


def test_what_was_not_seen_is_not_zero() -> None:
    verdict = judge(seen(hypervisor=Broken("QMP hung"), host=Broken("x")))
    assert (verdict.stalled_s, verdict.slowed_s) == (None, None)


@pytest.mark.parametrize(("silence_ms", "severity"), [(9_900.0, "none"), (10_000.0, "unknown"), (120_000.0, "unknown")])
def test_a_qemu_that_was_silent_for_long_is_not_harmless(silence_ms: float, severity: str) -> None:
    """Its guest may have stood still with it; nothing that QEMU counts tells."""
    assert judge(seen(hypervisor=QUIET._replace(silence_ms=silence_ms))).severity == severity
    stalled = QUIET._replace(stalled_s=3.0, silence_ms=silence_ms)
    assert judge(seen(hypervisor=stalled)).severity == "stalled"


def test_a_container_is_judged_by_its_cgroup() -> None:
    host = QUIET_HOST._replace(guest_io=PressureSeconds(9.0, 4.0))
    verdict = judge(seen(hypervisor=Absent("a container"), host=host))
    assert (verdict.severity, verdict.stalled_s) == ("stalled", 4.0)
    assert [cause.kind for cause in verdict.causes] == ["shared-disks"]


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"hypervisor": view([2.0] * 50, [900.0] * 50, 5.0, 9.0)}, ["slow-target"]),
        ({"hypervisor": view([700.0] * 50, [900.0] * 50, 5.0, 9.0)}, ["shared-disks"]),
        ({"hypervisor": view([2.0] * 5, [900.0] * 50, 5.0, 9.0)}, ["disks"]),
        ({"hypervisor": view([2.0] * 200, [3.0] * 500 + [4000.0], 4.0, 4.0)}, ["slow-target"]),
        ({"hypervisor": view([2.0] * 50, [900.0] * 50)}, []),  # slow, but never for a second in all
        ({"host": QUIET_HOST._replace(worst_vcpu_s=10.0)}, ["cpu"]),
        ({"host": QUIET_HOST._replace(worst_vcpu_s=9.9)}, []),
        ({"guest": QUIET_GUEST._replace(steal_s=20.0)}, ["cpu"]),  # of two vCPUs
        ({"guest": QUIET_GUEST._replace(steal_s=19.0)}, []),
        ({"frozen_ms": 2500}, ["freeze"]),
        ({"guest": QUIET_GUEST._replace(memory=PressureSeconds(9.0, 5.0))}, ["memory"]),
        ({"guest": QUIET_GUEST._replace(memory=PressureSeconds(9.0, 4.9))}, []),
        ({"host": QUIET_HOST._replace(memory_full_s=5.0)}, ["memory"]),
    ],
)
def test_why(changes: dict[str, object], kinds: list[str]) -> None:
    assert [cause.kind for cause in judge(seen(**changes)).causes] == kinds


def test_a_cause_shows_what_speaks_for_it() -> None:
    (cause,) = judge(
        seen(hypervisor=view([2.0] * 50, [900.0] * 50, 5.0, 9.0), shares_disk=True, baseline_write_ms=1.5)
    ).causes
    assert "p99 of 50 reads 2.1 ms, of writes 944 ms" in cause.evidence
    assert "mean write before 1.5 ms, during 900 ms" in cause.evidence
    assert "a disk of the guest's own" in cause.evidence
