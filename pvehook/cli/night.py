"""`pvehook night`: the end of a night in one look."""

from __future__ import annotations

import sys

from pvehook.cli.arguments import Arguments, Commands, add_command, configuration_in_force, standings_of
from pvehook.host.clock import SystemClock, at, local_zone


def add(commands: Commands) -> None:
    purpose = "the end of a night in one look: who was backed up, who was not and why, who suffered, what to do"
    night = add_command(commands, "night", _night, purpose)
    which = night.add_mutually_exclusive_group()
    which.add_argument("--last", action="store_true", help="the last night on record (the default)")
    which.add_argument("--date", metavar="DAY", help="the night that ended on that day, such as 2026-11-24")
    night.add_argument("--json", action="store_true")
    night.add_argument(
        "--ask-storages",
        action="store_true",
        help="first ask all storages, Proxmox Backup Servers too, for backups of guests that have none on record",
    )
    night.add_argument("--history", metavar="FILE", help="read this database instead of the node's")


def _night(arguments: Arguments) -> int:
    from pvehook.night.night import run_night
    from pvehook.night.summary import running_now
    from pvehook.records.history import history_file

    now = at(SystemClock(), local_zone(arguments.node))
    history = arguments.history or history_file(arguments.node)
    if arguments.ask_storages:
        _ask_storages(arguments, history, now.timestamp())
    return run_night(
        history,
        sys.stdout,
        now,
        standings_of(arguments, history, now),
        running=running_now(arguments.node),
        day=arguments.date,
        as_json=arguments.json,
    )


def _ask_storages(arguments: Arguments, history: str, now_s: float) -> None:
    from pvehook.host.timely_files import TimelyReader
    from pvehook.night.stored_backups import ask_storages

    def says(text: str) -> None:
        print(f"pvehook: {text}", file=sys.stderr)

    keep_days = configuration_in_force(arguments).config.metrics.keep_days
    asked = ask_storages(arguments.node, TimelyReader(), history, now_s, keep_days, says)
    for problem in asked.problems:
        says(f"NOT ASKED: {problem}")
    if not asked.guests:
        says("every guest of this node has its backups on record, no storage was asked")
        return
    left = sorted({*asked.guests} - {*asked.found})
    says(f"backups are on record now of {len(asked.found)} of {len(asked.guests)} guests that had none")
    if left:
        says(f"none of {', '.join(map(str, left))}")
