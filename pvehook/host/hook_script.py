"""What a script that vzdump or we would run is: there, executable, and pvehook's own hook or not."""

from __future__ import annotations

import os
from typing import NamedTuple

from pvehook.host.node import HOOK, Node
from pvehook.host.regular_file import read_regular_file

SCRIPT_LIMIT_BYTES = 1 << 20


class HookScript(NamedTuple):
    path: str
    """As the node spells it."""
    is_file: bool
    is_executable: bool
    is_ours: bool
    calls_ours: bool
    """Another file that names our hook."""


def look_at_script(node: Node, path: str) -> HookScript:
    """Follows links, as vzdump does (`-f` and `-x` in PVE/VZDump.pm). Reads at most 1 MiB; may wait for a file system
    that hangs."""
    script = node.path(path)
    is_ours = path == HOOK or _is_same(script, node.path(HOOK))
    return HookScript(path, os.path.isfile(script), os.access(script, os.X_OK), is_ours, not is_ours and _names(script))


def _is_same(script: str, hook: str) -> bool:
    try:
        return os.path.samefile(script, hook)
    except OSError:
        return False


def _names(script: str) -> bool:
    try:
        return HOOK.encode() in read_regular_file(script, SCRIPT_LIMIT_BYTES)
    except OSError:
        return False  # a script that is not there calls nothing
