"""`pvehook window`: may backups run now."""

from __future__ import annotations

import json
import sys
from datetime import datetime

from pvehook.cli.allow import allowance_text
from pvehook.cli.arguments import Arguments, Commands, add_command, configuration_in_force, instant, stamp
from pvehook.rescue import allowances


def add(commands: Commands) -> None:
    window = add_command(commands, "window", _window, "whether backups may run: exit 0 open, 1 closed, 2 error")
    window.add_argument("--at", metavar="ISO-TIME", help="at another time, such as 2026-03-29T02:30")
    window.add_argument("--json", action="store_true")


def _window(arguments: Arguments) -> int:
    from pvehook.rules.window import window_state

    in_force = configuration_in_force(arguments)
    now = instant(arguments.at, in_force)
    state = window_state(in_force.window, now)
    if arguments.json:
        shown = ("open", "reason", "closes_at", "opens_at")
        print(json.dumps({name: getattr(state, name) for name in shown}, default=datetime.isoformat))
    elif state.open:
        until = f"closes {stamp(state.closes_at)}" if state.closes_at else "does not close"
        print(f"open at {stamp(now)}: {state.reason}; {until}")
    else:
        until = f"opens {stamp(state.opens_at)}" if state.opens_at else "never opens, as configured"
        print(f"closed at {stamp(now)}: {state.reason}; {until}")
    if arguments.at is None:
        for each in allowances.in_force(arguments.node, now.timestamp()):
            print(f"exception {allowance_text(each, now)}", file=sys.stderr if arguments.json else sys.stdout)
    return 0 if state.open else 1
