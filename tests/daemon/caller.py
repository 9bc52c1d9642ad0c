"""Hook calls without the hook: from a child of the worker that they name, as the daemon demands."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import Self

from tests.node_under_test import NodeUnderTest

PROGRAM = """
import json, os, socket, sys, time
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
for line in sys.stdin:
    within_s, *argv = line.split()
    with socket.socket(socket.AF_UNIX) as call:
        call.settimeout(float(within_s))
        until = time.monotonic() + float(within_s)
        call.connect(sys.argv[1])
        env = {"STOREID": "local", "VMTYPE": "qemu", "HOSTNAME": "web"}
        request = {"v": 1, "argv": argv, "env": env, "worker": os.getppid(), "until": until}
        call.sendall(json.dumps(request).encode() + b"\\n")
        reply = b""
        try:
            while chunk := call.recv(65536):
                reply += chunk
        except TimeoutError:
            reply = b"too late"
    print(json.dumps(reply.decode()), flush=True)
"""


class Caller:
    """A worker and its child that calls. The worker lives until the end of the block."""

    def __init__(self, node: NodeUnderTest) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-IS", "-c", PROGRAM, node.node.hook_socket],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=60)

    def call(self, *argv: str, within_s: float = 60.0) -> str:
        """The daemon's reply to one call, as JSON text; `too late` when it was not there in time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(within_s, *argv, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()

    def guest(self, vmid: int, *phases: str, within_s: float = 60.0) -> None:
        """Phases of a guest in mode snapshot, each of which must be answered in time."""
        for phase in phases:
            reply = self.call(phase, "snapshot", str(vmid), within_s=within_s)
            assert "exit 0" in reply, (phase, vmid, reply)
