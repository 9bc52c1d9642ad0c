"""What guests told of themselves when they were last started, for when they are off or their agents silent.

    /var/lib/pvehook/guests/101.json     {"at_s": 1795312800.0, "agent_version": "7.2.22", "blocked": [], ...}
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Final

from pvehook.contract.guest_facts import GuestFacts
from pvehook.host.node import Node
from pvehook.host.regular_file import DAMAGED, files_in, read_regular_file, remove_file, replace_file
from pvehook.records.encoding import decode, encode

GUESTS_KEPT: Final = 1000
"""Of more, those go whose facts are the oldest. A file has some 2 KB."""
_LIMIT_BYTES: Final = 64 * 1024


def keep_guest_facts(node: Node, vmid: int, facts: GuestFacts) -> None:
    """In place of what was kept of this guest. Raises OSError."""
    replace_file(_path(node, vmid), json.dumps(encode(facts)))
    files = files_in(_directory(node), ".json")
    if len(files) > GUESTS_KEPT:
        for path in sorted(files, key=_changed_s)[:-GUESTS_KEPT]:
            remove_file(path)


def kept_guest_facts(node: Node, vmid: int) -> GuestFacts | None:
    """None: nothing was kept, or it is damaged."""
    try:
        facts: GuestFacts = decode(GuestFacts, json.loads(read_regular_file(_path(node, vmid), _LIMIT_BYTES)))
    except DAMAGED:
        return None
    return facts


def _directory(node: Node) -> str:
    return os.path.join(node.state_dir, "guests")


def _path(node: Node, vmid: int) -> str:
    return os.path.join(_directory(node), f"{vmid}.json")


def _changed_s(path: str) -> float:
    with contextlib.suppress(OSError):
        return os.stat(path).st_mtime
    return 0.0
