"""The configurations of all guests of this node, running or not, and which node the others are on."""

from __future__ import annotations

import glob
import os
import re
from typing import Final, Literal, NamedTuple

from pvehook.contract.guest_config import GuestConfig, parse_container, parse_vm
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.timely_files import FILE_LIMIT_BYTES, TimelyReader

_NAME: Final = re.compile(r"([1-9][0-9]{2,8})\.conf")


class ConfiguredGuest(NamedTuple):
    vmid: int
    vmtype: Literal["qemu", "lxc"]
    config: GuestConfig
    text: str
    """The whole file. Bytes that are no UTF-8 are lone surrogates."""


def read_guest_configs(node: Node, reader: TimelyReader, deadline_s: float) -> tuple[ConfiguredGuest, ...]:
    """By number. Raises NodeError: /etc/pve does not answer within `deadline_s` seconds, or cannot be read."""
    try:
        return reader.within(deadline_s, "/etc/pve", lambda: _read(node))
    except OSError as error:
        raise NodeError(f"the guests' configurations cannot be read: {error}") from error


def node_of_guests(node: Node, reader: TimelyReader, deadline_s: float) -> dict[int, str]:
    """The node of each guest of the cluster, by /etc/pve/nodes/NODE/qemu-server/ID.conf and lxc/ID.conf. Raises
    NodeError: no answer within `deadline_s` seconds."""
    root = node.path("/etc/pve/nodes")
    paths = reader.within(deadline_s, "/etc/pve/nodes", lambda: glob.glob("*/*/*.conf", root_dir=root))
    found = (re.fullmatch(r"([^/]+)/(?:qemu-server|lxc)/([0-9]{1,9})\.conf", path) for path in paths)
    return {int(match[2]): match[1] for match in found if match}


def _read(node: Node) -> tuple[ConfiguredGuest, ...]:
    found = []
    for vmtype, directory in (("qemu", "qemu-server"), ("lxc", "lxc")):
        path = node.path(f"/etc/pve/{directory}")
        # Not by glob, which takes a directory that cannot be read for an empty one.
        for name in os.listdir(path) if os.path.lexists(path) else ():
            if match := _NAME.fullmatch(name):
                with open(f"{path}/{name}", "rb") as file:
                    text = file.read(FILE_LIMIT_BYTES).decode("utf-8", "surrogateescape")
                found.append(
                    ConfiguredGuest(int(match[1]), "qemu", parse_vm(text), text)
                    if vmtype == "qemu"
                    else ConfiguredGuest(int(match[1]), "lxc", parse_container(text), text)
                )
    return tuple(sorted(found, key=lambda each: each.vmid))
