"""How one guest is backed up, read once from files that may hang: each within its time, else it is not known."""

from __future__ import annotations

from pvehook.contract.guest_config import boolean, parse_vm, property_string
from pvehook.contract.section_config import find_section, parse_sections
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
    performance, fleecing, workers_of_job = _options(node, reader, job_id)
    is_fleecing = boolean(property_string(fleecing or "", default_key="enabled")[0]) is True
    setup = Setup(
        max_workers=workers_of(performance) if performance is not None else None,
        workers_of_job=workers_of_job,
        fleecing=is_fleecing if fleecing is not None else None,
        iothread=guest.io_threads,
        is_spared=spared_in_own_backup(config, vmid, guest.name or name, guest.tags),
    )
    return mode_for(config, vmid, guest.name or name, guest.tags), setup


def _options(node: Node, reader: TimelyReader, job_id: str | None) -> tuple[str | None, str | None, str | None]:
    """`performance` and `fleecing` of vzdump.conf, overridden by the job's, "" where not set; and the job if it sets
    `max-workers` itself. Where the job is not known, what any job sets is not known either: None."""
    try:
        options = parse_vzdump_config(reader.text(node.path("/etc/vzdump.conf"), READ_S) or "")
        jobs = parse_sections(reader.text(node.path("/etc/pve/jobs.cfg"), READ_S) or "")
    except NodeError:
        return None, None, None
    job = find_section(jobs, job_id) if job_id is not None else None
    if job is not None:
        options = options_of_job(options, job.properties)
    performance, fleecing = (
        None if job_id is None and any(name in each.properties for each in jobs) else options.get(name, "")
        for name in ("performance", "fleecing")
    )
    sets_workers = job is not None and "max-workers=" in job.properties.get("performance", "")
    return performance, fleecing, job_id if sets_workers else None
