"""Who is watched beside the backup that runs now, and who suffers: what `pvehook governor status` reads.

    /run/pvehook/watch.json
        {"written_s": 81213.4, "job": "UPID:...", "in_backup": 101, "steers": 105,
         "counts": {"shared": 12, "unknown": 2, "elsewhere": 9, "suffer": 1, "slowed": 3, "not_watched": 0},
         "guests": [{"vmid": 105, "name": "db", "vmtype": "qemu", "exposure": "shared", ...}, ...]}

Written by the loop that watches the node's guests, removed when the backup ends. A daemon that was killed leaves it, so
a file that is not rewritten any more is stale, and nothing of it is shown.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.text import printable
from pvehook.host.node import Node
from pvehook.host.regular_file import DAMAGED, read_regular_file, remove_file, replace_file
from pvehook.records.encoding import decode, encode
from pvehook.rules.patients import Exposure

MOST_GUESTS: Final = 100
"""Of more guests the worst are kept; `counts` has all of them."""
FILE_LIMIT_BYTES: Final = 1 << 20
"""100 guests with the longest names and reasons need a quarter of it."""
WRITE_EVERY_S: Final = 2.0
STALE_AFTER_S: Final = 15.0
"""A node that is busy may keep the daemon waiting for some seconds."""
_LONGEST_NAME: Final = 80
_LONGEST_REASON: Final = 200

SeenBy = Literal["requests", "block-devices", "pressure"]
"""As in a BesideRecord."""


class WatchedGuest(NamedTuple):
    """One running guest of the node beside the backup of another."""

    vmid: int
    name: str | None
    vmtype: Literal["qemu", "lxc"]
    exposure: Exposure
    seen_by: SeenBy | None
    """None: not watched."""
    suffers: bool = False
    """In its latest sample: its requests took longer than `target_ms`, or over 100 ms; all of a container waited."""
    stalled_s: float = 0.0
    """As in a BesideRecord, in this job so far, beside the backups of others."""
    slowed_s: float = 0.0
    mean_ms: float | None = None
    """Of the requests in its latest sample; None: there were none, or it is not seen by requests."""
    p99_ms: float | None = None
    """The same; counters of block devices do not tell."""
    target_ms: float | None = None
    """Above it the backup is slowed for it; None: nothing is known of how it was before."""
    put_aside: str | None = None
    """Why the backup is not slowed for it: a rule, slowing did not help, a container's pressure does not steer."""
    not_watched: str | None = None
    """Why it is not watched: its monitor does not answer."""

    @property
    def need(self) -> float:
        """How badly off it is now, relative to its target; 0 where that cannot be said."""
        now_ms = self.mean_ms if self.mean_ms is not None else self.p99_ms
        return now_ms / self.target_ms if self.suffers and now_ms is not None and self.target_ms else 0.0


class Counts(NamedTuple):
    """Of all guests beside the backup."""

    shared: int
    unknown: int
    elsewhere: int
    suffer: int
    slowed: int
    """In this job so far."""
    not_watched: int

    @property
    def guests(self) -> int:
        return self.shared + self.unknown + self.elsewhere


class WatchStatus(NamedTuple):
    """What was seen at one moment."""

    written_s: float
    """On the node's steady clock."""
    job: str
    """UPID of vzdump's task."""
    in_backup: int
    """The guest in backup; it is not one of `guests`."""
    steers: int | None
    """The guest by which the backup's speed is set; None: the one in backup."""
    counts: Counts
    guests: tuple[WatchedGuest, ...]
    """The worst first, at most MOST_GUESTS."""


class Stale(NamedTuple):
    """What there is was written too long ago. `why` is for an administrator."""

    why: str


def status_of(
    written_s: float, job: str, in_backup: int, steers: int | None, guests: Iterable[WatchedGuest]
) -> WatchStatus:
    """The status of all guests beside a backup."""
    found = sorted(guests, key=lambda guest: _order(guest, steers))
    exposures = [guest.exposure for guest in found]
    counts = Counts(
        shared=exposures.count("shared"),
        unknown=exposures.count("unknown"),
        elsewhere=exposures.count("elsewhere"),
        suffer=sum(guest.suffers for guest in found),
        slowed=sum(guest.slowed_s > 0 for guest in found),
        not_watched=sum(guest.seen_by is None for guest in found),
    )
    return WatchStatus(written_s, job, in_backup, steers, counts, tuple(map(_bounded, found[:MOST_GUESTS])))


def _order(guest: WatchedGuest, steers: int | None) -> tuple[bool, bool, float, float, float, bool, int]:
    """Whoever steers, who suffers now, who has suffered, who is not watched, the others."""
    steering, watched = guest.vmid != steers, guest.seen_by is not None
    return steering, not guest.suffers, -guest.need, -guest.stalled_s, -guest.slowed_s, watched, guest.vmid


def _bounded(guest: WatchedGuest) -> WatchedGuest:
    name, aside, unwatched = (
        text if text is None else printable(text, limit)
        for text, limit in (
            (guest.name, _LONGEST_NAME),
            (guest.put_aside, _LONGEST_REASON),
            (guest.not_watched, _LONGEST_REASON),
        )
    )
    return guest._replace(name=name, put_aside=aside, not_watched=unwatched)


def status_path(node: Node) -> str:
    return os.path.join(node.run_dir, "watch.json")


def write_status(node: Node, status: WatchStatus) -> str | None:
    """Replaces the file. Why it could not be; None: it was."""
    try:
        replace_file(status_path(node), json.dumps(encode(status), ensure_ascii=False, allow_nan=False) + "\n")
    except (OSError, ValueError) as error:  # ValueError: a figure that is no number
        return f"{status_path(node)} cannot be written: {error}"
    return None


def remove_status(node: Node) -> None:
    """Nobody is watched any more."""
    remove_file(status_path(node))


def _finite(text: str) -> float:
    """What JSON readers take and nobody can show, such as NaN and 1e999, is a damaged file."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no figure")
    return number


def read_status(node: Node, now_s: float) -> Measured[WatchStatus] | Stale:
    """What the daemon sees; absent: it watches nobody. `now_s` is on the node's steady clock."""
    path = status_path(node)
    try:
        data = read_regular_file(path, FILE_LIMIT_BYTES + 1)
        if len(data) > FILE_LIMIT_BYTES:
            return Broken(f"{path} is larger than {FILE_LIMIT_BYTES} bytes")
        status: WatchStatus = decode(WatchStatus, json.loads(data, parse_float=_finite, parse_constant=_finite))
    except FileNotFoundError:
        return Absent("no guest is watched")
    except DAMAGED as error:
        return Broken(f"{path} cannot be read: {error}")
    age_s = now_s - status.written_s
    if not 0 <= age_s <= STALE_AFTER_S:
        return Stale(f"{path} was written {age_s:.0f} s ago: the daemon has ended or hangs")
    return status
