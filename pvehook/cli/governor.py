"""`pvehook governor status`: how fast each backup may run now, who is watched beside it, and who suffers.

governor: on
VM 101 (web): drive-scsi0 43% done, 12.3 MB/s at most, throttled by the governor

beside guest 101's backup: 23 guests, 12 on its disks, 2 perhaps, 9 elsewhere
2 suffer now; the backup is steered by VM 105 (db)

guest                  mean ms  p99 ms  target  stalled  slowed
VM 105 (db)                412    1310      35      12s    1m04  steers
CT 110 (mail)                -       -       -       4s     31s  suffers, aside
VM 107 (files)              12      24      40       0s      3s

aside, a container's pressure does not steer: CT 110
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pvehook.cli.arguments import Arguments, Commands, add_command, configuration_in_force

if TYPE_CHECKING:
    from pvehook.report.terminal_style import TerminalStyle
    from pvehook.throttle.governor_status import RunningBackup
    from pvehook.watch.watch_status import WatchedGuest, WatchStatus

MOST_ROWS = 15
MOST_REASONS = 5
_ROW = "{guest:<22.22} {mean:>7} {p99:>7} {target:>7} {stalled:>8} {slowed:>7}  {note}"


def add(commands: Commands) -> None:
    governor = commands.add_parser("governor", help="the governor of the backups that run now")
    purpose = "how fast each backup may run, who is watched beside it, who suffers, by whom it is steered"
    status = add_command(governor.add_subparsers(required=True, metavar="status"), "status", _governor_status, purpose)
    status.add_argument("--json", action="store_true")


def _governor_status(arguments: Arguments) -> int:
    from pvehook.contract.measured import Absent, Broken
    from pvehook.host.clock import SystemClock
    from pvehook.records.encoding import encode
    from pvehook.report.terminal_style import style_of
    from pvehook.throttle.governor_status import running_backups
    from pvehook.watch.watch_status import Stale, read_status

    config = configuration_in_force(arguments).config.governor
    backups = running_backups(arguments.node, config)
    watch = read_status(arguments.node, SystemClock().steady_s())
    if arguments.json:
        watched = {"stale": watch.why} if isinstance(watch, Stale) else encode(watch)
        shown = {"mode": config.mode, "backups": [backup._asdict() for backup in backups], "watch": watched}
        print(json.dumps(shown))
        return 0
    style = style_of(sys.stdout)
    print(f"governor: {config.mode}")
    print("\n".join([backup.text for backup in backups] or ["pvehook knows of no running backup"]))
    if isinstance(watch, Absent):
        print(watch.why)
    elif isinstance(watch, (Stale, Broken)):
        print("\n".join(style.wrapped(f"who is watched is not known: {watch.why}")))
    else:
        print("\n".join(["", *_watch_lines(watch, backups, style)]))
    return 0


def _watch_lines(watch: WatchStatus, backups: Iterable[RunningBackup], style: TerminalStyle) -> list[str]:
    """Who is beside the backup, by whom it is steered, a row for each that suffered, and why some do not count."""
    from pvehook.contract.text import counted
    from pvehook.records.guest_summary import guest_number

    counts = watch.counts
    beside = f"beside guest {watch.in_backup}'s backup:"
    if not counts.guests:
        return [f"{beside} no other guest runs"]
    places = ((counts.shared, "on its disks"), (counts.unknown, "perhaps"), (counts.elsewhere, "elsewhere"))
    where = ", ".join(f"{count} {place}" for count, place in places if count)
    lines = style.wrapped(f"{beside} {counted(counts.guests, 'guest')}, {where}")
    suffer = f"{counts.suffer} suffer{'s' if counts.suffer == 1 else ''} now" if counts.suffer else "none suffers now"
    lines += style.wrapped(suffer + _steered(watch, backups))
    rows = [guest for guest in watch.guests if guest.suffers or guest.slowed_s > 0 or guest.vmid == watch.steers]
    if rows:
        columns = {"mean": "mean ms", "p99": "p99 ms", "target": "target", "stalled": "stalled", "slowed": "slowed"}
        lines += ["", _ROW.format(guest="guest", **columns, note="").rstrip()]
        lines += [_row(guest, watch.steers, style) for guest in rows[:MOST_ROWS]]
        more = max(len(rows), counts.slowed) - MOST_ROWS
        lines += [f"and {more} more that suffered less"] if more > 0 else []
    by_reason: dict[str, list[str]] = {}
    for guest in watch.guests:
        number = guest_number(guest.vmtype, guest.vmid)
        if guest.not_watched is not None:
            by_reason.setdefault(f"not watched, {guest.not_watched}", []).append(number)
        elif guest.put_aside is not None and guest in rows[:MOST_ROWS]:
            by_reason.setdefault(f"aside, {guest.put_aside}", []).append(number)
    reasons = [f"{why}: {', '.join(numbers)}" for why, numbers in by_reason.items()]
    lines += [""] if reasons else []
    lines += [line for reason in reasons[:MOST_REASONS] for line in style.wrapped(reason, others="  ")]
    if len(reasons) > MOST_REASONS:
        lines.append(f"and {len(reasons) - MOST_REASONS} more reasons; --json has them all")
    return lines


def _steered(watch: WatchStatus, backups: Iterable[RunningBackup]) -> str:
    if watch.steers is not None:
        name = next((_title(guest) for guest in watch.guests if guest.vmid == watch.steers), f"guest {watch.steers}")
        return f"; the backup is steered by {name}"
    own = any(backup.throttled and backup.vmid == watch.in_backup for backup in backups)
    return "; the backup is steered by its own guest" if own else ""


def _row(guest: WatchedGuest, steers: int | None, style: TerminalStyle) -> str:
    from pvehook.records.figures import short_duration

    figures = {
        "mean": _milliseconds(guest.mean_ms),
        "p99": _milliseconds(guest.p99_ms),
        "target": _milliseconds(guest.target_ms),
        "stalled": short_duration(guest.stalled_s),
        "slowed": short_duration(guest.slowed_s),
    }
    note = "steers" if guest.vmid == steers else "suffers" if guest.suffers else ""
    note = ", ".join(filter(None, (note, "aside" if guest.put_aside else "")))
    return style.shown(_ROW.format(guest=_title(guest), **figures, note=note)).rstrip()


def _title(guest: WatchedGuest) -> str:
    from pvehook.records.guest_summary import guest_number

    return guest_number(guest.vmtype, guest.vmid) + (f" ({guest.name})" if guest.name else "")


def _milliseconds(value: float | None) -> str:
    from pvehook.records.figures import ABSENT_MARK, short_number

    return ABSENT_MARK if value is None else short_number(value)
