"""Which guests of this node are promised a backup, by which jobs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from pvehook.contract.guest_config import boolean, split_list
from pvehook.contract.pools import parse_pools
from pvehook.contract.vzdump_config import options_of_job, parse_vzdump_config
from pvehook.host.backup_jobs import READ_DEADLINE_S, Job, Pools, all_jobs, named_guests, takes
from pvehook.host.guest_configs import read_guest_configs
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.rules.overdue import Promise
from pvehook.settings import Exempt

_GUESTS_NAMED_AT_MOST = 20
"""In a command."""


class NodeGuest(NamedTuple):
    """A guest of this node, running or not."""

    vmid: int
    vmtype: str
    """`qemu` or `lxc`."""
    name: str | None


class Promises(NamedTuple):
    """What the jobs of this node promise to its guests."""

    guests: tuple[NodeGuest, ...]
    """All of the node's, by number."""
    of: Mapping[int, tuple[Promise, ...]]
    """Of each guest, by the enabled jobs that take it; empty for one in no job."""
    disabled: Mapping[int, tuple[str, ...]]
    """The disabled jobs that would take it."""


def read_promises(node: Node, reader: TimelyReader, exempt: Exempt) -> Promises:
    """Reads jobs, pools and the guests' configurations, each within READ_DEADLINE_S. Raises NodeError when one of them
    does not answer."""
    name = os.uname().nodename.partition(".")[0]
    jobs = [job for job in all_jobs(node, reader) if job.options.get("node", name) == name]
    pools = _pools(node, reader)
    defaults = parse_vzdump_config(reader.text(node.path("/etc/vzdump.conf"), READ_DEADLINE_S) or "")
    guests = read_node_guests(node, reader)
    of: dict[int, list[Promise]] = {guest.vmid: [] for guest in guests}
    disabled: dict[int, list[str]] = {guest.vmid: [] for guest in guests}
    for job in jobs:
        mine = [guest.vmid for guest in guests if takes(job, guest.vmid, pools)]
        is_off = boolean(job.options.get("enabled")) is False
        for vmid in mine:
            if is_off:
                disabled[vmid].append(job.id)
            else:
                of[vmid].append(_promise(job, vmid, pools, len(mine) > 1, defaults, exempt))
    return Promises(guests, {key: tuple(each) for key, each in of.items()}, {k: tuple(e) for k, e in disabled.items()})


def guests_taken(node: Node, reader: TimelyReader, job: Job) -> list[int]:
    """The node's guests that this job takes, by number. Raises NodeError as above."""
    pools = _pools(node, reader)
    return [guest.vmid for guest in read_node_guests(node, reader) if takes(job, guest.vmid, pools)]


def _pools(node: Node, reader: TimelyReader) -> Pools:
    return parse_pools(reader.text(node.path("/etc/pve/user.cfg"), READ_DEADLINE_S) or "")


def read_node_guests(node: Node, reader: TimelyReader) -> tuple[NodeGuest, ...]:
    """All of this node's, by number. Raises NodeError."""
    configured = read_guest_configs(node, reader, READ_DEADLINE_S)
    return tuple(NodeGuest(each.vmid, each.vmtype, each.config.name) for each in configured)


def _promise(
    job: Job, vmid: int, pools: Pools, has_others: bool, defaults: Mapping[str, str], exempt: Exempt
) -> Promise:
    storage = options_of_job(defaults, job.options).get("storage")
    return Promise(
        job.id,
        job.schedule or "",
        job.is_cron,
        storage if "storage" in job.options else None,  # by hand vzdump takes its own default by itself
        is_exempt=vmid in exempt.guests
        or storage in exempt.storages
        or (not job.is_cron and job.id in exempt.jobs),
        without=_without(job, vmid, pools) if has_others and not job.is_cron else None,
    )


def _without(job: Job, vmid: int, pools: Pools) -> str | None:
    if "pool" in job.options:
        return None  # a guest is taken out of a pool, and that is more than a backup
    if "vmid" in job.options:
        others = sorted(set(named_guests(job, pools)) - {vmid})
        return f"--vmid {','.join(map(str, others))}" if 0 < len(others) <= _GUESTS_NAMED_AT_MOST else None
    excluded = [each for each in split_list(job.options.get("exclude", "")) if each.isdigit()]
    names = ",".join([*excluded, str(vmid)])
    return f"--exclude {names}" if len(excluded) < _GUESTS_NAMED_AT_MOST else None
