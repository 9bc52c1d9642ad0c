"""`pvehook guests thp|hookscript`: all guests of the node, their huge pages and their hookscripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from pvehook.cli.arguments import Arguments, Commands, UsageError, add_command, add_vmids, vmid

if TYPE_CHECKING:
    from pvehook.doctor.guest_insides import GuestInside
    from pvehook.host.guest_configs import ConfiguredGuest

CONFIGS_S = 2.0


def add(commands: Commands) -> None:
    guests = commands.add_parser("guests", help="huge pages and hookscripts of all guests")
    guests.description = (
        "About all guests of this node, or those that are named, running or not. `pvehook guest VMID` examines one that"
        " runs, for its freeze."
    )
    what = guests.add_subparsers(required=True, metavar="thp|hookscript")
    thp = add_command(
        what, "thp", _thp, "which guests' kernels make huge pages for every program, and how to keep that off"
    )
    thp.epilog = (
        "Exit code: 0 no guest is known to have `always`, 1 one has, 2 an error; with --apply-now 1: not all was done."
    )
    add_vmids(thp)
    thp.add_argument("--json", action="store_true")
    thp.add_argument(
        "--apply-now",
        type=vmid,
        nargs="+",
        metavar="VMID",
        help="set it in these guests until their next boot; without --yes it only says what it would do",
    )
    choices = ("never", "madvise")
    thp.add_argument("--to", choices=choices, default="never", help="what --apply-now sets (default: never)")
    thp.add_argument("--yes", action="store_true", help="do what --apply-now would do")

    purpose = "thaw these guests before a shutdown, and note at each start what they tell of themselves"
    hookscript = add_command(what, "hookscript", _hookscript, purpose)
    hookscript.description = (
        "Gives guests pvehook's hookscript, or takes it off. One that a guest has already is run after it, as before."
    )
    hookscript.add_argument("action", choices=("enable", "disable"))
    hookscript.add_argument("vmid", type=vmid, nargs="*", metavar="VMID")
    hookscript.add_argument(
        "--all", action="store_true", help="all VMs of this node; a container has no use for it and is left out"
    )
    hookscript.add_argument(
        "--storage", metavar="STORAGE", help="where the script is put of guests that have none yet (default: local)"
    )
    hookscript.add_argument("--json", action="store_true")


def _guests(arguments: Arguments, wanted: Sequence[int]) -> list[ConfiguredGuest]:
    """Those of this node; empty `wanted`: all."""
    from pvehook.host.guest_configs import read_guest_configs
    from pvehook.host.timely_files import TimelyReader

    guests = {each.vmid: each for each in read_guest_configs(arguments.node, TimelyReader(), CONFIGS_S)}
    if unknown := sorted(set(wanted) - set(guests)):
        raise UsageError(f"there is no guest {', '.join(map(str, unknown))} on this node")
    return [guests[each] for each in sorted(set(wanted) or set(guests))]


def _thp(arguments: Arguments) -> int:
    from pvehook.doctor.guest_insides import look_inside
    from pvehook.doctor.huge_pages_report import HARMFUL, huge_pages_json, huge_pages_lines, in_force
    from pvehook.host.clock import local_zone
    from pvehook.report.terminal_style import style_of

    zone = local_zone(arguments.node)
    guests = _guests(arguments, arguments.apply_now or arguments.vmid)
    insides = look_inside(arguments.node, guests)
    if arguments.apply_now:
        return _apply_now(arguments, guests, insides)
    if arguments.json:
        print(json.dumps(huge_pages_json(insides, lambda at_s: datetime.fromtimestamp(at_s, zone)), indent=1))
    else:
        lines = huge_pages_lines(insides, style_of(sys.stdout), lambda at_s: datetime.fromtimestamp(at_s, zone))
        print("\n".join(lines))
    return 1 if any(in_force(each) == HARMFUL for each in insides) else 0


def _apply_now(arguments: Arguments, guests: Sequence[ConfiguredGuest], insides: Sequence[GuestInside]) -> int:
    from pvehook.doctor.huge_pages_now import apply_now

    is_dry_run = not arguments.yes
    applied = [
        apply_now(arguments.node, guest, inside, arguments.to, is_dry_run=is_dry_run)
        for guest, inside in zip(guests, insides, strict=True)
    ]
    if arguments.json:
        print(json.dumps([each._asdict() for each in applied], indent=1))
    else:
        for each in applied:
            print(each.text, file=sys.stdout if each.done else sys.stderr)
        if is_dry_run:
            print("nothing was changed; with --yes it is done")
    return 0 if all(each.done for each in applied) else 1


def _hookscript(arguments: Arguments) -> int:
    from pvehook.doctor.fixes import run_on
    from pvehook.doctor.hookscripts import Hooked, disable, enable, left_out
    from pvehook.host.timely_files import TimelyReader

    if bool(arguments.vmid) is arguments.all:
        raise UsageError("name the guests, or --all for all VMs of this node")
    node, reader, run = arguments.node, TimelyReader(), run_on(arguments.node)
    hooked: list[Hooked] = []
    for guest in _guests(arguments, arguments.vmid):
        if arguments.all and guest.vmtype == "lxc":
            hooked.append(left_out(guest))
        elif arguments.action == "enable":
            hooked.append(enable(node, reader, guest, arguments.storage, run))
        else:
            hooked.append(disable(node, reader, guest, run))
        if not arguments.json:  # each takes a second
            print(hooked[-1].text, file=sys.stdout if hooked[-1].done else sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps([each._asdict() for each in hooked], indent=1))
    return 0 if all(each.done for each in hooked) else 1
