"""A guest's configuration: /etc/pve/qemu-server/ID.conf and /etc/pve/lxc/ID.conf.

Source: `parse_vm_config` and `parse_drive` of qemu-server, `parse_pct_config` and `mountpoint_backup_enabled`
of pve-container. Example of a VM's:

    # a description
    agent: 1,freeze-fs-on-backup=0
    name: web
    scsi0: local-lvm:vm-101-disk-0,iothread=1,size=32G

    [before-upgrade]
    ...                      snapshots and pending changes follow; they do not describe the guest as it runs

A key begins in the first column; only a line feed ends a line, and blanks are ASCII: Proxmox reads bytes. Lines that
pvehook does not need are ignored; nothing is raised on odd input.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_VM_DRIVE = re.compile(r"(?:scsi|virtio|ide|sata|efidisk|tpmstate)\d+")
_OPTION = re.compile(r"([a-z][a-z_.-]*\d*):\s*(.+?)\s*", re.ASCII)
_SIZE = re.compile(r"(\d{1,15})(?:\.\d+)?([KMGT]?)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MOUNT_POINT = re.compile(r"rootfs|mp\d+")
_PENDING = re.compile(r"\[PENDING\]\s*", re.ASCII | re.IGNORECASE)


class Volume(NamedTuple):
    """One disk or mount point. `volume` is a volume id (`STORAGE:NAME`), an absolute path, `none` or `cdrom`;
    `backup` is whether vzdump takes it into the archive."""

    key: str
    volume: str
    backup: bool
    is_cdrom: bool


class GuestConfig(NamedTuple):
    """The options that pvehook uses. None: not set, Proxmox's default applies."""

    name: str | None
    agent: str | None
    """The raw `agent` option; only a VM has one."""
    tags: tuple[str, ...]
    """In lower case, as Proxmox compares them unless the data centre is set to be case-sensitive."""
    volumes: tuple[Volume, ...]
    lock: str | None
    """What Proxmox has locked the guest for: `backup`, `migrate`, `snapshot` and others."""
    io_threads: bool | None
    """Whether each of a VM's disks has an I/O thread of its own; None: it has no disk that could, or is a container."""


def parse_vm(text: str) -> GuestConfig:
    """A configuration of qemu-server."""
    options = options_of(text)
    has_ovmf = options.get("bios") == "ovmf"
    volumes = []
    threads = []
    for key, value in options.items():
        if _VM_DRIVE.fullmatch(key):
            volume, settings = property_string(value, default_key="file", alias="volume")
            is_cdrom = settings.get("media") == "cdrom" or volume == "cdrom"
            backup = not is_cdrom and boolean(settings.get("backup")) is not False
            if key.startswith("efidisk") and not has_ovmf:
                backup = False  # vzdump leaves it out: without OVMF it is not attached
            volumes.append(Volume(key, volume, backup, is_cdrom))
            if key.startswith(("scsi", "virtio")) and not is_cdrom:
                # With any other controller Proxmox ignores the setting of a scsi disk (`print_drivedevice_full`).
                can = key.startswith("virtio") or options.get("scsihw") == "virtio-scsi-single"
                threads.append(can and boolean(settings.get("iothread")) is True)
    return _guest(options, "name", volumes, all(threads) if threads else None)


def parse_container(text: str) -> GuestConfig:
    """A configuration of pve-container."""
    options = options_of(text)
    volumes = []
    for key, value in options.items():
        if _MOUNT_POINT.fullmatch(key):
            volume, settings = property_string(value, default_key="volume")
            # A bind or device mount (an absolute path) is never taken, whatever its flag says.
            wanted = not volume.startswith("/") and boolean(settings.get("backup")) is True
            volumes.append(Volume(key, volume, backup=key == "rootfs" or wanted, is_cdrom=False))
    return _guest(options, "hostname", volumes)


def backup_size_bytes(text: str, guest: GuestConfig) -> int | None:
    """How large the disks are that vzdump takes into the archive, by `size=32G` of each; None: none says. `guest` is
    the same text, parsed."""
    options = options_of(text)
    settings = (property_string(options[each.key], default_key="file")[1] for each in guest.volumes if each.backup)
    sizes = [match for each in settings if (match := _SIZE.fullmatch(each.get("size", "")))]
    return sum(int(match[1]) * _UNITS[match[2]] for match in sizes) or None


def _guest(
    options: Mapping[str, str], name_key: str, volumes: list[Volume], io_threads: bool | None = None
) -> GuestConfig:
    tags = tuple(tag.lower() for tag in split_list(options.get("tags", "")))
    name, agent, lock = (options.get(key) for key in (name_key, "agent", "lock"))
    return GuestConfig(name, agent, tags, tuple(volumes), lock, io_threads)


def split_list(value: str) -> list[str]:
    """Of `web;db`: Proxmox writes commas or semicolons, and takes blanks too (`split_list` of pve-common)."""
    return [each for each in re.split(r"[;,\s\0]+", value, flags=re.ASCII) if each]


def options_of(text: str) -> dict[str, str]:
    """`key: value` lines up to the first `[section]`: the options as they are in force. Of a key that comes twice the
    last one, as Proxmox."""
    return _options(itertools.takewhile(lambda line: not line.startswith("["), text.split("\n")))


def _options(lines: Iterable[str]) -> dict[str, str]:
    return {match[1]: match[2] for line in lines if (match := _OPTION.fullmatch(line))}


def options_after_restart(text: str) -> dict[str, str]:
    """The options with what the section `[PENDING]` changes, as they are once the guest was stopped and started.
    Source: `vmconfig_apply_pending` of qemu-server; `delete: agent,!scsi1` names what goes."""
    lines = itertools.dropwhile(lambda line: not _PENDING.fullmatch(line), text.split("\n"))
    pending = _options(itertools.takewhile(lambda line: not line.startswith("["), itertools.islice(lines, 1, None)))
    gone = {each.removeprefix("!") for each in split_list(pending.pop("delete", ""))}
    return {key: value for key, value in options_of(text).items() if key not in gone} | pending


def property_string(value: str, default_key: str, alias: str = "") -> tuple[str, dict[str, str]]:
    """The volume and the settings of `VOLUME,size=32G,backup=0` or `file=VOLUME,...`; `alias` is another name of the
    default key."""
    settings: dict[str, str] = {}
    for part in value.split(","):
        key, equals, setting = part.strip().partition("=")
        if equals:
            settings[default_key if key == alias else key] = setting
        else:
            settings.setdefault(default_key, key)
    return settings.get(default_key, ""), settings


def boolean(value: str | None) -> bool | None:
    """Proxmox's spelling of booleans (`parseboolean` of pve-common); None if absent or neither."""
    word = (value or "").lower()
    if word in ("1", "on", "yes", "true"):
        return True
    return False if word in ("0", "off", "no", "false") else None


_FREEZE_SWITCHES = ("freeze-fs", "freeze-fs-on-backup", "guest-fsfreeze")
"""The names that the switch for the freeze has had. `freeze-fs` is today's and the other two are read as if they were
it; older versions know one or two of them, and which one wins differs."""


class AgentOption(NamedTuple):
    """Whether Proxmox talks to this guest's agent at all, and whether it freezes for a backup."""

    enabled: bool
    freezes: bool
    """Not switched off under any of the three names. If they contradict each other it counts as on: to expect a freeze
    that does not come costs nothing, to miss one leaves the guest unprotected. Meaningless unless `enabled`."""


def parse_agent_option(text: str | None) -> AgentOption:
    """Parses `1,freeze-fs-on-backup=0,type=virtio` or `enabled=1`; None, and whatever does not parse as `enabled`, is
    off: Proxmox's default. Source: `$agent_fmt`, `parse_guest_agent` and `should_fs_freeze` of qemu-server."""
    enabled, settings = property_string(text or "", default_key="enabled")
    switches = [boolean(settings[name]) for name in _FREEZE_SWITCHES if name in settings]
    all_off = bool(switches) and all(each is False for each in switches)
    return AgentOption(enabled=boolean(enabled) is True, freezes=not all_off)
