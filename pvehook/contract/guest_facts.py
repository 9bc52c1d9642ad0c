"""What a guest tells about itself through its agent, as types. pvehook/guest/agent.py asks and fills them.

Every text here is the guest's own: `contract.text.printable` before it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

FreezeStatus = Literal["thawed", "frozen"]


class GuestInfo(NamedTuple):
    """What `guest-info` tells."""

    version: str
    commands: Mapping[str, bool]
    """Every command the agent knows, and whether it may be used: by the guest's administrator, and while frozen."""


class Filesystem(NamedTuple):
    """One entry of `guest-get-fsinfo`: the same mounts that a freeze walks, bind mounts included."""

    name: str
    """The device's name in the guest: `sda1`, `loop0`, `dm-2`."""
    mountpoint: str
    type: str
