"""`pvehook report`: which guest suffered, how much, and why."""

from __future__ import annotations

import sys

from pvehook.cli.arguments import Arguments, Commands, add_command, number, standings_of, vmid
from pvehook.host.clock import SystemClock, at, local_zone


def add(commands: Commands) -> None:
    purpose = "which guest suffered, how much, why, and is it worse than before the upgrade"
    report = add_command(commands, "report", _report, purpose)
    report.add_argument("--since", default="30d", metavar="TIME", help="how far back: 30d, or a day (default 30d)")
    report.add_argument("--vmid", type=vmid, metavar="N", help="one guest: its last backup, its nights beside others'")
    report.add_argument("--night", metavar="DAY", help="as of that night, such as 2026-11-23")
    report.add_argument("--worst", type=number, metavar="N", help="only the N guests that suffered most")
    report.add_argument("--html", metavar="FILE", help="write a page with charts, one file")
    report.add_argument("--forecast", action="store_true", help="how good the forecasts of backups' lengths were")
    report.add_argument("--json", action="store_true")
    report.add_argument("--history", metavar="FILE", help="read this database instead of the node's")


def _report(arguments: Arguments) -> int:
    from pvehook.night.summary import running_now
    from pvehook.records.history import history_file
    from pvehook.report.report import run_report

    now = at(SystemClock(), local_zone(arguments.node))
    history = arguments.history or history_file(arguments.node)
    if arguments.forecast:
        from pvehook.report.forecast_report import run_forecast_report

        asked = {"since": arguments.since, "vmid": arguments.vmid, "as_json": arguments.json}
        return run_forecast_report(history, sys.stdout, now, **asked)
    return run_report(
        history,
        sys.stdout,
        now,
        since=arguments.since,
        vmid=arguments.vmid,
        backup=arguments.night,
        worst=arguments.worst,
        html=arguments.html,
        as_json=arguments.json,
        standings_of=standings_of(arguments, history, now),
        is_running=bool(running_now(arguments.node)),
    )
