"""`pvehook governor status`: how fast each backup may run now."""

from __future__ import annotations

import json

from pvehook.cli.arguments import Arguments, Commands, add_command, configuration_in_force


def add(commands: Commands) -> None:
    governor = commands.add_parser("governor", help="the governor of the backups that run now")
    purpose = "how fast each backup may run, and whether the governor throttles it"
    status = add_command(governor.add_subparsers(required=True, metavar="status"), "status", _governor_status, purpose)
    status.add_argument("--json", action="store_true")


def _governor_status(arguments: Arguments) -> int:
    from pvehook.throttle.governor_status import running_backups

    config = configuration_in_force(arguments).config.governor
    backups = running_backups(arguments.node, config)
    if arguments.json:
        print(json.dumps([backup._asdict() for backup in backups]))
        return 0
    running = [backup.text for backup in backups] or ["pvehook knows of no running backup"]
    print(f"governor: {config.mode}", *running, sep="\n")
    return 0
