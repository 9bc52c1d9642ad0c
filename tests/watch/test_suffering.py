"""What a guest suffers beside others' backups, added up over a long night: it stays small, and the worst is kept."""

from __future__ import annotations

import json
from functools import partial

from pvehook.contract.latency import Histogram, RequestCounters, our_boundaries_ns
from pvehook.contract.measured import value_of
from pvehook.records.beside_record import LOADS_KEPT, MARKS_KEPT
from pvehook.watch.suffering import NOTE_BYTES, Beside, Suffering, Sufferings

BOUNDARIES = our_boundaries_ns()
LOOK_S = 0.5


def requests(latency_s: float, number: int = 10) -> dict[str, RequestCounters]:
    """So many writes, all of this latency."""
    counts = [0] * (len(BOUNDARIES) + 1)
    counts[next(index for index, each in enumerate(BOUNDARIES) if each > latency_s * 1e9)] = number
    return {"write": RequestCounters(number, 0, round(latency_s * 1e9) * number, Histogram(BOUNDARIES, tuple(counts)))}


def night(loads: int, slow_beside: set[int], vmid: int = 900) -> Suffering:
    """A guest beside so many backups, each of 5 s; beside some of them its requests take 1.5 s."""
    suffering = Suffering(vmid=vmid, name="web", vmtype="qemu", started_s=1000.0, started_at_s=0.0)
    at_s = 0.0
    for load in range(loads):
        for _ in range(10):
            at_s += LOOK_S
            latency_s = 1.5 if load in slow_beside else 0.001
            suffering.take_requests(Beside(100 + load, "qemu", "shared"), at_s, at_s - LOOK_S, requests(latency_s))
    return suffering


def test_of_many_backups_those_are_kept_beside_which_it_suffered() -> None:
    suffering = night(300, slow_beside={7, 250})
    assert len(suffering.parts) <= LOADS_KEPT + 1
    record = suffering.record("pve1", "UPID:x", 3000.0)
    assert {each.vmid for each in record.beside} == {107, 350}
    assert record.watched_s == 1500.0
    assert record.severity == "stalled"


def test_where_it_suffered_beside_more_than_are_kept_the_totals_have_all_of_them() -> None:
    record = night(60, slow_beside=set(range(60))).record("pve1", "UPID:x", 3000.0)
    assert len(record.beside) == LOADS_KEPT
    assert (value_of(record.stalled_s) or 0.0) > sum(each.stalled_s for each in record.beside)


def test_a_long_night_has_coarser_marks_and_as_many_stalled_seconds() -> None:
    record = night(300, slow_beside=set(range(0, 300, 2))).record("pve1", "UPID:x", 3000.0)
    assert 0 < len(record.marks) <= MARKS_KEPT
    assert round(sum(each.stalled_s for each in record.marks), 3) == round(value_of(record.stalled_s) or 0.0, 3)


def test_the_recovery_note_has_those_that_suffered_most_and_the_next_daemon_goes_on_from_it() -> None:
    sufferings = Sufferings("")
    for vmid in range(500, 700):
        with sufferings.counted(vmid, partial(night, 30, set(range(vmid % 30)), vmid)):
            pass
    note = sufferings.note()
    assert len(note) <= NOTE_BYTES
    kept = Sufferings(note)
    worst, again = (each.records("UPID:x", 3000.0)[0] for each in (sufferings, kept))
    assert (again.vmid, len(again.beside), len(again.marks)) == (worst.vmid, len(worst.beside), len(worst.marks))
    assert round(value_of(again.stalled_s) or 0.0, 2) == round(value_of(worst.stalled_s) or 0.0, 2) > 1.0
    assert 0 < len(json.loads(note)) < 200


def test_a_note_of_another_version_is_nothing() -> None:
    assert Sufferings('[{"vmid": 101, "mood": "bad"}]').records("UPID:x", 3000.0) == []
