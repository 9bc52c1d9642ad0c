"""What is known of the node's guests: their configurations, who runs, what their agents tell, what the history has.

A hundred guests with silent agents must not take long: AT_ONCE of them are asked side by side (guest_look.py), and what
the group's deadline does not leave time for is not checked, and reported as such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import tzinfo
from typing import Final, NamedTuple, TypeVar

from pvehook.contract.guest_config import (
    AgentOption,
    GuestConfig,
    boolean,
    options_after_restart,
    options_of,
    parse_agent_option,
)
from pvehook.contract.measured import Absent, Broken, Measured, value_of
from pvehook.contract.section_config import Section
from pvehook.contract.text import printable
from pvehook.contract.vm_disks import VmDisk, vm_disks
from pvehook.doctor.finding import Sources
from pvehook.doctor.guest_look import QEMU_PACKAGE, VmLook, look_at
from pvehook.doctor.guests_nights import BadNight, bad_nights
from pvehook.errors import NodeError
from pvehook.host.guest_configs import ConfiguredGuest, read_guest_configs
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId, running_containers, running_vms
from pvehook.host.timely_files import TimelyReader
from pvehook.host.versions import installed_packages
from pvehook.host.volumes import read_storages
from pvehook.night.standings import NAME_LIMIT, standings
from pvehook.records.guest_facts import kept_guest_facts
from pvehook.records.guest_summary import guest_number
from pvehook.report.standing import Standing

AT_ONCE: Final = 32
READ_S: Final = 2.0
NAMED: Final = 6

_OFF: Final = AgentOption(enabled=False, freezes=False)

T = TypeVar("T")


class GuestFacts(NamedTuple):
    """One guest, VM or container; templates are none."""

    vmid: int
    vmtype: str
    title: str
    """`VM 101 web`, fit to be shown."""
    runs: bool
    config: GuestConfig | None = None
    """A VM's."""
    disks: tuple[VmDisk, ...] = ()
    disks_after_restart: tuple[VmDisk, ...] = ()
    """With the changes that Proxmox keeps until it was stopped and started."""
    agent: AgentOption = _OFF
    agent_after_restart: AgentOption = _OFF
    look: VmLook = VmLook()
    """Of a running VM."""
    at_last_start: tuple[float, str] | None = None
    """When a VM that does not tell it now was started last, in seconds since the epoch, and what was in force for its
    huge pages then (daemon/started_guests.py). None: it tells it now, or it was not kept."""


class NotChecked(NamedTuple):
    title: str
    """The guest's; empty: it is about all of them."""
    why: str


class GuestsFacts(NamedTuple):
    """The whole group's facts."""

    guests: tuple[GuestFacts, ...]
    storages: tuple[Section, ...] | None
    """None: they could not be read."""
    installed_qemu: Measured[str]
    bad_nights: tuple[BadNight, ...]
    standings: tuple[Standing, ...]
    now_s: float
    zone: tzinfo
    not_checked: tuple[NotChecked, ...]


def gather(sources: Sources) -> GuestsFacts:
    """Raises NodeError when the guests' configurations cannot be read."""
    node, reader, now_s = sources.node, sources.reader, sources.now.timestamp()
    not_checked: list[NotChecked] = []

    def known(what: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (NodeError, OSError) as error:
            not_checked.append(NotChecked("", f"{what}: {printable(str(error))}"))
            return None

    configured = read_guest_configs(node, reader, READ_S)
    storages = known("cache and aio of the guests' disks", lambda: tuple(read_storages(node, reader)))
    # Readers of their own: `standings` asks `reader` itself, and a disk that hangs must keep nobody waiting behind it.
    history, here = TimelyReader(), TimelyReader()
    now = sources.now.astimezone(sources.in_force.zone)
    nights = known("stalls", lambda: history.within(READ_S, "the history", lambda: bad_nights(node, now)))
    stood = known("overdue guests", lambda: history.within(READ_S, "the history", lambda: _standings(sources)))
    vms, containers = known("running guests", lambda: here.within(READ_S, "/proc", lambda: _running(node))) or ({}, {})
    installed = known("QEMU", lambda: here.within(READ_S, "dpkg", lambda: _installed_qemu(node)))
    guests = [
        guest
        for each in configured
        if not sources.vmids or each.vmid in sources.vmids
        if (guest := _of_configuration(each, each.vmid in vms or each.vmid in containers)) is not None
    ]
    guests = _looked_at(sources, guests, vms)
    silent = [each.vmid for each in guests if each.look.agent is None or each.look.agent.inside is None]
    kept = known("last starts", lambda: history.within(READ_S, node.state_dir, lambda: _kept(node, silent))) or {}
    guests = [each._replace(at_last_start=kept.get(each.vmid)) for each in guests]
    return GuestsFacts(
        tuple(guests),
        storages,
        installed or Broken("it could not be read"),
        nights or (),
        stood or (),
        now_s,
        sources.in_force.zone,
        (*not_checked, *(NotChecked(each.title, why) for each in guests for why in each.look.not_checked)),
    )


def missing(facts: GuestsFacts) -> list[str]:
    """One line for each reason."""
    whom: dict[str, list[str]] = {}
    for each in facts.not_checked:
        whom.setdefault(each.why, []).append(each.title)
    return [f"{_named(titles)}: {why}" if any(titles) else why for why, titles in whom.items()]


def _named(titles: Sequence[str]) -> str:
    more = f" and {len(titles) - NAMED} more" if len(titles) > NAMED else ""
    return ", ".join(titles[:NAMED]) + more


def _running(node: Node) -> tuple[dict[int, ProcessId], dict[int, int]]:
    return running_vms(node), running_containers(node)


def _installed_qemu(node: Node) -> Measured[str]:
    packages = installed_packages(node)
    if isinstance(packages, (Absent, Broken)):
        return packages
    return packages.get(QEMU_PACKAGE) or Absent(f"{QEMU_PACKAGE} is not installed")


def _kept(node: Node, vmids: Iterable[int]) -> dict[int, tuple[float, str]]:
    found = {}
    for vmid in vmids:
        facts = kept_guest_facts(node, vmid)
        if facts is not None and (enabled := value_of(facts.huge_pages.enabled)) is not None:
            found[vmid] = facts.at_s, enabled
    return found


def _standings(sources: Sources) -> tuple[Standing, ...]:
    return tuple(standings(sources.node, sources.reader, sources.in_force, sources.now.timestamp()))


def _of_configuration(guest: ConfiguredGuest, runs: bool) -> GuestFacts | None:
    """None: a template, which never runs."""
    options, later = options_of(guest.text), options_after_restart(guest.text)
    if boolean(options.get("template")):
        return None
    title = f"{guest_number(guest.vmtype, guest.vmid)} {printable(guest.config.name or '', NAME_LIMIT)}".rstrip()
    if guest.vmtype == "lxc":
        return GuestFacts(guest.vmid, guest.vmtype, title, runs)
    agent, agent_later = (parse_agent_option(each.get("agent")) for each in (options, later))
    disks, disks_later = vm_disks(options), vm_disks(later)
    return GuestFacts(guest.vmid, guest.vmtype, title, runs, guest.config, disks, disks_later, agent, agent_later)


def _looked_at(sources: Sources, guests: Sequence[GuestFacts], vms: Mapping[int, ProcessId]) -> list[GuestFacts]:
    """With what the running VMs tell."""
    freeze, now_s = sources.in_force.config.freeze, sources.now.timestamp()

    def look(guest: GuestFacts) -> GuestFacts:
        if guest.config is None or guest.vmid not in vms:
            return guest
        qemu = vms[guest.vmid]
        found = look_at(
            sources.node, sources.reader, guest.config, guest.vmid, qemu, freeze, now_s, sources.deadline
        )
        return guest._replace(look=found)

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="doctor-guest") as pool:
        return list(pool.map(look, guests))
