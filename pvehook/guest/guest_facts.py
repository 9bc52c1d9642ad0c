"""One look at what a guest is, by its agent: commands that every agent has, and files. No program is started in it."""

from __future__ import annotations

from pvehook.contract.guest_facts import BOOT_FILES, LOADER_INFO, BootFacts, GuestFacts, GuestOs
from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.os_release import ids_of
from pvehook.deadline import Deadline
from pvehook.errors import Busy, GuestError, Refused
from pvehook.guest.agent import AgentConnection
from pvehook.guest.guest_counters import explain, read_start
from pvehook.guest.huge_pages import read_huge_pages

_OS_RELEASE = "/etc/os-release"
_COMMANDS_KEPT = 64
_NAME_CHARACTERS = 64


def read_guest_facts(agent: AgentConnection, now_s: float, deadline: Deadline) -> GuestFacts:
    """Some 30 answers, a few milliseconds of a sound guest. What the guest does not tell is reported in its place.
    Raises GuestError: its agent does not answer, or the guest is frozen, in which state it tells nothing."""
    info = agent.guest_info(deadline)
    if info.commands.get("guest-fsfreeze-status") and agent.fsfreeze_status(deadline) == "frozen":
        raise Busy("its filesystems are frozen: until they are thawed its agent tells nothing")
    blocked = sorted(name[:_NAME_CHARACTERS] for name, allowed in info.commands.items() if not allowed)
    os: Measured[GuestOs]
    try:
        os = agent.os_info(deadline)
    except Refused as error:
        os = Absent(f"the guest does not say what it is: {error}")
    huge_pages = read_huge_pages(agent, deadline)
    boot = _boot_facts(agent, deadline)
    return GuestFacts(
        now_s, info.version[:_NAME_CHARACTERS], tuple(blocked[:_COMMANDS_KEPT]), os, huge_pages, boot
    )


def _boot_facts(agent: AgentConnection, deadline: Deadline) -> Measured[BootFacts]:
    try:
        like = ids_of(read_start(agent, _OS_RELEASE, deadline))
    except GuestError as error:
        return explain(agent, _OS_RELEASE, error, deadline)
    try:
        files = tuple(path for path in BOOT_FILES if _is_there(agent, path, deadline))
        return BootFacts(like, files, _by_systemd_boot(agent, deadline))
    except GuestError as error:
        return Broken(str(error))


def _is_there(agent: AgentConnection, path: str, deadline: Deadline) -> bool:
    try:
        agent.file_close(agent.file_open(path, deadline), deadline)
    except Refused:
        return False
    return True


def _by_systemd_boot(agent: AgentConnection, deadline: Deadline) -> bool:
    """The variable is four bytes of flags and a text in UTF-16: every other byte is a zero."""
    try:
        return "systemd-boot" in read_start(agent, LOADER_INFO, deadline).replace("\0", "")
    except Refused:
        return False
