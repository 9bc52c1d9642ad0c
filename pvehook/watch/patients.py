"""The running guests of the node, what each stands on, and what the running backup stands on.

A thread of its own looks every few seconds: pid files and cgroups say who runs, the configurations on which disks. A
configuration is read again when it has changed, as after a hot-plug, or when its guest was started anew. /etc/pve may
hang and a disk may take seconds to be found: then a guest is watched as before, and what is not known is said. Guests
that come and go are normal.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

from pvehook.contract.disks import Location
from pvehook.contract.guest_config import GuestConfig, boolean, parse_container, parse_vm, property_string
from pvehook.contract.section_config import Section, find_section
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId, running_containers, running_vms
from pvehook.host.timely_files import Readers
from pvehook.host.volumes import (
    READ_DEADLINE_S,
    STORAGE_CONFIG,
    Backup,
    device_of_volume,
    locate_dump,
    locate_storage,
    locate_volume,
    read_storages,
    volumes_of,
    within_look,
)
from pvehook.records.journal import Log
from pvehook.records.stall_record import Baseline
from pvehook.rules.patients import Place, Resources, resources_of
from pvehook.throttle.governor_setup import options_of_run

T = TypeVar("T")

MOST_GUESTS = 500
LOOK_EVERY_S, LOOK_PER_GUEST_S = 5.0, 0.05
"""At least so long between two looks, and so long for each guest: a look costs 0.1 ms a guest."""
_LITTLE_USED = ("efidisk", "tpmstate")
"""Its firmware writes them at its start; nobody waits for them later."""


class Standing(NamedTuple):
    """What a guest's configuration says of it."""

    name: str | None
    tags: tuple[str, ...]
    resources: Resources
    devices: tuple[str, ...]
    """The node's block devices that are volumes of its own, by the kernel's names."""
    only_devices: bool
    """It has no volume without one."""


class RunningGuest(NamedTuple):
    vmid: int
    vmtype: Literal["qemu", "lxc"]
    start: ProcessId | int
    """Tells one start from the next: its QEMU, or its cgroup's inode."""
    standing: Standing | None
    """None: not looked up yet."""
    past: Baseline | None
    """Of its last backups; None: there is none, or not looked up yet."""


class GuestTable:
    """`begin` and `end` it with the run. `guests` is replaced as a whole, by the table's thread."""

    def __init__(self, node: Node, readers: Readers, log: Log, past_of: Callable[[int], Baseline | None]) -> None:
        """`past_of` may take a while."""
        self.guests: Mapping[int, RunningGuest] = {}
        self._node = node
        self._log = log
        self._past_of = past_of
        self._configs, self._disks = readers.guests, readers.guest_disks
        self._stamps: dict[int, tuple[int, int]] = {}
        """Of each configuration that was read: when it was changed, in ns, and its size."""
        self._storages_stamp: tuple[int, int] | None = None
        self._storages: list[Section] = []
        self._found: dict[str, Location] = {}
        """By volume."""
        self._loads: queue.SimpleQueue[tuple[Backup, str | None, Callable[[Resources], None]]] = queue.SimpleQueue()
        """Backups of which it is asked what they stand on."""
        self._has_told = False
        self._woken = threading.Event()
        self._ended = False

    def begin(self, changed: Callable[[], None]) -> None:
        """`changed` is called when `guests` has changed. Raises RuntimeError: out of threads."""
        threading.Thread(target=self._run, args=(changed,), name="guest-table", daemon=True).start()

    def find_load(self, backup: Backup, job_id: str | None, found: Callable[[Resources], None]) -> None:
        """Soon `found` is called by the table's thread with what this backup stands on."""
        self._loads.put((backup, job_id, found))
        self._woken.set()

    def end(self) -> None:
        self._ended = True
        self._woken.set()

    # The thread

    def _run(self, changed: Callable[[], None]) -> None:
        while not self._ended:
            self._woken.clear()
            try:
                self._look(changed)
            except Exception as fault:  # a fault of ours costs what is not known, never the watching
                if not self._ended and not self._has_told:
                    self._has_told = True
                    text = f"looking for the node's guests: {fault!r}; the backup goes on"
                    self._log.error("fault", message=text, exc_type=type(fault).__name__)
            self._woken.wait(max(LOOK_EVERY_S, LOOK_PER_GUEST_S * len(self.guests)))

    def _look(self, changed: Callable[[], None]) -> None:
        starts: dict[int, tuple[Literal["qemu", "lxc"], ProcessId | int]] = {
            vmid: ("qemu", qemu) for vmid, qemu in running_vms(self._node).items()
        }
        starts |= {vmid: ("lxc", inode) for vmid, inode in running_containers(self._node).items()}
        if len(starts) > MOST_GUESTS and not self._has_told:
            self._has_told = True
            text = f"{len(starts)} guests run on this node: only the first {MOST_GUESTS} are watched"
            self._log.warning("watch-limited", message=text)
        known = self.guests
        guests: dict[int, RunningGuest] = {}
        for vmid, (vmtype, start) in sorted(starts.items())[:MOST_GUESTS]:
            before = known.get(vmid)
            same = before is not None and before.start == start
            guests[vmid] = before if same and before else RunningGuest(vmid, vmtype, start, None, None)
        if guests != known:
            self.guests = guests
            changed()
        self._answer_load()  # before all the guests' own places: the backup has begun
        self._look_up(guests, changed)

    def _answer_load(self) -> None:
        with contextlib.suppress(queue.Empty):
            while not self._ended:
                backup, job_id, found = self._loads.get_nowait()
                found(self._resources_of_load(backup, job_id))

    def _look_up(self, guests: Mapping[int, RunningGuest], changed: Callable[[], None]) -> None:
        """Where a configuration is new or has changed; and what is known of new guests' last backups."""
        fault: str | None = None
        stamps: Mapping[int, tuple[int, int]] = {}
        try:
            storages, stamps = self._within("/etc/pve", lambda: self._read_stamps(guests.values()))
            if storages != self._storages_stamp:
                self._storages = read_storages(self._node, self._configs)
                self._found.clear()
                self._stamps.clear()
                self._storages_stamp = storages
        except NodeError as error:
            fault = str(error)
        self._stamps = {vmid: stamp for vmid, stamp in self._stamps.items() if vmid in guests}
        for vmid, guest in guests.items():
            if self._ended:
                return
            self._answer_load()  # it may have begun meanwhile
            standing = guest.standing
            if fault is not None:
                standing = standing or _unknown(fault)
            elif standing is None or self._stamps.get(vmid) != stamps[vmid]:
                standing = self._standing_of(guest, stamps[vmid])
            past = guest.past or (self._past_of(vmid) if guest.standing is None else None)
            if standing != guest.standing or past != guest.past:
                self.guests = {**self.guests, vmid: guest._replace(standing=standing, past=past)}
                changed()

    def _read_stamps(self, guests: Iterable[RunningGuest]) -> tuple[tuple[int, int], dict[int, tuple[int, int]]]:
        stamps = {each.vmid: self._stamp(config_of(each.vmid, each.vmtype)) for each in guests}
        return self._stamp(STORAGE_CONFIG), stamps

    def _stamp(self, path: str) -> tuple[int, int]:
        try:
            status = os.stat(self._node.path(path))
        except FileNotFoundError:
            return 0, -1
        return status.st_mtime_ns, status.st_size

    def _standing_of(self, guest: RunningGuest, stamp: tuple[int, int]) -> Standing:
        """Read and looked up; where that fails it is tried again at the next look."""
        path = config_of(guest.vmid, guest.vmtype)
        try:
            text = self._configs.text(self._node.path(path), READ_DEADLINE_S)
            if text is None:
                return guest.standing or _unknown(f"{path} is not there")
            config = (parse_container if guest.vmtype == "lxc" else parse_vm)(text)
            standing = within_look(self._disks, f"the disks of guest {guest.vmid}", lambda: self._stands_on(config))
        except NodeError as error:
            return guest.standing or _unknown(str(error))
        self._stamps[guest.vmid] = stamp
        return standing

    def _stands_on(self, config: GuestConfig) -> Standing:
        used = [
            (each.key, each.volume)
            for each in config.volumes
            if not each.is_cdrom and each.volume != "none" and not each.key.startswith(_LITTLE_USED)
        ]
        places, devices = [], []
        for key, volume in used:
            where, device = self._find(volume)
            places.append(Place(key, _storage_of(volume), where))
            if device is not None:
                devices.append(device)
        return Standing(config.name, config.tags, resources_of(places), tuple(devices), len(devices) == len(used) > 0)

    def _find(self, volume: str) -> tuple[Location, str | None]:
        """Of one volume, looked for once. Its device is looked for again, which is quick: it may have changed."""
        storage = find_section(self._storages, _storage_of(volume) or "")
        # All volumes of a pool are on the same disks, and zpool is not quick.
        key = f"{storage.id}:" if storage is not None and storage.type == "zfspool" else volume
        where = self._found.get(key)
        if where is None:
            where = locate_volume(self._node, volume, self._storages)
            if where.kind != "unknown":
                self._found[key] = where
        return where, device_of_volume(self._node, volume, self._storages)

    def _resources_of_load(self, backup: Backup, job_id: str | None) -> Resources:
        """Of what is read, where the archive and a fleecing image are written."""
        node = self._node
        try:
            storages = self._storages = read_storages(node, self._configs)
            volumes = [each.volume for each in volumes_of(node, self._configs, backup) if each.backup]
        except NodeError as error:
            return Resources(frozenset(), (str(error),))
        options = options_of_run(node, self._configs, job_id)

        def find() -> list[Place]:
            places = [Place(each, _storage_of(each), self._find(each)[0]) for each in volumes if each != "none"]
            archive = locate_dump(node, backup.dumpdir, backup.storeid, storages)
            places.append(Place("the archive", backup.storeid, archive))
            if backup.vmtype != "lxc":
                places += self._fleecing(options.get("fleecing"), storages)
            elif backup.mode == "suspend" and (directory := options.get("tmpdir")):  # rsync writes there
                places.append(Place("tmpdir", None, locate_dump(node, directory, None, storages)))
            return places

        try:
            return resources_of(within_look(self._disks, f"the disks of guest {backup.vmid}'s backup", find))
        except NodeError as error:
            return Resources(frozenset(), (str(error),))

    def _fleecing(self, option: str | None, storages: Sequence[Section]) -> list[Place]:
        """Where a VM's fleecing image is. `option`: the job's, None where that is not known."""
        what = "the fleecing image"
        if option is None:
            return [Place(what, None, Location("unknown", (), "whether the job has one is not known"))]
        enabled, settings = property_string(option, default_key="enabled")
        if not boolean(enabled):
            return []
        storage_id = settings.get("storage", "")
        return [Place(what, storage_id, locate_storage(self._node, storage_id, storages))]

    def _within(self, what: str, question: Callable[[], T]) -> T:
        try:
            return self._configs.within(READ_DEADLINE_S, what, question)
        except OSError as error:
            raise NodeError(f"{what}: {error}") from error


def config_of(vmid: int, vmtype: str | None) -> str:
    """The path of a guest's configuration."""
    return f"/etc/pve/{'lxc' if vmtype == 'lxc' else 'qemu-server'}/{vmid}.conf"


def _unknown(why: str) -> Standing:
    return Standing(None, (), Resources(frozenset(), (why,)), (), only_devices=False)


def _storage_of(volume: str) -> str | None:
    return None if volume.startswith("/") else volume.partition(":")[0]
