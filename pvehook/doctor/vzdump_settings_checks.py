"""Checks of the settings that backups run with: workers, bandwidth, mode, and keys that vzdump does not know."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator
from typing import Final

from pvehook.contract.guest_config import parse_agent_option
from pvehook.contract.text import named, printable
from pvehook.contract.vzdump_config import MODE_DEFAULT, ignored_lines, parse_vzdump_config, without_option
from pvehook.contract.vzdump_options import KNOWN_VERSION, OPTIONS, REMOVED_IN, with_workers, workers_set
from pvehook.doctor.finding import Finding, Write
from pvehook.doctor.vzdump_facts import VZDUMP_CONF, VzdumpFacts, VzdumpGuest, places_of
from pvehook.doctor.vzdump_remedies import Origin, changed, origins
from pvehook.host.backup_jobs import JOBS
from pvehook.rules.governor_policy import workers_of

_SHOWN: Final = 60
_INSTEAD: Final = {
    "max-workers": "performance: max-workers={value}",
    "pbs-entries-max": "performance: pbs-entries-max={value}",
    **{f"keep-{each}": f"prune-backups: keep-{each}={{value}}" for each in ("last", "daily", "weekly", "monthly")},
    "maxfiles": "prune-backups: keep-last={value}",
    "notification-target": "notification-mode: notification-system",
    "notification-policy": "notification-mode: notification-system",
}
"""What does it, by a key that vzdump does not know."""


def many_workers(facts: VzdumpFacts) -> Iterator[Finding]:
    """Silent where all guests are on local disks that do not rotate: on a fast disk 16 workers stalled nobody
    (docs/benchmarks.md, fast-16)."""
    jobs = [job for job in facts.jobs if job.vms]
    for origin in origins(jobs, lambda job: workers_set(job.job.options.get("performance")) is not None):
        workers = workers_of(origin.options.get("performance"))
        vms = guests_of(origin)
        slow = [each for each in vms if any(facts.rotational.get(disk) for disk in disks_of(facts, each))]
        unknown = [each for each in vms if each not in slow and not _is_fast(facts, each)]
        if workers <= 1 or not (slow or unknown):
            continue
        own = origin.job.job.options if origin.job is not None else facts.defaults
        fix = changed(facts, origin, "performance", with_workers(own.get("performance"), 1))
        if slow:
            disks = sorted({disk for each in slow for disk in disks_of(facts, each) if facts.rotational.get(disk)})
            on = f"{titles(slow)} on {', '.join(disks)}, which the kernel takes for rotating"
        else:
            on = f"{titles(unknown)} on storage whose disks are not this node's, or not known"
        is_set = workers_set(origin.options.get("performance")) is not None
        yield Finding(
            origin.subject,
            "warning" if slow else "note",
            f"max-workers is {workers}{'' if is_set else ' by default'}, expected 1: up to {workers}"
            f" requests of a backup are queued in front of each of a guest's ({on}; {_jobs(origin)})",
            *fix,
        )


def bandwidth_limit(facts: VzdumpFacts) -> Iterator[Finding]:
    for origin in origins(facts.jobs, lambda job: "bwlimit" in job.job.options):
        limit = origin.options.get("bwlimit", "0")
        if not limit.isdecimal() or not int(limit) or not any(job.guests for job in origin.jobs):
            continue
        does = "pvehook's governor slows a backup only while a guest waits, and never beyond this limit"
        if facts.in_force.config.governor.mode != "on" or facts.in_force.config.metrics.mode != "on":
            does = "pvehook's governor, which is not on here, slows a backup only while a guest waits"
        yield Finding(
            origin.subject,
            "note",
            f"bwlimit is {limit} KiB/s, expected none: it slows every backup all night, and what a guest's own writes"
            f" wait for, the copy of their blocks to the target, not at all; {does} ({_jobs(origin)})",
            *changed(facts, origin, "bwlimit", None),
        )


def suspend_with_agent(facts: VzdumpFacts) -> Iterator[Finding]:
    for origin in origins(facts.jobs, lambda job: "mode" in job.job.options):
        with_agent = [each for each in guests_of(origin) if parse_agent_option(each.guest.config.agent).enabled]
        if origin.options.get("mode", MODE_DEFAULT) != "suspend" or not with_agent:
            continue
        yield Finding(
            origin.subject,
            "warning",
            f"mode is suspend, expected snapshot: {titles(with_agent)} stand{'s' if len(with_agent) == 1 else ''} still"
            f" for the whole backup, and the agent that could freeze the file systems for a moment instead cannot"
            f" answer meanwhile ({_jobs(origin)})",
            *changed(facts, origin, "mode", "snapshot"),
        )


def unknown_keys(facts: VzdumpFacts) -> Iterator[Finding]:
    """One finding for the whole file: a fix writes it anew once. A key that should have been another is for a human:
    `prune-backups` deletes archives."""
    text = facts.vzdump_conf or ""
    seen, remedy, is_simple, new = [], [], True, text
    for line in ignored_lines(text):
        seen.append(f"`{printable(line, _SHOWN)}` is no option with a value that vzdump takes")
        remedy.append(f"in {VZDUMP_CONF}: correct `{printable(line, _SHOWN)}`")
        is_simple = False
    for key, value in parse_vzdump_config(text).items():
        removed_in = REMOVED_IN.get(key)
        if key in OPTIONS or not _is_stale(facts.version, removed_in):
            continue
        shown = printable(f"{key}: {value}", _SHOWN)
        seen.append(f"`{shown}`: " + (f"dropped by PVE {removed_in}" if removed_in else "vzdump has no such option"))
        if instead := _instead(key, value):
            remedy.append(f"in {VZDUMP_CONF}: `{instead}` in place of `{shown}`")
            is_simple = False
        else:
            new = without_option(new, key)
            remedy.append(shlex.join(["sed", "-i", rf"/^\s*{re.escape(key)}:/d", VZDUMP_CONF]))
    if seen:
        evidence = f"without effect: {'; '.join(seen)}"
        steps = (Write(VZDUMP_CONF, text, new),) if is_simple else ()
        yield Finding(VZDUMP_CONF, "warning", evidence, tuple(remedy), steps)


def dropped_options(facts: VzdumpFacts) -> Iterator[Finding]:
    """In a job such an option counts for nothing; a command fails that has one."""
    for job in facts.jobs:
        for key, removed_in in REMOVED_IN.items():
            if key not in job.job.options or facts.version is None or facts.version < removed_in:
                continue
            shown = printable(f"{key} {job.job.options[key]}", _SHOWN)
            then = "so vzdump ends with an error and backs up nobody" if job.job.is_cron else "so it has no effect"
            instead = _instead(key, job.job.options[key])
            new = instead.replace(": ", " ", 1)
            if job.job.is_cron:
                remedy = f"in line {job.job.id}: {f'--{new} in place of' if new else 'remove'} --{shown}"
            elif new:
                remedy = shlex.join(["pvesh", "set", f"/cluster/backup/{job.job.id}", *f"--{new}".split(" ", 1)])
            else:
                remedy = f"remove the line `{shown}` of this job in {JOBS}"
            kept = ", and every archive is kept" if key == "maxfiles" and not job.job.is_cron else ""
            yield Finding(
                job.title,
                "error" if job.job.is_cron else "warning",
                f"`{shown}`: dropped by PVE {removed_in}, {then}{kept}",
                (remedy,),
            )


def _is_stale(version: int | None, removed_in: int | None) -> bool:
    if removed_in is None:
        return version is None or version <= KNOWN_VERSION
    return version is not None and version >= removed_in


def _instead(key: str, value: str) -> str:
    if key in _INSTEAD:
        return printable(_INSTEAD[key].format(value=value), _SHOWN)
    near = difflib.get_close_matches(key, OPTIONS, 1)
    return printable(f"{near[0]}: {value}", _SHOWN) if near else ""


def guests_of(origin: Origin) -> list[VzdumpGuest]:
    """The VMs of the jobs, each once, by number."""
    return sorted({each.vmid: each for job in origin.jobs for each in job.vms}.values(), key=lambda each: each.vmid)


def disks_of(facts: VzdumpFacts, guest: VzdumpGuest) -> frozenset[str]:
    """The local disks that its backup reads, as far as they are known."""
    places = [facts.disks[place] for place in places_of(guest) if place in facts.disks]
    return frozenset(disk.name for place in places for disk in place.disks if disk.transport == "local")


def titles(guests: list[VzdumpGuest]) -> str:
    return named([each.title for each in guests])


def _is_fast(facts: VzdumpFacts, guest: VzdumpGuest) -> bool:
    places = [facts.disks.get(place) for place in places_of(guest)]
    disks = [disk for place in places if place is not None for disk in place.disks]
    known = all(place is not None and place.disks for place in places)
    return known and all(facts.rotational.get(disk.name) is False for disk in disks)


def _jobs(origin: Origin) -> str:
    return f"for {named([job.title for job in origin.jobs])}"


def missing(facts: VzdumpFacts) -> Iterator[str]:
    keys = [key for key in facts.defaults if key in REMOVED_IN]
    if facts.version is None and keys:
        yield f"whether this PVE still knows {named(keys)} of {VZDUMP_CONF}: its version is not known"
    keys = [key for key in facts.defaults if key not in OPTIONS and key not in REMOVED_IN]
    if facts.version is not None and facts.version > KNOWN_VERSION and keys:
        yield f"whether PVE {facts.version} knows {named(keys)} of {VZDUMP_CONF}: pvehook knows PVE {KNOWN_VERSION}"

