#!/usr/bin/env python3
"""A guest and its archive on one slow disk: what the guest waits with and without the writeback pacer.

    python tests/bench/pacer.py [--json] [--rounds N] [--ways WAY,...] [--mib N] [--cache-mib N] [--step-mib N]

    one slow disk with one queue (pacer_disk.py)
      ├─ partition 1: ext4 <── x.vma.dat <── zstd <── pipe <── the archive's writer <── backup job, 1 or 16 workers
      └─ partition 2: a raw volume, opened O_DIRECT by qemu-storage-daemon <── NBD <──┐        │
                                                      QEMU with a virtio-blk device ──┴────────┘
                                                                   the guest's load (governor_guest.py)

Real: QEMU's device, block layer and backup job with copy-before-write; zstd; the page cache, its writeback and limits;
ext4; the block layer with mq-deadline and writeback throttling; pvehook's own Pacer and Governor. The bench's models:
the disk (described there), the guest (60 requests a second at random places, two of three are writes of 4 and 16 KiB,
and a flush each second), and an archive without PVE's headers: what the job writes goes into the pipe as it comes. Half
of the volume can be compressed away.

A node's limits for dirty pages are a part of its memory, and its archives are larger than those. So that minutes become
seconds both are scaled down: the archive's device may have `--cache-mib` dirty, by the kernel's own limit for one
device (/sys/class/bdi, strict), and the kernel begins to write back at half of it. `--cache-mib 0 --mib 2560` is not
scaled: the limits are this machine's, and the kernel writes out what is 30 s old; a run takes over a minute, and the
disk 6 GiB of memory. Either way writeback throttling lets no more than some 25 MiB of a burst into the disk's queue.

pvehook finds no disk under a loop device whose file is a FUSE's, so the bench tells the pacer which it is.

    idle                the guest without a backup
    w16, w16-paced      PVE's default of 16 workers, without and with the pacer
    w1, w1-paced        one worker
    w1-thrown           one worker, and the archive is thrown away: the best that any care for its writeback can reach.
                        What is slow then is the guest's own: its writes wait in line for copy-before-write reads
    w1-paced-governed   pacer and governor; w16-paced-governed the same with 16 workers

The ways take turns, forwards and backwards. `duration_s`: from the job's start to the archive's final name. `p99_ms` of
all of the guest's requests, from when it wanted them, `write_p99_ms` of its writes; `stalled_s`: time in which one of
them was over 100 ms old. `left_dirty_mib`: what the kernel had still to write out when the archive was complete.
Median, least, most.

Needs root, /dev/fuse, a free loop device and 3 GiB of memory. Stopped in the middle of a run it can leave a partition
on its loop device, which the next one stumbles over: `delpart /dev/loopN 1`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

TOP = Path(__file__).parent.parent.parent
sys.path.insert(0, str(TOP))

from pvehook.contract.disks import Disk, Location  # noqa: E402
from pvehook.deadline import Deadline  # noqa: E402
from pvehook.guest.qmp import open_qmp  # noqa: E402  (the path above is where it lies)
from pvehook.guest.validate import items, mapping  # noqa: E402
from pvehook.host.node import Node  # noqa: E402
from pvehook.host.timely_files import TimelyReader  # noqa: E402
from pvehook.host.volumes import Backup  # noqa: E402
from pvehook.records.journal import journal_log  # noqa: E402
from pvehook.records.stall_record import Baseline  # noqa: E402
from pvehook.rules.pacing import PacerRecord, growing_file  # noqa: E402
from pvehook.rules.stalls import HypervisorView  # noqa: E402
from pvehook.settings import PacerConfig  # noqa: E402
from pvehook.throttle.pacer import Pacer  # noqa: E402
from pvehook.watch.disk_sampler import DiskSampler  # noqa: E402
from tests.bench.daemon_sampler import sampled  # noqa: E402
from tests.bench.disk_models import exactly, shake_hands, stalled_s  # noqa: E402
from tests.bench.governor_guest import Load, LoadedGuest, loaded_guest  # noqa: E402
from tests.bench.pacer_disk import MIB, served_disk  # noqa: E402
from tests.host.loop_disk import cached  # noqa: E402

SECTOR = 512
RATE_MIB_PER_S, LONG_SEEK_MS, SHORT_SEEK_MS = 150.0, 5.0, 0.5
BEFORE_S: Final = 3.0
AWAITED_S: Final = 0.5
"""The pacer begins so long before the job, as it does in a run."""
IDLE_S: Final = 15.0
RUN_AT_MOST_S: Final = 240.0
VMID = 101


class Way(NamedTuple):
    """How a backup is made."""

    workers: int
    paced: bool = False
    governed: bool = False
    thrown: bool = False


WAYS: Final = {
    "idle": None,
    "w16": Way(16),
    "w16-paced": Way(16, paced=True),
    "w1": Way(1),
    "w1-paced": Way(1, paced=True),
    "w1-thrown": Way(1, thrown=True),
    "w1-paced-governed": Way(1, paced=True, governed=True),
    "w16-paced-governed": Way(16, paced=True, governed=True),
}


class Run(NamedTuple):
    """One run of one way."""

    duration_s: float
    p50_ms: float
    p99_ms: float
    write_p99_ms: float
    max_ms: float
    stalled_s: float
    archive_mib: float = 0.0
    left_dirty_mib: float = 0.0
    paced: PacerRecord | None = None
    slowed_s: float = 0.0


class Rig(NamedTuple):
    """What all runs share."""

    work: Path
    dump: Path
    volume: str
    """The socket at which the guest's volume is served."""
    volume_bytes: int
    step_mib: int


def run_one(rig: Rig, name: str, seed: int) -> Run:
    """One run, with a QEMU of its own and an empty dump directory."""
    way = WAYS[name]
    load = Load(per_s=60, reads=1 / 3, seed=seed)
    if way is None:
        with loaded_guest({rig.volume: rig.volume_bytes}, {rig.volume: ""}, load) as guest:
            time.sleep(BEFORE_S)
            began_s = time.monotonic()
            time.sleep(IDLE_S)
            return run_of(guest, began_s, time.monotonic())
    target = rig.dump / f"vzdump-qemu-{VMID}-2026_11_22-02_10_00.vma.zst"
    with (
        archive_writer(rig, None if way.thrown else Path(growing_file(str(target)) or "")) as writer,
        loaded_guest({rig.volume: rig.volume_bytes}, {rig.volume: writer.socket}, load) as guest,
    ):
        time.sleep(BEFORE_S)
        pacer = pacer_of(rig, target, "on" if way.paced else "off")
        baseline = before(guest) if way.governed else None
        pacer.start()
        time.sleep(AWAITED_S)
        with sampled(guest.root, lambda _: baseline) if baseline is not None else contextlib.nullcontext() as found:
            began_s = time.monotonic()
            back_up(guest, way.workers)
            writer.finish(target)
            ended_s = time.monotonic()
        dirty = cached(target)[1:] if target.exists() else (0, 0)
        pacer.stop()
        figures = run_of(guest, began_s, ended_s)._replace(left_dirty_mib=sum(dirty) / MIB, paced=pacer.record)
        if found is not None and found.views.governor is not None:
            figures = figures._replace(slowed_s=found.views.governor.slowed_s)
    if not way.thrown:
        figures = figures._replace(archive_mib=target.stat().st_size / MIB)
        target.unlink()
    return figures


def run_of(guest: LoadedGuest, began_s: float, ended_s: float) -> Run:
    """Ends the guest's load. What its requests of this time tell."""
    done = [each for each in guest.stop() if began_s <= each.wanted_s < ended_s]
    took_ms = sorted((each.done_s - each.wanted_s) * 1000 for each in done)
    writes_ms = sorted((each.done_s - each.wanted_s) * 1000 for each in done if each.kind == "write")
    return Run(
        ended_s - began_s,
        took_ms[len(took_ms) // 2],
        took_ms[int(0.99 * (len(took_ms) - 1))],
        writes_ms[int(0.99 * (len(writes_ms) - 1))],
        took_ms[-1],
        stalled_s([(each.wanted_s, each.done_s) for each in done], ended_s),
    )


def pacer_of(rig: Rig, target: Path, mode: Any) -> Pacer:
    node = Node(str(rig.work))
    log = journal_log(node.journal_socket, stderr=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    backup = Backup(VMID, "qemu", "snapshot", None, str(rig.dump))
    return Pacer(Node("/"), TimelyReader(), log, backup, str(target), PacerConfig(mode, rig.step_mib))


def before(guest: LoadedGuest) -> Baseline:
    """How the guest is without a backup, as pvehook finds it out."""
    watch = DiskSampler(guest.qmp, time.time, lambda *_: None, None)
    watch.sample()
    time.sleep(BEFORE_S)
    watch.end(Deadline.after(RUN_AT_MOST_S))
    view = watch.view()
    assert isinstance(view, HypervisorView), view
    (point,) = watch.chart.points()[-1:]  # from the one look to the other
    return Baseline(BEFORE_S, "before", view.read, view.write, view.flush, point.p99_ms)


def back_up(guest: LoadedGuest, workers: int) -> None:
    """One job, from its start until its target is closed."""
    job = {"job-id": "drive-virtio0", "device": "drive-virtio0", "target": "target0", "sync": "full"}
    deadline = Deadline.after(RUN_AT_MOST_S)
    with open_qmp(guest.qmp, deadline) as qmp:
        how = {"auto-dismiss": False, "x-perf": {"max-workers": workers}}
        qmp.execute("blockdev-backup", {**job, **how}, deadline=deadline)
    while True:
        time.sleep(0.05)  # closed in between, as vzdump does: others want QEMU's ear too
        with open_qmp(guest.qmp, deadline) as qmp:
            (seen,) = items(qmp.execute("query-jobs", deadline=deadline), source="query-jobs")
            shown = mapping(seen, source="query-jobs")
            if shown["status"] == "concluded":
                qmp.execute("blockdev-del", {"node-name": "target0"}, deadline=deadline)
                break
    if "error" in shown:
        raise SystemExit(f"the backup failed: {shown['error']}")


class ArchiveWriter:
    """zstd and what feeds it."""

    def __init__(self, path: str, process: multiprocessing.process.BaseProcess, zstd: subprocess.Popen[bytes]) -> None:
        self.socket = path
        self._process, self._zstd = process, zstd
        self._file: Path | None = None

    def finish(self, target: Path) -> None:
        """Waits until all is written, and gives the file its name."""
        self._process.join(RUN_AT_MOST_S)
        if self._zstd.wait(RUN_AT_MOST_S) != 0:
            raise SystemExit("zstd failed")
        growing = Path(growing_file(str(target)) or "")
        if growing.exists():
            growing.rename(target)


@contextlib.contextmanager
def archive_writer(rig: Rig, file: Path | None) -> Iterator[ArchiveWriter]:
    """PVE's archive writer: whatever the job writes goes into zstd's pipe, in the order it comes. None: thrown away."""
    path = str(rig.work / "archive.sock")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1)
    with open(file or os.devnull, "wb") as output:
        zstd = subprocess.Popen(["zstd", "-q", "--threads=1", "-c"], stdin=subprocess.PIPE, stdout=output)
    assert zstd.stdin
    arguments = (listener, rig.volume_bytes, zstd.stdin.fileno())
    process = multiprocessing.get_context("fork").Process(target=write_archive, args=arguments, daemon=True)
    process.start()
    listener.close()
    zstd.stdin.close()
    try:
        yield ArchiveWriter(path, process, zstd)
    finally:
        process.kill()
        process.join()
        zstd.kill()
        zstd.wait()
        os.unlink(path)


def write_archive(listener: socket.socket, size: int, pipe: int) -> None:
    """Takes one client's writes until it leaves. A full pipe keeps it waiting, as it does PVE's QEMU."""
    connection, _ = listener.accept()
    shake_hands(connection, size)
    request = struct.Struct(">IHHQQI")  # magic, flags, command, handle, offset, length
    read, write, disconnect = 0, 1, 2
    while True:
        _, _, command, handle, _, length = request.unpack(exactly(connection, request.size))
        if command == disconnect:
            return
        data = memoryview(exactly(connection, length)) if command == write else memoryview(b"")
        while data:
            data = data[os.write(pipe, data) :]
        answer = bytes(length) if command == read else b""
        connection.sendall(struct.pack(">IIQ", 0x67446698, 0, handle) + answer)


@contextlib.contextmanager
def rig_of(volume_mib: int, cache_mib: int, step_mib: int) -> Iterator[Rig]:
    """The disk with its two partitions, a dump directory on the one, the guest's data on the other."""
    work = Path(tempfile.mkdtemp(prefix="pvehook-pacer-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, work)
        dump_mib = volume_mib + 256
        size_mib = dump_mib + volume_mib + 2
        disk = stack.enter_context(served_disk(work / "disk", size_mib, RATE_MIB_PER_S, LONG_SEEK_MS, SHORT_SEEK_MS))
        for number, (start_mib, mib) in enumerate(((1, dump_mib), (1 + dump_mib, volume_mib)), start=1):
            # By hand: not every kernel reads a table of partitions.
            sectors = [str(each * MIB // SECTOR) for each in (start_mib, mib)]
            subprocess.run(["addpart", disk.device, str(number), *sectors], check=True)
            stack.callback(subprocess.run, ["delpart", disk.device, str(number)], check=True)
        limit_dirty_pages(disk.device, cache_mib)
        fill(f"{disk.device}p2", volume_mib)
        # Else the kernel would go on writing inode tables for minutes after the mount.
        at_once = "lazy_itable_init=0,lazy_journal_init=0"
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", at_once, f"{disk.device}p1"], check=True)
        dump = work / "dump"
        dump.mkdir()
        subprocess.run(["mount", f"{disk.device}p1", str(dump)], check=True)
        stack.callback(subprocess.run, ["umount", str(dump)], check=True)
        shared = Location("disks", (Disk(os.path.basename(disk.device), None, "local"),), "the bench's disk")
        stack.enter_context(mock.patch("pvehook.throttle.pacer.locate_dump", return_value=shared))
        volume = stack.enter_context(served_volume(work, f"{disk.device}p2"))
        yield Rig(work, dump, volume, volume_mib * MIB, step_mib)


@contextlib.contextmanager
def served_volume(work: Path, device: str) -> Iterator[str]:
    """The guest's volume as Proxmox opens it, at a socket: QEMU itself is started anew for each run."""
    path, ready = work / "volume.sock", work / "volume.pid"
    argv = ["qemu-storage-daemon", "--pidfile", str(ready), "--nbd-server", f"addr.type=unix,addr.path={path}"]
    argv += ["--blockdev", f"driver=host_device,node-name=volume,filename={device},cache.direct=on,aio=io_uring"]
    argv += ["--export", "type=nbd,id=volume,node-name=volume,name=,writable=on"]
    # What it says is that each QEMU went away without a word.
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit("qemu-storage-daemon did not start")
                time.sleep(0.01)
            yield str(path)
        finally:
            process.terminate()


def hide_mounts() -> None:
    """From now on what is mounted here is seen by this process and its children only, and gone with them: a container
    that somebody starts meanwhile would copy the mounts of ours that it sees, and keep our disk busy."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mount_namespace, recursive_and_private = 0x20000, 0x4000 | 0x40000  # linux/sched.h, linux/mount.h
    if libc.unshare(new_mount_namespace) or libc.mount(None, b"/", None, recursive_and_private, None):
        raise SystemExit(f"a mount namespace of our own: {os.strerror(ctypes.get_errno())}")


def limit_dirty_pages(device: str, mib: int) -> None:
    """The kernel's own limit for one device; partitions share their disk's. 0: none, also not the last bench's, which
    a loop device keeps."""
    number = os.stat(device).st_rdev
    bdi = Path(f"/sys/class/bdi/{os.major(number)}:{os.minor(number)}")
    (bdi / "strict_limit").write_text(f"{int(mib > 0)}\n")
    if mib:
        (bdi / "max_bytes").write_text(f"{mib * MIB}\n")
    else:
        (bdi / "max_ratio").write_text("100\n")


def fill(device: str, mib: int) -> None:
    """Random bytes and zeros by turns, 64 KiB each."""
    with open(device, "wb", buffering=0) as file:
        for _ in range(mib):
            file.write(b"".join(os.urandom(64 * 1024) + bytes(64 * 1024) for _ in range(8)))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(rounds: int, ways: Sequence[str], volume_mib: int, cache_mib: int, step_mib: int) -> dict[str, Any]:
    hide_mounts()
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    with rig_of(volume_mib, cache_mib, step_mib) as rig:
        os.sync()
        for number in range(rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                run = run_one(rig, way, seed=number + 1)
                runs[way].append(run)
                print(shown(way, run), file=sys.stderr, flush=True)
                os.sync()  # what one run left is not the next one's
    return {
        "rounds": rounds,
        "volume_mib": volume_mib,
        "cache_mib": cache_mib,
        "step_mib": step_mib,
        "disk": {"mib_per_s": RATE_MIB_PER_S, "long_seek_ms": LONG_SEEK_MS, "short_seek_ms": SHORT_SEEK_MS},
        "kernel": os.uname().release,
        "ways": {way: summary(each) for way, each in runs.items()},
    }


def shown(way: str, run: Run) -> str:
    text = (
        f"{way:<18} {run.duration_s:6.1f} s  p50 {run.p50_ms:6.1f}  p99 {run.p99_ms:7.1f}, "
        f"of writes {run.write_p99_ms:7.1f}, max {run.max_ms:7.1f} ms  "
        f"stalled {run.stalled_s:5.2f} s  archive {run.archive_mib:.0f} MiB, {run.left_dirty_mib:.0f} left dirty"
    )
    if run.paced and run.paced.has_paced:
        text += (
            f"; {run.paced.steps} steps, waited {run.paced.blocked_s:.1f} s, worst {run.paced.worst_step_s:.2f}, "
            f"behind {run.paced.most_behind_bytes / MIB:.0f} MiB, cpu {run.paced.cpu_s:.2f} s, {run.paced.end}"
        )
    return f"{text}; slowed {run.slowed_s:.1f} s" if run.slowed_s else text


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    names = ["duration_s", "p50_ms", "p99_ms", "write_p99_ms", "max_ms", "stalled_s"]
    names += ["archive_mib", "left_dirty_mib", "slowed_s"]
    figures = {name: spread([getattr(run, name) for run in runs]) for name in names}
    paced = [run.paced for run in runs if run.paced and run.paced.has_paced]
    if paced:
        for name in ("blocked_s", "worst_step_s", "cpu_s"):
            figures[f"pacer_{name}"] = spread([getattr(each, name) for each in paced])
    return figures


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", default=",".join(WAYS), help="only these, with commas between them")
    parser.add_argument("--mib", type=int, default=768, help="of the guest's volume")
    parser.add_argument(
        "--cache-mib", type=int, default=128, help="of dirty pages that the archive may have; 0: not limited"
    )
    parser.add_argument("--step-mib", type=int, default=2, help="of the pacer")
    arguments = parser.parse_args()
    ways = [way for way in WAYS if way in arguments.ways.split(",")]
    figures = measure(arguments.rounds, ways, arguments.mib, arguments.cache_mib, arguments.step_mib)
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    print(f"{'':<20}{'seconds':>20}{'p99 ms':>22}{'stalled s':>20}")
    for way, found in figures["ways"].items():
        cells = [found[name] for name in ("duration_s", "p99_ms", "stalled_s")]
        texts = [f"{each['median']:.1f} ({each['min']:.1f}-{each['max']:.1f})" for each in cells]
        print(f"{way:<20}{texts[0]:>20}{texts[1]:>22}{texts[2]:>20}")


if __name__ == "__main__":
    main()
