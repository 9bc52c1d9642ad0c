"""What a guest reports about itself through its agent, as types that pvehook/guest/agent.py fills. Every text here is
the guest's own: `contract.text.printable` before it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from pvehook.contract.huge_pages import HugePages
from pvehook.contract.measured import Measured

FreezeStatus = Literal["thawed", "frozen"]


class GuestInfo(NamedTuple):
    """The answer to `guest-info`."""

    version: str
    commands: Mapping[str, bool]
    """Every command the agent knows, and whether it is allowed: by the guest's administrator, and while frozen."""


class Filesystem(NamedTuple):
    """One entry of `guest-get-fsinfo`: the same mounts that a freeze walks, bind mounts included."""

    name: str
    """The device's name in the guest: `sda1`, `loop0`, `dm-2`."""
    mountpoint: str
    type: str


class GuestOs(NamedTuple):
    """The answer to `guest-get-osinfo`. None: it does not say."""

    id: str | None
    """`debian`, `centos`, `mswindows`."""
    name: str | None
    """`Debian GNU/Linux 12 (bookworm)`."""
    version: str | None
    """`12`, `9.4`."""
    kernel: str | None
    """`6.1.0-40-amd64`."""


LOADER_INFO: Final = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
"""Which boot loader started this boot, by its own account (systemd.io/BOOT_LOADER_INTERFACE)."""

BOOT_FILES: Final = (
    "/etc/default/grub",
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/usr/sbin/update-grub",
    "/etc/kernel/cmdline",
    "/etc/kernel/proxmox-boot-uuids",
    "/boot/loader/loader.conf",
    "/boot/efi/loader/loader.conf",
    "/efi/loader/loader.conf",
    "/usr/bin/sdbootutil",
    "/etc/update-extlinux.conf",
)
"""What tells boot loaders apart, and how a distribution sets them up."""


class BootFacts(NamedTuple):
    """How a Linux guest boots."""

    like: tuple[str, ...]
    """ID and ID_LIKE of its /etc/os-release (os-release(5)): `ubuntu`, `debian`."""
    files: tuple[str, ...]
    """Those of BOOT_FILES that it has."""
    by_systemd_boot: bool
    """Whether LOADER_INFO says so; a guest without UEFI has none."""


class GuestFacts(NamedTuple):
    """What one look through its agent tells of a guest."""

    at_s: float
    """When, in seconds since the epoch."""
    agent_version: str
    blocked: tuple[str, ...]
    """The commands that its administrator does not allow the agent."""
    os: Measured[GuestOs]
    huge_pages: HugePages
    boot: Measured[BootFacts]
