#!/usr/bin/env python3
"""What one look into a socket's accept queue costs, both ways, beside few and many other sockets of the node.

    python tests/bench/waiter_cost.py

Median microseconds of `waiters_alive()`, with one client waiting.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TOP = Path(__file__).parent.parent.parent
sys.path.insert(0, str(TOP))

from pvehook.host.node import Node  # noqa: E402  (the path above is where it lies)
from pvehook.host.waiters import SockDiagWatch, SocketTableWatch  # noqa: E402

ROUNDS = 1000
OTHERS = (0, 1000)


def median_us(look: Callable[[], int]) -> float:
    took_ns = []
    for _ in range(ROUNDS):
        began = time.perf_counter_ns()
        look()
        took_ns.append(time.perf_counter_ns() - began)
    return statistics.median(took_ns) / 1000


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.ExitStack() as stack:
        path = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "101.qga")
        listener, client = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
        listener.bind(path)
        listener.listen()
        client.connect(path)
        watches = [stack.enter_context(way(Node(), path)) for way in (SockDiagWatch, SocketTableWatch)]
        for others in OTHERS:
            for _ in range(others):
                stack.enter_context(socket.socket(socket.AF_UNIX))
            for watch in watches:
                print(f"{others:5} more sockets  {watch.via:15} {median_us(watch.waiters_alive):8.1f} us")


if __name__ == "__main__":
    main()
