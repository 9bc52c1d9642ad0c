#!/usr/bin/env python3
"""What looking at guests costs: the daemon's CPU and memory, and QEMU's answers to somebody else.

    python tests/bench/sampler_cost.py [--json] [--rounds N] [--seconds S] [--guests 1|10|100 ...]

A node with running guests, of which one is backed up by the vzdump player through the real hook and daemon, the archive
held open for `--seconds`. Rounds with the default settings (the governor on, every running guest watched) and with
`metrics: {mode: off}` take turns. In each, a second client asks `query-status` twenty times a second, each on a
connection of its own, as vzdump does; of several guests one after the other.

    1     a real guest with two disks: it boots and is backed up
    10    real QEMUs, each with a logical volume on the disk that all share and three requests a second
          (governor_guest.py, neighbours_node.py)
    100   simulated monitors and counters: six requests a second for each guest, of 5 ms; of five guests that are beside
          the backup 60 ms as soon as the archive is begun, so that they are looked at more closely

    cpu_percent            the daemon's CPU time while the archive is held, in percent of one core, less that of a round
                           without looks: what a guest-hour costs is 36 s of CPU for each percent. The aims: less than
                           1 % with 10 guests, less than 3 % with 100
    cpu_percent_in_all     the same with what else the daemon does meanwhile: its checks of priorities
    rss_mb                 the daemon's resident memory at the end of it
    qmp_rtt_ratio          the second client's median round trip with looks, over that without
    longest_rtt_ms         its longest one, with looks and without. With looks it may stand behind a connection of ours
    longest_held_ms        the longest that one connection of ours had a monitor, from its first command to its last:
                           for so long it may keep somebody waiting
    qmp_exchanges_per_s    commands of ours that the guests' monitors were given, `qmp_capabilities` included;
    qmp_connections_per_s  and how many connections of ours these came on

The figures of one guest are on top, the others under `with_10_guests` and `with_100_guests`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

TOP = Path(__file__).parent.parent.parent
sys.path.insert(0, str(TOP))

import psutil  # noqa: E402  (the path above is where the rest lies)

from pvehook.deadline import Deadline  # noqa: E402
from pvehook.errors import Busy  # noqa: E402
from pvehook.guest.qmp import open_qmp  # noqa: E402
from pvehook.rehearsal.tree import RehearsalNode  # noqa: E402
from pvehook.rehearsal.vm.simulated_guest import SimulatedGuest  # noqa: E402
from pvehook.rehearsal.vzdump.player import Player  # noqa: E402
from pvehook.rehearsal.vzdump.run import Guest, Run  # noqa: E402
from tests.bench.disk_models import MIB, RAID, VolumeCounters, served_disk  # noqa: E402
from tests.bench.governor_guest import Load, loaded_guest  # noqa: E402
from tests.bench.neighbours_job import JOB, PROXMOX_JOB  # noqa: E402
from tests.bench.neighbours_node import CONFIG, Placed, counters_of, node_of  # noqa: E402
from tests.node_under_test import NodeUnderTest  # noqa: E402
from tests.rig.guest_on_node import DISKS, WEB, put_on_node  # noqa: E402
from tests.rig.qemu_guest import qemu_guest  # noqa: E402

ASK_EVERY_S: Final = 0.05
PVE_TRIES_AGAIN_S: Final = 0.1
"""Where two others wait at the monitor already."""
SETTLE_S: Final = 4.0
"""The freeze and the governor's first seconds, which are not what an hour consists of."""
SETTLE_BESIDE_S: Final = 12.0
"""With many guests: all are armed, and those that suffer are put aside."""
FIRST: Final = 101
WAYS: Final = {"on": CONFIG, "off": CONFIG + "metrics: {mode: off}\n"}

LOAD: Final = Load(per_s=3)
LOAD_POLL_S: Final = 0.01

STEP_S: Final = 0.5
REQUESTS: Final = 3
"""In each step, of each simulated guest."""
QUICK_MS, SLOW_MS = 5.0, 60.0
SLOW: Final = range(FIRST + 1, FIRST + 6)


class Heard(NamedTuple):
    """One command that a monitor was given; the clock is the monitor's own."""

    at_s: float
    command: str


HELLO: Final = "qmp_capabilities"
SECOND_CLIENT: Final = [HELLO, "query-status"]


class Bench(NamedTuple):
    """A node that is ready to be measured."""

    node: RehearsalNode
    run: Run
    monitors: Sequence[str]
    settle_s: float
    let_go: Callable[[], None] = lambda: None
    """Called before the archive is let go on."""
    heard: Callable[[], list[list[Heard]]] = list
    """Of each guest, all until now; what the second client asked may be among it."""


class Cost(NamedTuple):
    cpu_percent: float
    rss_mb: float
    rtt_ms: list[float]
    exchanges_per_s: float
    connections_per_s: float
    longest_held_ms: float


def ask(monitor: str) -> float:
    """Of the second client: how long it takes to be answered, in ms."""
    asked_s, deadline = time.perf_counter(), Deadline.after(5)
    while True:
        try:
            with open_qmp(monitor, deadline) as connection:
                connection.query_status(deadline)
                return (time.perf_counter() - asked_s) * 1000
        except Busy:
            time.sleep(PVE_TRIES_AGAIN_S)


def one_round(bench: Bench, seconds: float) -> Cost:
    """One backup, its archive held for that long."""
    pause = bench.run.pauses[0]
    rtt_ms: list[float] = []
    with Player(bench.run) as player:
        player.wait_for(pause)
        daemon = psutil.Process(bench.node.daemon.pid)
        time.sleep(bench.settle_s)
        heard_before = [len(each) for each in bench.heard()]
        before, began_s = daemon.cpu_times(), time.monotonic()
        while time.monotonic() - began_s < seconds:
            rtt_ms.append(ask(bench.monitors[len(rtt_ms) % len(bench.monitors)]))
            time.sleep(ASK_EVERY_S)
        after, lasted_s = daemon.cpu_times(), time.monotonic() - began_s
        heard = [each[number:] for number, each in zip(heard_before, bench.heard(), strict=True)]
        rss_mb = daemon.memory_info().rss / 1e6
        bench.let_go()
        player.go_on()
        player.finish()
    cpu_s = after.user + after.system - before.user - before.system
    ours = [each for guest in heard for each in connections(guest)]
    return Cost(
        100 * cpu_s / lasted_s,
        rss_mb,
        rtt_ms,
        sum(len(each) for each in ours) / lasted_s,
        len(ours) / lasted_s,
        max((1000 * (each[-1].at_s - each[0].at_s) for each in ours), default=0.0),
    )


def connections(heard: Sequence[Heard]) -> list[list[Heard]]:
    """What was heard, connection by connection; the second client's and one that had begun before are left out."""
    found: list[list[Heard]] = []
    for each in heard:
        if each.command == HELLO:
            found.append([])
        if found:
            found[-1].append(each)
    return [each for each in found if [one.command for one in each] != SECOND_CLIENT]


@contextlib.contextmanager
def one_guest() -> Iterator[Bench]:
    root = Path(tempfile.mkdtemp(prefix="pvehook-"))
    node = NodeUnderTest(root)
    try:
        with qemu_guest(FIRST, disks=DISKS) as vm, node.journal:
            put_on_node(vm, node)
            node.start_daemon()
            yield Bench(node, node.run(WEB, pauses=(f"archive {FIRST}",)), (vm.qmp,), SETTLE_S)
    finally:
        node.stop()
        shutil.rmtree(root)


@contextlib.contextmanager
def real_guests(number: int) -> Iterator[Bench]:
    """Each a QEMU with its load, on one disk."""
    placed = [Placed(vmid) for vmid in range(FIRST, FIRST + number)]
    with contextlib.ExitStack() as cleanup:
        root = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="sc-", dir="/dev/shm"))
        node = node_of(root, placed)
        sockets = {each.vmid: node.node.path(f"/disk{each.vmid}") for each in placed}
        counters = {sockets[vmid]: directory for vmid, directory in counters_of(node.node, placed).items()}
        sizes = dict.fromkeys(sockets.values(), 64 * MIB)
        cleanup.enter_context(served_disk(RAID, sizes, 1, counters))
        guests = []
        for vmid, disk in sockets.items():
            load = LOAD._replace(seed=vmid)
            started = loaded_guest({disk: 64 * MIB}, {disk: ""}, load, root=root, vmid=vmid, poll_s=LOAD_POLL_S)
            guests.append(cleanup.enter_context(started))

        def heard() -> list[list[Heard]]:
            return [_logged(Path(guest.qmp_log)) for guest in guests]

        cleanup.enter_context(node)
        yield Bench(node, _run(node, JOB), [guest.qmp for guest in guests], SETTLE_BESIDE_S, heard=heard)


def _logged(log: Path) -> list[Heard]:
    """QEMU's own log, see governor_guest.py."""
    heard = []
    for line in log.read_text(encoding="utf-8").splitlines():
        stamp, _, request = line.partition(":handle_qmp_command ")
        at_s = float(stamp.partition("@")[2])
        heard.append(Heard(at_s, json.loads(request.partition(" req: ")[2])["execute"]))
    return heard


@contextlib.contextmanager
def simulated_guests(number: int) -> Iterator[Bench]:
    """Monitors and counters alone, and for each a process that has the guest's number on its command line."""
    placed = [Placed(vmid) for vmid in range(FIRST, FIRST + number)]
    with contextlib.ExitStack() as cleanup:
        root = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="sc-", dir="/dev/shm"))
        node = node_of(root, placed)
        directory = node.node.path("/var/run/qemu-server")
        guests = {}
        for vmid, _, _ in placed:
            guests[vmid] = cleanup.enter_context(SimulatedGuest(directory, vmid, disks=("virtio0",)))
            pid = cleanup.enter_context(_process_of(vmid, root)).pid
            Path(directory, f"{vmid}.pid").write_text(f"{pid}\n", encoding="ascii")
        counters = {vmid: VolumeCounters(each) for vmid, each in counters_of(node.node, placed).items()}
        cleanup.enter_context(_loaded(guests, counters))
        cleanup.enter_context(node)

        def heard() -> list[list[Heard]]:
            daemon = node.daemon.pid
            all_heard = [[each for each in guest.heard if each.peer.pid == daemon] for guest in guests.values()]
            return [[Heard(each.at_s, each.command) for each in guest] for guest in all_heard]

        def let_go() -> None:
            guests[FIRST].finish_backup()

        monitors = [guest.qmp_path for guest in guests.values()]
        yield Bench(node, _run(node, PROXMOX_JOB), monitors, SETTLE_BESIDE_S, let_go, heard)


def _run(node: RehearsalNode, job: str) -> Run:
    guest = Guest(FIRST, name=f"guest{FIRST}")
    pauses = (f"archive {FIRST}",)
    return Run((guest,), node.hook, node.node.root, storeid="pbs", to_pbs=True, vm_job=job, pauses=pauses)


@contextlib.contextmanager
def _process_of(vmid: int, root: str) -> Iterator[subprocess.Popen[bytes]]:
    """It waits for the end of its input."""
    argv = ["/bin/sh", "-c", "read nothing", "kvm", "-id", str(vmid), "-name", f"{root}/{vmid}"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as process:
        yield process  # leaving closes its input and waits for it


@contextlib.contextmanager
def _loaded(guests: dict[int, SimulatedGuest], counters: dict[int, VolumeCounters]) -> Iterator[None]:
    """Their requests, until the block is left."""
    ended = threading.Event()

    def serve() -> None:
        while not ended.wait(STEP_S):
            now_s = time.monotonic()
            for vmid, guest in guests.items():
                took_ms = SLOW_MS if vmid in SLOW and guests[FIRST].backup_runs else QUICK_MS
                guest.serve_requests("write", took_ms, REQUESTS, disk="virtio0")
                for _ in range(REQUESTS):
                    counters[vmid].begins("write", now_s)
                    counters[vmid].ends("write", 4096, now_s - took_ms / 1000, now_s)
                counters[vmid].write(now_s)

    thread = threading.Thread(target=serve, name="load", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


BENCHES: Final[dict[int, Callable[[], contextlib.AbstractContextManager[Bench]]]] = {
    1: one_guest,
    10: lambda: real_guests(10),
    100: lambda: simulated_guests(100),
}


def measure(bench: Bench, rounds: int, seconds: float) -> dict[str, object]:
    costs: dict[str, list[Cost]] = {way: [] for way in WAYS}
    for number in range(2 * rounds):
        way = ("off", "on", "on", "off")[number % 4]
        bench.node.write("/etc/pvehook.yaml", WAYS[way])
        costs[way].append(one_round(bench, seconds))
    cpu = [on.cpu_percent - off.cpu_percent for on, off in zip(costs["on"], costs["off"], strict=True)]
    rtt = {way: [each for cost in costs[way] for each in cost.rtt_ms] for way in WAYS}
    median_ms = {way: statistics.median(each) for way, each in rtt.items()}
    figures: dict[str, object] = {
        "cpu_percent": round(statistics.median(cpu), 2),
        "cpu_percent_range": [round(min(cpu), 2), round(max(cpu), 2)],
        "cpu_percent_in_all": round(statistics.median(cost.cpu_percent for cost in costs["on"]), 2),
        "rss_mb": round(max(cost.rss_mb for cost in costs["on"]), 1),
        "rss_mb_without": round(max(cost.rss_mb for cost in costs["off"]), 1),
        "qmp_rtt_ratio": round(median_ms["on"] / median_ms["off"], 2),
        "qmp_rtt_ms": {way: round(value, 2) for way, value in median_ms.items()},
        "longest_rtt_ms": {way: round(max(each), 2) for way, each in rtt.items()},
    }
    if bench.heard():
        on = costs["on"]
        figures["longest_held_ms"] = round(max(cost.longest_held_ms for cost in on), 2)
        figures["qmp_exchanges_per_s"] = round(statistics.median(cost.exchanges_per_s for cost in on), 2)
        figures["qmp_connections_per_s"] = round(statistics.median(cost.connections_per_s for cost in on), 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--guests", type=int, action="append", choices=list(BENCHES), help="can be repeated")
    arguments = parser.parse_args()
    rounds = max(arguments.rounds, 1)
    figures: dict[str, object] = {"rounds": rounds, "seconds": arguments.seconds}
    for number in arguments.guests or BENCHES:
        with BENCHES[number]() as bench:
            found = measure(bench, rounds, arguments.seconds)
        if number == 1:
            figures |= found
        else:
            figures[f"with_{number}_guests"] = found
    figures["load_average"] = round(os.getloadavg()[0], 1)
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:<22} {value}")


if __name__ == "__main__":
    main()
