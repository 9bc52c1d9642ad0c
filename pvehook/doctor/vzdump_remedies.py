"""How an option of vzdump is set where it counts: in the job that sets it, else in /etc/vzdump.conf.

    pvesh set /cluster/backup/nightly --performance max-workers=1
    sed -i 's|^\\s*performance:.*|performance: max-workers=1|' /etc/vzdump.conf
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pvehook.contract.vzdump_config import parse_vzdump_config, with_option, without_option
from pvehook.doctor.finding import Command, Step, Write
from pvehook.doctor.vzdump_facts import VZDUMP_CONF, BackupJob, VzdumpFacts
from pvehook.host.backup_jobs import JOBS, Job


class Fix(NamedTuple):
    """As a finding has it."""

    remedy: tuple[str, ...]
    steps: tuple[Step, ...] = ()


class Origin(NamedTuple):
    """Where an option comes from."""

    job: BackupJob | None
    """None: /etc/vzdump.conf, or Proxmox's default where that has none."""
    jobs: tuple[BackupJob, ...]
    """For which it counts."""

    @property
    def subject(self) -> str:
        return VZDUMP_CONF if self.job is None else self.job.title

    @property
    def options(self) -> Mapping[str, str]:
        return self.jobs[0].options


def origins(jobs: Sequence[BackupJob], is_own: Callable[[BackupJob], bool]) -> list[Origin]:
    """The jobs by where the option comes from; `is_own`: whether the job sets it itself."""
    others = tuple(job for job in jobs if not is_own(job))
    return [Origin(job, (job,)) for job in jobs if is_own(job)] + ([Origin(None, others)] if others else [])


def changed(facts: VzdumpFacts, origin: Origin, key: str, value: str | None) -> Fix:
    """With another value of the option, None: without it."""
    if origin.job is None:
        return _in_file(facts.vzdump_conf, key, value)
    return changed_in_job(origin.job.job, key, value)


def changed_in_job(job: Job, key: str, value: str | None) -> Fix:
    if job.is_cron:
        text = f"take --{key} out of line {job.id}" if value is None else f"in line {job.id}: --{key} {value}"
        return Fix((text,))
    do, undo = _pvesh(job.id, key, value), _pvesh(job.id, key, job.options.get(key))
    return Fix((shlex.join(do),), (Command(do, undo, JOBS, key=key, section=f"vzdump: {job.id}"),))


def _pvesh(job_id: str, key: str, value: str | None) -> tuple[str, ...]:
    change = ("--delete", key) if value is None else (f"--{key}", value)
    return ("pvesh", "set", f"/cluster/backup/{job_id}", *change)


def _in_file(text: str | None, key: str, value: str | None) -> Fix:
    if value is None:
        new, command = without_option(text or "", key), f"sed -i '/^\\s*{key}:/d' {VZDUMP_CONF}"
    elif key in parse_vzdump_config(text or ""):
        new, command = with_option(text or "", key, value), f"sed -i 's|^\\s*{key}:.*|{key}: {value}|' {VZDUMP_CONF}"
    else:
        new, command = with_option(text or "", key, value), f"echo '{key}: {value}' >> {VZDUMP_CONF}"
    return Fix((command,), (Write(VZDUMP_CONF, text, new),))
