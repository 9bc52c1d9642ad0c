"""All groups of checks, and what they find on a node.

The groups gather side by side, each with a deadline and a reader of its own: an /etc/pve that hangs costs what it would
have said, and no group waits for another. One that fails, or does not come back, costs a line under "not checked".
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from pvehook.config.in_force import InForce
from pvehook.deadline import Deadline
from pvehook.doctor import fault_checks, guests_checks, host_checks, ours_checks, storage_checks, vzdump_checks
from pvehook.doctor.finding import SEVERITIES, Check, Finding, Group, Sources
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader

GROUPS: Final[tuple[Group[Any], ...]] = (
    ours_checks.GROUP,
    vzdump_checks.GROUP,
    storage_checks.GROUP,
    guests_checks.GROUP,
    host_checks.GROUP,
    fault_checks.GROUP,
)

GATHER_S: Final = 7.0
"""Each group's deadline for all that it reads."""
PATIENCE_S: Final = 8.0
"""A group that has not kept its deadline by then is left behind."""


class Found(NamedTuple):
    """A finding and whose it is."""

    check: Check[Any]
    finding: Finding


class Diagnosis(NamedTuple):
    found: tuple[Found, ...]
    """The worst first, then by the checks' ids."""
    not_checked: tuple[str, ...]
    """What could not be read, and why."""
    vmids: tuple[int, ...] = ()
    """It is about these guests alone; empty: about everything."""
    left_out: int = 0
    """How many findings are about something else."""


class _Gathering(threading.Thread):
    """One group's facts, gathered in a thread that may be left behind."""

    def __init__(self, group: Group[Any], sources: Sources) -> None:
        super().__init__(name=f"doctor-{group.name}", daemon=True)
        self.group = group
        self._sources = sources
        self.facts: list[Any] = []
        """One, once they are there."""
        self.failure = ""

    def run(self) -> None:
        try:
            self.facts.append(self.group.gather(self._sources))
        except Exception as error:  # a fault of ours in one group must not cost the others
            self.failure = _in_words(error)


def diagnose(
    node: Node,
    in_force: InForce,
    now: datetime,
    vmids: tuple[int, ...] = (),
    groups: Sequence[Group[Any]] | None = None,
    patience_s: float = PATIENCE_S,
) -> Diagnosis:
    """What the checks find; with `vmids` only what is about these guests. It changes nothing, and takes little longer
    than `patience_s` seconds. Raises NodeError when no group could read anything."""
    until = Deadline.after(patience_s)
    name = name_of(node)
    gathering = [
        _Gathering(group, Sources(node, name, in_force, TimelyReader(), now, until.within(GATHER_S), vmids))
        for group in (GROUPS if groups is None else groups)
    ]
    for each in gathering:
        each.start()
    found: list[Found] = []
    not_checked: list[str] = []
    for each in gathering:
        each.join(until.left_s())
        if not each.facts:
            not_checked.append(f"{each.group.name}: {each.failure or f'no answer within {patience_s:g} s'}")
            continue
        facts = each.facts[0]
        not_checked += each.group.missing(facts)
        for check in each.group.checks:
            try:
                found += (Found(check, finding) for finding in check.find(facts))
            except Exception as error:  # as above
                not_checked.append(f"{check.id} ({check.title}): {_in_words(error)}")
    if gathering and not any(each.facts for each in gathering):
        raise NodeError(f"nothing could be checked: {'; '.join(not_checked)}")
    wanted = [each for each in found if not vmids or each.finding.vmid in vmids]
    ordered = tuple(sorted(wanted, key=_worst_first))
    return Diagnosis(ordered, tuple(dict.fromkeys(not_checked)), vmids, len(found) - len(wanted))


def name_of(node: Node) -> str:
    """As Proxmox spells it: without a domain."""
    return node.read("/proc/sys/kernel/hostname").decode(errors="replace").strip().partition(".")[0]


def all_checks() -> Iterator[Check[Any]]:
    for group in GROUPS:
        yield from group.checks


def _worst_first(each: Found) -> tuple[int, str, int, str]:
    finding = each.finding
    return SEVERITIES.index(finding.severity), each.check.id, finding.vmid or 0, finding.subject


def _in_words(error: Exception) -> str:
    """Errors that are raised on purpose have a text for an administrator; others are faults of ours."""
    return str(error) if isinstance(error, (NodeError, OSError)) else f"a fault of pvehook: {error!r}"
