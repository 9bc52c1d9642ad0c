"""Prometheus: each guest's last night as a file for node_exporter's textfile collector.

    # HELP pvehook_stalled_seconds Seconds in which a disk request that took over 1 s was in flight, a lower bound.
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
from typing import Final

from pvehook.contract.latency import REQUEST_KINDS
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
Samples = Callable[[StallRecord, Figures], Iterable[Sample]]


def guest_samples(record: StallRecord) -> GuestSamples:
    """What one backup gives. Made once, at its end: with 500 guests the file is written 500 times a night."""
    known = figures(record)
    vmid = {"vmid": str(record.vmid)}
    return {
        name: [_line(name, vmid | labels, value) for labels, value in samples(record, known)]
        for name, (_, samples) in METRICS.items()
    }


def exposition(samples: Mapping[int, GuestSamples], existing: Collection[int]) -> str:
    """The file's text. A guest whose number is not among `existing` is gone."""
    here = [samples[vmid] for vmid in sorted(samples) if vmid in existing]
    lines = []
    for name, (meaning, _) in METRICS.items():
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge"]
        for guest in here:
            lines += guest.get(name, ())
    return "\n".join(lines) + "\n"


def _line(name: str, labels: dict[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {round(float(value), 6)!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# What a record gives


def _figures(labelled: Mapping[str, dict[str, str]], scale: float = 1.0) -> Samples:
    """Figures of records/figures.py, each with its labels: nothing where one is absent or broken."""

    def samples(_: StallRecord, known: Figures) -> Iterator[Sample]:
        for name, labels in labelled.items():
            value = known[name]
            if not isinstance(value, (Absent, Broken)):
                yield labels, value * scale

    return samples


def _figure(name: str, scale: float = 1.0) -> Samples:
    return _figures({name: {}}, scale)


def _severity(record: StallRecord, _: Figures) -> Iterator[Sample]:
    for severity in SEVERITIES:
        yield {"severity": severity}, float(record.verdict.severity == severity)


def _views(record: StallRecord, _: Figures) -> Iterator[Sample]:
    """1: read in full; 0: some or all of it could not be read; no sample: nothing to measure."""
    for name in ("guest", "hypervisor", "host", "baseline"):
        view: Measured[tuple[object, ...]] = getattr(record, name)
        if not isinstance(view, Absent):
            is_broken = isinstance(view, Broken) or any(isinstance(part, Broken) for part in view)
            yield {"view": name}, float(not is_broken)


_REQUESTS: Final = {
    f"{prefix}{kind}_p99_ms": {"kind": kind, "when": when}
    for when, prefix in (("during", ""), ("before", "baseline_"))
    for kind in REQUEST_KINDS
}
_PRESSURE: Final = {
    f"guest_{resource}_{kind}_s": {"resource": resource, "kind": kind}
    for resource, kind in (("io", "some"), ("io", "full"), ("cpu", "some"), ("memory", "full"))
}

METRICS: Final[dict[str, tuple[str, Samples]]] = {
    "pvehook_guest_info": (
        "The guest's name and type; always 1.",
        lambda record, _: [({"name": printable(record.name or "", NAME_LIMIT), "type": record.vmtype or ""}, 1.0)],
    ),
    "pvehook_backup_start_timestamp_seconds": (
        "When the guest's last backup began.",
        lambda record, _: [({}, record.started_s)],
    ),
    "pvehook_backup_duration_seconds": ("How long it took.", lambda record, _: [({}, record.duration_s)]),
    "pvehook_backup_ok": (
        "1 if it succeeded, else 0; no sample: its end was not seen.",
        lambda record, _: [({}, float(record.result == "ok"))] if record.result != "unknown" else [],
    ),
    "pvehook_backup_size_bytes": ("What the backup had to read.", _figure("backup_bytes")),
    "pvehook_severity": ("1 for how bad the guest's night was, 0 for the other severities.", _severity),
    "pvehook_view_up": (
        "1 if all of this view was seen, 0 if some of it could not be read; no sample: nothing to measure.",
        _views,
    ),
    "pvehook_stalled_seconds": (
        "Seconds in which a disk request that took over 1 s was in flight, a lower bound.",
        _figure("stalled_s"),
    ),
    "pvehook_slowed_seconds": (
        "Seconds in which a disk request that took over 100 ms was in flight, a lower bound.",
        _figure("slowed_s"),
    ),
    "pvehook_request_p99_seconds": (
        "99th percentile of the guest's disk requests, by kind, during the backup and before it.",
        _figures(_REQUESTS, 1e-3),
    ),
    "pvehook_slow_requests": (
        "The guest's disk requests during the backup that took longer than the label.",
        _figures({"over_1s": {"over_seconds": "1"}, "over_10s": {"over_seconds": "10"}}),
    ),
    "pvehook_qmp_silence_seconds": ("The longest time without an answer of QEMU's.", _figure("qmp_silence_ms", 1e-3)),
    "pvehook_guest_pressure_seconds": (
        "Seconds during the backup in which something or everything inside the guest waited (its own PSI).",
        _figures(_PRESSURE),
    ),
    "pvehook_guest_steal_seconds": ("CPU time stolen from the guest, as it counts it.", _figure("guest_steal_s")),
    "pvehook_guest_lockups": (
        "Lines of the guest's kernel log during the backup that report a lockup.",
        _figure("guest_lockups"),
    ),
    "pvehook_run_delay_seconds": ("Seconds that all vCPUs together waited for a CPU.", _figure("run_delay_s")),
    "pvehook_host_io_full_seconds": (
        "Seconds in which nothing on the node could go on for lack of a disk.",
        _figure("host_io_full_s"),
    ),
    "pvehook_frozen_seconds": ("How long the guest's filesystems were frozen.", _figure("frozen_ms", 1e-3)),
    "pvehook_governor_slowed_seconds": ("Seconds in which the backup was slowed.", _figure("governor_slowed_s")),
    "pvehook_sampler_cpu_seconds": ("CPU time that watching this backup cost.", _figure("sampler_cpu_s")),
}
