"""Prometheus: each guest's last night as a file for node_exporter's textfile collector.

    # HELP pvehook_stalled_seconds Seconds in which a disk request that took over 1 s was in flight, a lower bound; ...
    # TYPE pvehook_stalled_seconds gauge
    pvehook_stalled_seconds{id="qemu/101",vmid="101",part="own"} 3.4
    pvehook_stalled_seconds{id="qemu/101",vmid="101",part="beside"} 17.0
    pvehook_view_up{id="qemu/101",vmid="101",view="guest"} 0

A night has two parts: the guest's own backup (the last one), and what it suffered beside the backups of others (in the
last run). A guest that was in no backup of its own has only the latter, one that was well beside others the former.

Base units. A figure with nothing to measure has no sample; where a view could not be read its `pvehook_view_up` is 0
and its figures have none either; zero is a sample. Labels are bounded: a guest's number, the same as
prometheus-pve-exporter writes it (`id`), words of our own, and in `pvehook_guest_info` alone its name. A guest that is
gone from the node is gone from the file.
When its last good backup was, and whether it is overdue, is there for every guest of the node, also for one in no job.

Format: prometheus.io/docs/instrumenting/exposition_formats, text 0.0.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal, NamedTuple

from pvehook.contract.latency import REQUEST_KINDS
from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.text import printable
from pvehook.records.beside_record import BesideRecord
from pvehook.records.figures import beside_figures, figures
from pvehook.records.stall_record import StallRecord
from pvehook.rules.stalls import SEVERITIES

NAME_LIMIT = 64

Sample = tuple[dict[str, str], float]
Figures = Mapping[str, Measured[float]]
GuestSamples = dict[str, list[str]]
"""One guest's lines of the file, by metric; without `id`, which `exposition` adds."""
Kind = Literal["qemu", "lxc"]
Samples = Callable[[StallRecord, Figures], Iterable[Sample]]
BesideSamples = Callable[[BesideRecord, Figures], Iterable[Sample]]


class Metric(NamedTuple):
    """Its meaning, and what each part of a night gives; None: nothing. What no part gives is of every guest."""

    meaning: str
    own: Samples | None = None
    beside: BesideSamples | None = None


LAST_SUCCESS: Final = "pvehook_last_success_timestamp_seconds"
OVERDUE: Final = "pvehook_guest_overdue"
INFO: Final = "pvehook_guest_info"
"""Others are joined with it by the guest's number, so there is one line for each guest."""


def guest_samples(record: StallRecord) -> GuestSamples:
    """What one backup gives. Made once, at its end: with 500 guests the file is written 500 times a night."""
    known = figures(record)
    vmid = {"vmid": str(record.vmid)}
    return {
        name: [_line(name, vmid | labels, value) for labels, value in metric.own(record, known)]
        for name, metric in METRICS.items()
        if metric.own is not None
    }


def beside_samples(record: BesideRecord) -> GuestSamples:
    """What one run gives of a guest that was watched beside the backups of others."""
    known = beside_figures(record)
    vmid = {"vmid": str(record.vmid)}
    return {
        name: [_line(name, vmid | labels, value) for labels, value in metric.beside(record, known)]
        for name, metric in METRICS.items()
        if metric.beside is not None
    }


def standing_samples(vmid: int, last_good_s: float | None, is_overdue: bool) -> GuestSamples:
    """What every guest of the node has, also one that no job takes."""
    labels = {"vmid": str(vmid)}
    good = [] if last_good_s is None else [_line(LAST_SUCCESS, labels, last_good_s)]
    return {LAST_SUCCESS: good, OVERDUE: [_line(OVERDUE, labels, float(is_overdue))]}


def exposition(
    own: Mapping[int, GuestSamples],
    beside: Mapping[int, GuestSamples],
    standing: Mapping[int, GuestSamples],
    existing: Mapping[int, Kind],
) -> str:
    """The file's text, of all parts. A guest whose number is not among `existing` is gone."""
    vmids = sorted((own.keys() | beside.keys() | standing.keys()) & existing.keys())
    here = [(vmid, own.get(vmid, {}), beside.get(vmid, {}), standing.get(vmid, {})) for vmid in vmids]
    lines = []
    for name, metric in METRICS.items():
        lines += [f"# HELP {name} {metric.meaning}", f"# TYPE {name} gauge"]
        for vmid, first, second, third in here:
            found = first.get(name, [])
            found = found if found and name == INFO else [*found, *second.get(name, ()), *third.get(name, ())]
            # Not in the lines that the history keeps: a guest that was a VM may be a container by now.
            lines += [line.replace("{", f'{{id="{existing[vmid]}/{vmid}",', 1) for line in found]
    return "\n".join(lines) + "\n"


def _line(name: str, labels: dict[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {round(float(value), 6)!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# What a record gives


def _figures(
    labelled: Mapping[str, dict[str, str]], scale: float = 1.0
) -> Callable[[object, Figures], Iterator[Sample]]:
    """Figures of records/figures.py, each with its labels: nothing where one is absent or broken."""

    def samples(_: object, known: Figures) -> Iterator[Sample]:
        for name, labels in labelled.items():
            value = known[name]
            if not isinstance(value, (Absent, Broken)):
                yield labels, value * scale

    return samples


def _figure(name: str, scale: float = 1.0, **labels: str) -> Callable[[object, Figures], Iterator[Sample]]:
    return _figures({name: labels}, scale)


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


def _beside_view(_: BesideRecord, known: Figures) -> Iterator[Sample]:
    """As `_views`, of what was seen of it beside the backups of others."""
    seen = [known[name] for name in ("stalled_s", "slowed_s", "p99_ms")]
    if not all(isinstance(figure, Absent) for figure in seen):
        yield {"view": "beside"}, float(not any(isinstance(figure, Broken) for figure in seen))


def _info(record: StallRecord | BesideRecord, _: Figures) -> Iterator[Sample]:
    yield {"name": printable(record.name or "", NAME_LIMIT), "type": record.vmtype or ""}, 1.0


_REQUESTS: Final = {
    f"{prefix}{kind}_p99_ms": {"kind": kind, "when": when}
    for when, prefix in (("during", ""), ("before", "baseline_"))
    for kind in REQUEST_KINDS
}
_PRESSURE: Final = {
    f"guest_{resource}_{kind}_s": {"resource": resource, "kind": kind}
    for resource, kind in (("io", "some"), ("io", "full"), ("cpu", "some"), ("memory", "full"))
}

METRICS: Final[dict[str, Metric]] = {
    INFO: Metric("The guest's name and type; always 1.", _info, _info),
    LAST_SUCCESS: Metric("When the guest's last good backup began; no sample: none is on record."),
    OVERDUE: Metric("1 if it has missed as many turns as window.overdue_after says, else 0, as of the last run's end."),
    "pvehook_backup_start_timestamp_seconds": Metric(
        "When the guest's last backup began.",
        lambda record, _: [({}, record.started_s)],
    ),
    "pvehook_backup_duration_seconds": Metric("How long it took.", lambda record, _: [({}, record.duration_s)]),
    "pvehook_backup_ok": Metric(
        "1 if it succeeded, else 0; no sample: its end was not seen.",
        lambda record, _: [({}, float(record.result == "ok"))] if record.result != "unknown" else [],
    ),
    "pvehook_backup_size_bytes": Metric("What the backup had to read.", _figure("backup_bytes")),
    "pvehook_severity": Metric("1 for how bad the guest's night was, 0 for the other severities.", _severity),
    "pvehook_view_up": Metric(
        "1 if all of this view was seen, 0 if some of it could not be read; no sample: nothing to measure.",
        _views,
        _beside_view,
    ),
    "pvehook_stalled_seconds": Metric(
        "Seconds in which a disk request that took over 1 s was in flight, a lower bound; in the guest's own backup, "
        "and beside the backups of others in the last run.",
        _figure("stalled_s", part="own"),
        _figure("stalled_s", part="beside"),
    ),
    "pvehook_slowed_seconds": Metric(
        "Seconds in which a disk request that took over 100 ms was in flight, a lower bound, in both parts.",
        _figure("slowed_s", part="own"),
        _figure("slowed_s", part="beside"),
    ),
    "pvehook_beside_start_timestamp_seconds": Metric(
        "When the last run began in which the guest was watched beside the backups of others.",
        beside=lambda record, _: [({}, record.started_s)],
    ),
    "pvehook_beside_request_p99_seconds": Metric(
        "99th percentile of all the guest's disk requests beside the backups of others, and before.",
        beside=_figures({"p99_ms": {"when": "during"}, "baseline_p99_ms": {"when": "before"}}, 1e-3),
    ),
    "pvehook_beside_slowed_backup_seconds": Metric(
        "Seconds in which backups of others were slowed for this guest.",
        beside=_figure("slowed_backup_s"),
    ),
    "pvehook_request_p99_seconds": Metric(
        "99th percentile of the guest's disk requests, by kind, during the backup and before it.",
        _figures(_REQUESTS, 1e-3),
    ),
    "pvehook_slow_requests": Metric(
        "The guest's disk requests during the backup that took longer than the label.",
        _figures({"over_1s": {"over_seconds": "1"}, "over_10s": {"over_seconds": "10"}}),
    ),
    "pvehook_qmp_silence_seconds": Metric(
        "The longest time without an answer of QEMU's.", _figure("qmp_silence_ms", 1e-3)
    ),
    "pvehook_guest_pressure_seconds": Metric(
        "Seconds during the backup in which something or everything inside the guest waited (its own PSI).",
        _figures(_PRESSURE),
    ),
    "pvehook_guest_steal_seconds": Metric("CPU time stolen from the guest, as it counts it.", _figure("guest_steal_s")),
    "pvehook_guest_lockups": Metric(
        "Lines of the guest's kernel log during the backup that report a lockup.",
        _figure("guest_lockups"),
    ),
    "pvehook_run_delay_seconds": Metric("Seconds that all vCPUs together waited for a CPU.", _figure("run_delay_s")),
    "pvehook_host_io_full_seconds": Metric(
        "Seconds in which nothing on the node could go on for lack of a disk.",
        _figure("host_io_full_s"),
    ),
    "pvehook_frozen_seconds": Metric("How long the guest's filesystems were frozen.", _figure("frozen_ms", 1e-3)),
    "pvehook_governor_slowed_seconds": Metric("Seconds in which the backup was slowed.", _figure("governor_slowed_s")),
    "pvehook_sampler_cpu_seconds": Metric("CPU time that watching this backup cost.", _figure("sampler_cpu_s")),
}
