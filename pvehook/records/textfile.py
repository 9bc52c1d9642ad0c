"""Prometheus: each guest's last night as a file for node_exporter's textfile collector.

    # HELP pvehook_stalled_seconds Seconds in which a disk request that took over 1 s was on its way, a lower bound.
    # TYPE pvehook_stalled_seconds gauge
    pvehook_stalled_seconds{vmid="101"} 3.4
    pvehook_view_up{vmid="101",view="guest"} 0

Base units. A figure with nothing to measure has no sample; where a view could not be read its
`pvehook_view_up` is 0 and its figures have none either; zero is a sample. Labels are bounded: a guest's number, words
of our own, and in `pvehook_guest_info` alone its name. A guest that is gone from the node is gone from the file.

Format: prometheus.io/docs/instrumenting/exposition_formats, text 0.0.4.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.text import printable
from pvehook.records.figures import figures
from pvehook.records.stall_record import StallRecord
from pvehook.rules.stalls import SEVERITIES

NAME_LIMIT = 64

Sample = tuple[dict[str, str], float]
Figures = Mapping[str, Measured[float]]
GuestSamples = dict[str, list[str]]
"""One guest's lines of the file, by metric."""


class _Metric(NamedTuple):
    name: str
    help: str
    samples: Callable[[StallRecord, Figures], Iterable[Sample]]


def write_textfile(
    path: str, samples: Mapping[int, GuestSamples], existing: Collection[int], replace_file: Callable[[str, str], None]
) -> None:
    """Replaces the file by way of `replace_file(path, text)`, which does it atomically.

    node_exporter runs as a user of its own: `replace_file` has to make a file that it may read. Raises OSError.
    """
    replace_file(path, exposition(samples, existing))


def guest_samples(record: StallRecord) -> GuestSamples:
    """What one backup gives. Made once, at its end: with 500 guests the file is written 500 times a night."""
    known = figures(record)
    vmid = {"vmid": str(record.vmid)}
    return {
        metric.name: [_line(metric.name, vmid | labels, value) for labels, value in metric.samples(record, known)]
        for metric in METRICS
    }


def exposition(samples: Mapping[int, GuestSamples], existing: Collection[int]) -> str:
    """The text. A guest whose number is not among `existing` is gone."""
    here = [samples[vmid] for vmid in sorted(samples) if vmid in existing]
    lines = []
    for metric in METRICS:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} gauge"]
        for guest in here:
            lines += guest.get(metric.name, ())
    return "\n".join(lines) + "\n"


def _line(name: str, labels: dict[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {round(float(value), 6)!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# What a record gives


def _figure(name: str, scale: float = 1.0) -> Callable[[StallRecord, Figures], Iterator[Sample]]:
    """One figure of records/figures.py: nothing where it is absent or broken."""

    def samples(_: StallRecord, known: Figures) -> Iterator[Sample]:
        value = known[name]
        if not isinstance(value, (Absent, Broken)):
            yield {}, value * scale

    return samples


def _requests(_: StallRecord, known: Figures) -> Iterator[Sample]:
    for when, prefix in (("during", ""), ("before", "baseline_")):
        for kind in ("read", "write", "flush"):
            value = known[f"{prefix}{kind}_p99_ms"]
            if not isinstance(value, (Absent, Broken)):
                yield {"kind": kind, "when": when}, value / 1000


def _slow_requests(_: StallRecord, known: Figures) -> Iterator[Sample]:
    for name, over_s in (("over_1s", "1"), ("over_10s", "10")):
        value = known[name]
        if not isinstance(value, (Absent, Broken)):
            yield {"over_seconds": over_s}, value


def _pressure(_: StallRecord, known: Figures) -> Iterator[Sample]:
    for resource, kind in (("io", "some"), ("io", "full"), ("cpu", "some"), ("memory", "full")):
        value = known[f"guest_{resource}_{kind}_s"]
        if not isinstance(value, (Absent, Broken)):
            yield {"resource": resource, "kind": kind}, value


def _severity(record: StallRecord, _: Figures) -> Iterator[Sample]:
    for severity in SEVERITIES:
        yield {"severity": severity}, float(record.verdict.severity == severity)


def _views(record: StallRecord, _: Figures) -> Iterator[Sample]:
    """1: read in full; 0: some or all of it could not be read; no sample: nothing to measure."""
    views: dict[str, Measured[tuple[object, ...]]] = {
        "guest": record.guest,
        "hypervisor": record.hypervisor,
        "host": record.host,
        "baseline": record.baseline,
    }
    for name, view in views.items():
        if isinstance(view, Absent):
            continue
        is_broken = isinstance(view, Broken) or any(isinstance(part, Broken) for part in view)
        yield {"view": name}, float(not is_broken)


def _info(record: StallRecord, _: Figures) -> Iterator[Sample]:
    yield {"name": printable(record.name or "", NAME_LIMIT), "type": record.vmtype or ""}, 1.0


METRICS: Final = (
    _Metric("pvehook_guest_info", "The guest's name and type; always 1.", _info),
    _Metric(
        "pvehook_backup_start_timestamp_seconds",
        "When the guest's last backup began.",
        lambda record, _: [({}, record.started_s)],
    ),
    _Metric("pvehook_backup_duration_seconds", "How long it took.", lambda record, _: [({}, record.duration_s)]),
    _Metric("pvehook_backup_ok", "1 if it succeeded, else 0.", lambda record, _: [({}, float(record.result == "ok"))]),
    _Metric("pvehook_backup_size_bytes", "What the backup had to read.", _figure("backup_bytes")),
    _Metric("pvehook_severity", "1 for how bad the guest's night was, 0 for the other severities.", _severity),
    _Metric(
        "pvehook_view_up",
        "1 if all of this view was seen, 0 if some of it could not be read; no sample: nothing to measure.",
        _views,
    ),
    _Metric(
        "pvehook_stalled_seconds",
        "Seconds in which a disk request that took over 1 s was on its way, a lower bound.",
        _figure("stalled_s"),
    ),
    _Metric(
        "pvehook_slowed_seconds",
        "Seconds in which a disk request that took over 100 ms was on its way, a lower bound.",
        _figure("slowed_s"),
    ),
    _Metric(
        "pvehook_request_p99_seconds",
        "99th percentile of the guest's disk requests, by kind, during the backup and before it.",
        _requests,
    ),
    _Metric(
        "pvehook_slow_requests",
        "The guest's disk requests during the backup that took longer than the label.",
        _slow_requests,
    ),
    _Metric(
        "pvehook_qmp_silence_seconds", "The longest time without an answer of QEMU's.", _figure("qmp_silence_ms", 1e-3)
    ),
    _Metric(
        "pvehook_guest_pressure_seconds",
        "Seconds during the backup in which something or everything inside the guest waited (its own PSI).",
        _pressure,
    ),
    _Metric(
        "pvehook_guest_steal_seconds", "CPU time stolen from the guest, as it counts it.", _figure("guest_steal_s")
    ),
    _Metric(
        "pvehook_guest_lockups",
        "Lines of the guest's kernel log during the backup that report a lockup.",
        _figure("guest_lockups"),
    ),
    _Metric("pvehook_run_delay_seconds", "Seconds that all vCPUs together waited for a CPU.", _figure("run_delay_s")),
    _Metric(
        "pvehook_host_io_full_seconds",
        "Seconds in which nothing on the node could go on for lack of a disk.",
        _figure("host_io_full_s"),
    ),
    _Metric("pvehook_frozen_seconds", "How long the guest's filesystems were frozen.", _figure("frozen_ms", 1e-3)),
    _Metric("pvehook_governor_slowed_seconds", "Seconds in which the backup was slowed.", _figure("governor_slowed_s")),
    _Metric("pvehook_sampler_cpu_seconds", "CPU time that watching this backup cost.", _figure("sampler_cpu_s")),
)
