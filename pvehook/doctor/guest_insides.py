"""What the guests of this node tell of themselves, side by side: through their agents, or as of their last start.

Between Proxmox's freeze and its thaw nobody else may be connected to an agent (facts/vzdump.md): that of a VM which
Proxmox has locked (a backup, a snapshot) is left alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal, NamedTuple, TypeVar

from pvehook.contract.guest_config import parse_agent_option
from pvehook.contract.guest_facts import BOOT_FILES, LOADER_INFO, BootFacts, GuestFacts
from pvehook.contract.huge_pages import DEFRAG, ENABLED, HugePages, parse_choice
from pvehook.contract.measured import Absent, Broken, Measured, value_of
from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.errors import GuestError, TimedOut, Unreachable
from pvehook.freeze.facts import agent_path, qmp_path
from pvehook.guest.agent import AgentConnection, open_agent
from pvehook.guest.guest_facts import read_guest_facts
from pvehook.host.guest_configs import ConfiguredGuest
from pvehook.host.node import Node
from pvehook.records.guest_facts import kept_guest_facts

SILENT_S: Final = 1.0
"""For an agent's first answer."""
ANSWER_S: Final = 2.0
"""For all that one agent is asked; a sound guest takes some 30 ms. Whoever waits behind us at its socket, PVE above
all, waits no longer than that."""
AT_ONCE: Final = 50
"""Guests: 100 whose agents are silent take two rounds of SILENT_S."""

Told = TypeVar("Told")


class GuestInside(NamedTuple):
    """One guest. A container has no facts, and its huge pages are the node's."""

    vmid: int
    vmtype: Literal["qemu", "lxc"]
    name: str | None
    facts: Measured[GuestFacts]
    """As of now."""
    kept: GuestFacts | None
    """As of its last start, where `facts` are none."""
    huge_pages: HugePages
    boot: BootFacts | None
    """Of a container the node's; None: not known."""

    @property
    def known(self) -> GuestFacts | None:
        """The latest that there is."""
        return self.kept if isinstance(self.facts, (Absent, Broken)) else self.facts


def look_inside(node: Node, guests: Sequence[ConfiguredGuest]) -> list[GuestInside]:
    """All of them, in their order, side by side. Never raises; nothing is changed."""
    if not guests:
        return []
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="inside") as pool:
        return list(pool.map(lambda guest: _inside(node, guest), guests))


def ask_agent(
    node: Node, guest: ConfiguredGuest, ask: Callable[[AgentConnection, Deadline], Told]
) -> Measured[Told]:
    """What `ask` returns, or why the agent was not asked or did not answer. Absent: the VM is off, or has no agent."""
    if (why_not := _why_not_asked(node, guest)) is not None:
        return why_not
    deadline = Deadline.after(ANSWER_S)
    try:
        with open_agent(agent_path(node, guest.vmid), deadline.within(SILENT_S)) as agent:
            return ask(agent, deadline)
    except Unreachable:
        return Absent("it is off, or was started without an agent")
    except TimedOut:
        return Broken("its agent does not answer: none runs in the guest, it hangs, or somebody else is served first")
    except GuestError as error:
        return Broken(str(error))


def _why_not_asked(node: Node, guest: ConfiguredGuest) -> Absent | Broken | None:
    if not os.path.exists(qmp_path(node, guest.vmid)):
        return Absent("it is off")
    if not parse_agent_option(guest.config.agent).enabled:
        return Absent(f"its agent is off: install it in the guest, then `qm set {guest.vmid} --agent 1`")
    if guest.config.lock is not None:
        lock = printable(guest.config.lock, 40)
        return Broken(f"Proxmox has locked it ({lock}), and its agent is left alone meanwhile")
    return None


def _inside(node: Node, guest: ConfiguredGuest) -> GuestInside:
    what = guest.vmid, guest.vmtype, guest.config.name
    if guest.vmtype == "lxc":
        of_node = HugePages(_of_node(node, ENABLED), _of_node(node, DEFRAG))
        return GuestInside(*what, Absent("a container shares the node's kernel"), None, of_node, _boot_of_node(node))
    facts = ask_agent(node, guest, lambda agent, deadline: read_guest_facts(agent, time.time(), deadline))
    if isinstance(facts, (Absent, Broken)):
        kept = kept_guest_facts(node, guest.vmid)
        boot = value_of(kept.boot) if kept is not None else None
        return GuestInside(*what, facts, kept, HugePages(facts, facts), boot)
    return GuestInside(*what, facts, None, facts.huge_pages, value_of(facts.boot))


def _of_node(node: Node, path: str) -> Measured[str]:
    try:
        return parse_choice(node.read(path).decode("ascii", "replace"))
    except ValueError:
        return Absent(f"the node has no {path}")


def _boot_of_node(node: Node) -> BootFacts:
    files = tuple(path for path in BOOT_FILES if os.path.exists(node.path(path)))
    return BootFacts(("debian",), files, b"systemd-boot" in node.read(LOADER_INFO).replace(b"\0", b""))
