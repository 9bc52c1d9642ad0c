"""The list of known faults, faults.yaml, read and checked. Example of an entry:

    - id: PVH-602                        stable
      title: Kernel crash with NVMe behind a Broadcom HBA
      component: kernel, mpt3sas
      affected:                          any of these; in each, all packages. Empty: no version tells.
        - {kernel: ">= 7.0, < 7.0.0-3"}  `kernel` is the one that runs, the others are those installed
      when: {drivers: [mpt3sas]}         all of these; left out: always
      severity: warning
      backups: false                     whether backups bring it about
      shows: NULL pointer dereference in mpt3sas.
      remedy: [apt update && apt full-upgrade, reboot]
      source: proxmox/pve-kernel debian/changelog, 7.0.0-3

An entry that is not so is a problem with a text of its own, and the others count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from pvehook.contract.debian_version import VersionRange, parse_range
from pvehook.doctor.finding import SEVERITIES, Severity

FILE: Final = Path(__file__).with_name("faults.yaml")

PACKAGES: Final = ("kernel", "pve-qemu-kvm", "qemu-server", "pve-manager")

GUESTS: Final = {
    "agent": "with the agent on",
    "iothread": "with an I/O thread",
    "linux": "with Linux",
    "sata": "with a SATA disk",
    "tpm": "with a TPM",
    "virtio-blk-iothread": "with a VirtIO block disk and an I/O thread",
    "virtio-scsi": "with a VirtIO SCSI disk",
    "windows": "with Windows",
}
"""What a VM must be for some faults, and how it is said."""

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_KEYS: Final[Mapping[str, type]] = {
    **dict.fromkeys(("id", "title", "component", "severity", "shows", "source"), str),
    **dict.fromkeys(("affected", "remedy"), list),
    "backups": bool,
}
_CONDITIONS: Final[Mapping[str, type]] = {
    **dict.fromkeys(("drivers", "mounted", "storages"), list),
    **dict.fromkeys(("cpu", "guests"), str),
    **dict.fromkeys(("numa", "fleecing"), bool),
}
_ID: Final = re.compile(r"PVH-6\d\d")
_SOURCE: Final = re.compile(r"\w+/[\w.-]+ \S|https://\S")
_HAS_VERSION: Final = re.compile(r"\d")


class When(NamedTuple):
    """What must be so on the node beside the versions. Empty or false: it need not."""

    drivers: tuple[str, ...] = ()
    """Any of them is loaded."""
    cpu: str = ""
    """`intel` or `amd`."""
    mounted: tuple[str, ...] = ()
    """Any of these types of file systems."""
    storages: tuple[str, ...] = ()
    """Any of these types is configured."""
    guests: str = ""
    """A key of GUESTS: a VM is so."""
    numa: bool = False
    """It has more than one NUMA node."""
    fleecing: bool = False
    """A job or /etc/vzdump.conf turns it on."""


class Fault(NamedTuple):
    id: str
    title: str
    component: str
    affected: tuple[Mapping[str, VersionRange], ...]
    """By package, a key of PACKAGES."""
    when: When
    severity: Severity
    backups: bool
    shows: str
    remedy: tuple[str, ...]
    source: str


class Atlas(NamedTuple):
    faults: tuple[Fault, ...]
    problems: tuple[str, ...]
    """What is wrong with the file; these entries do not count."""


@cache
def atlas() -> Atlas:
    """Of the file that comes with the program."""
    try:
        return parse_atlas(FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return Atlas((), (f"{FILE.name} cannot be read: {error}",))


def parse_atlas(text: str) -> Atlas:
    """All entries that are right. Never raises."""
    try:
        entries = yaml.load(text, Loader=_LOADER)  # noqa: S506  (a safe loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter of a number or a date
        return Atlas((), (f"{FILE.name} is no YAML: {' '.join(str(error).split())}",))
    if not isinstance(entries, list):
        return Atlas((), (f"{FILE.name} is no list of faults",))
    faults: dict[str, Fault] = {}
    problems = []
    for number, entry in enumerate(entries, 1):
        name = entry.get("id", "without an id") if isinstance(entry, dict) else "no mapping"
        try:
            fault = _fault(entry)
            if fault.id in faults:
                raise ValueError("there is one with this id already")
            faults[fault.id] = fault
        except ValueError as error:
            problems.append(f"{FILE.name}, entry {number} ({name}): {error}")
    return Atlas(tuple(faults.values()), tuple(problems))


def _fault(entry: object) -> Fault:
    """Raises ValueError."""
    fields = _checked(entry, _KEYS, optional=("when",))
    if not _ID.fullmatch(fields["id"]):
        raise ValueError("id: PVH-6nn was expected")
    if fields["severity"] not in SEVERITIES:
        raise ValueError(f"severity: one of {', '.join(SEVERITIES)} was expected")
    if not fields["remedy"]:
        raise ValueError("remedy: nothing is said")
    if not _SOURCE.search(fields["source"]) or not _HAS_VERSION.search(fields["source"]):
        raise ValueError("source: a repository and its file or an address was expected, with a version or a commit")
    return Fault(
        **{key: fields[key] for key in ("id", "title", "component", "severity", "backups", "shows", "source")},
        affected=tuple(_ranges(each) for each in fields["affected"]),
        when=_when(entry.get("when", {}) if isinstance(entry, dict) else {}),
        remedy=tuple(_texts("remedy", fields["remedy"])),
    )


def _ranges(entry: object) -> Mapping[str, VersionRange]:
    if not isinstance(entry, dict) or not entry or not entry.keys() <= set(PACKAGES):
        raise ValueError(f"affected: mappings of {', '.join(PACKAGES)} were expected")
    return {package: parse_range(str(text)) for package, text in entry.items()}


def _when(entry: object) -> When:
    fields = _checked(entry, {}, optional=tuple(_CONDITIONS))
    for key, value in fields.items():
        if not isinstance(value, _CONDITIONS[key]) or not value:
            raise ValueError(f"when: {key}: another kind of value was expected")
    if fields.get("guests", "agent") not in GUESTS:
        raise ValueError(f"when: guests: one of {', '.join(GUESTS)} was expected")
    if fields.get("cpu", "intel") not in ("intel", "amd"):
        raise ValueError("when: cpu: intel or amd was expected")
    lists = {key: tuple(_texts(f"when: {key}", value)) for key, value in fields.items() if isinstance(value, list)}
    return When(**(fields | lists))


def _checked(entry: object, required: Mapping[str, type], optional: tuple[str, ...]) -> dict[str, Any]:
    """The required fields and those of the optional ones that are there."""
    if not isinstance(entry, dict):
        raise ValueError("a mapping was expected")
    if missing := required.keys() - entry.keys():
        raise ValueError(f"{', '.join(sorted(missing))} missing")
    if unknown := {str(key) for key in entry} - required.keys() - set(optional):
        raise ValueError(f"{', '.join(sorted(unknown))} unknown")
    for key, kind in required.items():
        if not isinstance(entry[key], kind) or entry[key] == "":
            raise ValueError(f"{key}: another kind of value was expected")
    return dict(entry)


def _texts(key: str, values: Iterable[object]) -> Iterable[str]:
    for each in values:
        if not isinstance(each, str) or not each:
            raise ValueError(f"{key}: texts were expected")
        yield each
