"""What several commands share: the values of their arguments, the configuration in force, how a time is written."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from pvehook.errors import ConfigError
from pvehook.host.clock import SystemClock, at
from pvehook.host.node import Node

if TYPE_CHECKING:
    from pvehook.config.in_force import InForce

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

YEARS = (1970, 9000)
"""Bounds of a time argument; far enough from the ends of Python's calendar to look ahead in any zone."""


class UsageError(Exception):
    """A command line that is well formed but cannot be done; the text says why."""


def positive(text: str) -> int:
    """A number of things. Raises argparse.ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of guests; expected 1 or more")
    return int(text)


def duration_s(text: str) -> float:
    """`90s`, `30m`, `2h`, `1d` in seconds. Raises argparse.ArgumentTypeError."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = text[:-1], text[-1:]
    is_number = number.isascii() and number.isdigit() and len(number) <= 9
    if unit not in units or not is_number or int(number) == 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a duration; expected a number with a unit such as 90s, 30m, 2h"
        )
    return float(int(number) * units[unit])


def vmid(text: str) -> int:
    """A guest's number. Raises argparse.ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and 100 <= int(text) <= 999_999_999):
        raise argparse.ArgumentTypeError(f"{text!r} is not a VMID; expected a number from 100 to 999999999")
    return int(text)


def instant(text: str | None, in_force: InForce) -> datetime:
    """The time asked for, in the window's zone; a text without an offset means that zone's wall clock."""
    zone = in_force.window.zone
    if text is None:
        return at(SystemClock(), zone)
    try:
        asked = datetime.fromisoformat(text)
        if not YEARS[0] <= asked.year <= YEARS[1]:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"{text!r} is not a time; expected something like 2026-03-29T02:30 or 2026-03-29T02:30+01:00"
        ) from None
    if asked.tzinfo is not None:
        return asked.astimezone(zone)
    real = asked.replace(tzinfo=zone).astimezone(UTC).astimezone(zone)
    if real.replace(tzinfo=None) != asked:
        print(
            f"pvehook: {text} does not exist on that day, the clocks are set forward; taken as {stamp(real)}",
            file=sys.stderr,
        )
    return real


def configuration_in_force(arguments: argparse.Namespace) -> InForce:
    """The configuration by which the node acts now. Problems with the files are printed to stderr."""
    from pvehook.config.in_force import Configuration
    from pvehook.host.timely_files import TimelyReader

    in_force = Configuration(Node(arguments.root), TimelyReader(), arguments.config, remembers=False).now()
    if in_force.problems and arguments.config is not None:
        raise ConfigError("\n".join(in_force.problems))
    for problem in in_force.problems:
        print(f"pvehook: {problem}; in force: {in_force.source}", file=sys.stderr)
    return in_force


def stamp(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} {when.tzname()}"
