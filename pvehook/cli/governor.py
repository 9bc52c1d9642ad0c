"""`pvehook governor status`: how fast each backup may run now."""

from __future__ import annotations

import argparse
import json

from pvehook.cli.arguments import Commands, configuration_in_force
from pvehook.host.node import Node


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    governor = commands.add_parser("governor", help="the governor of the backups that run now")
    governor_commands = governor.add_subparsers(required=True, metavar="status")
    status = governor_commands.add_parser(
        "status", parents=[common], help="how fast each backup may run, and whether the governor throttles it"
    )
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_governor_status)


def _governor_status(arguments: argparse.Namespace) -> int:
    from pvehook.throttle.governor_status import running_backups

    in_force = configuration_in_force(arguments)
    backups = running_backups(Node(arguments.root), in_force.config.governor)
    if arguments.json:
        print(json.dumps([backup._asdict() for backup in backups]))
        return 0
    print(f"governor: {in_force.config.governor.mode}")
    for backup in backups:
        print(backup.text)
    if not backups:
        print("pvehook knows of no running backup")
    return 0
