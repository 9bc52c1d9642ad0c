"""What a guest reports about itself through its agent, as types that pvehook/guest/agent.py fills. Every text here is
the guest's own: `contract.text.printable` before it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

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
