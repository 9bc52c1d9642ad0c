"""Checks of single guests: in no job, or locked with nobody at work on them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from pvehook.contract.guest_config import split_list
from pvehook.contract.text import named, printable
from pvehook.contract.upid import Upid
from pvehook.doctor.finding import Finding
from pvehook.doctor.vzdump_facts import VzdumpFacts, VzdumpGuest
from pvehook.host.backup_jobs import takes

_NAMED_AT_MOST: Final = 20
"""Guests in a command."""
_MADE_BY_ANOTHER: Final = ("clone", "create")
"""Locks of a guest that is still being made: the task may be named after the guest that it is made from."""


def in_no_job(facts: VzdumpFacts) -> Iterator[Finding]:
    """A template never changes and needs no backup of each night."""
    taken = {guest.vmid for job in facts.jobs for guest in job.guests}
    without = [each for each in facts.guests if each.vmid not in taken and not each.is_template]
    if without and not facts.jobs and not facts.asked:
        none = named([each.title for each in without])
        evidence = f"no backup job runs on this node, expected one: none of its guests ({none}) is backed up"
        yield Finding("node", "warning", evidence, (_new_job(facts, "--all", "1"),))
        return
    for guest in without:
        disabled = [job.id for job in facts.disabled if takes(job, guest.vmid, facts.pools)]
        excluding = [job for job in facts.jobs if str(guest.vmid) in split_list(job.options.get("exclude", ""))]
        if excluding:
            why = f"{named([job.title for job in excluding])} leave{'s' if len(excluding) == 1 else ''} it out by name"
        elif disabled:
            why = f"only in jobs that are disabled ({named(disabled)})"
        else:
            why = "in no job that runs on this node"
        yield Finding(
            guest.title,
            "note" if excluding else "warning",
            f"{why}, expected in one: it is not backed up",
            (_into_job(facts, guest, disabled),),
            vmid=guest.vmid,
        )


def _into_job(facts: VzdumpFacts, guest: VzdumpGuest, disabled: list[str]) -> str:
    vmid = str(guest.vmid)
    for job in facts.jobs:
        options, path = job.job.options, f"/cluster/backup/{job.job.id}"
        excluded = split_list(options.get("exclude", ""))
        if job.job.is_cron:
            continue
        if vmid in excluded:
            rest = [each for each in excluded if each != vmid]
            change = ["--exclude", ",".join(rest)] if rest else ["--delete", "exclude"]
            change = change if rest or "all" in options else ["--all", "1", *change]  # without both it takes nobody
            return shlex.join(["pvesh", "set", path, *change])
        listed = split_list(options.get("vmid", ""))
        if listed and not disabled and len(listed) < _NAMED_AT_MOST:
            return shlex.join(["pvesh", "set", path, "--vmid", ",".join([*listed, vmid])])
    if disabled:
        return shlex.join(["pvesh", "set", f"/cluster/backup/{disabled[0]}", "--enabled", "1"])
    return _new_job(facts, "--vmid", vmid)


def _new_job(facts: VzdumpFacts, *whom: str) -> str:
    """When the window opens, to where another job writes."""
    spans = facts.in_force.window.spans
    start = f"{spans[0].start_min // 60:02}:{spans[0].start_min % 60:02}" if spans else "02:00"
    target = next((job.options["storage"] for job in facts.jobs if "storage" in job.options), "STORAGE")
    create = ["pvesh", "create", "/cluster/backup", *whom, "--schedule", start, "--storage", target]
    return shlex.join([*create, "--node", facts.node_name])


def lock_left_over(facts: VzdumpFacts) -> Iterator[Finding]:
    for guest in facts.guests:
        lock = guest.guest.config.lock
        if lock is None or facts.tasks is None or any(_works_on(task, guest, lock) for task in facts.tasks):
            continue
        command = "qm" if guest.is_vm else "pct"
        shown = printable(lock, 40)
        if lock == "suspended":
            yield Finding(
                guest.title,
                "note",
                "it is suspended to disk (lock: suspended): PVE fails its backup until it runs again",
                (f"qm resume {guest.vmid}",),
                vmid=guest.vmid,
            )
            continue
        yield Finding(
            guest.title,
            "error",
            f"lock: {shown} in its configuration, and no task of this node works on it, expected no lock: PVE fails"
            " each of its backups",
            (
                f"pvesh get /nodes/{facts.node_name}/tasks --source active",
                f"if nothing works on it: {command} unlock {guest.vmid}",
            ),
            vmid=guest.vmid,
        )


def _works_on(task: Upid, guest: VzdumpGuest, lock: str) -> bool:
    if lock == "backup":
        return task.type == "vzdump"
    return task.vmid == guest.vmid or (lock in _MADE_BY_ANOTHER and task.type.startswith(("qm", "vz")))
