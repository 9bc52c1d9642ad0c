"""What the storage checks go by: where backups go and guests are, on which disks, and how the kernel treats those.

Everything that may hang is asked within its own deadline, in a thread that is left behind. Where one of it does not
answer the rest is checked all the same, and `not_read` says what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

from pvehook.contract.disks import Location
from pvehook.contract.lvm_report import LogicalVolume
from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.pools import parse_pools
from pvehook.contract.section_config import Section, find_section
from pvehook.contract.storage_config import can_snapshot_container, why_no_backup
from pvehook.contract.text import named
from pvehook.contract.vzdump_config import MODE_DEFAULT, options_of_job, parse_vzdump_config
from pvehook.doctor.finding import Sources
from pvehook.errors import NodeError
from pvehook.host.backup_jobs import Job, Pools, jobs_of_node, takes
from pvehook.host.backup_target import Target, look_at_target, why_pbs_is_silent
from pvehook.host.block import kernel_version
from pvehook.host.dirty_limit import DirtyLimit, read_dirty_limit
from pvehook.host.disk_queue import DiskQueue, read_queue
from pvehook.host.guest_configs import ConfiguredGuest, read_guest_configs
from pvehook.host.kernel_log import PastLog, read_past_log
from pvehook.host.lvm import read_logical_volumes
from pvehook.host.mounts import Mount, follow_links, read_mounts
from pvehook.host.timely_files import TimelyReader
from pvehook.host.volumes import (
    device_of_volume,
    directory_of,
    locate_dump,
    locate_storage,
    locate_volume,
    read_storages,
)
from pvehook.records.history import DAY_S, history_file, last_records, reading
from pvehook.settings import IoMode, PacerMode

T = TypeVar("T")

VZDUMP_CONF: Final = "/etc/vzdump.conf"

_CONFIGS_S: Final = 2.0
_TARGET_S: Final = 1.5
"""For each storage that backups go to; one that takes longer would hold up a backup as well."""
_TARGETS_AT_ONCE: Final = 8
_DISKS_S: Final = 4.0
_LVS_S: Final = 3.0
_HISTORY_S: Final = 1.0
_KERNEL_LOG_S: Final = 1.0
_COMPARED_DAYS: Final = 30
_LEAST_ARCHIVE_S: Final = 10.0
"""A shorter one's rate says little."""


class BackupTarget(NamedTuple):
    """Where backups go: a storage, or a directory of `dumpdir`."""

    subject: str
    """`storage nas`, or the directory."""
    storage: Section | None
    users: tuple[str, ...]
    """What sends backups there: `job nightly`, `/etc/vzdump.conf`."""
    jobs: tuple[str, ...]
    """The ids of those of /etc/pve/jobs.cfg."""
    refusal: str | None
    """Why Proxmox takes it for no target of backups, by its configuration."""
    look: Target
    mount: Mount
    """What the archives are written to."""
    where: Location


class GuestPlaces(NamedTuple):
    vmid: int
    vmtype: str
    label: str
    """`VM 101 web`."""
    places: tuple[tuple[str, Location], ...]
    """Of all its volumes, by key."""
    unsnapshotted: tuple[str, ...]
    """Of a container's volumes that are backed up, those that Proxmox cannot snapshot, as `rootfs on fat (lvm)`."""
    snapshot_jobs: tuple[str, ...]
    """The jobs that would back it up in mode snapshot."""

    @property
    def disks(self) -> frozenset[str]:
        return frozenset(disk.name for _, where in self.places for disk in where.disks)


class StorageFacts(NamedTuple):
    node_name: str
    targets: tuple[BackupTarget, ...]
    others: tuple[tuple[str, Location], ...]
    """Storages that could hold backups too, and where they are."""
    guests: tuple[GuestPlaces, ...]
    """All of the node's."""
    asked: tuple[int, ...]
    """The guests that findings are wanted of; empty: all."""
    queues: Mapping[str, DiskQueue]
    """Of the local disks under targets and guests."""
    kernel: tuple[int, int] | None
    release: str
    files: Mapping[str, str]
    """Of the files that a fix would write, those that are there."""
    dirty: Measured[DirtyLimit]
    archive_bytes_per_s: float | None
    """The fastest that an archive was written lately, as far as the pacer saw it; None: not known."""
    idle: IoMode
    pacer: PacerMode
    kernel_log: Measured[PastLog]
    volumes: Measured[tuple[LogicalVolume, ...]]
    has_lvm_storage: bool
    not_read: tuple[str, ...]


def gather(sources: Sources) -> StorageFacts:
    """Raises NodeError, OSError when jobs, storages or guests cannot be read."""
    node, reader = sources.node, sources.reader
    jobs = jobs_of_node(node, reader, sources.node_name)
    storages = read_storages(node, reader)
    pools = parse_pools(reader.text(node.path("/etc/pve/user.cfg"), _CONFIGS_S) or "")
    defaults = parse_vzdump_config(reader.text(node.path(VZDUMP_CONF), _CONFIGS_S) or "")
    guests = read_guest_configs(node, reader, _CONFIGS_S)
    here = {each.vmid for each in guests}
    jobs = [job for job in jobs if any(takes(job, vmid, pools) for vmid in here)]
    return _Gathering(sources, storages, defaults).facts(jobs, guests, pools)


class _Gathering:
    """What all questions have in common, and what failed."""

    def __init__(self, sources: Sources, storages: Sequence[Section], defaults: Mapping[str, str]) -> None:
        self._sources = sources
        self._node = sources.node
        self._storages = storages
        self._defaults = defaults
        self._disks = TimelyReader()
        self._located: dict[str, Location] = {}
        self._failed: list[str] = []

    def facts(self, jobs: Sequence[Job], guests: Sequence[ConfiguredGuest], pools: Pools) -> StorageFacts:
        node, sources = self._node, self._sources
        targets = self._targets(jobs)
        places = tuple(self._asked("the disks under the guests", lambda: self._places(guests, jobs, pools)) or ())
        others = self._asked("the disks under the storages", self._others) or ()
        under = (*(each.where for each in targets), *(where for each in places for _, where in each.places))
        # ZFS orders its requests itself and writes nothing by the page cache: its disks are as they should be.
        used = (disk for where in under if where.kind != "zfs" for disk in where.disks)
        disks = {disk.name for disk in used if disk.transport == "local"}
        queues = self._asked("the disks' queues", lambda: {name: read_queue(node, name) for name in sorted(disks)})
        return StorageFacts(
            sources.node_name,
            targets,
            others,
            places,
            sources.vmids,
            queues or {},
            kernel_version(node),
            node.read("/proc/sys/kernel/osrelease").decode(errors="replace").strip(),
            self._asked("/etc", self._files_of_fixes) or {},
            read_dirty_limit(node),
            self._asked("the history", self._archive_rate, _HISTORY_S),
            sources.in_force.config.io_priority.mode,
            sources.in_force.config.pacer.mode,
            read_past_log(node, sources.deadline.within(_KERNEL_LOG_S)),
            read_logical_volumes(node, self._left_s(_LVS_S)),
            any(each.type in ("lvm", "lvmthin") for each in self._storages),
            tuple(self._failed),
        )

    def _left_s(self, most_s: float) -> float:
        return self._sources.deadline.within(most_s).left_s()

    def _asked(self, what: str, question: Callable[[], T], most_s: float = _DISKS_S) -> T | None:
        """In a thread: a stat below a storage that hangs must not take the doctor with it."""
        try:
            return self._disks.within(self._left_s(most_s), what, question)
        except (NodeError, OSError, ValueError) as error:
            self._failed.append(str(error) if isinstance(error, NodeError) else f"{what}: {error}")
            return None

    def _targets(self, jobs: Sequence[Job]) -> tuple[BackupTarget, ...]:
        users: dict[tuple[str, str], list[Job | None]] = {}
        if self._defaults.keys() & {"storage", "dumpdir"}:  # backups that are started by hand go there
            users.setdefault(_chosen(options_of_job(self._defaults, {})), []).append(None)
        for job in jobs:
            users.setdefault(_chosen(options_of_job(self._defaults, job.options)), []).append(job)
        with ThreadPoolExecutor(_TARGETS_AT_ONCE) as threads:  # those that hang hang side by side
            looks = threads.map(lambda each: self._look(*each), users)
            return tuple(self._target(*each, users[each], look) for each, look in zip(users, looks, strict=True))

    def _look(self, kind: str, value: str) -> Target:
        node, storages = self._node, self._storages
        if kind == "storage" and why_no_backup(list(storages), value, self._sources.node_name):
            return Target(value)
        left_s = self._left_s(_TARGET_S)
        if left_s < _TARGET_S / 2:
            self._failed.append(f"{value} was not asked: no time was left")
            return Target(value)
        look = look_at_target(node, {kind: value}, storages, left_s)
        storage = find_section(storages, value) if kind == "storage" else None
        if storage is not None and storage.type == "pbs" and node.is_real:
            why = why_pbs_is_silent(storage, left_s)
            look = look._replace(unknown=why or look.unknown, is_silent=why is not None)
        return look

    def _target(self, kind: str, value: str, users: Sequence[Job | None], look: Target) -> BackupTarget:
        node, storages = self._node, self._storages
        storage = find_section(storages, value) if kind == "storage" else None
        refusal = why_no_backup(list(storages), value, self._sources.node_name) if kind == "storage" else None
        directory = value if kind == "dumpdir" else directory_of(storage, "backup", "dump") if storage else None

        def find() -> tuple[Mount, Location]:
            mount = Mount("", "", "")
            if directory is not None and directory.startswith("/"):
                _, mount = follow_links(node.path(directory), read_mounts(node))
                inside = mount.mount_point if node.is_real else mount.mount_point.removeprefix(node.root)
                mount = mount._replace(mount_point=inside)
            where = locate_dump(node, directory, value if kind == "storage" else None, storages)
            return mount, where

        found = self._asked(f"the disks under {value}", find)
        mount, where = found or (Mount("", "", ""), Location("unknown", (), "not found in time"))
        return BackupTarget(
            f"storage {value}" if kind == "storage" else value,
            storage,
            tuple(VZDUMP_CONF if job is None else f"job {job.id}" for job in users),
            tuple(job.id for job in users if job is not None and not job.is_cron),
            refusal,
            look,
            mount,
            where,
        )

    def _others(self) -> tuple[tuple[str, Location], ...]:
        storages, name = list(self._storages), self._sources.node_name
        usable = (each.id for each in storages if why_no_backup(storages, each.id, name) is None)
        return tuple((each, locate_dump(self._node, None, each, storages)) for each in usable)

    def _places(self, guests: Sequence[ConfiguredGuest], jobs: Sequence[Job], pools: Pools) -> list[GuestPlaces]:
        found = []
        for guest in guests:
            used = [each for each in guest.config.volumes if not each.is_cdrom and each.volume != "none"]
            mine = [job for job in jobs if takes(job, guest.vmid, pools)]
            backed_up = [(each.key, each.volume) for each in used if each.backup and guest.vmtype == "lxc"]
            found.append(
                GuestPlaces(
                    guest.vmid,
                    guest.vmtype,
                    f"{'CT' if guest.vmtype == 'lxc' else 'VM'} {guest.vmid} {guest.config.name or ''}".rstrip(),
                    tuple((each.key, self._locate(each.volume)) for each in used),
                    self._unsnapshotted(backed_up),
                    tuple(f"job {job.id}" for job in mine if self._mode(job) == "snapshot"),
                )
            )
        return found

    def _mode(self, job: Job) -> str:
        return options_of_job(self._defaults, job.options).get("mode", MODE_DEFAULT)

    def _unsnapshotted(self, volumes: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        found = []
        for key, volume in volumes:
            storage = find_section(self._storages, volume.partition(":")[0])
            if storage is not None and can_snapshot_container(storage, volume) is False:
                found.append(f"{key} on {storage.id} ({storage.type})")
        return tuple(found)

    def _locate(self, volume: str) -> Location:
        """All volumes of a ZFS pool, and those of a volume group that are not active, are looked for once: neither is
        quick."""
        node, storages = self._node, self._storages
        storage = find_section(storages, volume.partition(":")[0])
        if storage is None or not (storage.type == "zfspool" or self._is_inactive(storage, volume)):
            return locate_volume(node, volume, storages)
        if storage.id not in self._located:
            self._located[storage.id] = locate_storage(node, storage.id, storages)
        return self._located[storage.id]

    def _is_inactive(self, storage: Section, volume: str) -> bool:
        return storage.type in ("lvm", "lvmthin") and device_of_volume(self._node, volume, self._storages) is None

    def _files_of_fixes(self) -> dict[str, str]:
        found = {}
        for directory in ("/etc/udev/rules.d", "/etc/sysctl.d"):
            path = self._node.path(directory)
            for name in os.listdir(path) if os.path.isdir(path) else ():
                if name.startswith(FIX_FILES):
                    found[f"{directory}/{name}"] = self._node.read(f"{directory}/{name}").decode(errors="replace")
        return found

    def _archive_rate(self) -> float | None:
        """Bytes per second."""
        path = history_file(self._node)
        if not os.path.exists(path):
            return None
        with reading(path) as history:
            records = last_records(history, self._sources.now.timestamp() - _COMPARED_DAYS * DAY_S)
        rates = [
            each.pacer.paced_bytes / each.duration_s
            for each in records
            if each.pacer is not None and each.duration_s >= _LEAST_ARCHIVE_S and each.pacer.paced_bytes
        ]
        return max(rates, default=None)


FIX_FILES: Final = "90-pvehook-"
"""What the names of our files in /etc/udev/rules.d and /etc/sysctl.d begin with."""


def _chosen(options: Mapping[str, str]) -> tuple[str, str]:
    """Exactly one of the two is in a job's options."""
    kind = "storage" if "storage" in options else "dumpdir"
    return kind, options[kind]


def missing(facts: StorageFacts) -> list[str]:
    """What could not be read, by why: many guests on one unknown storage are one line."""
    unread: dict[str, list[str]] = {}
    for target in facts.targets:
        if _is_unknown(target.where) and target.refusal is None:
            unread.setdefault(target.where.detail, []).append(target.subject)
    for guest in facts.guests:
        for key, where in guest.places if not facts.asked or guest.vmid in facts.asked else ():
            if _is_unknown(where):
                unread.setdefault(where.detail, []).append(f"{guest.label} {key}")
    lines = [f"the disks under {named(names)}: {why}" for why, names in unread.items()]
    if facts.has_lvm_storage and isinstance(facts.volumes, (Absent, Broken)):
        lines.append(f"thin pools and LVM snapshots: {facts.volumes.why}")
    if isinstance(facts.kernel_log, Broken) and any(each.driver for each in facts.queues.values()):
        lines.append(f"what RAID controllers said of their batteries: {facts.kernel_log.why}")
    if isinstance(facts.dirty, (Absent, Broken)):
        lines.append(f"how much may wait to be written: {facts.dirty.why}")
    return [*facts.not_read, *lines]


def _is_unknown(where: Location) -> bool:
    return where.kind != "network" and not where.disks
