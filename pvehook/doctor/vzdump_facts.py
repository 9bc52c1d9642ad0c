"""What the checks of vzdump go by: this node's backup jobs, their guests and targets, and how long backups take.

Without jobs, guests and storages nothing can be said: all three are in /etc/pve. What else does not answer in time is
left out, and `not_read` says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple, TypeVar

from pvehook.config.in_force import InForce
from pvehook.contract.disks import Location
from pvehook.contract.guest_config import backup_size_bytes, boolean, options_of, split_list
from pvehook.contract.measured import Absent, Broken
from pvehook.contract.pools import parse_pools
from pvehook.contract.section_config import Section
from pvehook.contract.storage_config import content_of, why_not_usable
from pvehook.contract.text import printable
from pvehook.contract.upid import Upid
from pvehook.contract.vzdump_config import options_of_job, parse_vzdump_config
from pvehook.contract.vzdump_options import parse_fleecing
from pvehook.doctor.finding import Sources
from pvehook.errors import NodeError
from pvehook.host.backup_jobs import Job, Pools, all_jobs, takes
from pvehook.host.block import locate
from pvehook.host.disk_queue import read_queue
from pvehook.host.guest_configs import ConfiguredGuest, node_of_guests, read_guest_configs
from pvehook.host.node import Node
from pvehook.host.processes import running_tasks
from pvehook.host.timely_files import TimelyReader
from pvehook.host.versions import read_versions
from pvehook.host.volumes import locate_dump, locate_storage, read_storages
from pvehook.night.forecasts import past_turns
from pvehook.night.standings import NAME_LIMIT
from pvehook.records.attempt import Attempt
from pvehook.records.guest_summary import guest_number
from pvehook.records.history import history_file

VZDUMP_CONF: Final = "/etc/vzdump.conf"

_READ_S: Final = 2.0
_LOCATE_S: Final = 4.0
"""For all disks: where they cannot be found it is said so."""

T = TypeVar("T")


class VzdumpGuest(NamedTuple):
    """A guest of this node, running or not."""

    title: str
    """`VM 101 web`, fit to be shown."""
    guest: ConfiguredGuest
    size_bytes: int | None
    is_template: bool

    @property
    def vmid(self) -> int:
        return self.guest.vmid

    @property
    def is_vm(self) -> bool:
        return self.guest.vmtype == "qemu"


class BackupJob(NamedTuple):
    """An enabled job that runs on this node."""

    job: Job
    options: Mapping[str, str]
    """Its own over those of vzdump.conf."""
    guests: tuple[VzdumpGuest, ...]
    """This node's that it takes, in vzdump's order."""
    where: Location
    """The disks under its target."""

    @property
    def title(self) -> str:
        return f"line {self.job.id}" if self.job.is_cron else f"job {self.job.id}"

    @property
    def target(self) -> str:
        return f"storage {self.options['storage']}" if "storage" in self.options else self.options["dumpdir"]

    @property
    def vms(self) -> tuple[VzdumpGuest, ...]:
        return tuple(each for each in self.guests if each.is_vm)


class VzdumpFacts(NamedTuple):
    node_name: str
    in_force: InForce
    now: datetime
    """In the node's zone, by which schedules are read."""
    guests: tuple[VzdumpGuest, ...]
    """All of the node's."""
    asked: tuple[int, ...]
    """The guests that findings are wanted of; empty: all."""
    jobs: tuple[BackupJob, ...]
    disabled: tuple[Job, ...]
    """Those that would run on this node."""
    cluster_jobs: tuple[Job, ...]
    """All enabled ones of the cluster; without lines of cron."""
    node_of: Mapping[int, str]
    """Of each guest of the cluster."""
    pools: Pools
    storages: tuple[Section, ...]
    disks: Mapping[str, Location]
    """Of each storage that a job's guest or a fleecing image is on, and each volume that is an absolute path."""
    rotational: Mapping[str, bool | None]
    """Of each local disk in `disks` and under the targets, as the kernel takes it; None: not known."""
    vzdump_conf: str | None
    """None: there is no such file."""
    tasks: tuple[Upid, ...] | None
    """What Proxmox is doing on this node now. None: not known."""
    turns: tuple[Attempt, ...] | None
    """The guests' past turns, the oldest first. None: the history cannot be read."""
    version: int | None
    """Proxmox VE's major version."""
    not_read: tuple[str, ...]

    @property
    def defaults(self) -> dict[str, str]:
        return parse_vzdump_config(self.vzdump_conf or "")


def gather(sources: Sources) -> VzdumpFacts:
    """Raises NodeError when jobs, storages or guests cannot be read."""
    node, reader, name = sources.node, sources.reader, sources.node_name
    jobs = all_jobs(node, reader)
    enabled = [job for job in jobs if boolean(job.options.get("enabled")) is not False]
    storages = read_storages(node, reader)
    pools = parse_pools(reader.text(node.path("/etc/pve/user.cfg"), _READ_S) or "")
    conf = reader.text(node.path(VZDUMP_CONF), _READ_S)
    guests = tuple(_guest(each) for each in read_guest_configs(node, reader, _READ_S))
    node_of = node_of_guests(node, reader, _READ_S)
    mine = [job for job in enabled if job.options.get("node", name) == name]
    defaults = parse_vzdump_config(conf or "")
    look = _Look(sources)
    backups = []
    for job in mine:
        taken = tuple(each for each in guests if takes(job, each.vmid, pools))
        options = options_of_job(defaults, job.options)
        backups.append(BackupJob(job, options, taken, look.target(options, storages)))
    places = {place for job in backups for place in _places(job)} | _possible(storages, name)
    disks = {place: look.place(place, storages) for place in sorted(places)}
    found = [*disks.values(), *(job.where for job in backups)]
    rotational = look.known("which disks rotate", "the disks' queues", lambda: _rotational(node, found))
    tasks = look.known("guests that are locked", "/proc", lambda: tuple(running_tasks(node)))
    history, now_s = history_file(node), sources.now.timestamp()
    turns = look.known("whether runs end in the window", history, lambda: tuple(past_turns(history, now_s)))
    version = look.known("options that PVE has dropped", "dpkg's status", lambda: _major_version(node))
    return VzdumpFacts(
        name,
        sources.in_force,
        sources.now.astimezone(sources.in_force.zone),
        guests,
        sources.vmids,
        tuple(backups),
        tuple(job for job in jobs if job not in enabled and job.options.get("node", name) == name),
        tuple(job for job in enabled if not job.is_cron),
        node_of,
        pools,
        tuple(storages),
        disks,
        rotational or {},
        conf,
        tasks,
        turns,
        version,
        tuple(look.not_read),
    )


class _Look:
    """Questions each in their own thread and time, and what came of none."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._disks = TimelyReader()
        """A pool that hangs must not keep the other questions waiting."""
        self.not_read: list[str] = []

    def known(self, what: str, source: str, read: Callable[[], T]) -> T | None:
        try:
            return TimelyReader().within(self._sources.deadline.within(_READ_S).left_s(), source, read)
        except (NodeError, OSError) as error:
            self.not_read.append(f"{what}: {printable(str(error))}")
            return None

    def target(self, options: Mapping[str, str], storages: Sequence[Section]) -> Location:
        storage, directory = options.get("storage"), options.get("dumpdir")
        return self._located(
            f"storage {storage}" if storage else str(directory),
            lambda: locate_dump(self._sources.node, directory, storage, storages),
        )

    def place(self, place: str, storages: Sequence[Section]) -> Location:
        node = self._sources.node
        if place.startswith("/"):
            return self._located(place, lambda: locate(node, place))
        return self._located(f"storage {place}", lambda: locate_storage(node, place, storages))

    def _located(self, what: str, find: Callable[[], Location]) -> Location:
        try:
            return self._disks.within(self._sources.deadline.within(_LOCATE_S).left_s(), what, find)
        except (NodeError, OSError, ValueError) as error:
            return Location("unknown", (), str(error))


def _guest(each: ConfiguredGuest) -> VzdumpGuest:
    title = f"{guest_number(each.vmtype, each.vmid)} {printable(each.config.name or '', NAME_LIMIT)}".rstrip()
    is_template = boolean(options_of(each.text).get("template")) is True
    return VzdumpGuest(title, each, backup_size_bytes(each.text, each.config), is_template)


def places_of(guest: VzdumpGuest) -> set[str]:
    """The storages that its backup reads, and the absolute paths."""
    volumes = [each.volume for each in guest.guest.config.volumes if each.backup and each.volume != "none"]
    return {volume if volume.startswith("/") else volume.partition(":")[0] for volume in volumes}


def _places(job: BackupJob) -> set[str]:
    fleecing = parse_fleecing(job.options.get("fleecing"))
    own = {fleecing.storage} if fleecing.enabled and fleecing.storage else set()
    return own.union(*(places_of(each) for each in job.vms)) if job.vms else own


def _possible(storages: Sequence[Section], node_name: str) -> set[str]:
    """Where fleecing images could be."""
    return {each.id for each in storages if can_hold_fleecing(storages, each, node_name)}


def can_hold_fleecing(storages: Sequence[Section], storage: Section, node_name: str) -> bool:
    """Whether fleecing images are well kept there, whatever its disks."""
    is_usable = why_not_usable(storages, storage.id, node_name) is None
    return is_usable and is_thin(storage) and "images" in split_list(content_of(storage))


def is_thin(storage: Section) -> bool:
    """Whether an image takes only as much of this local storage as is written to it: LVM-thin, a ZFS pool with
    `sparse`, a directory (qcow2)."""
    if storage.type == "zfspool":
        return boolean(storage.properties.get("sparse")) is True
    return storage.type in ("lvmthin", "dir", "btrfs")


def _rotational(node: Node, places: Sequence[Location]) -> dict[str, bool | None]:
    names = {disk.name for place in places for disk in place.disks if disk.transport == "local"}
    return {name: read_queue(node, name).is_rotational for name in sorted(names)}


def _major_version(node: Node) -> int | None:
    version = read_versions(node).pve_manager
    if isinstance(version, Absent):
        return None
    if isinstance(version, Broken):
        raise NodeError(version.why)
    match = re.match(r"\d+", version)
    return int(match[0]) if match else None
