"""A record that was written is the record that is read, whatever is in it; what is no record is refused whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvehook.contract.measured import Absent, Broken
from pvehook.host.processes import ProcessId
from pvehook.records.encoding import decode, encode
from pvehook.records.run_state import RunState
from pvehook.records.stall_record import (
    Baseline,
    FreezeOutcome,
    GovernorSummary,
    IdlePriority,
    PacerSummary,
    Point,
    SpeedPoint,
    StallRecord,
    Versions,
)
from pvehook.rules.latency import Latency
from pvehook.rules.stalls import (
    SEVERITIES,
    Cause,
    GuestView,
    HostView,
    HypervisorView,
    KernelEvent,
    PressureSeconds,
    Verdict,
)
from tests.records.backups import charted, container, record

# Kept with four digits, so four digits are what comes back.
numbers = st.integers(-(10**12), 10**12).map(lambda number: number / 10_000)
counts = st.integers(0, 2**63)
texts = st.text(max_size=40)
missing = st.builds(Absent, texts) | st.builds(Broken, texts)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def measured(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return missing | strategy


def several(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(strategy, max_size=3).map(tuple)


latencies = st.builds(Latency, counts, *[maybe(numbers)] * 5, counts, counts)
pressures = measured(st.builds(PressureSeconds, numbers, numbers))
kernels = measured(several(st.builds(KernelEvent, numbers, texts, texts)))
figure = measured(numbers)
records = st.builds(
    StallRecord,
    node=texts,
    job=texts,
    vmid=counts,
    name=maybe(texts),
    vmtype=maybe(texts),
    mode=texts,
    result=texts,
    started_s=numbers,
    ended_s=numbers,
    backup_bytes=maybe(counts),
    verdict=st.builds(
        Verdict,
        st.sampled_from(SEVERITIES),
        maybe(numbers),
        maybe(numbers),
        several(st.builds(Cause, st.sampled_from(["slow-target", "cpu", "freeze"]), texts, texts)),
    ),
    guest=measured(st.builds(GuestView, pressures, pressures, pressures, figure, kernels)),
    hypervisor=measured(
        st.builds(
            HypervisorView,
            *(latencies, latencies, latencies, numbers, numbers, counts, numbers, texts),
            *(several(texts), several(texts)),
        )
    ),
    host=measured(st.builds(HostView, *[figure] * 5, *[pressures] * 3, kernels, figure)),
    baseline=measured(
        st.builds(
            Baseline,
            numbers,
            st.sampled_from(["before", "history", "since-start"]),
            *(latencies, latencies, latencies, maybe(numbers)),
        )
    ),
    points=several(st.builds(Point, numbers, numbers, maybe(numbers), counts, numbers, counts)),
    freeze=maybe(st.builds(FreezeOutcome, texts, maybe(texts), maybe(counts), texts, maybe(numbers))),
    idle=st.builds(IdlePriority, counts, counts, texts),
    governor=maybe(
        st.builds(
            GovernorSummary,
            *(texts, numbers, numbers, maybe(counts), maybe(numbers), several(texts), several(texts)),
            several(st.builds(SpeedPoint, numbers, counts, maybe(numbers), numbers)),
        )
    ),
    pacer=maybe(st.builds(PacerSummary, texts, texts, counts, counts, numbers)),
    admitted_by=texts,
    versions=st.builds(Versions, maybe(texts), maybe(texts), maybe(texts)),
    sampler_cpu_s=numbers,
    window_closes_s=maybe(numbers),
)


@given(records)
@settings(max_examples=60, deadline=None)
def test_any_record_comes_back_as_it_was(shown: StallRecord) -> None:
    assert decode(StallRecord, json.loads(json.dumps(encode(shown)))) == shown


def test_a_record_from_before_the_windows_end_was_kept_is_read() -> None:
    plain = encode(record())
    del plain["window_closes_s"]
    assert decode(StallRecord, plain) == record()


@pytest.mark.parametrize("shown", [record(), container(), charted()], ids=["vm", "container", "chart"])
def test_the_nights_of_these_tests_come_back(shown: StallRecord) -> None:
    assert decode(StallRecord, json.loads(json.dumps(encode(shown)))) == shown


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(encode(charted()))), json_values)
@settings(max_examples=150, deadline=None)
def test_a_field_of_another_kind_is_refused_and_nothing_else_happens(name: str, value: object) -> None:
    plain = encode(charted())
    plain[name] = value
    try:
        read = decode(StallRecord, plain)
    except ValueError:
        return
    assert json.loads(json.dumps(encode(read)))[name] == json.loads(json.dumps(encode(getattr(read, name))))


@pytest.mark.parametrize("name", ["vmid", "verdict", "guest", "points", "versions"])
def test_a_record_without_a_field_is_of_another_layout(name: str) -> None:
    plain = encode(record())
    del plain[name]
    with pytest.raises(ValueError, match=name):
        decode(StallRecord, plain)


def test_a_number_beyond_every_float_is_refused() -> None:
    """Found by tests/bench/fuzz_parsers.py: an OverflowError kept the daemon from starting."""
    for kind, plain in ((StallRecord, encode(record())), (RunState, encode(RunState(ProcessId(1, 1), "UPID:", 1.0)))):
        decode(kind, plain)
        plain["started_s"] = 10**400
        with pytest.raises(ValueError, match="too large"):
            decode(kind, plain)


@given(json_values)
@settings(max_examples=100, deadline=None)
def test_what_is_no_record_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(StallRecord, value)


def test_absent_broken_and_zero_are_written_as_three_things() -> None:
    plain = [encode(each) for each in (Absent("why"), Broken("why"), 0.0)]
    assert plain == [{"absent": "why"}, {"broken": "why"}, 0.0]
