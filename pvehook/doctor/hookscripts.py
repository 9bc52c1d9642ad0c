"""`pvehook guests hookscript`: gives guests hooks/guest-hook as their hookscript, and takes it off again.

    local:snippets/pvehook-guest-hook           a guest that had none
    nas:snippets/pvehook-guest-hook.own.pl      one that had nas:snippets/own.pl, which is still run, after ours

What a guest had before is in the name of what it has now, so it is never lost: not by a migration, not with pvehook.

Source: `check_hookscript` and `exec_hookscript` of pve-guest-common: the script is a snippet, a file, executable; a
guest whose script is not, or fails in pre-start, does not start. Snippets are in PATH/snippets of a storage, or where
its `content-dirs` says (PVE/Storage/Plugin.pm).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pvehook.contract.guest_config import boolean, options_of
from pvehook.contract.section_config import Section, find_section
from pvehook.contract.text import printable
from pvehook.doctor.fixes import Run
from pvehook.errors import NodeError
from pvehook.host.guest_configs import ConfiguredGuest
from pvehook.host.node import INSTALLED_UNDER, Node
from pvehook.host.regular_file import read_regular_file, replace_file
from pvehook.host.timely_files import TimelyReader
from pvehook.host.volumes import read_storages

NAME: Final = "pvehook-guest-hook"
CHAINING: Final = f"{NAME}."
INSTALLED: Final = f"{INSTALLED_UNDER}/hooks/guest-hook"
LOCAL: Final = "local"

WRITE_S: Final = 5.0
_LIMIT_BYTES: Final = 1 << 20
_SNIPPET: Final = re.compile(r"([a-zA-Z][a-zA-Z0-9._-]*):snippets/([^/]+)")
_MADE_BY_US: Final = ("dir", "btrfs")
"""Whose directory for snippets is made where it is missing: below a network storage it would be made on the root disk
while that is not mounted."""
_ON_ALL_NODES: Final = ("nfs", "cifs", "cephfs", "glusterfs")


class Hooked(NamedTuple):
    vmid: int
    done: bool
    """It is as it was asked for, now or before."""
    text: str


class _NotDone(Exception):
    """Why nothing was changed, for an administrator."""


def enable(
    node: Node, reader: TimelyReader, guest: ConfiguredGuest, storage: str | None, run: Run
) -> Hooked:
    """`storage`: where the script is put of a guest that has none; its own is chained in the storage where it is."""
    try:
        return _said(guest, True, _enable(node, reader, guest, storage, run))
    except (_NotDone, NodeError, OSError) as error:
        return _said(guest, False, f"not changed: {error}")


def disable(node: Node, reader: TimelyReader, guest: ConfiguredGuest, run: Run) -> Hooked:
    """What the guest had before ours is its hookscript again. The snippet stays: others may have it."""
    now = _hookscript(guest.text)
    try:
        if now is None or not (snippet := _SNIPPET.fullmatch(now)) or not is_ours(snippet[2]):
            return _said(guest, True, f"has not pvehook's hookscript{f', but {printable(now)}' if now else ''}")
        before = f"{snippet[1]}:snippets/{snippet[2][len(CHAINING) :]}" if snippet[2].startswith(CHAINING) else None
        _set(node, reader, guest, before, run)
    except (_NotDone, NodeError, OSError) as error:
        return _said(guest, False, f"not changed: {error}")
    return _said(guest, True, f"has its own hookscript again: {printable(before)}" if before else "has none any more")


def left_out(guest: ConfiguredGuest) -> Hooked:
    """A container, where all guests are asked for."""
    return _said(guest, True, "left out: a container is never frozen, and has no agent")


def is_ours(name: str) -> bool:
    """Whether a snippet of this name is a copy of hooks/guest-hook."""
    return name == NAME or name.startswith(CHAINING)


def _enable(
    node: Node, reader: TimelyReader, guest: ConfiguredGuest, storage: str | None, run: Run
) -> str:
    now = _hookscript(guest.text)
    snippet = _SNIPPET.fullmatch(now) if now is not None else None
    if now is not None and snippet is None:
        raise _NotDone(f"its hookscript is {printable(now)}, which is no snippet")
    storage_id, own = (snippet[1], snippet[2]) if snippet is not None else (storage or LOCAL, None)
    name = own if own is not None and is_ours(own) else NAME if own is None else CHAINING + own
    section = find_section(read_storages(node, reader), storage_id)
    if section is None:
        raise _NotDone(f"storage {printable(storage_id)} does not exist")
    directory = _snippets_of(section.properties)
    if own != name:
        _check_nodes(node, section, f"{directory}/{name}", is_named=storage == storage_id)
    chained = f"{directory}/{own}" if own is not None and own != name else None
    reader.within(WRITE_S, directory, lambda: _place(node, section, directory, name, chained))
    volume = f"{storage_id}:snippets/{name}"
    if own == name:
        return f"has pvehook's hookscript already: {printable(volume)}"
    _set(node, reader, guest, volume, run)
    after = f", which runs its own after it: {printable(own)}" if own is not None else ""
    return f"has pvehook's hookscript: {printable(volume)}{after}"


def _snippets_of(storage: Mapping[str, str]) -> str:
    if "path" not in storage:
        raise _NotDone("its storage holds no snippets")
    directories = dict(each.partition("=")[::2] for each in storage.get("content-dirs", "").split(","))
    return os.path.join(storage["path"], directories.get("snippets", "snippets").strip("/"))


def _check_nodes(node: Node, storage: Section, path: str, *, is_named: bool) -> None:
    """A guest that migrates, or that HA starts elsewhere, needs the script there too."""
    try:
        nodes = sorted(os.listdir(node.path("/etc/pve/nodes")))
    except FileNotFoundError:
        nodes = []
    on_all = storage.type in _ON_ALL_NODES or boolean(storage.properties.get("shared")) is True
    if len(nodes) > 1 and not on_all and not is_named:
        raise _NotDone(
            f"a guest does not start on a node where its hookscript is missing, and each of the {len(nodes)} nodes of"
            f" the cluster has a storage {storage.id} of its own: copy the script to all of them (scp -p {INSTALLED}"
            f" NODE:{printable(path)}), then add --storage {storage.id}; or name one that all nodes share"
        )


def _place(node: Node, storage: Section, directory: str, name: str, chained: str | None) -> None:
    """Puts the copy there, unless it is there. In the reader's thread: a storage may hang."""
    here = node.path(directory)
    if not os.path.isdir(here):
        if storage.type not in _MADE_BY_US or not os.path.isdir(os.path.dirname(here)):
            raise _NotDone(f"{directory} is not there")
        os.mkdir(here, 0o755)
    if chained is not None and not os.access(node.path(chained), os.X_OK):
        raise _NotDone(f"its own hookscript is missing or not executable, and Proxmox does not start it: {chained}")
    text = read_regular_file(node.path(INSTALLED), _LIMIT_BYTES).decode()
    path = os.path.join(here, name)
    if not os.access(path, os.X_OK) or read_regular_file(path, _LIMIT_BYTES).decode(errors="replace") != text:
        replace_file(path, text, 0o755)


def _set(node: Node, reader: TimelyReader, guest: ConfiguredGuest, volume: str | None, run: Run) -> None:
    tool, directory = ("pct", "lxc") if guest.vmtype == "lxc" else ("qm", "qemu-server")
    what: Sequence[str] = ("--delete", "hookscript") if volume is None else ("--hookscript", volume)
    run((tool, "set", str(guest.vmid), *what))
    text = reader.text(node.path(f"/etc/pve/{directory}/{guest.vmid}.conf"), WRITE_S)
    if text is None or _hookscript(text) != volume:
        raise _NotDone(f"`{tool} set` reported no error, but its configuration does not show it")


def _hookscript(text: str) -> str | None:
    return options_of(text).get("hookscript")


def _said(guest: ConfiguredGuest, done: bool, what: str) -> Hooked:
    name = f" {printable(guest.config.name, 40)}" if guest.config.name else ""
    return Hooked(guest.vmid, done, f"{'CT' if guest.vmtype == 'lxc' else 'VM'} {guest.vmid}{name}: {what}")
