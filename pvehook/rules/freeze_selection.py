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
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pvehook.contract.guest_facts import Filesystem, GuestInfo
from pvehook.contract.text import printable
from pvehook.rules.freeze_policy import FreezePolicy

LIST_COMMAND = "guest-fsfreeze-freeze-list"

_NEVER_FROZEN = ("squashfs", "erofs", "cramfs", "romfs", "iso9660", "udf", "cdfs")
"""Read-only media. Linux answers their freeze with EOPNOTSUPP, which the agent passes over; VSS takes no CD."""

_SHOWN = 5
"""How many filesystems a reason names before it counts the rest."""


class Selection(NamedTuple):
    """`against` holds the reasons for no freeze at all; else `mountpoints` is what to freeze (None: all)."""

    mountpoints: tuple[str, ...] | None
    notes: tuple[str, ...]
    against: tuple[str, ...]
    is_partial: bool = False
    """Something that could be frozen is left out."""


def select(filesystems: tuple[Filesystem, ...], info: GuestInfo, policy: FreezePolicy) -> Selection:
    """What to freeze of `filesystems`, which are in the agent's order: a list as soon as a rule has something to say,
    even if nothing is left out tonight."""
    kept = everything = freezable(filesystems)
    notes = []
    if policy.mode == "mountpoints":
        only = policy.mountpoints
        kept = tuple(each for each in kept if each.mountpoint in only)
        reason = f"{policy.because} freezes {_texts(only) or 'nothing'} and nothing else"
        notes.append(f"mountpoints: {reason}{_unknown(only, filesystems)}")
    if policy.leave_out:
        # A filesystem is meant, so none of its mountpoints may stay: to freeze one of them is to freeze all of it.
        without = {_device(each) for each in filesystems if each.mountpoint in policy.leave_out}
        kept = tuple(each for each in kept if _device(each) not in without)
        reason = f"{policy.because} leaves out {_texts(policy.leave_out)}"
        notes.append(f"except: {reason}{_unknown(policy.leave_out, filesystems)}")
    if loops := [each for each in filesystems if _is_loop(each)]:
        kept, reason = _beside_loops(loops, kept, filesystems)
        if reason:
            notes.append(f"loops: {named(loops)}, agent {printable(info.version, 20)}: {reason}")
    if not notes:
        return Selection(None, (), ())
    if not kept:
        return Selection(None, (), (*notes, "none-left: no filesystem is left to be frozen"))
    if fault := command_fault(info, LIST_COMMAND):
        return Selection(None, (), (*notes, f"no-list: a list is needed, but {fault}"))
    frozen = {_device(each) for each in kept}
    out = [each for each in everything if _device(each) not in frozen]
    if out:
        notes.append(f"crash-consistent: not frozen, so in this backup as after a power cut: {named(out)}")
    return Selection(tuple(dict.fromkeys(each.mountpoint for each in kept)), tuple(notes), (), is_partial=bool(out))


def _beside_loops(
    loops: list[Filesystem], so_far: tuple[Filesystem, ...], everything: tuple[Filesystem, ...]
) -> tuple[tuple[Filesystem, ...], str]:
    """What can be frozen in spite of them, and why; no reason if nothing had to change."""
    first_mounts = _first_mounts(so_far)
    if len({_device(each) for each in loops}) == 1 and _loop_is_first(first_mounts, everything):
        return first_mounts, "it is frozen first, and each device by its first mount only"
    places = {each.mountpoint.rstrip("/") for each in loops}
    others = [each for each in so_far if not _is_loop(each)]
    kept = tuple(each for each in others if places.isdisjoint(_path_and_parents(each.mountpoint)))
    return kept, "left out, since what holds its file may be frozen before it" if kept != so_far else ""


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


def _unknown(wanted: tuple[str, ...], filesystems: tuple[Filesystem, ...]) -> str:
    known = {each.mountpoint for each in filesystems}
    missing = [each for each in wanted if each not in known]
    return f"; the guest has no mountpoint {_texts(missing)}" if missing else ""


def _texts(texts: Iterable[str]) -> str:
    all_texts = list(texts)
    more = f" and {len(all_texts) - _SHOWN} more" if len(all_texts) > _SHOWN else ""
    return ", ".join(printable(text, 80) for text in all_texts[:_SHOWN]) + more
