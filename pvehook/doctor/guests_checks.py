"""PVH-4xx: the guests of this node, what they are set to and how they fared."""

from __future__ import annotations

from typing import Final

from pvehook.doctor import guests_agent_checks as agent
from pvehook.doctor import guests_disk_checks as disks
from pvehook.doctor import guests_night_checks as nights
from pvehook.doctor.finding import Check, Group
from pvehook.doctor.guests_facts import GuestsFacts, gather, missing

CHECKS: Final[tuple[Check[GuestsFacts], ...]] = (
    Check("PVH-401", "Agent off", agent.agent_off),
    Check("PVH-402", "Agent on, but silent", agent.agent_silent),
    Check("PVH-403", "Agent commands blocked or missing", agent.commands_blocked),
    Check("PVH-404", "Guest is not frozen for its backup", agent.not_frozen),
    Check("PVH-405", "Guest is frozen in part only", agent.frozen_in_part),
    Check("PVH-406", "Huge pages for every program of the guest", agent.huge_pages),
    Check("PVH-407", "Disks without an I/O thread", disks.io_thread),
    Check("PVH-408", "Cache mode that stalls or loses data", disks.cache_mode),
    Check("PVH-409", "aio setting that does not suit the storage", disks.aio),
    Check("PVH-410", "VM runs a QEMU older than the one installed", disks.old_qemu),
    Check("PVH-411", "Guest does not count its pressure (PSI)", agent.pressure_off),
    Check("PVH-412", "Guest panics in a stall, or does not report it", agent.lockups),
    Check("PVH-413", "Guest stalled in the last nights", nights.stalled),
    Check("PVH-414", "Guest is overdue", nights.overdue),
)

GROUP: Final = Group("guests", gather, missing, CHECKS)
