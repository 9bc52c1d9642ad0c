"""Which of a guest's filesystems to freeze, where not all of them are wanted, or not all are safe.

    mountpoints        the administrator named what to freeze
    except             the administrator named what not to freeze
    loops              a filesystem lies in a file of another one
    crash-consistent   what is not frozen after all, said once
    none-left          nothing remains: no freeze
    no-list            the agent takes no list: no freeze

**Why loop devices matter.** The agent freezes one mount after the other, in the order in which `guest-get-fsinfo`
lists them: latest first. A filesystem on a loop device is written out as it is frozen. The filesystem that holds its
file must not be frozen by then, or both wait for ever. Which one holds the file cannot be seen from outside, so every
other one is suspected. Two lists are safe nevertheless:

 1. The loop device comes first. Each device is listed by its first mount (its last entry), since a later bind mount
    of the file's filesystem would come before the loop device. Whether it is first is proved by walking the agent's
    own order, and only for a guest with one loop device: of two, one may lie on the other.
 2. No loop device at all, so no freeze has to wait for one, in any order. It is then crash-consistent.

Tried on a real guest with qemu-ga 7.2.22 and 10.0.2 (tests/rig/test_freeze_lists.py): with a bind mount over the
loop's file, and where the only mount left of that filesystem is newer than the loop. The lists froze and thawed at
once. Freezing everything hung for good (7.2 in both cases, 10.0 in the second; it leaves bind mounts out by itself).
A list also keeps out what a guest mounts between our query and the freeze.

What this cannot see: a loop device below another device (`dm-0` made of `loop0`), and mounts in other namespaces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pvehook.contract.guest_facts import Filesystem, GuestInfo
from pvehook.contract.text import printable

LIST_COMMAND = "guest-fsfreeze-freeze-list"

_NEVER_FROZEN = ("squashfs", "erofs", "cramfs", "romfs", "iso9660", "udf", "cdfs")
"""Read-only media. Linux answers their freeze with EOPNOTSUPP, which the agent passes over; VSS takes no CD."""

_SHOWN = 5
"""How many filesystems a reason names before it counts the rest."""


class Guest(NamedTuple):
    """What the guest has and can do."""

    filesystems: tuple[Filesystem, ...]
    """In the agent's order."""
    info: GuestInfo


class Wish(NamedTuple):
    """What the administrator wants of this guest."""

    only: tuple[str, ...] | None
    """Mountpoints; None: all that is safe."""
    leave_out: tuple[str, ...]
    because: str
    """Which entry of the configuration says so."""


class Selection(NamedTuple):
    """`against` holds the reasons for no freeze at all; else `mountpoints` is what to freeze (None: all)."""

    mountpoints: tuple[str, ...] | None
    notes: tuple[str, ...]
    against: tuple[str, ...]


class Narrowed(NamedTuple):
    """What is still to be frozen after a row, and why."""

    kept: tuple[Filesystem, ...]
    reason: str


def select(guest: Guest, wish: Wish) -> Selection:
    """What to freeze: a list as soon as a row has something to say, even if nothing is left out tonight."""
    everything = freezable(guest.filesystems)
    kept, notes = everything, []
    for row in NARROWING:
        if narrowed := row.narrow(guest, wish, kept):
            kept = narrowed.kept
            notes.append(f"{row.name}: {narrowed.reason}")
    if not notes:
        return Selection(None, (), ())
    if not kept:
        return Selection(None, (), (*notes, "none-left: no filesystem is left to be frozen"))
    if fault := command_fault(guest.info, LIST_COMMAND):
        return Selection(None, (), (*notes, f"no-list: a list is needed, but {fault}"))
    frozen = {_device(each) for each in kept}
    if out := [each for each in everything if _device(each) not in frozen]:
        notes.append(f"crash-consistent: not frozen, so in this backup as after a power cut: {named(out)}")
    return Selection(tuple(dict.fromkeys(each.mountpoint for each in kept)), tuple(notes), ())


# The rows


def _only(guest: Guest, wish: Wish, so_far: tuple[Filesystem, ...]) -> Narrowed | None:
    if wish.only is None:
        return None
    kept = tuple(each for each in so_far if each.mountpoint in wish.only)
    reason = f"{wish.because} freezes {_texts(wish.only) or 'nothing'} and nothing else"
    return Narrowed(kept, reason + _unknown(wish.only, guest))


def _except(guest: Guest, wish: Wish, so_far: tuple[Filesystem, ...]) -> Narrowed | None:
    if not wish.leave_out:
        return None
    # A filesystem is meant, so none of its mountpoints may stay: to freeze one of them is to freeze all of it.
    out = {_device(each) for each in guest.filesystems if each.mountpoint in wish.leave_out}
    kept = tuple(each for each in so_far if _device(each) not in out)
    return Narrowed(kept, f"{wish.because} leaves out {_texts(wish.leave_out)}{_unknown(wish.leave_out, guest)}")


def _loops(guest: Guest, _: Wish, so_far: tuple[Filesystem, ...]) -> Narrowed | None:
    loops = [each for each in guest.filesystems if _is_loop(each)]
    if not loops:
        return None
    seen = f"{named(loops)}, agent {printable(guest.info.version, 20)}"
    first_mounts = _first_mounts(so_far)
    if len({_device(each) for each in loops}) == 1 and _loop_is_first(first_mounts, guest.filesystems):
        return Narrowed(first_mounts, f"{seen}: it is frozen first, and each device by its first mount only")
    places = {each.mountpoint.rstrip("/") for each in loops}
    others = [each for each in so_far if not _is_loop(each)]
    kept = tuple(each for each in others if places.isdisjoint(_path_and_parents(each.mountpoint)))
    if kept == so_far:
        return None
    return Narrowed(kept, f"{seen}: left out, since what holds its file may be frozen before it")


def _first_mounts(filesystems: tuple[Filesystem, ...]) -> tuple[Filesystem, ...]:
    """One entry for each device, the last one: the agent lists the latest mount first."""
    by_device: dict[str, Filesystem] = {}
    for each in reversed(filesystems):
        by_device.setdefault(_device(each), each)
    return tuple(reversed(by_device.values()))


def _loop_is_first(listed: tuple[Filesystem, ...], everything: tuple[Filesystem, ...]) -> bool:
    """Whether the agent, given this list, freezes a loop device before all else. It goes by mountpoints only: one
    that two filesystems share, mounted one over the other, stands for both."""
    mountpoints = {each.mountpoint for each in listed}
    walk = [each for each in everything if each.mountpoint in mountpoints]
    return bool(walk) and _is_loop(walk[0])


def _path_and_parents(mountpoint: str) -> Iterator[str]:
    """`/a/b`, `/a`, and `` for the root. At or below the place of a loop device a mountpoint may be hidden by it, and
    to freeze there would be to freeze the loop device."""
    path = mountpoint.rstrip("/")
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""


class _Row(NamedTuple):
    name: str
    narrow: Callable[[Guest, Wish, tuple[Filesystem, ...]], Narrowed | None]


NARROWING = (
    _Row("mountpoints", _only),
    _Row("except", _except),
    _Row("loops", _loops),
)


# What was seen


def freezable(filesystems: tuple[Filesystem, ...]) -> tuple[Filesystem, ...]:
    """Without read-only media, and without volumes of Windows that no path leads to (`System Reserved`)."""
    return tuple(
        each
        for each in filesystems
        if each.type.lower() not in _NEVER_FROZEN and re.match(r"/|[A-Za-z]:\\", each.mountpoint)
    )


def command_fault(info: GuestInfo, command: str) -> str | None:
    """What is wrong with a command of the agent; None: it may be used."""
    allowed = info.commands.get(command)
    if allowed:
        return None
    return f"{command} is {'unknown to the agent' if allowed is None else 'disabled in the guest'}"


def named(filesystems: Iterable[Filesystem]) -> str:
    """`/srv (sdb1, ext4), / (sda1, ext4)`."""
    return _texts(f"{each.mountpoint} ({each.name}, {each.type})" for each in filesystems)


def _is_loop(filesystem: Filesystem) -> bool:
    return bool(re.match(r"loop\d", filesystem.name)) and filesystem.type.lower() not in _NEVER_FROZEN


def _device(filesystem: Filesystem) -> str:
    """A filesystem is the same one at every mountpoint of its device; one without a name is taken for itself."""
    return filesystem.name or filesystem.mountpoint


def _unknown(wanted: tuple[str, ...], guest: Guest) -> str:
    known = {each.mountpoint for each in guest.filesystems}
    missing = [each for each in wanted if each not in known]
    return f"; the guest has no mountpoint {_texts(missing)}" if missing else ""


def _texts(texts: Iterable[str]) -> str:
    all_texts = list(texts)
    more = f" and {len(all_texts) - _SHOWN} more" if len(all_texts) > _SHOWN else ""
    return ", ".join(printable(text, 80) for text in all_texts[:_SHOWN]) + more
