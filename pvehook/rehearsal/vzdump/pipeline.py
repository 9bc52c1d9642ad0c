"""The child processes of one archive: `zstd` for a VM, `tar` and `zstd` for a container. Real ones.

On a node QEMU writes the VM's data to the compressor's stdin; here the worker does, a little at each step.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from typing import IO

from pvehook.rehearsal.vzdump.commands import CommandError

CHUNK_BYTES = 64 * 1024
_HELD_TAR_BYTES = 8 * CHUNK_BYTES
"""What is taken from tar while the archive is held. There is more to take, so tar stays alive."""
_TREE_BYTES = 64 * CHUNK_BYTES
_END_S = 30.0


class Pipeline:
    """Children from start to finish (or abort). The output file is the archive."""

    def __init__(self, output: str, compress: bool, tree: str | None) -> None:
        """`tree`: a directory for tar to pack, made by us when it is missing; None for a VM."""
        self.pids: dict[str, int] = {}
        """What runs, by name."""
        self._children: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._taken_bytes = 0
        self._sink: IO[bytes] = open(output, "wb", buffering=0)  # noqa: SIM115 - closed in _end
        self._tar: subprocess.Popen[bytes] | None = None
        if compress:
            compressor = compressor_command()
            process = self._start(compressor, stdin=subprocess.PIPE, stdout=self._sink)
            self._sink.close()
            assert process.stdin is not None  # noqa: S101 - a pipe, as requested above
            self._sink = process.stdin
        if tree is not None:
            _fill(tree)
            tar = ["tar", "cpf", "-", "--one-file-system", "--numeric-owner", "-C", tree, "."]
            self._tar = self._start(tar, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def step(self, held: bool) -> bool:
        """Move one chunk; False when the source has no more to give now. A VM's source never ends."""
        try:
            if self._tar is None:
                self._sink.write(os.urandom(CHUNK_BYTES))
                return True
            if held and self._taken_bytes >= _HELD_TAR_BYTES:
                return False
            assert self._tar.stdout is not None  # noqa: S101 - a pipe
            data = self._tar.stdout.read(CHUNK_BYTES)
            self._taken_bytes += len(data)
            self._sink.write(data)
        except BrokenPipeError:
            name, process = self._children[0]
            raise CommandError(f"{name} failed - {process.wait(_END_S)}") from None
        return bool(data)

    def finish(self) -> None:
        """The rest, and the ends of all children. Raises CommandError as PVE words it."""
        while self._tar is not None and self.step(held=False):
            pass
        self._sink.close()
        for name, process in self._children:
            code = process.wait(_END_S)
            if code != 0:
                raise CommandError(f"{name} failed - wrong exit status {code}")

    def abort(self) -> None:
        """End the children that still run, as PVE does: with SIGKILL."""
        for _, process in self._children:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait(_END_S)
        self._sink.close()

    def _start(self, command: list[str], stdin: int, stdout: int | IO[bytes]) -> subprocess.Popen[bytes]:
        null = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=null)
        self._children.append((" ".join(command), process))
        self.pids[command[0]] = process.pid
        return process


def compressor_command() -> list[str]:
    """PVE's call of zstd; gzip where there is none."""
    if shutil.which("zstd", path=os.defpath):
        return ["zstd", "--rsyncable", "--threads=2"]
    return ["gzip", "--rsyncable"]


def _fill(tree: str) -> None:
    """A container's file system, more than fits into a pipe and what is taken while held."""
    if not os.path.isdir(tree):
        os.makedirs(os.path.join(tree, "var"))
        with open(os.path.join(tree, "var", "data"), "wb") as data:
            data.write(os.urandom(_TREE_BYTES))
