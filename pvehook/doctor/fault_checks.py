"""Each known fault of fault_atlas.py is a check: the node's versions are in its range, and its conditions are met.

Of QEMU the version that is installed counts; a VM that still runs an older one is a finding of its own among the
guests' checks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from pvehook.contract.debian_version import VersionRange
from pvehook.doctor.fault_atlas import GUESTS, Fault, When, atlas
from pvehook.doctor.fault_facts import FaultFacts, gather
from pvehook.doctor.finding import Check, Finding, Group
from pvehook.records.guest_summary import guest_number

NAMED: Final = 3


def find(fault: Fault, facts: FaultFacts) -> Iterator[Finding]:
    """One finding of the node at most."""
    for affected in fault.affected:
        seen = _versions_in(affected, facts.versions)
        circumstances = _circumstances(fault.when, facts)
        if seen and circumstances is not None:
            cause = "" if fault.backups else " Backups are not its cause."
            evidence = f"{'; '.join((*seen, *circumstances))}. {fault.shows}{cause}"
            yield Finding("node", fault.severity, evidence, fault.remedy)
            return


def _versions_in(affected: Mapping[str, VersionRange], versions: Mapping[str, str]) -> tuple[str, ...]:
    """In words; empty: one of them is not in its range, or not known."""
    if not all(package in versions and bounds.includes(versions[package]) for package, bounds in affected.items()):
        return ()
    return tuple(
        f"{package} {versions[package]} {'runs' if package == 'kernel' else 'is installed'}"
        + (f", fixed in {bounds.below}" if bounds.below else "")
        for package, bounds in affected.items()
    )


def _circumstances(when: When, facts: FaultFacts) -> tuple[str, ...] | None:
    """What of the node meets the conditions, in words; None: something does not, or is not known."""
    if when.cpu not in ("", facts.cpu) or (when.numa and facts.numa_nodes < 2):
        return None
    if when.fleecing and not facts.fleecing:
        return None
    found = []
    for wanted, there, words in (
        (when.drivers, facts.drivers, "the driver {} is loaded"),
        (when.mounted, facts.mounted, "a file system of type {} is mounted"),
        (when.storages, facts.storages or frozenset(), "there is a storage of type {}"),
    ):
        if wanted:
            met = [each for each in wanted if each in there]
            if not met:
                return None
            found.append(words.format(met[0]))
    if when.guests:
        vms = sorted(vmid for vmid, traits in (facts.vms or {}).items() if when.guests in traits)
        if not vms:
            return None
        found.append(f"{_named(vms)} {GUESTS[when.guests]}")
    return tuple(found)


def _named(vmids: list[int]) -> str:
    names = [guest_number("qemu", vmid) for vmid in vmids[:NAMED]]
    more = len(vmids) - NAMED
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


def missing(facts: FaultFacts) -> tuple[str, ...]:
    """What could not be held against the list."""
    return (*atlas().problems, *facts.unknown)


CHECKS: Final = tuple(Check(each.id, each.title, partial(find, each)) for each in atlas().faults if each.affected)
"""Not of those that no version tells."""

GROUP: Final = Group("faults", gather, missing, CHECKS)
