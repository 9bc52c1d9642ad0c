"""The node's logical volumes, as LVM itself reports them."""

from __future__ import annotations

import os

from pvehook.contract.lvm_report import FIELDS, LogicalVolume, parse_lvs
from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.host.commands import answer_of
from pvehook.host.node import Node

LVS = "/usr/sbin/lvs"


def read_logical_volumes(node: Node, deadline_s: float) -> Measured[tuple[LogicalVolume, ...]]:
    """All but LVM's hidden ones. It reads the disks that carry volume groups, so it may hang where one does."""
    if not os.path.exists(node.path(LVS)):
        return Absent("LVM is not installed")
    options = ("--reportformat", "json", "--units", "b", "--nosuffix", "--options", ",".join(FIELDS))
    answer = answer_of((node.path(LVS), *options), deadline_s)
    if answer is None:
        return Broken(f"{LVS} failed, or gave no answer within {deadline_s:.0f} s")
    try:
        return tuple(parse_lvs(answer))
    except ValueError as error:
        return Broken(f"{LVS}: {error}")
