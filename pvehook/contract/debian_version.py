"""Debian's versions and ranges of them: `6.17.4-2`, `10.0.2-1~bpo12+1`, `1:2.0`; `>= 6.17, < 6.17.4-2`.

Source: deb-version(7). `[epoch:]upstream[-revision]`, and each part is read as runs of other characters and of digits
in turn. Digits compare as numbers; of the others a tilde comes before the end, the end before letters, letters before
all else.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Final, NamedTuple, TypeAlias

Run: TypeAlias = tuple[tuple[int, ...], int]
"""The others, each by its place, and the number that follows them."""

_VERSION: Final = re.compile(r"(?:([0-9]{1,9}):)?([0-9A-Za-z.+~-]{1,200})", re.ASCII)
_RUN: Final = re.compile(r"([^0-9]*)([0-9]*)")
_BOUND: Final = re.compile(r"(>=|<)\s*(\S+)")
_END: Final[Run] = ((0,), 0)
_KERNEL: Final = re.compile(r"(\d+\.\d+\.\d+-\d+)(?:-bpo\d+)?-pve", re.ASCII)


def compare(one: str, other: str) -> int:
    """As `dpkg --compare-versions`: -1, 0 or 1 as the one is lower, the same or higher. Raises ValueError: one of them
    is no version."""
    (epoch, *parts), (other_epoch, *other_parts) = _split(one), _split(other)
    if epoch != other_epoch:
        return -1 if int(epoch) < int(other_epoch) else 1
    for part, other_part in zip(parts, other_parts, strict=True):
        for run, other_run in zip_longest(_runs(part), _runs(other_part), fillvalue=_END):
            if run != other_run:
                return -1 if run < other_run else 1
    return 0


def _split(version: str) -> tuple[str, str, str]:
    """Epoch, upstream's version, revision; the epoch without leading zeros."""
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ValueError(f"no version of Debian: {version[:60]!r}")
    upstream, dash, revision = match[2].rpartition("-")
    return str(int(match[1] or 0)), upstream if dash else match[2], revision if dash else ""


def _runs(part: str) -> list[Run]:
    return [((*map(_place, others), 0), int(digits or 0)) for others, digits in _RUN.findall(part)]


def _place(character: str) -> int:
    if character == "~":
        return -1
    return ord(character) + (0 if character.isalpha() else 256)


class VersionRange(NamedTuple):
    """None: no bound on that side."""

    at_least: str | None
    below: str | None

    def __str__(self) -> str:
        """As `parse_range` reads it."""
        bounds = ((">=", self.at_least), ("<", self.below))
        return ", ".join(f"{sign} {version}" for sign, version in bounds if version is not None)

    def includes(self, version: str) -> bool:
        """Raises ValueError: that is no version."""
        if self.at_least is not None and compare(version, self.at_least) < 0:
            return False
        return self.below is None or compare(version, self.below) < 0


def parse_range(text: str) -> VersionRange:
    """Parses `>= 6.17, < 6.17.4-2`, or one half of it. Raises ValueError: it is none, or is empty."""
    bounds: dict[str, str] = {}
    for part in text.split(","):
        match = _BOUND.fullmatch(part.strip())
        if match is None or match[1] in bounds:
            raise ValueError(f"no range of versions: {text[:60]!r}")
        bounds[match[1]] = match[2]
    at_least, below = bounds.get(">="), bounds.get("<")
    if compare(at_least or "0", below or "0") >= 0 and None not in (at_least, below):
        raise ValueError(f"no version is in {text[:60]!r}")
    return VersionRange(at_least, below)


def version_of_kernel(release: str) -> str | None:
    """The package's version of a kernel of Proxmox VE, by its `uname -r`: `6.17.4-2` of `6.17.4-2-pve`, `6.14.11-5` of
    `6.14.11-5-bpo12-pve`. None: it is somebody else's."""
    match = _KERNEL.fullmatch(release)
    return match[1] if match else None
