"""What is told of one guest when its backup has ended: a sentence for the journal, lines for vzdump's task log.

pvehook: VM 101 (web): idle I/O priority on vzdump, zstd (2 processes, 6 of 6 threads, read back)
pvehook: VM 101 (web): effect: dump /var/lib/vz/dump on sda (mq-deadline): honoured
pvehook: VM 101 (web): effect: its disks are read by its own QEMU, which idle priority does not reach
"""

from __future__ import annotations

from pvehook.records.guest_record import GuestRecord


def guest_title(guest: GuestRecord) -> str:
    """`VM 101 (web)`, `CT 110`."""
    kind = {"qemu": "VM", "lxc": "CT"}.get(guest.vmtype or "", "guest")
    return f"{kind} {guest.vmid}" + (f" ({guest.name})" if guest.name else "")


def idle_in_words(guest: GuestRecord) -> str:
    """Which processes were at idle, and how sure that is."""
    if guest.result == "refused":
        return "not begun"
    if not guest.idle:
        return "no backup process was put to idle I/O priority"
    processes, threads, confirmed = (sum(each[i] for each in guest.idle.values()) for i in range(3))
    names = ", ".join(sorted(guest.idle, key=lambda comm: (comm != "vzdump", comm)))
    return (
        f"idle I/O priority on {names} ({processes} process{'es' if processes != 1 else ''}, "
        f"{confirmed} of {threads} threads, read back)"
    )


def account_message(guest: GuestRecord) -> str:
    """One sentence: the guest, how it ended, what was done, whether it had an effect."""
    if guest.result == "refused":
        return f"{guest_title(guest)}: refused, the window is shut"
    parts = [f"{guest_title(guest)}: backup {guest.result}", idle_in_words(guest)]
    parts.append(f"effect: {guest.effect_in_short}")
    if guest.freeze is not None and guest.freeze.consistency is not None:
        parts.append(guest.freeze.in_words())
    if guest.restored:
        parts.append(f"{len(guest.restored)} of its processes put back to normal priority")
    return "; ".join(parts)


def account_lines(guest: GuestRecord) -> list[str]:
    """What vzdump's task log shows at `log-end`. Nothing for a refused guest: its one line was shown already."""
    if guest.result == "refused":
        return []
    title = guest_title(guest)
    lines = [f"{title}: {idle_in_words(guest)}"]
    if guest.freeze is not None and guest.freeze.consistency is not None:
        lines.insert(0, f"{title}: {guest.freeze.in_words()}")
    lines += [f"{title}: NOT at idle: {reason}" for reason in guest.not_idle]
    lines += [f"{title}: effect: {sentence}" for sentence in guest.effect]
    lines += [f"{title}: {text}" for text in guest.restored]
    if guest.shut_at_s is not None and guest.ended_s is not None:
        minutes = (guest.ended_s - guest.shut_at_s) / 60
        lines.append(
            f"{title}: its backup ran {minutes:.0f} minutes past the window's end"
            + (" and was cancelled" if guest.cancel_sent else f" ({guest.shut_plan})")
        )
    return lines
