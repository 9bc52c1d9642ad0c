"""How one guest is backed up, read once from files that may hang: each within its time, else it is not known."""

from __future__ import annotations

from pvehook.contract.guest_config import GuestConfig, boolean, parse_vm, property_string
from pvehook.contract.section_config import find_section, parse_sections
from pvehook.contract.vzdump_config import options_of_job, parse_vzdump_config
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.rules.governor_policy import Setup, mode_for, workers_of
from pvehook.settings import GovernorConfig, GovernorMode

READ_S = 1.0
VZDUMP_CONFIG = "/etc/vzdump.conf"
JOBS_CONFIG = "/etc/pve/jobs.cfg"


def look_up(
    node: Node, reader: TimelyReader, config: GovernorConfig, vmid: int, name: str | None, job_id: str | None
) -> tuple[GovernorMode, Setup]:
    """The governor's mode for a VM, and how it is backed up. Never raises."""
    guest = _guest(node, reader, vmid)
    mode = mode_for(config, vmid, guest.name or name if guest else name, guest.tags if guest else ())
    options, workers_of_job = _options(node, reader, job_id)
    fleecing = options.get("fleecing")
    setup = Setup(
        max_workers=None if options.get("performance") == _NOT_KNOWN else workers_of(options.get("performance")),
        workers_of_job=workers_of_job,
        fleecing=None if fleecing == _NOT_KNOWN else _is_enabled(fleecing),
        iothread=guest.io_threads if guest else None,
    )
    return mode, setup


_NOT_KNOWN = "?"


def _guest(node: Node, reader: TimelyReader, vmid: int) -> GuestConfig | None:
    try:
        text = reader.text(node.path(f"/etc/pve/qemu-server/{vmid}.conf"), READ_S)
    except NodeError:
        return None
    return parse_vm(text) if text is not None else None


def _options(node: Node, reader: TimelyReader, job_id: str | None) -> tuple[dict[str, str], str | None]:
    """vzdump.conf's options, overridden by the job's, and the job if it sets `max-workers` itself. Where the job is not
    known, an option that any job sets is not known either."""
    try:
        options = parse_vzdump_config(reader.text(node.path(VZDUMP_CONFIG), READ_S) or "")
        jobs = parse_sections(reader.text(node.path(JOBS_CONFIG), READ_S) or "")
    except NodeError:
        return {"performance": _NOT_KNOWN, "fleecing": _NOT_KNOWN}, None
    if job_id is not None:
        job = find_section(jobs, job_id)
        if job is None:
            return options, None
        sets_workers = "max-workers=" in job.properties.get("performance", "")
        return options_of_job(options, job.properties), job_id if sets_workers else None
    for option in ("performance", "fleecing"):
        if any(option in job.properties for job in jobs):
            options[option] = _NOT_KNOWN
    return options, None


def _is_enabled(fleecing: str | None) -> bool:
    enabled, _ = property_string(fleecing or "", default_key="enabled")
    return boolean(enabled) is True
