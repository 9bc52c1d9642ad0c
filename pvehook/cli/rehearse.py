"""`pvehook rehearse`: previews tonight's run."""

from __future__ import annotations

import sys

from pvehook.cli.arguments import Arguments, Commands, add_command, add_vmids, configuration_in_force, instant


def add(commands: Commands) -> None:
    rehearse = add_command(commands, "rehearse", _rehearse, "preview tonight's run, without starting a backup")
    rehearse.add_argument("--at", metavar="ISO-TIME", help="preview a run that begins then")
    add_vmids(rehearse)
    rehearse.add_argument("--json", action="store_true")
    rehearse.add_argument(
        "--simulated", action="store_true", help="play a run with simulated guests; works on any Linux"
    )


def _rehearse(arguments: Arguments) -> int:
    if arguments.simulated:
        from pvehook.rehearsal.demo import simulated_night

        return simulated_night(sys.stdout)
    from pvehook.preview.preview import rehearse_tonight

    in_force = configuration_in_force(arguments)
    when = instant(arguments.at, in_force) if arguments.at else None
    return rehearse_tonight(
        arguments.node, in_force, when, tuple(arguments.vmid), as_json=arguments.json, out=sys.stdout
    )
