"""How one guest is backed up, read once from files that may hang: each within its time, else it is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pvehook.contract.guest_config import boolean, parse_vm, property_string
from pvehook.contract.section_config import Section, find_section, parse_sections
from pvehook.contract.vzdump_config import options_of_job, parse_vzdump_config
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.rules.governor_policy import Setup, mode_for, spared_in_own_backup, workers_of
from pvehook.settings import GovernorConfig, GovernorMode

READ_S = 1.0


def look_up(
    node: Node, reader: TimelyReader, config: GovernorConfig, vmid: int, name: str | None, job_id: str | None
) -> tuple[GovernorMode, Setup]:
    """The governor's mode for a VM, and how it is backed up. Never raises."""
    try:
        text = reader.text(node.path(f"/etc/pve/qemu-server/{vmid}.conf"), READ_S)
    except NodeError:
        text = None
    guest = parse_vm(text or "")
    options = options_of_run(node, reader, job_id)
    performance, fleecing = options.get("performance"), options.get("fleecing")
    sets_workers = options.job is not None and "max-workers=" in options.job.properties.get("performance", "")
    is_fleecing = boolean(property_string(fleecing or "", default_key="enabled")[0]) is True
    setup = Setup(
        max_workers=workers_of(performance) if performance is not None else None,
        workers_of_job=job_id if sets_workers else None,
        fleecing=is_fleecing if fleecing is not None else None,
        iothread=guest.io_threads,
        is_spared=spared_in_own_backup(config, vmid, guest.name or name, guest.tags),
    )
    return mode_for(config, vmid, guest.name or name, guest.tags), setup


class RunOptions(NamedTuple):
    """The options of vzdump.conf, overridden by those of the run's job."""

    values: Mapping[str, str] | None
    """None: they could not be read."""
    jobs: Sequence[Section]
    job: Section | None

    def get(self, name: str) -> str | None:
        """"" where it is not set. None: not known, as where the job is not known and any job sets it."""
        if self.values is None or (self.job is None and any(name in each.properties for each in self.jobs)):
            return None
        return self.values.get(name, "")


def options_of_run(node: Node, reader: TimelyReader, job_id: str | None) -> RunOptions:
    """Read within their time. Never raises."""
    try:
        options = parse_vzdump_config(reader.text(node.path("/etc/vzdump.conf"), READ_S) or "")
        jobs = parse_sections(reader.text(node.path("/etc/pve/jobs.cfg"), READ_S) or "")
    except NodeError:
        return RunOptions(None, (), None)
    job = find_section(jobs, job_id) if job_id is not None else None
    if job is not None:
        return RunOptions(options_of_job(options, job.properties), jobs, job)
    return RunOptions(options, jobs if job_id is None else (), None)
