"""Exceptions from the window: `pvehook allow`. One small file each under /run/pvehook/allow; they expire.

    /run/pvehook/allow/k3f9.json
        {"vmids": [101], "until_s": 1795312800.0, "reason": "restore test", "who": "root"}

No vmids means every guest. A reboot ends all exceptions, which errs on the safe side. Stdlib only: the hook
reads them too when no daemon answers.
"""

from __future__ import annotations

import json
import os

from pvehook.host.node import Node
from pvehook.host.regular_file import DAMAGED, files_in, read_regular_file, remove_file, replace_file
from pvehook.rules.admission import Allowance

FILE_LIMIT_BYTES = 64 * 1024
LONGEST_S = 7 * 24 * 3600
"""Longer exceptions belong into the configuration."""


def path_of(node: Node, identifier: str) -> str:
    return os.path.join(node.run_dir, "allow", f"{identifier}.json")


def in_force(node: Node, at_s: float) -> list[Allowance]:
    """The exceptions that hold at one instant, which may be in the future. Nothing is changed. A file that cannot be
    read, or whose end `pvehook allow` would never write, does not count: a wrong refusal costs one backup, a wrong
    permission harms the guests."""
    return [each for each in _all(node) if at_s < each.until <= at_s + LONGEST_S]


def _all(node: Node) -> list[Allowance]:
    return list(filter(None, map(_read, files_in(os.path.dirname(path_of(node, "")), ".json"))))


def drop_expired(node: Node, now_s: float) -> None:
    """Deletes the files of expired exceptions. `now_s` is the real clock's, never a time asked about."""
    for each in _all(node):
        if each.until <= now_s:
            remove_file(path_of(node, each.id))


def grant(node: Node, allowance: Allowance) -> None:
    vmids, until_s, reason, who = list(allowance.vmids), allowance.until, allowance.reason, allowance.who
    body = {"vmids": vmids, "until_s": until_s, "reason": reason, "who": who}
    replace_file(path_of(node, allowance.id), json.dumps(body) + "\n")


def revoke(node: Node, identifier: str) -> bool:
    """Ends an exception early; False when there is none of that name."""
    return identifier.isalnum() and remove_file(path_of(node, identifier))


def _read(path: str) -> Allowance | None:
    try:
        body = json.loads(read_regular_file(path, FILE_LIMIT_BYTES))
        vmids = body["vmids"]
        if not isinstance(vmids, list) or not all(isinstance(vmid, int) for vmid in vmids):
            return None  # anything else that is empty would allow every guest
        return Allowance(
            id=os.path.basename(path).removesuffix(".json"),
            vmids=tuple(vmids),
            until=float(body["until_s"]),
            reason=str(body["reason"]),
            who=str(body["who"]),
        )
    except DAMAGED:
        return None
