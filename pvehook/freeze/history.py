"""How the last freezes of each guest went, for the next verdict.

/var/lib/pvehook/freezes/101.json
    [{"at_s": 1795312800.0, "frozen_ms": 184, "outcome": "ok"}, ...]      newest last, at most 10
"""

from __future__ import annotations

import json
import os

from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.regular_file import remove_file, replace_file
from pvehook.host.timely_files import TimelyReader
from pvehook.records.encoding import decode
from pvehook.rules.freeze_safety import PastFreeze

KEPT = 10
READ_S = 1.0


def past_freezes(node: Node, reader: TimelyReader, vmid: int) -> tuple[PastFreeze, ...]:
    """The freezes that are remembered. A file that cannot be read is no history: it vetoes nothing."""
    try:
        text = reader.text(_path(node, vmid), READ_S)
        freezes: tuple[PastFreeze, ...] = decode(tuple[PastFreeze, ...], json.loads(text)) if text else ()
    except (NodeError, ValueError, RecursionError):
        return ()
    return freezes


def remember(node: Node, reader: TimelyReader, vmid: int, freeze: PastFreeze) -> None:
    """Adds a freeze; one that was remembered as hanging is replaced when it has ended. Losing it costs the next verdict
    a fact, nothing else."""
    try:
        past = past_freezes(node, reader, vmid)
        if past and past[-1].outcome == "hung" and past[-1].frozen_ms is None and freeze.outcome == "hung":
            past = past[:-1]
        kept = [each._asdict() for each in (*past, freeze)[-KEPT:]]
        reader.within(READ_S, _path(node, vmid), lambda: replace_file(_path(node, vmid), json.dumps(kept) + "\n"))
    except (NodeError, OSError):
        pass


def forget_freezes(node: Node, vmid: int) -> bool:
    """Drops a guest's history: its administrator has fixed what made it slow. False when there was none."""
    return remove_file(_path(node, vmid))


def _path(node: Node, vmid: int) -> str:
    return os.path.join(node.state_dir, "freezes", f"{vmid}.json")
