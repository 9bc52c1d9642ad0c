"""Disks as the benches model them: a queue, so many requests at once, so long for each.

    RAID          four disks behind one queue: 5 ms to find a place, 30 MB/s each
    ONE_DISK      one slow disk: 8 ms to find a place, then 120 MB/s
    FAST_DISK     flash: 32 requests at once, 0.2 ms each
    FAR_TARGET    takes whatever comes, and answers each request a quarter of a second later, however few there are
    NARROW_TARGET 25 MB/s, one request after the other

A request is served in the order in which it came, by the first server that is free. It costs the time to find its
place, unless it goes on where the server's last one ended, and the time for its bytes. A flush costs finding a place.
`neighbour_per_s` is load of others on the same disk: 256 KiB at random places, in bursts of two seconds out of four.

The arithmetic alone (`Queue`) is what tests/rules simulate the governor with. `served_disk` is the same behind an NBD
socket, which a real QEMU opens as its disk: it answers each request when the arithmetic says so, keeps no contents (all
zeros), and runs in a process of its own.
"""

from __future__ import annotations

import heapq
import random
from typing import Final, Literal, NamedTuple

MIB: Final = 1024 * 1024
Kind = Literal["read", "write", "flush"]


class DiskModel(NamedTuple):
    """What a disk is like."""

    servers: int
    place_s: float
    """To find a place: on average; the single one takes from half of it to one and a half."""
    bytes_per_s: float
    """Of one server."""
    neighbour_per_s: float = 0.0


RAID: Final = DiskModel(servers=4, place_s=0.005, bytes_per_s=30e6)
ONE_DISK: Final = DiskModel(servers=1, place_s=0.008, bytes_per_s=120e6)
FAST_DISK: Final = DiskModel(servers=32, place_s=0.0002, bytes_per_s=60e6)
FAR_TARGET: Final = DiskModel(servers=256, place_s=0.25, bytes_per_s=500e6)
NARROW_TARGET: Final = DiskModel(servers=1, place_s=0.001, bytes_per_s=25e6)

NEIGHBOURS_BYTES: Final = 256 * 1024
NEIGHBOUR_ON_S, NEIGHBOUR_EVERY_S = 2.0, 4.0


class Queue:
    """The arithmetic: when is a request done that comes now? Requests have to come in the order of their times."""

    def __init__(self, model: DiskModel, seed: int) -> None:
        self._model = model
        self._chance = random.Random(seed)
        self._free_at_s = [(0.0, server) for server in range(model.servers)]
        self._ended_at = [-1] * model.servers
        self._neighbour_s = 0.0

    def done_s(self, now_s: float, kind: Kind, offset: int, length: int) -> float:
        """The time at which this request is answered."""
        self._let_neighbours_in(now_s)
        return self._serve(now_s, kind, offset, length)

    def _serve(self, now_s: float, kind: Kind, offset: int, length: int) -> float:
        free_s, server = heapq.heappop(self._free_at_s)
        service_s = length / self._model.bytes_per_s
        if kind == "flush" or offset != self._ended_at[server]:
            service_s += self._model.place_s * self._chance.uniform(0.5, 1.5)
        self._ended_at[server] = offset + length
        done_s = max(now_s, free_s) + service_s
        heapq.heappush(self._free_at_s, (done_s, server))
        return done_s

    def _let_neighbours_in(self, now_s: float) -> None:
        per_s = self._model.neighbour_per_s
        if not per_s:
            return
        if now_s - self._neighbour_s > NEIGHBOUR_EVERY_S:
            self._neighbour_s = now_s  # nobody asked for a while: what others did then is over
        while self._neighbour_s <= now_s:
            if self._neighbour_s % NEIGHBOUR_EVERY_S < NEIGHBOUR_ON_S:
                self._serve(self._neighbour_s, "read", self._chance.randrange(2**40), NEIGHBOURS_BYTES)
            self._neighbour_s += self._chance.expovariate(per_s)
