"""`pvehook doctor`: what makes backups stall or get lost on this node, with evidence and remedy."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING

from pvehook.cli.arguments import Arguments, Commands, UsageError, add_command, add_vmids

if TYPE_CHECKING:
    from pvehook.doctor.checks import Diagnosis
    from pvehook.doctor.fixes import Report

EXIT = {"error": 3, "warning": 1, "note": 0}
"""By the worst finding. 2 is left for a doctor that could not do its work."""
NOT_FIXED = 2


def add(commands: Commands) -> None:
    purpose = "what makes backups stall or get lost here, why, and the command that fixes it"
    doctor = add_command(commands, "doctor", _doctor, purpose)
    doctor.description = f"{purpose.capitalize()}. Nothing is changed without --fix."
    doctor.epilog = "Exit code: 0 nothing worse than a note, 1 a warning, 3 an error, 2 it could not do its work."
    add_vmids(doctor)
    what = doctor.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true")
    what.add_argument("--fix", metavar="ID", help="fix what this check finds, such as PVH-101; the old value is kept")
    what.add_argument("--unfix", metavar="ID", help="take such fixes back, where nobody has changed them since")


def _doctor(arguments: Arguments) -> int:
    from pvehook.doctor.checks import name_of
    from pvehook.doctor.doctor_json import doctor_json
    from pvehook.doctor.doctor_terminal import doctor_lines
    from pvehook.host.clock import SystemClock, at, local_zone
    from pvehook.report.terminal_style import style_of

    _require_guests(arguments)
    if arguments.fix is not None:
        return _said(_fix(arguments))
    if arguments.unfix is not None:
        return _said(_unfix(arguments))
    now, name = at(SystemClock(), local_zone(arguments.node)), name_of(arguments.node)
    diagnosis = _diagnosed(arguments)
    if arguments.json:
        print(json.dumps(doctor_json(diagnosis, name, now), indent=1))
    else:
        print("\n".join(doctor_lines(diagnosis, name, now, style_of(sys.stdout))))
    return max((EXIT[each.finding.severity] for each in diagnosis.found), default=0)


def _diagnosed(arguments: Arguments) -> Diagnosis:
    from pvehook.config.in_force import Configuration
    from pvehook.doctor.checks import diagnose
    from pvehook.host.clock import SystemClock, at
    from pvehook.host.timely_files import TimelyReader

    # Its problems are findings, so they are not printed beside them.
    in_force = Configuration(arguments.node, TimelyReader(), arguments.config, remembers=False).now()
    return diagnose(arguments.node, in_force, at(SystemClock(), in_force.zone), tuple(arguments.vmid))


def _require_guests(arguments: Arguments) -> None:
    """A guest that is not here would have no findings, which reads as if it were fine."""
    from pvehook.host.timely_files import TimelyReader

    def unknown() -> list[int]:
        paths = {vmid: (f"/etc/pve/{kind}/{vmid}.conf" for kind in ("qemu-server", "lxc")) for vmid in arguments.vmid}
        return [vmid for vmid, of in paths.items() if not any(os.path.exists(arguments.node.path(each)) for each in of)]

    if arguments.vmid and (missing := TimelyReader().within(5.0, "/etc/pve", unknown)):
        raise UsageError(f"guest {', '.join(map(str, missing))} is not on this node")


def _fix(arguments: Arguments) -> list[Report]:
    from pvehook.doctor.checks import all_checks
    from pvehook.doctor.finding import Write
    from pvehook.doctor.fixes import Report, fix, run_on

    if arguments.fix not in {check.id for check in all_checks()}:
        raise UsageError(f"{arguments.fix} is no check; `pvehook doctor` shows the ids of what it found")
    reports: list[Report] = []
    handled: set[str] = set()
    while True:
        found = [each for each in _diagnosed(arguments).found if each.check.id == arguments.fix]
        todo = [each for each in found if each.finding.subject not in handled]
        if not todo:
            break
        written: set[str] = set()
        for each in todo:
            paths = {step.path for step in each.finding.steps if isinstance(step, Write)}
            if paths & written:
                continue  # its steps are for the file as it was: it is checked again first
            written |= paths
            handled.add(each.finding.subject)
            if each.finding.steps:
                reports.append(fix(arguments.node, each, run_on(arguments.node), time.time()))
            else:
                by_hand = [f"  -> {command}" for command in each.finding.remedy]
                lines = (f"{arguments.fix} {each.finding.subject}: not fixed, this is for you to do:", *by_hand)
                reports.append(Report(False, lines))
    return reports or [Report(True, (f"{arguments.fix}: nothing to fix",))]


def _unfix(arguments: Arguments) -> list[Report]:
    from pvehook.doctor.fixes import Report, run_on, unfix

    reports = unfix(arguments.node, arguments.unfix, tuple(arguments.vmid), run_on(arguments.node))
    return reports or [Report(True, (f"{arguments.unfix}: nothing was fixed by pvehook, so nothing is taken back",))]


def _said(reports: list[Report]) -> int:
    print("\n".join(line for report in reports for line in report.lines))
    return 0 if all(report.is_done for report in reports) else NOT_FIXED
