"""Disks as the benches model them: a queue, so many requests at once, so long for each.

    RAID          four disks behind one queue: 5 ms to find a place, 30 MB/s each
    ONE_DISK      one slow disk: 8 ms to find a place, then 120 MB/s
    FAST_DISK     flash: 32 requests at once, 0.2 ms each
    FAR_TARGET    takes whatever comes, and answers each request 120 ms later, however few there are
    NARROW_TARGET 25 MB/s, one request after the other

A request is served in the order in which it came, by the first server that is free. It costs the time to find its
place, unless it goes on where the server's last one ended, and the time for its bytes. A flush costs finding a place.
`neighbour_per_s` is load of others on the same disk: 256 KiB at random places, in bursts of two seconds out of four.

The arithmetic alone (`Queue`) is what tests/rules simulate the governor with. `served_disk` is the same behind an NBD
socket, which a real QEMU opens as its disk: it answers each request when the arithmetic says so, keeps no contents (all
zeros), and runs in a process of its own. Where it is asked to, it counts what comes by each socket and writes that as
the kernel shows a block device's counters, so that each socket looks like a volume of its own on that disk.
"""

from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
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
FAR_TARGET: Final = DiskModel(servers=256, place_s=0.12, bytes_per_s=500e6)
NARROW_TARGET: Final = DiskModel(servers=1, place_s=0.001, bytes_per_s=25e6)

LATE_S: Final = 0.1


def stalled_s(requests: Iterable[tuple[float, float]], until_s: float = float("inf")) -> float:
    """Seconds in which a request was over 100 ms old, of requests (when it was wanted, when it was done)."""
    total = ended_s = 0.0
    for wanted_s, done_s in sorted(requests):
        late_s = max(wanted_s + LATE_S, ended_s)
        total += max(min(done_s, until_s) - late_s, 0.0)
        ended_s = max(ended_s, done_s)
    return total


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


# The same behind a socket: QEMU's own block layer opens it as a disk (nbd driver). The protocol is the one of
# github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md: fixed newstyle, simple replies.

_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_REQUEST_MAGIC, _SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPTION_GO, _ACK, _INFO, _UNSUPPORTED = 7, 1, 3, 0x80000001
_HAS_FLAGS, _SEND_FLUSH = 1, 4
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_REQUEST = struct.Struct(">IHHQQI")
_KINDS: Final[Mapping[int, Kind]] = {_READ: "read", _WRITE: "write", _FLUSH: "flush"}

_ZEROES = bytes(32 * MIB)
"""No request of QEMU's is larger (NBD_MAX_BUFFER_SIZE of its nbd.h)."""
STARTS_WITHIN_S = 10.0


COUNTERS_EVERY_S: Final = 0.05


class VolumeCounters:
    """What came by one socket, in a directory's `stat` and `inflight`, with the columns of the kernel's
    Documentation/block/stat.rst. The kernel makes these files anew at each reading, this program every 50 ms."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, exist_ok=True)
        names = ("stat", "inflight")
        self._stat, self._inflight = (os.open(os.path.join(directory, each), os.O_CREAT | os.O_RDWR) for each in names)
        self._done: dict[Kind, list[float]] = {"read": [0, 0, 0.0], "write": [0, 0, 0.0], "flush": [0, 0, 0.0]}
        """Requests, bytes, seconds from coming to being answered."""
        self._now: dict[Kind, int] = {"read": 0, "write": 0, "flush": 0}
        self._busy_s = self._changed_s = 0.0
        self.write(0.0)

    def begins(self, kind: Kind, now_s: float) -> None:
        self._let_pass(now_s)
        self._now[kind] += 1

    def ends(self, kind: Kind, length: int, began_s: float, now_s: float) -> None:
        self._let_pass(now_s)
        self._now[kind] -= 1
        for index, more in enumerate((1, length, now_s - began_s)):
            self._done[kind][index] += more

    def write(self, now_s: float) -> None:
        """Over what is there, as long as that: whoever keeps the file open sees it too."""
        self._let_pass(now_s)
        columns: list[float] = []
        for operations, length, seconds in (self._done["read"], self._done["write"]):
            columns += [operations, 0, length // 512, 1000 * seconds]
        all_s = sum(seconds for _, _, seconds in self._done.values())
        columns += [sum(self._now.values()), 1000 * self._busy_s, 1000 * all_s, 0, 0, 0, 0]
        columns += [self._done["flush"][0], 1000 * self._done["flush"][2]]
        os.pwrite(self._stat, (" ".join(f"{int(each):10}" for each in columns) + "\n").encode(), 0)
        writes = self._now["write"] + self._now["flush"]
        os.pwrite(self._inflight, f"{self._now['read']:8} {writes:8}\n".encode(), 0)

    def _let_pass(self, now_s: float) -> None:
        if any(self._now.values()):
            self._busy_s += now_s - self._changed_s
        self._changed_s = now_s


@contextlib.contextmanager
def served_disk(
    model: DiskModel, sizes: Mapping[str, int], seed: int, counters: Mapping[str, str] | None = None
) -> Iterator[None]:
    """One disk, seen as an NBD export of `sizes[path]` bytes at each unix socket, until the block is left. `counters`:
    for a socket the directory of its block device's counters (`VolumeCounters`)."""
    listeners = {}
    for path, size in sizes.items():
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(4)
        listeners[listener] = size, VolumeCounters(counters[path]) if counters and path in counters else None
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(model, listeners, seed), daemon=True)
    process.start()
    for listener in listeners:
        listener.close()
    try:
        yield
    finally:
        process.kill()
        process.join(STARTS_WITHIN_S)
        for path in sizes:
            os.unlink(path)


class _Client:
    """One connection. `skip` bytes of a write are still to come, and are thrown away."""

    def __init__(self, connected: socket.socket, counters: VolumeCounters | None) -> None:
        self.socket = connected
        self.counters = counters
        self.received = bytearray()
        self.skip = 0
        self.write: tuple[bytes, int, int] | None = None


def _serve(
    model: DiskModel, listeners: Mapping[socket.socket, tuple[int, VolumeCounters | None]], seed: int
) -> None:
    queue = Queue(model, seed)
    answers: list[tuple[float, int, _Client, bytes, Kind, int, float]] = []
    counted = [counters for _, counters in listeners.values() if counters is not None]
    written_s = 0.0
    clients: dict[socket.socket, _Client] = {}
    number = 0
    scratch = memoryview(bytearray(4 * MIB))
    while True:
        now_s = time.monotonic()
        if counted and now_s >= written_s + COUNTERS_EVERY_S:
            written_s = now_s
            for counters in counted:
                counters.write(now_s)
        until_s = [answers[0][0]] if answers else []
        until_s += [written_s + COUNTERS_EVERY_S] if counted else []
        wait_s = max(min(until_s) - now_s, 0.0) if until_s else None
        for ready in select.select([*listeners, *clients], [], [], wait_s)[0]:
            if ready in listeners:
                connected, _ = ready.accept()
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * MIB)
                size, counters_of = listeners[ready]
                shake_hands(connected, size)
                clients[connected] = _Client(connected, counters_of)
                continue
            client = clients[ready]
            try:
                got = ready.recv_into(scratch)
            except OSError:  # QEMU was ended in the middle
                got = 0
            if not got:
                del clients[ready]
                ready.close()
                continue
            for handle, kind, offset, length in _requests(client, scratch[:got]):
                number += 1
                now_s = time.monotonic()
                done_s = queue.done_s(now_s, kind, offset, length)
                heapq.heappush(answers, (done_s, number, client, handle, kind, length, now_s))
                if client.counters is not None:
                    client.counters.begins(kind, now_s)
        while answers and answers[0][0] <= time.monotonic():
            _, _, client, handle, kind, length, came_s = heapq.heappop(answers)
            if client.counters is not None:
                client.counters.ends(kind, length, came_s, time.monotonic())
            if client.socket in clients:
                _answer(client, handle, length if kind == "read" else 0)


def _answer(client: _Client, handle: bytes, length: int) -> None:
    try:
        client.socket.sendall(struct.pack(">II", _SIMPLE_REPLY_MAGIC, 0) + handle)
        client.socket.sendall(memoryview(_ZEROES)[:length])
    except OSError:
        pass  # QEMU was ended; the next look at the socket finds that out


def _requests(client: _Client, data: memoryview) -> Iterator[tuple[bytes, Kind, int, int]]:
    """The requests that are complete with these bytes: handle, kind, offset, length."""
    while data or (client.write is not None and not client.skip):
        if client.skip:
            skipped = min(client.skip, len(data))
            client.skip -= skipped
            data = data[skipped:]
        if client.write is not None and not client.skip:
            handle, offset, length = client.write
            client.write = None
            yield handle, "write", offset, length
        if client.skip:
            continue
        wanted = _REQUEST.size - len(client.received)
        client.received += data[:wanted]
        data = data[wanted:]
        if len(client.received) < _REQUEST.size:
            continue
        magic, _, command, handle, offset, length = _REQUEST.unpack(client.received)
        client.received.clear()
        if magic != _REQUEST_MAGIC:
            raise ValueError("QEMU and this server do not mean the same by NBD")
        name = struct.pack(">Q", handle)
        if command == _WRITE:
            client.skip, client.write = length, (name, offset, length)
        elif command != _DISCONNECT:
            yield name, _KINDS[command], offset, length


def shake_hands(connected: socket.socket, size: int) -> None:
    connected.sendall(struct.pack(">QQH", _MAGIC, _OPTION_MAGIC, _FIXED_NEWSTYLE | _NO_ZEROES))
    exactly(connected, 4)  # the client's flags
    while True:
        _, option, length = struct.unpack(">QII", exactly(connected, 16))
        exactly(connected, length)
        head = struct.pack(">QI", _REPLY_MAGIC, option)
        if option != _OPTION_GO:
            connected.sendall(head + struct.pack(">II", _UNSUPPORTED, 0))
            continue
        export = struct.pack(">HQH", 0, size, _HAS_FLAGS | _SEND_FLUSH)
        connected.sendall(head + struct.pack(">II", _INFO, len(export)) + export)
        connected.sendall(head + struct.pack(">II", _ACK, 0))
        return


def exactly(connected: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = connected.recv(length - len(data))
        if not more:
            raise ConnectionError("QEMU went away while shaking hands")
        data += more
    return data
