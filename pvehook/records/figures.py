"""A record's figures under one name each: the journal, `--json`, the history and Prometheus all take them from here.

`figures` are those of a guest's own backup, `beside_figures` those of what it suffered beside the backups of others.

    stalled_s            3.4                                      a value, zero among them
    guest_io_some_s      Absent("the guest runs no agent")        nothing to measure
    write_p99_ms         Broken("QMP did not answer within 5 s")  it is there and could not be read

In the journal and in JSON an absent figure is the text `absent: why`, a broken one `broken: why`; where there is room
for one character only, `-` and `?`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from operator import attrgetter
from typing import Any, Final, TypeVar

from pvehook.contract.latency import RequestKind
from pvehook.contract.measured import Absent, Broken, Measured, value_of
from pvehook.contract.text import printable
from pvehook.records.beside_record import BesideRecord
from pvehook.records.stall_record import Baseline, StallRecord
from pvehook.rules.latency import Latency
from pvehook.rules.stalls import LOCKUPS, SEVERITIES, HypervisorView, KernelEvent

V = TypeVar("V")

ABSENT_MARK: Final = "-"
BROKEN_MARK: Final = "?"

_SHORT_CAUSES: Final = {
    "slow-target": "slow target",
    "shared-disks": "shared disks",
    "disks": "slow disks",
    "cpu": "no CPU",
    "freeze": "long freeze",
    "memory": "no memory",
}

_ABSENT, _BROKEN = "absent: ", "broken: "


def figures(record: StallRecord) -> dict[str, Measured[float]]:
    """All of them; the names carry their units."""
    return {
        "stalled_s": _stall(record, record.verdict.stalled_s),
        "slowed_s": _stall(record, record.verdict.slowed_s),
        "read_p99_ms": _from(record.hypervisor, partial(_p99, "read")),
        "write_p99_ms": _from(record.hypervisor, partial(_p99, "write")),
        "flush_p99_ms": _from(record.hypervisor, partial(_p99, "flush")),
        "over_1s": _from(record.hypervisor, lambda view: _over(view, lambda each: each.over_1s)),
        "over_10s": _from(record.hypervisor, lambda view: _over(view, lambda each: each.over_10s)),
        "baseline_read_p99_ms": _from(record.baseline, partial(_p99_before, "read")),
        "baseline_write_p99_ms": _from(record.baseline, partial(_p99_before, "write")),
        "baseline_flush_p99_ms": _from(record.baseline, partial(_p99_before, "flush")),
        "qmp_silence_ms": _at(record, "hypervisor.silence_ms"),
        "guest_io_some_s": _at(record, "guest.io.some_s"),
        "guest_io_full_s": _at(record, "guest.io.full_s"),
        "guest_cpu_some_s": _at(record, "guest.cpu.some_s"),
        "guest_memory_full_s": _at(record, "guest.memory.full_s"),
        "guest_steal_s": _at(record, "guest.steal_s"),
        "guest_lockups": _from(_at(record, "guest.kernel"), lambda lines: _number_of(LOCKUPS, lines)),
        "run_delay_s": _at(record, "host.run_delay_s"),
        "worst_vcpu_s": _at(record, "host.worst_vcpu_s"),
        "host_io_full_s": _at(record, "host.io_full_s"),
        "host_cpu_some_s": _at(record, "host.cpu_some_s"),
        "host_memory_full_s": _at(record, "host.memory_full_s"),
        "host_perf_lines": _from(_at(record, "host.kernel"), lambda lines: _number_of({"long-interrupt"}, lines)),
        "agent_slowest_ms": _at(record, "host.agent_slowest_ms"),
        "frozen_ms": _frozen_ms(record),
        "governor_slowed_s": Absent("no governor") if record.governor is None else record.governor.slowed_s,
        "governor_cost_s": Absent("no governor") if record.governor is None else record.governor.cost_s,
        "backup_bytes": _or_absent(record.backup_bytes, "no block job was seen"),
        "sampler_cpu_s": record.sampler_cpu_s,
    }


def beside_figures(record: BesideRecord) -> dict[str, Measured[float]]:
    """All of them; the names carry their units."""
    return {
        "stalled_s": record.stalled_s,
        "slowed_s": record.slowed_s,
        "p99_ms": record.p99_ms,
        "baseline_p99_ms": record.baseline_p99_ms,
        "watched_s": record.watched_s,
        "slowed_backup_s": sum(each.slowed_backup_s for each in record.beside),
    }


# As one value, for a journal field, JSON and a column of the history


def encode_figure(measured: Measured[float]) -> float | int | str:
    """The number, or `absent: why`, `broken: why`."""
    if isinstance(measured, Absent):
        return _ABSENT + printable(measured.why)
    if isinstance(measured, Broken):
        return _BROKEN + printable(measured.why)
    rounded = round(measured, 3)
    return int(rounded) if rounded == int(rounded) else rounded


def decode_figure(value: object) -> Measured[float]:
    """The inverse of `encode_figure`. Raises ValueError for any other value."""
    if isinstance(value, (int, float)):
        return float(value)
    for prefix, kind in ((_ABSENT, Absent), (_BROKEN, Broken)):
        if isinstance(value, str) and value.startswith(prefix):
            return kind(value.removeprefix(prefix))
    raise ValueError(f"{value!r:.40} is no figure")


def marked(measured: Measured[float], show: Callable[[float], str]) -> str:
    """For a narrow column: the number as `show` writes it, `-`, or `?`."""
    return mark_of(measured) if isinstance(measured, (Absent, Broken)) else show(measured)


def short_number(value: float) -> str:
    """As many digits as are useful: `0`, `0.04`, `3.4`, `24`, `1310`. What is not zero is never shown as zero."""
    if value >= 10 or value == int(value):
        return f"{value:.0f}"
    if value >= 0.1:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.005 else "<0.01"


def mark_of(missing: Absent | Broken) -> str:
    """`-` or `?`."""
    return BROKEN_MARK if isinstance(missing, Broken) else ABSENT_MARK


def before_and_during(before: Measured[float], during: Measured[float]) -> str:
    """`24>310`; one mark where both lack."""
    if isinstance(before, (Absent, Broken)) and type(before) is type(during):
        return mark_of(before)
    return f"{marked(before, short_number)}>{marked(during, short_number)}"


def in_bytes(number: float) -> str:
    """`8.5 MiB`."""
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def short_duration(seconds: float) -> str:
    """In five characters: `45s`, `12m04`, `1h04`, `3d02h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes_left:02}"
    return f"{minutes}m{rest:02}" if minutes else f"{rest}s"


def causes_in_short(severity: str, kinds: Iterable[str]) -> str:
    """`lockup, slow target`; empty without a cause."""
    lockup = ["lockup"] if severity == "locked-up" else []
    return ", ".join(lockup + [_SHORT_CAUSES.get(kind, kind) for kind in kinds])


def severity_key(severity: str, stalled_s: Measured[float], slowed_s: Measured[float]) -> tuple[int, float, float]:
    """Sorts backups: the worst is the highest. One that could not be read ranks above a good one, since it may need
    attention; one with nothing to measure ranks lowest."""
    rank = SEVERITIES.index(severity) if severity in SEVERITIES else 0
    if rank == 0 and isinstance(stalled_s, Broken):
        rank = SEVERITIES.index("none") + 1
    elif rank > SEVERITIES.index("none"):
        rank += 1
    return rank, value_of(stalled_s) or 0.0, value_of(slowed_s) or 0.0


# Reaching in


def _at(record: StallRecord, path: str) -> Measured[Any]:
    """What the record has at `guest.io.some_s`; what a view lacks, its figures lack."""
    found: Any = record
    for name in path.split("."):
        found = _from(found, attrgetter(name))
    return found


def _from(measured: Measured[V], get: Callable[[V], Measured[float]]) -> Measured[float]:
    """A figure of a view; what the view lacks, its figures lack."""
    return measured if isinstance(measured, (Absent, Broken)) else get(measured)


def _number_of(kinds: Collection[str], lines: tuple[KernelEvent, ...]) -> float:
    return float(sum(line.kind in kinds for line in lines))


def _or_absent(value: float | None, why: str) -> Measured[float]:
    return Absent(why) if value is None else float(value)


def _p99(kind: RequestKind, view: HypervisorView) -> Measured[float]:
    latency: Latency = getattr(view, kind)
    if latency.p99_ms is not None:
        return latency.p99_ms
    if not latency.operations:
        return Absent(f"it made no {kind}")
    if view.not_armed:
        return Broken(f"no latency histogram: {view.not_armed[0]}")
    return Absent("no latency histogram")


def _over(view: HypervisorView, get: Callable[[Latency], int]) -> Measured[float]:
    """Counted by histograms; without any, zero would be a guess."""
    kinds = [each for each in (view.read, view.write, view.flush) if each.operations]
    if kinds and all(each.p99_ms is None for each in kinds):
        return Broken(f"no latency histogram: {view.not_armed[0]}") if view.not_armed else Absent("no histogram")
    return float(sum(map(get, kinds)))


def _p99_before(kind: RequestKind, before: Baseline) -> Measured[float]:
    latency: Latency = getattr(before, kind)
    if latency.p99_ms is not None:
        return latency.p99_ms
    if before.source == "since-start":
        return Absent("before the backup only a mean since the VM's start is known")
    return Absent(f"before the backup it made no {kind}")


def _stall(record: StallRecord, seen: float | None) -> Measured[float]:
    if seen is not None:
        return seen
    if record.vmtype == "lxc":
        if record.verdict.stalled_s is not None:
            return Absent("of a container only the seconds in which all of it waited are seen")
        reason = _at(record, "host.guest_io.full_s")
    else:
        reason = _at(record, "hypervisor.stalled_s")
    return reason if isinstance(reason, (Absent, Broken)) else Absent("it could not be observed")


def _frozen_ms(record: StallRecord) -> Measured[float]:
    if record.freeze is None:
        return Absent("freezing was not applicable")
    return _or_absent(record.freeze.frozen_ms, "pvehook did not freeze it")
