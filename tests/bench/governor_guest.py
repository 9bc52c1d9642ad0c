"""A guest that is nothing but its disk load, on a real QEMU: what the benches of the governor run.

QEMU (TCG, `microvm`) has a virtio-blk device for each disk, and a vCPU that halts for good. The driver of these devices
is this program: it lays out virtqueues in the guest's memory, which is a shared file, and rings their doorbells through
QEMU's qtest socket, as a guest's kernel would from inside. So each request goes through the device and QEMU's block
layer, is counted by query-blockstats, and waits for copy-before-write; and a bench needs no guest system and no CPU
time for one. The registers are those of the OASIS virtio 1.1 specification, 4.2 (MMIO) and 5.2 (block device).

The load: random places all over the disk, `per_s` requests a second as they come (a request that is late does not hold
up the next one, until 32 are on their way), two writes of 4 KiB and one of 16 KiB for each read of 4 KiB, and a flush
each second.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import select
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Literal, NamedTuple

MIB: Final = 1024 * 1024
MEMORY_BYTES: Final = 16 * MIB
STARTS_WITHIN_S: Final = 20.0
ANSWER_S: Final = 10.0

_MMIO_BASE, _MMIO_STEP, _MMIO_SLOTS = 0xFEB00000, 512, 24
_DEVICE_ID, _FEATURES_SEL, _FEATURES, _QUEUE_SEL, _QUEUE_NUM = 0x008, 0x024, 0x020, 0x030, 0x038
_QUEUE_READY, _NOTIFY, _STATUS = 0x044, 0x050, 0x070
_DESCRIPTORS, _AVAILABLE, _USED = 0x080, 0x090, 0x0A0
_BLOCK_DEVICE = 2
_ACKNOWLEDGE, _DRIVER, _DRIVER_OK, _FEATURES_OK = 1, 2, 4, 8
_BLK_F_FLUSH = 1 << 9
_VERSION_1 = 1 << (32 - 32)
_NEXT, _WRITE = 1, 2
_TYPES: Final = {"read": 0, "write": 1, "flush": 4}

_QUEUE_SIZE = 128
AT_ONCE: Final = 32
"""Requests on their way; each takes three descriptors."""
_BUFFER_BYTES = 16 * 1024
POLL_S: Final = 0.001

Kind = Literal["read", "write", "flush"]


class Load(NamedTuple):
    """What the guest asks of one disk. With `from_s` it is busy from then on, with `on_s` and `every_s` as well for
    `on_s` of every `every_s`, before and after; and at `rest_per_s` in the rest of the time, a flush only where that is
    more than nothing. `from_s` counts from `LoadedGuest.zero_s`."""

    per_s: float = 120.0
    reads: float = 0.25
    seed: int = 1
    from_s: float | None = None
    on_s: float = 0.0
    every_s: float = 0.0
    rest_per_s: float = 0.0

    def per_s_at(self, at_s: float) -> float:
        """How many requests it makes in a second at this time."""
        if self.from_s is None:
            return self.per_s
        is_busy = (at_s - self.from_s) % self.every_s < self.on_s if self.every_s else at_s >= self.from_s
        return self.per_s if is_busy else self.rest_per_s


class Done(NamedTuple):
    """One request. Times are on the monotonic clock; it was wanted before it was sent if too many were on their way."""

    kind: Kind
    wanted_s: float
    done_s: float


class _Qtest:
    """QEMU's qtest socket: `writel ADDRESS VALUE`, `readl ADDRESS`."""

    def __init__(self, path: str) -> None:
        self._socket = _connected(path)
        self._socket.settimeout(ANSWER_S)
        self._stream = self._socket.makefile("rwb")
        self._lock = threading.Lock()

    def write(self, address: int, value: int) -> None:
        self._ask(f"writel {address:#x} {value:#x}")

    def read(self, address: int) -> int:
        return int(self._ask(f"readl {address:#x}").split()[1], 16)

    def _ask(self, line: str) -> str:
        with self._lock:
            self._stream.write(line.encode() + b"\n")
            self._stream.flush()
            answer = self._stream.readline().decode()
        if not answer.startswith("OK"):
            raise RuntimeError(f"qtest: {line}: {answer!r}")
        return answer


class Disk:
    """The driver of one virtio-blk device. Used by one thread."""

    def __init__(self, qtest: _Qtest, memory: mmap.mmap, base: int, area: int, size: int) -> None:
        self._qtest, self._memory, self._base, self.size = qtest, memory, base, size
        self._table, self._available, self._used = area, area + 0x1000, area + 0x2000
        self._headers, self._buffers = area + 0x3000, area + 0x8000
        self._free = list(range(AT_ONCE))
        self._seen = 0
        self._sent = 0
        self._on_their_way: dict[int, tuple[Kind, float]] = {}
        self._bring_up()

    def send(self, kind: Kind, offset: int, length: int, wanted_s: float) -> bool:
        """False: too many are on their way."""
        if not self._free:
            return False
        slot = self._free.pop()
        self._on_their_way[slot] = (kind, wanted_s)
        head, header = 3 * slot, self._headers + 64 * slot
        struct.pack_into("<IIQ", self._memory, header, _TYPES[kind], 0, offset // 512)
        chain = [(header, 16, 0)]
        if kind != "flush":
            chain.append((self._buffers + _BUFFER_BYTES * slot, length, _WRITE if kind == "read" else 0))
        chain.append((header + 32, 1, _WRITE))
        for index, (address, size, flags) in enumerate(chain):
            more = index + 1 < len(chain)
            entry = (address, size, flags | (_NEXT if more else 0), head + index + 1 if more else 0)
            struct.pack_into("<QIHH", self._memory, self._table + 16 * (head + index), *entry)
        struct.pack_into("<H", self._memory, self._available + 4 + 2 * (self._sent % _QUEUE_SIZE), head)
        self._sent += 1
        struct.pack_into("<H", self._memory, self._available + 2, self._sent % 65536)
        self._qtest.write(self._base + _NOTIFY, 0)
        return True

    def completed(self) -> Iterator[tuple[Kind, float]]:
        """What has come back since this was asked last: kind, and when it was wanted."""
        while self._seen % 65536 != struct.unpack_from("<H", self._memory, self._used + 2)[0]:
            head = struct.unpack_from("<I", self._memory, self._used + 4 + 8 * (self._seen % _QUEUE_SIZE))[0]
            self._seen += 1
            slot = head // 3
            if self._memory[self._headers + 64 * slot + 32] != 0:
                raise RuntimeError("the disk answered a request with an error")
            self._free.append(slot)
            yield self._on_their_way.pop(slot)

    def waiting(self) -> list[tuple[Kind, float]]:
        """What is still on its way."""
        return list(self._on_their_way.values())

    def _bring_up(self) -> None:
        put = self._qtest.write
        put(self._base + _STATUS, 0)
        put(self._base + _STATUS, _ACKNOWLEDGE | _DRIVER)
        for half, bits in ((0, _BLK_F_FLUSH), (1, _VERSION_1)):
            put(self._base + _FEATURES_SEL, half)
            put(self._base + _FEATURES, bits)
        put(self._base + _STATUS, _ACKNOWLEDGE | _DRIVER | _FEATURES_OK)
        put(self._base + _QUEUE_SEL, 0)
        put(self._base + _QUEUE_NUM, _QUEUE_SIZE)
        for register, address in (
            (_DESCRIPTORS, self._table),
            (_AVAILABLE, self._available),
            (_USED, self._used),
        ):
            put(self._base + register, address)
            put(self._base + register + 4, 0)
        put(self._base + _QUEUE_READY, 1)
        put(self._base + _STATUS, _ACKNOWLEDGE | _DRIVER | _FEATURES_OK | _DRIVER_OK)


class LoadedGuest:
    """A running QEMU with its load. `done` grows while it runs."""

    def __init__(self, root: str, vmid: int, disks: Sequence[Disk], load: Load, poll_s: float) -> None:
        self.root = root
        self.vmid = vmid
        self.qmp = os.path.join(root, f"var/run/qemu-server/{vmid}.qmp")
        self.qmp_log = _qmp_log(root, vmid)
        self.events = _events_socket(root, vmid)
        self.done: list[Done] = []
        self.zero_s = time.monotonic()
        """What a load that changes counts its time from; may be set while it runs."""
        self.fault: BaseException | None = None
        self._disks = disks
        self._load = load
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guest", daemon=True)
        self._thread.start()

    def stop(self) -> list[Done]:
        """Ends the load; all requests, those that have not come back counted until now."""
        self.end()
        if self.fault is not None:
            raise RuntimeError("the guest's load ended early") from self.fault
        now_s = time.monotonic()
        left = [Done(kind, wanted_s, now_s) for disk in self._disks for kind, wanted_s in disk.waiting()]
        return self.done + left

    def end(self) -> None:
        """Ends the load. Can be called twice."""
        self._stop.set()
        self._thread.join(ANSWER_S)

    def _run(self) -> None:
        try:
            self._ask_for_ever()
        except BaseException as fault:  # told to whoever stops it
            self.fault = fault

    def _ask_for_ever(self) -> None:
        chance = random.Random(self._load.seed)
        now_s = time.monotonic()
        next_s = dict.fromkeys(self._disks, now_s)
        flush_s = now_s + 1.0
        wanted: dict[Disk, list[tuple[Kind, int, int, float]]] = {disk: [] for disk in self._disks}
        while not self._stop.is_set():
            now_s = time.monotonic()
            per_s = self._load.per_s_at(now_s - self.zero_s)
            for disk, queue in wanted.items():
                self.done += [Done(kind, wanted_s, now_s) for kind, wanted_s in disk.completed()]
                if not per_s:
                    next_s[disk] = now_s
                while per_s and next_s[disk] <= now_s:
                    queue.append((*self._request(chance, disk.size), next_s[disk]))
                    next_s[disk] += chance.expovariate(per_s)
                if per_s and now_s >= flush_s:
                    queue.append(("flush", 0, 0, now_s))
                while queue and disk.send(*queue[0]):
                    queue.pop(0)
            if now_s >= flush_s:
                flush_s += 1.0
            time.sleep(self._poll_s)

    def _request(self, chance: random.Random, size: int) -> tuple[Kind, int, int]:
        kind: Kind = "read" if chance.random() < self._load.reads else "write"
        length = 16384 if kind == "write" and chance.random() < 1 / 3 else 4096
        return kind, chance.randrange(size // 16384) * 16384, length


@contextlib.contextmanager
def loaded_guest(
    disks: Mapping[str, int],
    target: Mapping[str, str],
    load: Load,
    *,
    root: str | None = None,
    vmid: int = 101,
    poll_s: float = POLL_S,
) -> Iterator[LoadedGuest]:
    """Starts QEMU with an NBD disk at each socket of `disks` (and its size), and the load. `target`: for each disk the
    socket of what it is backed up to, "" for one that takes all at once. `root`: a node's tree that several guests are
    on; None is one for this guest alone. `poll_s`: how soon the load sees that a request is done."""
    with contextlib.ExitStack() as cleanup:
        if root is None:
            root = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vm-"))
        file = cleanup.enter_context(tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="vm-"))
        Path(root, "var/run/qemu-server").mkdir(parents=True, exist_ok=True)
        file.truncate(MEMORY_BYTES)
        argv = _command_line(root, vmid, file.name, disks, target)
        printed = cleanup.enter_context(tempfile.TemporaryFile())
        process = cleanup.enter_context(_started(argv, root, printed))
        try:
            qtest = _Qtest(_qtest_socket(root, vmid))
        except OSError as error:
            raise RuntimeError(f"QEMU does not start: {_text_of(printed)}") from error
        memory = cleanup.enter_context(mmap.mmap(file.fileno(), MEMORY_BYTES))
        bases = [
            base
            for base in range(_MMIO_BASE, _MMIO_BASE + _MMIO_STEP * _MMIO_SLOTS, _MMIO_STEP)
            if qtest.read(base + _DEVICE_ID) == _BLOCK_DEVICE
        ]
        # QEMU fills the slots from the end.
        drivers = [
            Disk(qtest, memory, base, MIB * (1 + index), size)
            for index, (base, size) in enumerate(zip(reversed(bases), disks.values(), strict=True))
        ]
        Path(root, f"var/run/qemu-server/{vmid}.pid").write_text(f"{process.pid}\n", encoding="ascii")
        guest = LoadedGuest(root, vmid, drivers, load, poll_s)
        try:
            yield guest
        finally:
            guest.end()
        if process.poll() is not None:
            raise RuntimeError(f"QEMU ended early: {_text_of(printed)}")


def _text_of(printed: IO[bytes]) -> str:
    printed.seek(0)
    return printed.read(4096).decode(errors="replace")


def _events_socket(root: str, vmid: int) -> str:
    """A monitor of the bench's own: the guest's is left to vzdump and to us."""
    return os.path.join(root, f"{vmid}.events")


def _qmp_log(root: str, vmid: int) -> str:
    """A line for each command that the guest's monitors are given: `PID@SECONDS:handle_qmp_command mon ... req: {}`."""
    return os.path.join(root, f"{vmid}.qmp-log")


def _qtest_socket(root: str, vmid: int) -> str:
    return os.path.join(root, f"{vmid}.qtest")


def _command_line(
    root: str, vmid: int, memory: str, disks: Mapping[str, int], target: Mapping[str, str]
) -> list[str]:
    firmware = Path(root, "firmware")
    image = bytearray(65536)
    image[0xFFF0:0xFFF4] = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp to the hlt
    firmware.write_bytes(image)
    # `-id VMID`, by which Proxmox's QEMU and we tell VMs apart, as tests/rig/qemu_guest.py says it to a stock QEMU: one
    # more directory for firmware, which does not exist, and a disk image that no device has.
    with open(Path(root, str(vmid)), "wb") as nothing:
        nothing.truncate(512)
    machine = "microvm,rtc=off,pit=off,pic=off,isa-serial=off,x-option-roms=off,memory-backend=ram"
    argv = ["qemu-system-x86_64", "-L", "-id", str(vmid)]
    argv += ["-machine", machine, "-accel", "tcg", "-smp", "1", "-m", f"{MEMORY_BYTES // MIB}"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-bios", str(firmware)]
    argv += ["-object", f"memory-backend-file,id=ram,size={MEMORY_BYTES},mem-path={memory},share=on"]
    argv += ["-global", "virtio-mmio.force-legacy=false"]
    argv += ["-qtest", f"unix:{_qtest_socket(root, vmid)},server=on,wait=off", "-qtest-log", "/dev/null"]
    argv += ["-trace", "enable=handle_qmp_command", "-msg", "timestamp=on", "-D", _qmp_log(root, vmid)]
    for path in (os.path.join(root, f"var/run/qemu-server/{vmid}.qmp"), _events_socket(root, vmid)):
        argv += ["-qmp", f"unix:{path},server=on,wait=off"]
    for index, (path, size) in enumerate(disks.items()):
        argv += ["-blockdev", f"nbd,node-name=drive-virtio{index},server.type=unix,server.path={path}"]
        argv += ["-device", f"virtio-blk-device,drive=drive-virtio{index},id=virtio{index}"]
        backend = f"nbd,server.type=unix,server.path={target[path]}" if target[path] else f"null-co,size={size}"
        argv += ["-blockdev", f"{backend},node-name=target{index}"]
    return argv


@contextlib.contextmanager
def _started(argv: Sequence[str], directory: str, stderr: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=stderr, cwd=directory) as process:
        try:
            yield process
        finally:
            process.kill()


def _connected(path: str) -> socket.socket:
    until_s = time.monotonic() + STARTS_WITHIN_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            if time.monotonic() > until_s:
                raise
            select.select([], [], [], 0.02)
        else:
            return connection
