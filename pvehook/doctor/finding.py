"""What a check finds on a node.

    Finding(
        "storage nas",
        "warning",
        "the dump directory /backup lies on sda, where VM 101 and VM 102 have their disks",
        ("pvesm set nas --path /mnt/other",),
    )

A check is a pure function of its group's facts:

    def dump_on_guest_disks(facts: StorageFacts) -> Iterator[Finding]: ...

    CHECKS = (Check("PVH-301", "Dump directory on the guests' disks", dump_on_guest_disks),)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from pvehook.config.in_force import InForce
from pvehook.deadline import Deadline
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader

F = TypeVar("F")

Severity: TypeAlias = Literal["error", "warning", "note"]
"""`error`: backups are lost, or guests stall. `warning`: they may. `note`: worth knowing, nothing to do at once."""

SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")
"""The worst first."""


class Write(NamedTuple):
    """A file's new text. It is fixed only if the file still reads as `old`."""

    path: str
    """As the node spells it."""
    old: str | None
    """None: there is no such file."""
    new: str


class Command(NamedTuple):
    """A command of the node, and the one that takes it back."""

    do: tuple[str, ...]
    undo: tuple[str, ...]


Step: TypeAlias = Write | Command


class Finding(NamedTuple):
    subject: str
    """`node`, `job nightly`, `storage nas`, `VM 101 web`, `/etc/vzdump.conf`."""
    severity: Severity
    evidence: str
    """What was seen, against what it should be."""
    remedy: tuple[str, ...]
    """The commands that fix it, in order; or what to do where no command does. Never empty."""
    steps: tuple[Step, ...] = ()
    """What `--fix` does; empty where a fix cannot be taken back, or is for a human to decide."""
    vmid: int | None = None
    """Of the guest it is about, for `--vmid`."""


class Check(NamedTuple, Generic[F]):
    """`id` is stable: its page is docs/checks/ID.md."""

    id: str
    title: str
    find: Callable[[F], Iterable[Finding]]


class Sources(NamedTuple):
    """Where a group's facts come from."""

    node: Node
    in_force: InForce
    reader: TimelyReader
    """For /etc/pve and whatever may hang."""
    now: datetime
    """In the window's time zone."""
    deadline: Deadline
    """For the group's whole gathering."""
    vmids: tuple[int, ...]
    """Only these guests; empty: all."""


class Group(NamedTuple, Generic[F]):
    """Checks that share their facts."""

    name: str
    """`ours`, `vzdump`, `storage`, `guests`, `host`."""
    gather: Callable[[Sources], F]
    """Raises NodeError or OSError where nothing of it can be known. What is missing in part, `missing` tells."""
    missing: Callable[[F], Sequence[str]]
    """What could not be read and so was not checked, for an administrator: `VM 101: its agent did not answer`."""
    checks: tuple[Check[F], ...]
