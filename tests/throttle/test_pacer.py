"""The writeback pacer beside a real writer on a real ext4: what it keeps small, what it leaves alone, how it ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from structlog.testing import LogCapture

from pvehook.contract.disks import Disk, Location
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.host.volumes import Backup
from pvehook.host.writeback import requests_in_flight
from pvehook.rules.pacing import PacerRecord, growing_file
from pvehook.settings import PacerConfig, PacerMode
from pvehook.throttle.pacer import Pacer, decide_pacing, in_words
from tests.bench.pacer_disk import ServedDisk, served_disk
from tests.host.conftest import BlockTree
from tests.host.loop_disk import MIB, cached, ext4, mounted, tmpfs

STEP = 2 * MIB
SOON_S = 20.0
TARGET = "/dump/vzdump-qemu-101-2026_11_22-02_10_00.vma.zst"
VM = Backup(101, "qemu", "snapshot", "local", "/dump")

WRITER = """
import os, sys
file = open(sys.argv[1], "wb", buffering=0)
for line in sys.stdin:
    file.write(os.urandom(int(line)))
    print(flush=True)
"""


class Archive:
    """vzdump's side: a process that appends as it is told, and the renaming at the end."""

    def __init__(self, node: Node, target: str = TARGET) -> None:
        self.target = Path(node.path(target))
        self.growing = Path(node.path(growing_file(target) or ""))
        self._writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(self.growing)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def append(self, size: int) -> None:
        assert self._writer.stdin
        assert self._writer.stdout
        self._writer.stdin.write(f"{size}\n")
        self._writer.stdin.flush()
        assert self._writer.stdout.readline(), "the writer has failed"

    def complete(self) -> None:
        self.end()
        self.growing.rename(self.target)

    def end(self) -> None:
        self._writer.communicate()


@contextlib.contextmanager
def a_node(root: Path) -> Iterator[Node]:
    """With a dump directory on an ext4 of its own."""
    (root / "etc/pve/qemu-server").mkdir(parents=True)
    (root / "images").mkdir()
    (root / "etc/pve/storage.cfg").write_text("dir: local\n\tpath /var/lib/vz\n")
    (root / "etc/pve/qemu-server/101.conf").write_text("scsi0: /images/disk.raw,size=1G\n")
    for name in ("proc", "sys"):
        (root / name).symlink_to(f"/{name}")
    yield Node(str(root))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with a_node(tmp_path) as node, ext4(tmp_path / "images/dump.raw", tmp_path / "dump", 128):
        yield node


@pytest.fixture
def journal() -> LogCapture:
    return LogCapture()


Start = Callable[..., Pacer]


@pytest.fixture
def start(journal: LogCapture) -> Iterator[Start]:
    """Starts pacers, and ends them with the test."""
    pacers: list[Pacer] = []
    reader = TimelyReader()

    def start_one(
        node: Node, mode: PacerMode = "on", backup: Backup = VM, target: str | None = TARGET, step_mib: int = 2
    ) -> Pacer:
        log = structlog.wrap_logger(None, processors=[journal], wrapper_class=structlog.BoundLogger)
        pacer = Pacer(node, reader, log, backup, target, PacerConfig(mode, step_mib))
        pacer.start()
        pacers.append(pacer)
        return pacer

    yield start_one
    for pacer in pacers:
        pacer.stop()


def wait_for(pacer: Pacer, what: Callable[[PacerRecord], bool]) -> PacerRecord:
    """Its record as soon as `what` is true of it."""
    until_s = time.monotonic() + SOON_S
    while not what(pacer.record):
        assert time.monotonic() < until_s, f"not in {SOON_S} s: {pacer.record}"
        time.sleep(0.01)
    return pacer.record


def has_found_the_file(record: PacerRecord) -> bool:
    return record.file is not None


def has_ended(record: PacerRecord) -> bool:
    return record.end not in ("not-begun", "running")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_held_by_the_disk(thread_name: str) -> bool:
    """Whether the kernel lets this thread of ours wait for a disk, uninterruptibly (D): proc_pid_stat(5)."""
    (thread,) = (each for each in threading.enumerate() if each.name == thread_name)
    text = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    return text.rpartition(")")[2].split()[0] == "D"


# What it does


def test_an_archive_that_grows_has_few_dirty_pages_and_in_the_end_none(
    node: Node, start: Start, journal: LogCapture
) -> None:
    pacer = start(node)
    archive = Archive(node)
    for number in range(1, 6):
        archive.append(8 * MIB)
        # The last step is only waited for when the next one is there.
        paced_at_least = number * 8 * MIB - STEP
        wait_for(pacer, lambda record, least=paced_at_least: record.paced_bytes >= least)  # type: ignore[misc]
        assert cached(archive.growing).in_cache <= 2 * STEP
    archive.append(1000)
    assert cached(archive.growing).dirty > 0
    archive.complete()
    record = wait_for(pacer, has_ended)
    assert (record.end, record.paced_bytes, record.steps) == ("complete", 40 * MIB + 1000, 21)
    assert record.file == str(growing_file(TARGET))
    assert cached(archive.target)[:3] == (0, 0, 0)
    pacer.stop()
    (event,) = journal.entries
    assert (event["event"], event["vmid"], event["end"]) == ("pacer-done", 101, "complete")
    assert "40 MiB in 21 steps of 2 MiB" in event["message"]


def test_switched_off_the_kernel_keeps_it_all(node: Node, start: Start, journal: LogCapture) -> None:
    pacer = start(node, "off")
    archive = Archive(node)
    archive.append(8 * MIB)
    archive.complete()
    pacer.stop()
    assert cached(archive.target).in_cache == 8 * MIB
    assert (pacer.record.end, pacer.record.steps, journal.entries) == ("not-begun", 0, [])
    assert "pacer: off" in in_words(pacer.record)


def test_not_a_byte_of_the_archive_is_changed(node: Node, start: Start) -> None:
    whole = Path(node.path("/whole"))
    whole.write_bytes(os.urandom(24 * MIB))
    pacer = start(node)
    growing, target = Path(node.path(growing_file(TARGET) or "")), Path(node.path(TARGET))
    subprocess.run(["dd", f"if={whole}", f"of={growing}", "bs=100k", "status=none"], check=True)
    wait_for(pacer, has_found_the_file)
    growing.rename(target)
    wait_for(pacer, has_ended)
    assert sha256(target) == sha256(whole)
    assert target.stat().st_size == 24 * MIB


def test_a_containers_archive_is_paced_alike(node: Node, start: Start) -> None:
    target = "/dump/vzdump-lxc-200-2026_11_22-02_10_00.tar.gz"
    pacer = start(node, backup=Backup(200, "lxc", "suspend", "local", "/dump"), target=target, step_mib=1)
    archive = Archive(node, target)
    archive.append(5 * MIB)
    wait_for(pacer, has_found_the_file)
    archive.complete()
    record = wait_for(pacer, has_ended)
    assert (record.end, record.steps, record.step_bytes) == ("complete", 5, MIB)


def test_one_that_comes_late_catches_up_with_what_is_there(node: Node, start: Start) -> None:
    archive = Archive(node)
    archive.append(20 * MIB)
    assert cached(archive.growing).dirty == 20 * MIB
    pacer = start(node)
    wait_for(pacer, lambda record: record.paced_bytes >= 18 * MIB)
    assert cached(archive.growing).in_cache <= STEP
    archive.complete()
    assert wait_for(pacer, has_ended).end == "complete"


class Queue:
    """What a disk is asked, in place of what the kernel tells."""

    def __init__(self) -> None:
        self.requests = 0
        self.looks = 0

    def __call__(self, node: Node, disk: str) -> int:
        self.looks += 1
        return self.requests


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Of a disk that the archive is known to lie on."""
    queue = Queue()
    where = Location("disks", (Disk("sda", None, "local"),), "ext4 on sda")
    monkeypatch.setattr("pvehook.throttle.pacer.locate_dump", lambda *_: where)
    monkeypatch.setattr("pvehook.throttle.pacer.requests_in_flight", queue)
    return queue


def test_a_step_waits_until_the_disk_is_quiet(node: Node, start: Start, queue: Queue) -> None:
    queue.requests = 2
    pacer = start(node)
    archive = Archive(node)
    archive.append(3 * STEP)
    wait_for(pacer, lambda _: queue.looks > 3)
    assert cached(archive.growing)[:2] == (3 * STEP, 3 * STEP)  # all of it dirty
    queue.requests = 1
    assert wait_for(pacer, lambda record: record.steps == 2).most_behind_bytes == 3 * STEP


def test_on_a_disk_that_is_never_quiet_the_archive_gets_no_further_ahead_than_16_steps(
    node: Node, start: Start, queue: Queue
) -> None:
    queue.requests = 100
    pacer = start(node)
    archive = Archive(node)
    for _ in range(10):
        archive.append(2 * STEP)
    wait_for(pacer, lambda record: record.paced_bytes == 20 * STEP - 15 * STEP - STEP)
    assert cached(archive.growing).dirty == 15 * STEP
    archive.complete()
    record = wait_for(pacer, has_ended)
    assert (record.end, record.paced_bytes) == ("complete", 20 * STEP)


def test_what_is_on_its_way_to_a_disk_is_read_from_sysfs(tree: BlockTree) -> None:
    tree.write("/sys/block/sda/inflight", "       2        3\n")
    tree.write("/sys/block/sdb/inflight", "?\n")
    assert [requests_in_flight(tree.node, disk) for disk in ("sda", "sdb", "gone")] == [5, 0, 0]


# How it ends


def test_stopped_it_leaves_the_rest_to_the_kernel(node: Node, start: Start) -> None:
    pacer = start(node)
    archive = Archive(node)
    archive.append(8 * MIB)
    wait_for(pacer, lambda record: record.paced_bytes >= 6 * MIB)
    pacer.stop()
    assert pacer.record.end == "stopped"
    archive.append(8 * MIB)
    archive.complete()
    assert cached(archive.target, 8 * MIB).in_cache == 8 * MIB
    assert "stopped; the last 2.0 MiB were left to the kernel" in in_words(pacer.record)


def test_stopped_after_the_archives_end_it_says_so(node: Node, start: Start) -> None:
    pacer = start(node)
    archive = Archive(node)
    archive.append(8 * MIB)
    wait_for(pacer, lambda record: record.paced_bytes >= 6 * MIB)
    archive.complete()
    pacer.stop()
    assert pacer.record.end == "complete"
    left_dirty = 8 * MIB - pacer.record.paced_bytes
    assert ("left to the kernel" in in_words(pacer.record)) == bool(left_dirty)


def test_stopped_before_there_is_an_archive_it_says_nothing(node: Node, start: Start, journal: LogCapture) -> None:
    pacer = start(node)
    wait_for(pacer, lambda record: record.pacing is not None)
    pacer.stop()
    assert (pacer.record.end, journal.entries) == ("stopped", [])


def test_an_archive_that_vzdump_throws_away_ends_it(node: Node, start: Start) -> None:
    pacer = start(node)
    archive = Archive(node)
    archive.append(4 * MIB)
    wait_for(pacer, lambda record: record.steps > 0)
    archive.end()
    archive.growing.unlink()
    assert wait_for(pacer, has_ended).end == "deleted"


def test_a_link_in_the_archives_place_is_not_followed(node: Node, start: Start, journal: LogCapture) -> None:
    others = Path(node.path("/others-file"))
    others.write_bytes(os.urandom(8 * MIB))
    Path(node.path(growing_file(TARGET) or "")).symlink_to(others)
    record = wait_for(start(node), has_ended)
    assert (record.end, record.steps) == ("refused", 0)
    assert cached(others).in_cache == 8 * MIB
    (event,) = journal.entries
    assert "is a symbolic link" in event["message"]


def test_a_fifo_in_the_archives_place_keeps_nobody_waiting(node: Node, start: Start) -> None:
    os.mkfifo(node.path(growing_file(TARGET) or ""))
    assert wait_for(start(node), has_ended).end == "refused"


def test_an_archive_that_never_comes_is_not_awaited_for_ever(
    node: Node, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pvehook.throttle.pacer.DEADLINE_S", 0.0)
    record = wait_for(start(node), has_ended)
    assert (record.end, record.why, record.steps) == ("too-long", "no archive was begun", 0)


def test_a_dump_directory_that_is_none_ends_it_with_the_kernels_word(
    node: Node, start: Start, journal: LogCapture
) -> None:
    Path(node.path("/dump/file")).touch()
    record = wait_for(start(node, target="/dump/file/vzdump-qemu-101.vma.zst"), has_ended)
    assert (record.end, "Not a directory" in record.why) == ("failed", True)
    assert "Not a directory" in journal.entries[0]["message"]


def test_a_disk_that_refuses_ends_it_with_the_kernels_word(tmp_path: Path, start: Start, journal: LogCapture) -> None:
    with (
        a_node(tmp_path / "node") as node,
        tmpfs(tmp_path / "memory", 8) as memory,
        ext4(memory / "image", Path(node.path("/dump")), 64),
    ):
        pacer = start(node)
        archive = Archive(node)
        archive.append(24 * MIB)
        record = wait_for(pacer, has_ended)
        assert (record.end, "No space left" in record.why) == ("failed", True)
        assert "No space left" in journal.entries[0]["message"]
        archive.append(MIB)  # the writer has noticed nothing
        archive.end()


def test_killed_it_costs_nothing(node: Node) -> None:
    code = (
        "import sys, time, structlog; sys.path.insert(0, sys.argv[2])\n"
        "from tests.throttle.test_pacer import *\n"
        "log = structlog.get_logger()\n"
        "pacer = Pacer(Node(sys.argv[1]), TimelyReader(), log, VM, TARGET, PacerConfig('on')); pacer.start()\n"
        "wait_for(pacer, lambda record: record.steps > 1); print(flush=True); time.sleep(60)\n"
    )
    top = str(Path(__file__).parent.parent.parent)
    process = subprocess.Popen([sys.executable, "-c", code, node.root, top], stdout=subprocess.PIPE)
    archive = Archive(node)
    archive.append(8 * MIB)
    assert process.stdout
    assert process.stdout.readline()
    process.kill()
    process.communicate()
    archive.append(8 * MIB)
    archive.complete()
    assert archive.target.stat().st_size == 16 * MIB
    assert cached(archive.target, 8 * MIB).in_cache == 8 * MIB


@pytest.fixture
def hanging_disk(tmp_path: Path) -> Iterator[ServedDisk]:
    """A disk that hangs while its process is stopped."""
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(served_disk(tmp_path / "disk", 64))
            subprocess.run(["mkfs.ext4", "-q", "-F", disk.device], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no block device of our own (needs root, /dev/fuse, a loop device): {error}")
        yield disk


def test_a_disk_that_hangs_holds_the_pacer_and_nobody_else(
    tmp_path: Path, hanging_disk: ServedDisk, start: Start
) -> None:
    with a_node(tmp_path / "node") as node, mounted(hanging_disk.device, Path(node.path("/dump"))):
        pacer = start(node)
        archive = Archive(node)
        archive.append(4 * MIB)
        wait_for(pacer, lambda record: record.steps > 0)
        os.kill(hanging_disk.pid, signal.SIGSTOP)
        try:
            archive.append(8 * MIB)
            wait_for(pacer, lambda _: is_held_by_the_disk(f"pacer-{VM.vmid}"))
            pacer.stop()
            assert pacer.record.end == "blocked"
            archive.append(MIB)
        finally:
            os.kill(hanging_disk.pid, signal.SIGCONT)
        assert wait_for(pacer, lambda record: record.end != "blocked").end == "stopped"
        archive.end()


# Where it acts


def test_a_guest_whose_image_lies_on_the_archives_disk_is_paced_unasked(node: Node, start: Start) -> None:
    Path(node.path("/images/disk.raw")).touch()  # beside the image of the dump's file system
    pacing = wait_for(start(node, "auto"), lambda record: record.pacing is not None).pacing
    assert pacing is not None
    if pacing.reason == "dump-unknown":
        pytest.skip(f"this machine does not tell its disks: {pacing.why}")
    assert (pacing.acts, pacing.reason) == (True, "shared-disk")
    assert "scsi0 of the guest" in pacing.why


@pytest.fixture
def tree(tmp_path: Path) -> BlockTree:
    """sda carries the dump directory's btrfs and the volume group pve, sdb the volume group fast."""
    tree = BlockTree(tmp_path)
    for number, name in enumerate(("sda", "sdb")):
        disk = tree.device(name, (8, 16 * number))
        for part in (1, 2):
            tree.partition(disk, f"{name}{part}", (8, 16 * number + part))
    for number, (group, disk_name) in enumerate((("pve", "sda2"), ("fast", "sdb1"))):
        tree.device(f"dm-{number}", (253, number), slaves=[disk_name])
        tree.write(f"/sys/block/dm-{number}/dm/name", f"{group}-vm--101--disk--0\n")
    tree.mount("/dump", "btrfs", "/dev/sda1")
    tree.write("/sys/fs/btrfs/6f1c-22/devices/sda1/size", "1\n")
    tree.write(
        "/etc/pve/storage.cfg",
        "dir: local\n\tpath /dump\n\nlvm: slow\n\tvgname pve\n\nlvm: fast\n\tvgname fast\n\npbs: vault\n\tserver x\n",
    )
    return tree


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("scsi0: fast:vm-101-disk-0\nscsi1: slow:vm-101-disk-0\n", "shared-disk"),
        ("scsi0: fast:vm-101-disk-0\nscsi1: slow:vm-101-disk-0,backup=0\n", "shared-disk"),
        ("scsi0: fast:vm-101-disk-0\nide2: none,media=cdrom\n", "no-shared-disk"),
        ("scsi0: fast:vm-101-disk-0\nscsi1: gone:vm-101-disk-0\n", "volumes-unknown"),
        ("", "no-shared-disk"),
        (None, "volumes-unknown"),
    ],
)
def test_the_guests_disks_are_compared_with_the_archives(tree: BlockTree, config: str | None, reason: str) -> None:
    if config is not None:
        tree.write("/etc/pve/qemu-server/101.conf", config)
    pacing = decide_pacing(tree.node, TimelyReader(), VM, growing_file(TARGET), "auto")
    assert (pacing.reason, pacing.acts) == (reason, reason == "shared-disk")


def test_a_containers_mount_points_count_too(tree: BlockTree) -> None:
    tree.write("/etc/pve/lxc/200.conf", "rootfs: fast:vm-101-disk-0,size=8G\nmp0: slow:vm-101-disk-0,mp=/srv\n")
    backup = Backup(200, "lxc", "snapshot", "local", "/dump")
    pacing = decide_pacing(tree.node, TimelyReader(), backup, "/dump/x.tar.dat", "auto")
    assert (pacing.reason, pacing.why.endswith("mp0 of the guest")) == ("shared-disk", True)


@pytest.mark.parametrize(
    ("fs_type", "source", "reason"),
    [("nfs4", "nas:/export", "network"), ("tmpfs", "tmpfs", "in-memory"), ("fuse.mergerfs", "disks", "file-system")],
)
def test_a_dump_directory_of_another_kind_is_left_alone_and_never_touched(
    tree: BlockTree, fs_type: str, source: str, reason: str
) -> None:
    tree.mount("/dump", fs_type, source)  # over the btrfs; there is no such directory, to look into it would fail
    pacing = decide_pacing(tree.node, TimelyReader(), VM, growing_file(TARGET), "on")
    assert (pacing.reason, pacing.acts) == (reason, False)


def test_a_backup_server_gets_no_file_to_pace(tree: BlockTree, start: Start) -> None:
    pacer = start(tree.node, "on", target="vm/101/2026-11-22T18:56:26Z")
    pacing = wait_for(pacer, lambda record: record.pacing is not None).pacing
    assert pacing is not None
    assert pacing.reason == "no-dump-file"


def test_a_node_that_does_not_answer_is_unknown_with_the_reason(tree: BlockTree) -> None:
    Path(tree.node.path("/etc/pve/storage.cfg")).unlink()
    os.mkfifo(tree.node.path("/etc/pve/storage.cfg"))  # a read of it waits for ever, as of a cluster without quorum
    pacing = decide_pacing(tree.node, TimelyReader(), VM, growing_file(TARGET), "on")
    assert pacing.reason == "dump-unknown"
    assert "did not answer within 2 s" in pacing.why
