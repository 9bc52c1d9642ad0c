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
    """The new text of a file under /etc. It is written only if the file still reads as `old`."""

    path: str
    """As the node spells it."""
    old: str | None
    """None: there is no such file."""
    new: str


class Command(NamedTuple):
    """A command of the node, and the one that takes it back. It is taken back only if what it changed still reads as
    it left it: the whole file, the lines of `key` in it, or those in one section only.

        Command(("qm", "set", "101", "--agent", "1"), ("qm", "set", "101", "--delete", "agent"),
                "/etc/pve/qemu-server/101.conf", key="agent")
        Command(("pvesh", "set", "/cluster/backup/nightly", "--delete", "script"),
                ("pvesh", "set", "/cluster/backup/nightly", "--script", "/root/own.sh"),
                "/etc/pve/jobs.cfg", key="script", section="vzdump: nightly")
    """

    do: tuple[str, ...]
    undo: tuple[str, ...]
    path: str
    """The file that shows what it does; of a symbolic link, where it leads."""
    key: str = ""
    section: str = ""
    """The line by which a section of /etc/pve/jobs.cfg or storage.cfg begins. A guest's file has none named: its
    configuration counts as it is after its next start, and no snapshot."""


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
    node_name: str
    """As Proxmox spells it: without a domain."""
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
    """`ours`, `vzdump`, `storage`, `guests`, `host`, `faults`."""
    gather: Callable[[Sources], F]
    """Raises NodeError or OSError where nothing of it can be known. What is missing in part, `missing` tells."""
    missing: Callable[[F], Sequence[str]]
    """What could not be read and so was not checked, for an administrator: `VM 101: its agent did not answer`."""
    checks: tuple[Check[F], ...]
