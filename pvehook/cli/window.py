"""`pvehook window`: may backups run now."""

from __future__ import annotations

import argparse
import json
import sys

from pvehook.cli.arguments import Commands, configuration_in_force, instant, stamp
from pvehook.host.node import Node

EXIT_OPEN, EXIT_CLOSED = 0, 1


def add(commands: Commands, common: argparse.ArgumentParser) -> None:
    window = commands.add_parser(
        "window", parents=[common], help="whether backups may run: exit 0 open, 1 closed, 2 error"
    )
    window.add_argument("--at", metavar="ISO-TIME", help="at another time, such as 2026-03-29T02:30")
    window.add_argument("--json", action="store_true")
    window.set_defaults(run=_window)


def _window(arguments: argparse.Namespace) -> int:
    from pvehook.rules.window import window_state

    in_force = configuration_in_force(arguments)
    now = instant(arguments.at, in_force)
    state = window_state(in_force.window, now)
    if arguments.json:
        body = {
            "open": state.open,
            "reason": state.reason,
            "closes_at": state.closes_at.isoformat() if state.closes_at else None,
            "opens_at": state.opens_at.isoformat() if state.opens_at else None,
        }
        print(json.dumps(body))
    elif state.open:
        until = f"closes {stamp(state.closes_at)}" if state.closes_at else "does not close"
        print(f"open at {stamp(now)}: {state.reason}; {until}")
    else:
        until = f"opens {stamp(state.opens_at)}" if state.opens_at else "never opens, as configured"
        print(f"closed at {stamp(now)}: {state.reason}; {until}")
    if arguments.at is None:
        from pvehook.cli.allow import allowance_text
        from pvehook.rescue import allowances

        for each in allowances.in_force(Node(arguments.root), now.timestamp()):
            print(f"exception {allowance_text(each, now)}", file=sys.stderr if arguments.json else sys.stdout)
    return EXIT_OPEN if state.open else EXIT_CLOSED
