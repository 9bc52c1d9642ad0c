"""`pvehook rehearse`: previews tonight's run."""

from __future__ import annotations

import argparse
import sys

from pvehook.cli.arguments import Commands, configuration_in_force, instant, vmid
from pvehook.host.node import Node


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    rehearse = commands.add_parser(
        "rehearse", parents=[common], help="preview tonight's run, without starting a backup"
    )
    rehearse.add_argument("--at", metavar="ISO-TIME", help="preview a run that begins then")
    rehearse.add_argument(
        "--vmid", type=vmid, action="append", default=[], metavar="N", help="only this guest (can be repeated)"
    )
    rehearse.add_argument("--json", action="store_true")
    rehearse.add_argument(
        "--simulated", action="store_true", help="play a run with simulated guests; works on any Linux"
    )
    rehearse.set_defaults(run=_rehearse)


def _rehearse(arguments: argparse.Namespace) -> int:
    if arguments.simulated:
        from pvehook.rehearsal.demo import simulated_night

        return simulated_night(sys.stdout)
    from pvehook.preview.preview import rehearse_tonight

    in_force = configuration_in_force(arguments)
    when = instant(arguments.at, in_force) if arguments.at else None
    return rehearse_tonight(
        Node(arguments.root), in_force, when, tuple(arguments.vmid), as_json=arguments.json, out=sys.stdout
    )
