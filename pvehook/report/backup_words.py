"""One guest's backup in words, the same for the terminal and the page of `pvehook report`.

Other people's texts are kept here as they came; the code that shows them sanitises them.
"""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Final, NamedTuple

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.records.figures import ABSENT_MARK, in_bytes, mark_of, marked, short_duration, short_number
from pvehook.records.guest_record import consistency_in_words
from pvehook.records.stall_record import Baseline, FreezeOutcome, GovernorSummary, PacerSummary, StallRecord, Versions
from pvehook.rules.latency import Latency
from pvehook.rules.stalls import GuestView, HostView, HypervisorView, KernelEvent


def run_in_words(record: StallRecord, zone: tzinfo) -> str:
    """When it ran and how fast."""
    began, ended = (datetime.fromtimestamp(at_s, zone) for at_s in (record.started_s, record.ended_s))
    text = f"backup {record.result}, {began:%H:%M:%S} to {ended:%H:%M:%S} ({short_duration(record.duration_s)})"
    if record.backup_bytes is not None:
        rate = record.backup_bytes / max(record.duration_s, 1.0)
        text += f", {in_bytes(record.backup_bytes)} at {in_bytes(rate)}/s"
    return f"{text}, mode {record.mode}, node {record.node}"


# The three views


class View(NamedTuple):
    """One of the three, as rows of a label and a text; and why something in it is missing."""

    title: str
    rows: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]


def three_views(record: StallRecord) -> tuple[View, View, View]:
    """The three views: QEMU, the guest, the node."""
    return (
        _qemu_view(record.hypervisor, record.baseline),
        _view("the guest itself", record.guest, _OF_THE_GUEST),
        _view("the node", record.host, _OF_THE_NODE),
    )


_SOURCES: Final = {
    "history": "before: from its last nights, because it was not watched just before this backup",
    "since-start": f"before: means since the VM was started; {ABSENT_MARK} for percentiles: not measured",
}


def _qemu_view(view: Measured[HypervisorView], before: Measured[Baseline]) -> View:
    title = "QEMU    before > during"
    missing = [*_missing("QEMU", view), *_missing("before the backup", before)]
    if isinstance(view, (Absent, Broken)):
        return View(title, (("all of it", mark_of(view)),), tuple(missing))
    rows = []
    kinds = (view.read, view.write, view.flush)
    for kind, during in zip(("read", "write", "flush"), kinds, strict=True):
        for label in ("mean", "p50", "p99", "max"):
            was = mark_of(before) if isinstance(before, (Absent, Broken)) else _ms(getattr(before, kind), label)
            rows.append((f"{kind} {label} ms", f"{was} > {_ms(during, label)}"))
    rows += [
        ("over 1 s, 10 s", f"{sum(each.over_1s for each in kinds)}, {sum(each.over_10s for each in kinds)}"),
        ("requests", str(sum(each.operations for each in kinds))),
        ("QEMU silent ms", short_number(view.silence_ms)),
    ]
    if not isinstance(before, (Absent, Broken)) and before.source != "before":
        missing.append(_SOURCES[before.source])
    missing += [f"{ABSENT_MARK} no histogram on {disk}" for disk in view.not_armed]
    missing += [f"the histogram of {disk} is an administrator's own" for disk in view.their_histograms]
    return View(title, tuple(rows), tuple(missing))


_OF_THE_GUEST: Final = (
    *((f"{what} {kind} s", f"{what}.{kind}_s") for what in ("io", "cpu", "memory") for kind in ("some", "full")),
    *(("steal s", "steal_s"), ("kernel lines", "kernel")),
)
_OF_THE_NODE: Final = (
    ("vCPUs waited s", "run_delay_s"),
    ("worst vCPU s", "worst_vcpu_s"),
    ("guest's cpu some s", "guest_cpu.some_s"),
    ("guest's memory full s", "guest_memory.full_s"),
    ("guest's io full s", "guest_io.full_s"),
    ("node's io full s", "io_full_s"),
    ("node's cpu some s", "cpu_some_s"),
    ("node's memory full s", "memory_full_s"),
    ("agent slowest ms", "agent_slowest_ms"),
    ("kernel lines", "kernel"),
)
"""A row's label, and where its figure is; of kernel lines it is their number."""


def _view(title: str, view: Measured[GuestView | HostView], table: tuple[tuple[str, str], ...]) -> View:
    if isinstance(view, (Absent, Broken)):
        return View(title, (("all of it", mark_of(view)),), tuple(_missing(title.removesuffix(" itself"), view)))
    rows = []
    missing: dict[Absent | Broken, list[str]] = {}  # several figures often share their reason
    for label, place in table:
        field, _, part = place.partition(".")
        figure = getattr(view, field)
        if isinstance(figure, (Absent, Broken)):
            missing.setdefault(figure, []).append(label)
        else:
            figure = getattr(figure, part) if part else len(figure) if field == "kernel" else figure
        rows.append((label, marked(figure, short_number)))
    reasons = (reason for figure, labels in missing.items() for reason in _missing(", ".join(labels), figure))
    return View(title, tuple(rows), tuple(reasons))


def _missing(what: str, measured: object) -> list[str]:
    return [f"{mark_of(measured)} {what}: {measured.why}"] if isinstance(measured, (Absent, Broken)) else []


def _ms(latency: Latency, name: str) -> str:
    milliseconds = getattr(latency, f"{name}_ms")
    return ABSENT_MARK if milliseconds is None else short_number(milliseconds)


# What pvehook did, and what the kernels logged


def what_was_done(record: StallRecord) -> list[tuple[str, str]]:
    """A label and a text for each."""
    idle = record.idle
    return [
        ("freeze", _freeze_in_words(record.freeze)),
        ("idle", f"{idle.confirmed} of {idle.threads} threads read back as idle; {idle.effect}"),
        *_governor_in_words(record.governor),
        ("pacer", _pacer_in_words(record.pacer)),
        ("versions", versions_in_words(record.versions)),
        ("window", record.admitted_by),
        ("sampler", f"{short_number(record.sampler_cpu_s)} s of CPU"),
    ]


def _freeze_in_words(freeze: FreezeOutcome | None) -> str:
    if freeze is None:
        return "not applicable"
    frozen = f", frozen for {freeze.frozen_ms} ms" if freeze.frozen_ms is not None else ""
    consistency = consistency_in_words(freeze.consistency or "consistency not known", freeze.mountpoints)
    return f"{freeze.action}{frozen}; {consistency}: {freeze.why}"


def _governor_in_words(governor: GovernorSummary | None) -> list[tuple[str, str]]:
    if governor is None:
        return [("governor", "none")]
    least = f", down to {in_bytes(governor.least_bytes_per_s)}/s" if governor.least_bytes_per_s is not None else ""
    target = f", target {short_number(governor.target_ms)} ms" if governor.target_ms is not None else ""
    cost = f"which cost {short_number(governor.cost_s)} s"
    did = f"slowed the backup for {short_number(governor.slowed_s)} s{least}, {cost}"
    text = f"{governor.mode}{target}; {did if governor.slowed_s else 'did not slow the backup'}"
    more = [("", reason) for reason in governor.reasons] + [("advice", each) for each in governor.advice]
    return [("governor", text), *more]


def _pacer_in_words(pacer: PacerSummary | None) -> str:
    if pacer is None:
        return "none"
    if not pacer.paced_bytes:
        return f"{pacer.mode}: {pacer.state}"
    paced = f"{in_bytes(pacer.paced_bytes)} in steps of {in_bytes(pacer.step_bytes)}"
    return f"{pacer.mode}: {pacer.state}, {paced}, waited {short_number(pacer.waited_s)} s for the disk"


def versions_in_words(versions: Versions) -> str:
    """`pve-manager 9.0.3, QEMU 10.0.2, kernel 6.14.8-2-pve`."""
    named = (("pve-manager", versions.pve_manager), ("QEMU", versions.qemu), ("kernel", versions.kernel))
    return ", ".join(f"{what} {version or ABSENT_MARK}" for what, version in named)


def kernel_lines(record: StallRecord) -> list[tuple[str, tuple[KernelEvent, ...]]]:
    """Each kernel's lines; none for a kernel that logged nothing or could not be read."""
    kernels = (("the guest's kernel", record.guest), ("the node's kernel", record.host))
    logged = ((whose, getattr(view, "kernel", ())) for whose, view in kernels)
    return [(whose, events) for whose, events in logged if events and not isinstance(events, (Absent, Broken))]
