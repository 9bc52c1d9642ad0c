"""What one running VM and its agent tell the doctor, in short connections.

An agent serves one client at a time, and between Proxmox's freeze and its thaw nobody else may be connected
(facts/vzdump.md). So the agent of a VM that Proxmox has locked (a backup, a snapshot) is left alone, and one that does
not answer within SILENT_S too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from pvehook.contract.guest_config import GuestConfig, parse_agent_option
from pvehook.contract.guest_facts import GuestInfo
from pvehook.contract.huge_pages import HugePages
from pvehook.contract.measured import Broken, Measured
from pvehook.contract.pressure import PressureTotals, parse_pressure
from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.errors import GuestError, Refused
from pvehook.freeze.facts import agent_path, gather, qmp_path
from pvehook.guest.agent import AgentConnection, open_agent
from pvehook.guest.guest_counters import read_parsed
from pvehook.guest.huge_pages import read_huge_pages
from pvehook.guest.lockup_settings import LockupSettings, read_lockup_settings
from pvehook.guest.qmp import open_qmp
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId, program_is_replaced
from pvehook.host.timely_files import TimelyReader
from pvehook.rules.freeze_policy import policy_for
from pvehook.rules.freeze_safety import FreezeFacts, FreezeVerdict, decide
from pvehook.rules.freeze_selection import command_fault
from pvehook.settings import FreezeConfig

SILENT_S: Final = 0.8
"""How long an agent may take for its first answer. One that needs longer does not give the facts for a freeze in time
either, with `freeze.facts_within` at its default."""
INSIDE_S: Final = 1.5
"""For all that is read from inside a guest whose agent answers."""
MONITOR_S: Final = 0.4

QEMU_PACKAGE: Final = "pve-qemu-kvm"
FILE_COMMANDS: Final = ("guest-file-open", "guest-file-read", "guest-file-close")
WINDOWS: Final = "mswindows"
NO_TIME: Final = "its monitor and its agent: not asked, for others answered too late"
INSIDE_IN_WORDS: Final = "huge pages, pressure and lock-up settings inside"


class Inside(NamedTuple):
    """What was read from inside a Linux guest."""

    huge_pages: HugePages
    io_pressure: Measured[PressureTotals]
    lockups: LockupSettings


class AgentLook(NamedTuple):
    """What the agent of a running VM answered."""

    info: GuestInfo | None = None
    """None: it answers nothing, and `fault` says why."""
    fault: str = ""
    port_is_open: bool | None = None
    """Of a silent one: whether something in the guest has its port open; None: not known."""
    os_id: str | None = None
    is_frozen: bool = False
    inside: Inside | None = None
    """None: it is Windows, is frozen, or its agent may not read files."""


class VmLook(NamedTuple):
    """One running VM."""

    running_qemu: Measured[str] | None = None
    """The version of a QEMU whose program was replaced since the VM was started: `10.0.2-4`. None: it was not."""
    freeze: FreezeFacts | None = None
    verdict: FreezeVerdict | None = None
    agent: AgentLook | None = None
    """None: it was not asked."""
    not_checked: tuple[str, ...] = ()
    """What, and why."""


def look_at(
    node: Node,
    reader: TimelyReader,
    config: GuestConfig,
    vmid: int,
    qemu: ProcessId,
    freeze: FreezeConfig,
    now_s: float,
    deadline: Deadline,
) -> VmLook:
    """`config`: as it was read just now. Takes some seconds at most, never goes beyond the deadline, never raises."""
    if deadline.left_s() < SILENT_S:
        return VmLook(not_checked=(NO_TIME,))
    replaced = program_is_replaced(node, qemu)
    running = _running_version(node, vmid, deadline.within(MONITOR_S)) if replaced else None
    missing = ["its QEMU: which program it runs cannot be read"] if replaced is None else []
    option = parse_agent_option(config.agent)
    if not option.enabled or config.lock is not None:
        why = f"Proxmox has locked it ({printable(config.lock or '', 40)})" if option.enabled else "its agent is off"
        return VmLook(running, not_checked=(*missing, f"{INSIDE_IN_WORDS}: {why}"))
    facts, _ = gather(node, reader, vmid, "qemu", "snapshot", freeze.facts_within_s, now_s, deadline, SILENT_S)
    if deadline.left_s() <= 0:
        return VmLook(running, not_checked=(*missing, NO_TIME))  # what is missing now tells nothing about the guest
    verdict = decide(facts, policy_for(freeze, vmid, config.name, config.tags))
    if facts.run_state != "running":
        state = "its monitor does not answer" if facts.run_state is None else f"it is {printable(facts.run_state, 40)}"
        return VmLook(running, facts, verdict, None, (*missing, f"{INSIDE_IN_WORDS}: {state}"))
    agent = _look_inside(node, vmid, facts, deadline)
    return VmLook(running, facts, verdict, agent, (*missing, *_not_read(agent)))


def _running_version(node: Node, vmid: int, deadline: Deadline) -> Measured[str]:
    try:
        with open_qmp(qmp_path(node, vmid), deadline) as qmp:
            return printable(qmp.query_version(deadline).removeprefix(f"{QEMU_PACKAGE}_"), 80)
    except GuestError as error:
        return Broken(str(error))


def _look_inside(node: Node, vmid: int, facts: FreezeFacts, deadline: Deadline) -> AgentLook:
    if facts.agent_fault is not None and facts.info is None:
        return AgentLook(None, facts.agent_fault, _port_is_open(node, vmid, deadline.within(MONITOR_S)))
    look = AgentLook(facts.info)
    try:
        with open_agent(agent_path(node, vmid), deadline.within(SILENT_S)) as agent:
            return _read(agent, facts, deadline.within(INSIDE_S))
    except GuestError as error:
        return look._replace(fault=str(error))


def _read(agent: AgentConnection, facts: FreezeFacts, deadline: Deadline) -> AgentLook:
    info = facts.info or agent.guest_info(deadline)
    os_id, status = facts.os_id, facts.status
    with contextlib.suppress(Refused):
        os_id = os_id or agent.os_id(deadline)
    with contextlib.suppress(Refused):
        status = status or agent.fsfreeze_status(deadline)
    look = AgentLook(info, os_id=os_id, is_frozen=status == "frozen")
    if look.is_frozen or os_id == WINDOWS or not all(info.commands.get(each) for each in FILE_COMMANDS):
        return look
    pressure = read_parsed(agent, "/proc/pressure/io", parse_pressure, deadline)
    return look._replace(
        inside=Inside(read_huge_pages(agent, deadline), pressure, read_lockup_settings(agent, deadline))
    )


def _port_is_open(node: Node, vmid: int, deadline: Deadline) -> bool | None:
    try:
        with open_qmp(qmp_path(node, vmid), deadline) as qmp:
            return qmp.is_agent_running(vmid, deadline)
    except GuestError:
        return None


def _not_read(agent: AgentLook) -> Iterator[str]:
    """What could not be read, and why. Windows, and a kernel without such a file, have nothing to read."""
    if agent.inside is not None:
        named = {
            "huge pages": agent.inside.huge_pages.enabled,
            "pressure": agent.inside.io_pressure,
            "lock-up settings": agent.inside.lockups.watchdog_thresh_s,
        }
        for what, measured in named.items():
            if isinstance(measured, Broken):
                yield f"{what} inside: {measured.why}"
    elif agent.info is None:
        yield f"{INSIDE_IN_WORDS}: its agent does not answer"
    elif agent.is_frozen:
        yield f"{INSIDE_IN_WORDS}: it is frozen"
    elif faults := [fault for command in FILE_COMMANDS if (fault := command_fault(agent.info, command))]:
        yield f"{INSIDE_IN_WORDS}: {faults[0]}"
    elif agent.os_id != WINDOWS:
        yield f"{INSIDE_IN_WORDS}: its agent stopped answering ({printable(agent.fault)})"
