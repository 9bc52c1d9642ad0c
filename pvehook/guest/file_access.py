"""Why the guest's agent did not read a file: there is no such file, or a fault.

Texts as qemu-ga 7.2 and 10.0 give them (facts/qemu.md):

    GenericError: failed to open file '/proc/pressure/io' (mode: 'r'): No such file or directory    an old kernel, psi=0
    GenericError: failed to read file: Operation not supported                                  there, but off
    CommandNotFound: Command guest-file-open has been disabled: the command is not allowed      RHEL and its family
"""

from __future__ import annotations

from typing import Final

from pvehook.contract.measured import Absent, Broken
from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.errors import GuestError, Refused
from pvehook.guest.agent import AgentConnection
from pvehook.guest.validate import mapping

_NOT_THERE: Final = ("No such file or directory", "Operation not supported")


def explain(agent: AgentConnection, path: str, fault: GuestError, deadline: Deadline) -> Absent | Broken:
    """What `fault`, met with the guest's file `path`, says about the guest."""
    if not isinstance(fault, Refused):
        return Broken(str(fault))
    if fault.kind == "CommandNotFound":
        return _no_file_commands(agent, fault, deadline)
    if fault.description.endswith(_NOT_THERE):
        hint = "; `psi=1` on its kernel's command line switches it on" if path.startswith("/proc/pressure/") else ""
        return Absent(f"the guest has no {path}{hint}")
    if _is_windows(agent, deadline):
        return Absent(f"the guest runs Windows, which has no {path}")
    return Broken(str(fault))


def _no_file_commands(agent: AgentConnection, fault: Refused, deadline: Deadline) -> Absent | Broken:
    # Since 10.0 an agent says the same of a frozen guest and of its administrator's block.
    try:
        is_frozen = agent.fsfreeze_status(deadline) == "frozen"
    except Refused:
        is_frozen = False  # the status is blocked as well
    except GuestError as error:
        return Broken(str(error))
    if is_frozen:
        return Broken("the guest's filesystems are frozen: until they are thawed its agent reads no files")
    return Absent(f"the guest's administrator lets its agent read no files ({printable(fault.description, 120)})")


def _is_windows(agent: AgentConnection, deadline: Deadline) -> bool:
    try:
        reply = mapping(agent.execute("guest-get-osinfo", deadline=deadline), source="guest-get-osinfo")
    except GuestError:
        return False
    return reply.get("id") == "mswindows"
