"""What several commands share: the values of their arguments, the configuration in force, how a time is written."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from pvehook.errors import ConfigError
from pvehook.host.clock import SystemClock, at
from pvehook.host.node import Node

if TYPE_CHECKING:
    from pvehook.config.in_force import InForce
    from pvehook.contract.measured import Measured
    from pvehook.report.night_turns import NightTurns
    from pvehook.report.standing import Standing, StandingsOf

Arguments: TypeAlias = argparse.Namespace
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

COMMON = argparse.ArgumentParser(add_help=False)
"""What every command takes."""
COMMON.add_argument(
    "--config", metavar="FILE", help="use this file instead of /etc/pve/pvehook.yaml and /etc/pvehook.yaml"
)
COMMON.add_argument(
    "--root", dest="node", type=Node, default="/", metavar="ROOT", help="directory tree to use as the node (default: /)"
)


class UsageError(Exception):
    """A command line that is well formed but cannot be done; the text says why."""


def add_command(
    commands: Commands, name: str, run: Callable[[Arguments], int], purpose: str
) -> argparse.ArgumentParser:
    """A command that does its work in `run`, which returns the exit code."""
    command = commands.add_parser(name, parents=[COMMON], help=purpose)
    command.set_defaults(run=run)
    return command


def add_vmids(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--vmid", type=vmid, action="append", default=[], metavar="N", help="only this guest (can be repeated)"
    )


def number(text: str, least: int = 1, most: int = 1_000_000, what: str = "number of guests; expected 1 or more") -> int:
    """Raises argparse.ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what}")
    return int(text)


def duration_s(text: str) -> float:
    """`90s`, `30m`, `2h`, `1d` in seconds. Raises argparse.ArgumentTypeError."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    amount, unit = text[:-1], text[-1:]
    if unit not in units or not (amount.isascii() and amount.isdigit() and len(amount) <= 9 and int(amount)):
        expected = "a number with a unit such as 90s, 30m, 2h"
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; expected {expected}")
    return float(int(amount) * units[unit])


def vmid(text: str) -> int:
    """A guest's number. Raises argparse.ArgumentTypeError."""
    return number(text, 100, 999_999_999, "VMID; expected a number from 100 to 999999999")


def instant(text: str | None, in_force: InForce) -> datetime:
    """The time asked for, in the window's zone; a text without an offset means that zone's wall clock."""
    zone = in_force.window.zone
    if text is None:
        return at(SystemClock(), zone)
    try:
        asked = datetime.fromisoformat(text)
        if not 1970 <= asked.year <= 9000:  # to look ahead in any zone, Python's calendar must not end there
            raise ValueError
    except ValueError:
        expected = "something like 2026-03-29T02:30 or 2026-03-29T02:30+01:00"
        raise UsageError(f"{text!r} is not a time; expected {expected}") from None
    if asked.tzinfo is not None:
        return asked.astimezone(zone)
    real = asked.replace(tzinfo=zone).astimezone(UTC).astimezone(zone)
    if real.replace(tzinfo=None) != asked:
        said = f"{text} does not exist on that day, the clocks are set forward; taken as {stamp(real)}"
        print(f"pvehook: {said}", file=sys.stderr)
    return real


def configuration_in_force(arguments: Arguments) -> InForce:
    """The configuration by which the node acts now. Problems with the files are printed to stderr."""
    from pvehook.config.in_force import Configuration
    from pvehook.host.timely_files import TimelyReader

    in_force = Configuration(arguments.node, TimelyReader(), arguments.config, remembers=False).now()
    if in_force.problems and arguments.config is not None:
        raise ConfigError("\n".join(in_force.problems))
    for problem in in_force.problems:
        print(f"pvehook: {problem}; in force: {in_force.source}", file=sys.stderr)
    return in_force


def standings_of(arguments: Arguments, history: str, now: datetime) -> StandingsOf:
    """How the guests of this node stand, for a report on this history. The configuration is read when it is asked."""

    def read(turns: NightTurns) -> Measured[tuple[Standing, ...]]:
        from pvehook.night.standings import standings_beside

        in_force = configuration_in_force(arguments)
        return standings_beside(history, turns.nodes, arguments.node, in_force, now.timestamp())

    return read


def stamp(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} {when.tzname()}"
