"""`pvehook doctor`: what makes backups stall or get lost on this node, with evidence and remedy."""

from __future__ import annotations

import json
import sys

from pvehook.cli.arguments import Arguments, Commands, add_command, add_vmids, configuration_in_force

EXIT = {"error": 3, "warning": 1, "note": 0}
"""By the worst finding. 2 is left for a doctor that could not do its work."""


def add(commands: Commands) -> None:
    purpose = "what makes backups stall or get lost here, why, and the command that fixes it"
    doctor = add_command(commands, "doctor", _doctor, purpose)
    doctor.description = f"{purpose.capitalize()}."
    doctor.epilog = "Exit code: 0 nothing worse than a note, 1 a warning, 3 an error, 2 it could not do its work."
    add_vmids(doctor)
    doctor.add_argument("--json", action="store_true")


def _doctor(arguments: Arguments) -> int:
    from pvehook.doctor.checks import diagnose, name_of
    from pvehook.doctor.doctor_json import doctor_json
    from pvehook.doctor.doctor_terminal import doctor_lines
    from pvehook.host.clock import SystemClock, at
    from pvehook.report.terminal_style import style_of

    in_force = configuration_in_force(arguments)
    now, name = at(SystemClock(), in_force.zone), name_of(arguments.node)
    diagnosis = diagnose(arguments.node, in_force, now, tuple(arguments.vmid))
    if arguments.json:
        print(json.dumps(doctor_json(diagnosis, name, now), indent=1))
    else:
        print("\n".join(doctor_lines(diagnosis, name, now, style_of(sys.stdout))))
    return max((EXIT[each.finding.severity] for each in diagnosis.found), default=0)
