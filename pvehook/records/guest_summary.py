"""One guest's summary when its backup has ended: a sentence for the journal, lines for vzdump's task log.

pvehook: VM 101 (web): idle I/O priority on vzdump, zstd (2 processes, 6 of 6 threads, read back)
pvehook: VM 101 (web): effect: dump /var/lib/vz/dump on sda (mq-deadline): honoured
pvehook: VM 101 (web): effect: its disks are read by its own QEMU, which idle priority does not reach
pvehook: VM 101 (web): stalled for 3.4 s, slowed for 41 s, p99 of writes 24 ms before and 310 ms during; slow ...
"""

from __future__ import annotations

from pvehook.contract.measured import Absent, Broken, Measured, value_of
from pvehook.contract.text import counted, printable
from pvehook.records.figures import encode_figure, figures, short_number
from pvehook.records.guest_record import GuestRecord
from pvehook.records.stall_record import StallRecord
from pvehook.rules.stalls import lockups_of

LOCKUPS_SHOWN = 3
"""In a task log; the record has all that were kept."""


def guest_title(guest: GuestRecord) -> str:
    """`VM 101 (web)`, `CT 110`."""
    return guest_number(guest.vmtype, guest.vmid) + (f" ({guest.name})" if guest.name else "")


def guest_number(vmtype: str | None, vmid: int) -> str:
    """`VM 101`."""
    kind = {"qemu": "VM", "lxc": "CT"}.get(vmtype or "", "guest")
    return f"{kind} {vmid}"


def idle_in_words(guest: GuestRecord) -> str:
    """Which processes had the idle I/O class, and whether that was read back."""
    if not guest.idle:
        return "no backup process was set to the idle I/O class"
    processes, threads, confirmed = idle_counts(guest)
    names = ", ".join(sorted(guest.idle, key=lambda comm: (comm != "vzdump", comm)))
    plural = "es" if processes != 1 else ""
    return f"idle I/O priority on {names} ({processes} process{plural}, {confirmed} of {threads} threads, read back)"


def idle_counts(guest: GuestRecord) -> tuple[int, int, int]:
    """Its backup's processes that were to be idle, their threads, and those that were read back as idle."""
    processes, threads, confirmed = (sum(each[i] for each in guest.idle.values()) for i in range(3))
    return processes, threads, confirmed


def summary_message(guest: GuestRecord, stall: StallRecord | None = None) -> str:
    """One sentence: the guest, how it ended, what was done, whether it had an effect, what the guest suffered."""
    if guest.result == "refused":
        return f"{guest_title(guest)}: refused, the window is closed"
    result = "ended unseen" if guest.result == "unknown" else guest.result
    parts = [f"{guest_title(guest)}: backup {result}", idle_in_words(guest), f"effect: {guest.effect_in_short}"]
    if guest.freeze is not None and guest.freeze.consistency is not None:
        parts.append(guest.freeze.in_words())
    if guest.restored:
        parts.append(f"{len(guest.restored)} of its processes restored to normal priority")
    if stall is not None:
        parts.append(stall_in_words(stall))
    return "; ".join(parts)


def summary_lines(guest: GuestRecord, stall: StallRecord | None = None) -> list[str]:
    """What vzdump's task log shows at `log-end`. Nothing for a refused guest: its one line was shown already."""
    if guest.result == "refused":
        return []
    title = guest_title(guest)
    lines = [f"{title}: {idle_in_words(guest)}"]
    if guest.freeze is not None and guest.freeze.consistency is not None:
        lines.insert(0, f"{title}: {guest.freeze.in_words()}")
    lines += [f"{title}: NOT in the idle I/O class: {reason}" for reason in guest.not_idle]
    lines += [f"{title}: effect: {sentence}" for sentence in guest.effect]
    lines += [f"{title}: {text}" for text in guest.restored]
    if stall is not None:
        lines.append(f"{title}: {stall_in_words(stall)}")
        found = lockups_of(stall.guest)[:LOCKUPS_SHOWN]
        lines += [f"{title}: its kernel logged: {printable(line.text)}" for line in found]
    if guest.closed_at_s is not None and guest.ended_s is not None:
        minutes = counted(round(max(guest.ended_s - guest.closed_at_s, 0.0) / 60), "minute")
        what = " and was cancelled" if guest.cancel_sent else f" ({guest.closed_plan})"
        lines.append(f"{title}: its backup ran {minutes} past the window's end{what}")
    return lines


def stall_in_words(stall: StallRecord) -> str:
    """How long the guest stalled, how its writes fared, and the causes with their evidence."""
    known = figures(stall)
    text = seconds_in_words(known["stalled_s"], known["slowed_s"])
    during, before = value_of(known["write_p99_ms"]), value_of(known["baseline_write_p99_ms"])
    if during is not None:
        earlier = f"{short_number(before)} ms before and " if before is not None else ""
        text += f", p99 of writes {earlier}{short_number(during)} ms during"
    if found := lockups_of(stall.guest):
        text += f", {len(found)} {'lines' if len(found) > 1 else 'line'} of its kernel about a lockup"
    return "; ".join([text, *(f"{cause.text} ({cause.evidence})" for cause in stall.verdict.causes)])


def seconds_in_words(stalled_s: Measured[float], slowed_s: Measured[float]) -> str:
    """`stalled for 3.4 s, slowed for 41 s`; why not, where that is not known."""
    if isinstance(stalled_s, Absent):
        text = f"whether it stalled was not seen: {printable(stalled_s.why)}"
    elif isinstance(stalled_s, Broken):
        text = f"whether it stalled could not be read: {printable(stalled_s.why)}"
    else:
        text = f"stalled for {short_number(stalled_s)} s" if stalled_s else "not stalled"
    if not isinstance(slowed_s, (Absent, Broken)):
        text += f", slowed for {short_number(slowed_s)} s"
    return text


def is_good(guest: GuestRecord, stall: StallRecord | None) -> bool:
    """Whether there is nothing to warn about: no backup that is known to have failed, and no stall."""
    stalled = stall is not None and stall.verdict.severity in ("stalled", "locked-up")
    return guest.result in ("ok", "unknown") and not stalled


def guest_done_fields(guest: GuestRecord, stall: StallRecord | None) -> dict[str, object]:
    """The journal's fields of a guest whose turn is over; a missing figure is `absent: why` or `broken: why`."""
    freeze = guest.freeze
    processes, threads, confirmed = idle_counts(guest)
    fields: dict[str, object] = {
        "vmid": guest.vmid,
        "guest": guest.name,
        "vmtype": guest.vmtype,
        "mode": guest.mode,
        "result": guest.result,
        "duration_s": round((guest.ended_s or guest.started_s) - guest.started_s, 1),
        "admitted_by": guest.admitted_by,
        "idle_processes": processes,
        "idle_threads": threads,
        "idle_threads_confirmed": confirmed,
        "idle_commands": ", ".join(sorted(guest.idle)) or None,
        "idle_failed": guest.not_idle or None,
        "idle_effect": guest.effect_in_short,
        "idle_effect_detail": guest.effect or None,
        "put_back_to_normal": guest.restored or None,
        "freeze": freeze.action if freeze else None,
        "consistency": freeze.consistency if freeze else None,
        "freeze_list": freeze.mountpoints if freeze else None,
    }
    if stall is None:
        return fields | {"frozen_ms": freeze.frozen_ms if freeze else None}
    return fields | {
        "severity": stall.verdict.severity,
        "causes": [f"{cause.kind}: {cause.evidence}" for cause in stall.verdict.causes],
        **{name: encode_figure(figure) for name, figure in figures(stall).items()},
        "kernel_lines": [printable(line.text) for line in lockups_of(stall.guest)],
        "pve_manager": stall.versions.pve_manager,
        "qemu": stall.versions.qemu,
        "kernel": stall.versions.kernel,
    }
