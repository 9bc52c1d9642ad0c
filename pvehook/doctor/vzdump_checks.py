"""The group `vzdump`: backup jobs, /etc/vzdump.conf, and when and how guests are backed up."""

from __future__ import annotations

from typing import Final

from pvehook.doctor import (
    vzdump_fleecing_checks,
    vzdump_guest_checks,
    vzdump_schedule_checks,
    vzdump_settings_checks,
)
from pvehook.doctor.finding import Check, Group
from pvehook.doctor.vzdump_facts import VzdumpFacts, gather

CHECKS: Final[tuple[Check[VzdumpFacts], ...]] = (
    Check("PVH-201", "Many workers of a backup on slow disks", vzdump_settings_checks.many_workers),
    Check("PVH-202", "No fleecing to a target over the network", vzdump_fleecing_checks.off_with_network_target),
    Check("PVH-203", "Fleecing storage cannot be used", vzdump_fleecing_checks.storage_fails),
    Check("PVH-204", "Fleecing storage is not thin", vzdump_fleecing_checks.storage_is_thick),
    Check("PVH-205", "Fleecing storage shares disks", vzdump_fleecing_checks.storage_shares_disks),
    Check("PVH-206", "Bandwidth limit", vzdump_settings_checks.bandwidth_limit),
    Check("PVH-207", "Job starts outside the window", vzdump_schedule_checks.starts_outside),
    Check("PVH-208", "Run ends beyond the window", vzdump_schedule_checks.ends_beyond),
    Check("PVH-209", "Missed runs are made up for", vzdump_schedule_checks.repeats_missed),
    Check("PVH-210", "Guest in no job", vzdump_guest_checks.in_no_job),
    Check("PVH-211", "Several nodes start at the same second", vzdump_schedule_checks.same_second),
    Check("PVH-212", "Lock left over", vzdump_guest_checks.lock_left_over),
    Check("PVH-213", "Mode suspend with an agent", vzdump_settings_checks.suspend_with_agent),
    Check("PVH-214", "Lines of vzdump.conf without effect", vzdump_settings_checks.unknown_keys),
    Check("PVH-215", "A job has an option that PVE has dropped", vzdump_settings_checks.dropped_options),
)


def missing(facts: VzdumpFacts) -> list[str]:
    return [*facts.not_read, *vzdump_settings_checks.missing(facts), *vzdump_schedule_checks.missing(facts)]


GROUP: Final = Group("vzdump", gather, missing, CHECKS)
