"""Who is overdue now, for `window.overdue: allow`. Where that cannot be found out in time nobody is: a wrong refusal
costs one backup, a wrong permission harms the guests in the middle of the day."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from pvehook.config.in_force import InForce
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.night.standings import standings
from pvehook.records.context import Context

OVERDUE_S: Final = 2.0
"""How long a phase waits for the jobs and the history."""


def overdue_guests(context: Context) -> Callable[[InForce], tuple[int, ...]]:
    """The question, for the gate of a run."""

    def ask(in_force: InForce) -> tuple[int, ...]:
        now_s = context.clock.now_s()
        try:
            what = "who is overdue"
            read = partial(overdue_at, context.node, context.readers.config, in_force, now_s)
            return context.readers.night.within(OVERDUE_S, what, read)
        except (NodeError, OSError) as error:
            context.log.error("overdue-not-known", message=f"{error}: no guest counts as overdue")
            return ()

    return ask


def overdue_at(node: Node, reader: TimelyReader, in_force: InForce, now_s: float) -> tuple[int, ...]:
    """Raises NodeError when the jobs or the history cannot be read."""
    return tuple(each.vmid for each in standings(node, reader, in_force, now_s) if each.is_overdue)
