"""A guest's transparent huge pages, by the files its agent reads: no program is started in it."""

from __future__ import annotations

from pvehook.contract.huge_pages import DEFRAG, ENABLED, HugePages, parse_choice
from pvehook.deadline import Deadline
from pvehook.guest.agent import AgentConnection
from pvehook.guest.guest_counters import read_parsed


def read_huge_pages(agent: AgentConnection, deadline: Deadline) -> HugePages:
    """Reads both files on this connection. What fails is reported in its place; nothing is raised. Absent: a kernel
    without them, Windows, or an agent that may read no files."""
    return HugePages(*(read_parsed(agent, path, parse_choice, deadline) for path in (ENABLED, DEFRAG)))
