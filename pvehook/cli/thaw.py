"""`pvehook thaw`: thaws what pvehook froze, and restores the speed of what it slowed."""

from __future__ import annotations

import sys

from pvehook.cli.arguments import Arguments, Commands, UsageError, add_command, vmid


def add(commands: Commands) -> None:
    thaw = add_command(commands, "thaw", _thaw, "thaw guests that pvehook froze; exit 0 when they are thawed")
    thaw.add_argument("vmid", type=vmid, nargs="?", metavar="VMID")
    thaw.add_argument(
        "--left-over",
        action="store_true",
        help="every guest that pvehook left frozen, and the speed of every backup that it left slowed",
    )
    thaw.add_argument("--force", action="store_true", help="thaw VMID even if pvehook did not freeze it")


def _thaw(arguments: Arguments) -> int:
    from pvehook.rescue.left_over import at_once
    from pvehook.rescue.speed_record import restore_left_over_speeds
    from pvehook.rescue.thaw import thaw_guest, thaw_left_over

    if (arguments.vmid is None) is not arguments.left_over:
        raise UsageError("name one guest, or --left-over for every guest that pvehook left frozen")
    node, guest = arguments.node, arguments.vmid
    if guest is None:
        frozen, throttled = at_once(lambda undo: undo(node), (thaw_left_over, restore_left_over_speeds))
        reports = frozen + throttled
    else:
        reports = [thaw_guest(node, guest, force=arguments.force)]
    if guest is None and not reports and sys.stdout.isatty():  # systemd runs this at every stop: silence is right then
        print("no guest is recorded as frozen by pvehook, no backup as slowed")
    for report in reports:
        print(report.text, file=sys.stdout if report.done else sys.stderr)
    return 0 if all(report.done for report in reports) else 1
