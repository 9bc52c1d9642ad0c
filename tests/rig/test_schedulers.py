"""Real schedulers on a real device of this kernel: what a reader in the idle class gets beside a busy one, under each.

The device is the model disk of tests/bench/pacer_disk.py: a loop device whose queue and schedulers are the kernel's
own, over a disk that serves one request after the other. Both readers keep it busy with four requests at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from pvehook.contract.measured import Absent
from pvehook.doctor.finding import Command
from pvehook.doctor.storage_disk_checks import idle_class_ignored, rotating_without_scheduler
from pvehook.doctor.storage_facts import StorageFacts
from pvehook.host.block import kernel_version
from pvehook.host.disk_queue import DiskQueue, read_queue
from pvehook.host.ioprio import IDLE, set_all_threads
from pvehook.host.node import Node
from pvehook.rules.io_effect import idle_effect
from tests.bench.pacer_disk import served_disk
from tests.rig.disk_reader import reading
from tests.rig.shared_disk import what_is_missing

MISSING: Final = what_is_missing() or ("" if os.geteuid() == 0 else "needs root")
pytestmark = [
    pytest.mark.rig,
    pytest.mark.skipif(bool(MISSING), reason=f"a disk of this kernel: {MISSING}"),
]

NODE: Final = Node()
DISK_MIB, MIB_PER_S, SEEK_MS = 64, 60.0, 1.0
THREADS, MEASURED_S = 4, 5.0
SAME_SHARE, SMALL_SHARE = (0.4, 0.6), 0.25


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its name: `loop5`."""
    file = tmp_path_factory.mktemp("disk") / "file"
    with served_disk(file, DISK_MIB, MIB_PER_S, SEEK_MS, SEEK_MS) as served:
        yield os.path.basename(served.device)


def choose(disk: str, scheduler: str) -> DiskQueue:
    try:
        Path("/sys/block", disk, "queue/scheduler").write_text(scheduler)
    except OSError:
        pytest.skip(f"this kernel has no {scheduler}: {', '.join(read_queue(NODE, disk).schedulers)}")
    return read_queue(NODE, disk)


@pytest.mark.parametrize("scheduler", ["none", "kyber", "mq-deadline", "bfq"])
def test_an_idle_readers_share_is_what_is_reported_of_the_scheduler(disk: str, scheduler: str) -> None:
    queue = choose(disk, scheduler)
    assert queue.scheduler == scheduler
    verdict = idle_effect(queue.scheduler, kernel_version(NODE), "disks").verdict
    with reading(f"/dev/{disk}", THREADS, MEASURED_S) as busy, reading(f"/dev/{disk}", THREADS, MEASURED_S) as idle:
        done = set_all_threads(NODE, idle.pid, IDLE)
        assert done.confirmed == THREADS + 1
        for each in (busy, idle):
            each.go()
        reads = busy.reads(), idle.reads()
    share = reads[1] / sum(reads)
    print(f"{scheduler}: busy {reads[0]}, idle {reads[1]} reads: {share:.1%}; reported: {verdict}")
    if verdict == "honoured":
        assert share < SMALL_SHARE
    else:
        assert verdict == "ignored"
        assert SAME_SHARE[0] < share < SAME_SHARE[1]


def test_the_doctors_remedy_works_on_the_kernels_own_files(disk: str) -> None:
    """It finds the disk that rotates without a scheduler, its commands set one, and set the old one again."""
    before = choose(disk, "none")
    (found,) = rotating_without_scheduler(facts(before))
    _, command = found.steps
    assert isinstance(command, Command)
    assert run(command.do) == 0
    after = read_queue(NODE, disk)
    assert after.scheduler == "mq-deadline"
    assert list(rotating_without_scheduler(facts(after))) == list(idle_class_ignored(facts(after))) == []
    assert run(command.undo) == 0
    assert read_queue(NODE, disk) == before


def run(command: tuple[str, ...]) -> int:
    return os.spawnv(os.P_WAIT, command[0], command)


def facts(queue: DiskQueue) -> StorageFacts:
    """Of a node that has this disk and nothing else."""
    nothing = Absent("not of interest here")
    return StorageFacts(
        node_name="pve1",
        targets=(),
        others=(),
        guests=(),
        asked=(),
        queues={queue.name: queue},
        kernel=kernel_version(NODE),
        release="",
        files={},
        dirty=nothing,
        archive_bytes_per_s=None,
        idle="idle",
        pacer="auto",
        kernel_log=nothing,
        volumes=nothing,
        has_lvm_storage=False,
        not_read=(),
    )
