"""`pvehook night`: the end of a night in one look."""

from __future__ import annotations

import sys

from pvehook.cli.arguments import Arguments, Commands, add_command, standings_of
from pvehook.host.clock import SystemClock, at, local_zone


def add(commands: Commands) -> None:
    purpose = "the end of a night in one look: who was backed up, who was not and why, who suffered, what to do"
    night = add_command(commands, "night", _night, purpose)
    which = night.add_mutually_exclusive_group()
    which.add_argument("--last", action="store_true", help="the last night on record (the default)")
    which.add_argument("--date", metavar="DAY", help="the night that ended on that day, such as 2026-11-24")
    night.add_argument("--json", action="store_true")
    night.add_argument("--history", metavar="FILE", help="read this database instead of the node's")


def _night(arguments: Arguments) -> int:
    from pvehook.night.night import run_night
    from pvehook.night.summary import running_now
    from pvehook.records.history import history_file

    now = at(SystemClock(), local_zone(arguments.node))
    history = arguments.history or history_file(arguments.node)
    return run_night(
        history,
        sys.stdout,
        now,
        standings_of(arguments, history, now),
        running=running_now(arguments.node),
        day=arguments.date,
        as_json=arguments.json,
    )
