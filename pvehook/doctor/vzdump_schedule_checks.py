"""Checks of when backups run: outside the window, beyond its end, made up for at boot, or on all nodes at once.

The window counts only for jobs that call pvehook, and not for those that the configuration exempts.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from pvehook.contract.guest_config import boolean
from pvehook.contract.text import named, printable
from pvehook.doctor.finding import Finding
from pvehook.doctor.vzdump_facts import BackupJob, VzdumpFacts, VzdumpGuest
from pvehook.doctor.vzdump_remedies import Fix, changed_in_job
from pvehook.host.backup_jobs import Job, takes
from pvehook.host.node import HOOK
from pvehook.night.forecasts import run_forecast
from pvehook.night.run_plan import in_words
from pvehook.rules.forecast import Timeline, timeline
from pvehook.rules.reschedule import at_opening, at_time, next_start, stamp, wider
from pvehook.rules.schedule import starts_between
from pvehook.rules.window import is_open, window_state

LOOK_AHEAD: Final = timedelta(days=28)
STARTS_AT_MOST: Final = 200
_APART: Final = timedelta(minutes=30)
_SHARED_TYPES: Final = ("nfs", "cifs", "pbs", "cephfs", "glusterfs")
_NOT_COPIED: Final = ("id", "type", "enabled", "node", "schedule", "starttime", "dow")
"""Of a job's options, when it is split."""


def starts_outside(facts: VzdumpFacts) -> Iterator[Finding]:
    window = facts.in_force.window
    for job in facts.jobs:
        starts = _starts(facts, job.job)
        closed = [each for each in starts if not is_open(window, each)]
        without = [each.title for each in bound(facts, job)]
        if not closed or not without:
            continue
        is_all = len(closed) == len(starts)
        moved = at_opening(job.job.schedule or "", closed[0], facts.now, window, is_cron=job.job.is_cron)
        fix = _moved(job.job, moved) if is_all else None
        yield Finding(
            job.title,
            "error" if is_all else "warning",
            f"{'all' if is_all else len(closed)} of its next {len(starts)} starts"
            f" ({', '.join(stamp(each) for each in closed[:2])}{', ...' if len(closed) > 2 else ''}) are"
            f" {window_state(window, closed[0]).reason}, expected inside: pvehook refuses these runs, and"
            f" {named(without)} {'has' if len(without) == 1 else 'have'} no backup from them",
            *(fix or Fix((f"leave the times outside the window out of its schedule ({job.job.schedule})",))),
        )


def ends_beyond(facts: VzdumpFacts) -> Iterator[Finding]:
    window = facts.in_force.window
    for job in facts.jobs:
        start = next((each for each in _starts(facts, job.job) if is_open(window, each)), None)
        if start is None or not bound(facts, job) or (expected := _expected(facts, job, start)) is None:
            continue
        line, words = expected
        closes = window_state(window, start).closes_at
        late = [each.title for each in bound(facts, job) if each.vmid in line.late]
        if closes is None or line.end_s <= closes.timestamp():
            continue
        at_end = facts.in_force.config.window
        if late and at_end.next_guest == "refuse":
            then = f"at this rate too late: {named(late)}"
        elif at_end.running_guest == "cancel":
            then = "the backup that runs then is cancelled"
        else:
            then = "it goes on in the time that is meant for the guests"
        moved = at_opening(job.job.schedule or "", start, facts.now, window, is_cron=job.job.is_cron)
        fix = _moved(job.job, moved) or Fix(())
        yield Finding(
            job.title,
            "warning",
            f"its run of {stamp(start)}: {words}; {then}",
            (*fix.remedy, f"to widen the window: {wider(window)}"),
            fix.steps,
        )


def repeats_missed(facts: VzdumpFacts) -> Iterator[Finding]:
    window = facts.in_force.window
    for job in facts.jobs:
        is_set = boolean(job.job.options.get("repeat-missed")) is True and not job.job.is_cron
        is_ever_closed = is_open(window, facts.now) is False or window_state(window, facts.now).closes_at is not None
        if is_set and is_ever_closed and bound(facts, job):
            yield Finding(
                job.title,
                "note",
                "repeat-missed is set, expected not: a run that was missed while the node was off starts when it boots;"
                " outside the window pvehook refuses it, and for Proxmox it counts as made up for",
                *changed_in_job(job.job, "repeat-missed", "0"),
            )


def same_second(facts: VzdumpFacts) -> Iterator[Finding]:
    """By shared storage: the first moment at which this node and others begin to write to it."""
    shared = {
        each.id for each in facts.storages if each.type in _SHARED_TYPES or boolean(each.properties.get("shared"))
    }
    jobs = [job for job in facts.cluster_jobs if job.options.get("storage") in shared and _nodes(facts, job)]
    for storage_id in sorted({job.options["storage"] for job in jobs}):
        at: dict[datetime, list[Job]] = {}
        for job in jobs:
            if job.options["storage"] == storage_id:
                for start in _starts(facts, job):
                    at.setdefault(start, []).append(job)
        for start, starting in sorted(at.items()):
            nodes = sorted(set[str]().union(*(_nodes(facts, job) for job in starting)))
            if facts.node_name not in nodes or len(nodes) < 2:
                continue
            yield Finding(
                f"storage {storage_id}",
                "note",
                f"at {stamp(start)} {named(nodes)} start at the same second"
                f" ({named([f'job {job.id}' for job in starting])}) and write to it, expected one after the other: each"
                " has only its share of what the storage can take, and guests without fleecing wait for it",
                tuple(_apart(facts, starting)),
            )
            break


def _apart(facts: VzdumpFacts, starting: Sequence[Job]) -> Iterator[str]:
    """The commands that let the nodes start one after the other."""
    number = 0
    for job in starting:
        nodes = sorted(_nodes(facts, job), key=lambda each: (each != facts.node_name, each))
        for node in nodes:
            if node != nodes[0]:
                keys = [key for key in sorted(job.options) if key not in _NOT_COPIED]
                copied = [word for key in keys for word in (f"--{key}", job.options[key])]
                yield _scheduled(facts, job, number, ["create", "/cluster/backup", "--node", node], copied)
            elif number or "node" not in job.options:
                only = [] if "node" in job.options else ["--node", node]
                yield _scheduled(facts, job, number, ["set", f"/cluster/backup/{job.id}", *only], [])
            number += 1


def _scheduled(facts: VzdumpFacts, job: Job, number: int, change: Sequence[str], more: Sequence[str]) -> str:
    schedule, later = job.schedule or "", number * _APART
    start = next_start(schedule, facts.now, is_cron=False)
    moved = at_time(schedule, start + later, is_cron=False) if start is not None else None
    command = shlex.join(["pvesh", *change, "--schedule", moved or "SCHEDULE", *more])
    return command if moved else f"{command}    # {later // timedelta(minutes=1)} min after `{printable(schedule, 60)}`"


def _nodes(facts: VzdumpFacts, job: Job) -> set[str]:
    """Where it has guests."""
    nodes = {node for vmid, node in facts.node_of.items() if takes(job, vmid, facts.pools)}
    return nodes & {job.options["node"]} if "node" in job.options else nodes


def bound(facts: VzdumpFacts, job: BackupJob) -> list[VzdumpGuest]:
    """The guests for which the window counts in this job."""
    exempt = facts.in_force.config.window.exempt
    is_exempt = job.options.get("storage") in exempt.storages or (not job.job.is_cron and job.job.id in exempt.jobs)
    if job.options.get("script") != HOOK or is_exempt:
        return []
    return [each for each in job.guests if each.vmid not in exempt.guests]


def missing(facts: VzdumpFacts) -> Iterator[str]:
    unknown = []
    for job in facts.jobs:
        try:
            starts = starts_between(job.job.schedule or "", facts.now, facts.now + LOOK_AHEAD, is_cron=job.job.is_cron)
        except ValueError as error:
            yield f"{job.title}: its schedule is not understood: {error}"
            continue
        open_starts = [each for each in starts if is_open(facts.in_force.window, each)]
        is_asked = facts.turns is not None and open_starts and bound(facts, job)
        if is_asked and _expected(facts, job, open_starts[0]) is None:
            unknown.append(job.title)
    if unknown:
        yield f"whether runs end in the window: how long {named(unknown)} will take is not known yet"


def _starts(facts: VzdumpFacts, job: Job) -> list[datetime]:
    """None for a schedule that is not understood: `missing` says so."""
    try:
        until = facts.now + LOOK_AHEAD
        return starts_between(job.schedule or "", facts.now, until, is_cron=job.is_cron, most=STARTS_AT_MOST)
    except ValueError:
        return []


def _moved(job: Job, schedule: str | None) -> Fix | None:
    """None: there is no time that is better."""
    if schedule is None:
        return None
    if job.is_cron:
        return Fix((f"let line {job.id} begin with `{schedule}`",))
    return changed_in_job(job, "schedule", schedule)


def _expected(facts: VzdumpFacts, job: BackupJob, start: datetime) -> tuple[Timeline, str] | None:
    """The run as it is expected to go; None: of no guest it is known how long it takes."""
    if facts.turns is None:
        return None
    closes = window_state(facts.in_force.window, start).closes_at
    closes_s = closes.timestamp() if closes is not None else None
    sizes = {each.vmid: each.size_bytes for each in job.guests}
    job_id = None if job.job.is_cron else job.job.id
    forecast = run_forecast(list(sizes), job_id, facts.turns, sizes, start.timestamp(), closes_s)
    line = timeline([(each.vmid, each.expected) for each in forecast.guests], start.timestamp(), closes_s)
    return None if len(line.unknown) == len(sizes) else (line, in_words(forecast, facts.in_force))
