"""A guest's transparent huge pages, by the files its agent reads and writes: no program is started in it."""

from __future__ import annotations

import contextlib

from pvehook.contract.huge_pages import DEFRAG, ENABLED, HugePages, parse_choice
from pvehook.contract.measured import Measured
from pvehook.deadline import Deadline
from pvehook.errors import GuestError
from pvehook.guest.agent import AgentConnection
from pvehook.guest.guest_counters import explain, read_parsed


def read_huge_pages(agent: AgentConnection, deadline: Deadline) -> HugePages:
    """Reads both files on this connection. What fails is reported in its place; nothing is raised. Absent: a kernel
    without them, Windows, or an agent that may read no files."""
    return HugePages(*(read_parsed(agent, path, parse_choice, deadline) for path in (ENABLED, DEFRAG)))


def set_huge_pages(agent: AgentConnection, choice: str, deadline: Deadline) -> Measured[str]:
    """Puts `choice` in force until the guest's next boot, and returns what is in force then, read back; or why it could
    not be written. Nothing is raised. After a deadline the agent may still do it."""
    try:
        handle = agent.file_open(ENABLED, deadline, "w")  # sysfs empties nothing: a file there is what is written to it
        try:
            agent.file_write(handle, choice.encode("ascii"), deadline)
        finally:
            with contextlib.suppress(GuestError):
                agent.file_close(handle, deadline)
    except GuestError as error:
        return explain(agent, ENABLED, error, deadline)
    return read_parsed(agent, ENABLED, parse_choice, deadline)
