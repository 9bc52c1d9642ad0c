"""Proxmox's own view of what lies behind its API, through pvesh. It takes a second or more to start, 100 MB of memory,
and the network where a storage is elsewhere: for commands of an administrator, never for the daemon or a phase."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Final

from pvehook.contract.text import printable
from pvehook.errors import NodeError
from pvehook.host.node import Node

PVESH: Final = "/usr/bin/pvesh"
ANSWER_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""Some 300 bytes for each backup on a storage."""
_ERROR_CHARACTERS: Final = 200


def pvesh_get(node: Node, path: str, options: dict[str, str], within_s: float) -> object:
    """What `pvesh get PATH --KEY VALUE` answers. Raises NodeError where it fails, or takes longer."""
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    command = [node.path(PVESH), "get", path, *words, "--output-format", "json"]
    environment = {**os.environ, "LC_ALL": "C"}  # a storage's client may want more of it, such as HOME
    try:
        # Goes through no shell; a pvesh that hangs in the kernel is left behind, killed.
        done = subprocess.run(command, capture_output=True, timeout=max(within_s, 0.1), env=environment, check=False)  # noqa: S603
    except FileNotFoundError:
        raise NodeError(f"{PVESH} is not there: no Proxmox VE") from None
    except subprocess.TimeoutExpired:
        raise NodeError(f"pvesh get {path} did not answer within {within_s:.0f} s") from None
    except OSError as error:
        raise NodeError(f"{PVESH}: {error.strerror or error}") from error
    if done.returncode != 0:
        why = printable(done.stderr.decode(errors="replace").strip(), _ERROR_CHARACTERS)
        raise NodeError(f"pvesh get {path}: {why or f'exit code {done.returncode}'}")
    if len(done.stdout) > ANSWER_LIMIT_BYTES:
        raise NodeError(f"pvesh get {path}: the answer is over {ANSWER_LIMIT_BYTES} bytes long")
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise NodeError(f"pvesh get {path}: the answer is not JSON") from error
