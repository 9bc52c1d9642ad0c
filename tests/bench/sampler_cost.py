#!/usr/bin/env python3
"""What looking at a guest costs: the daemon's CPU and memory, and QEMU's answers to somebody else.

    python tests/bench/sampler_cost.py [--json] [--rounds N] [--seconds S]

A real QEMU guest with two disks, backed up by the vzdump player through the real hook and daemon, the archive held open
for `--seconds`. Rounds with the default settings (a look every 500 ms, the governor on) and with `metrics: {mode: off}`
take turns. In each, a second client asks `query-status` some hundred times, each on a connection of its own, as vzdump
does.

    cpu_percent       the daemon's CPU time while the archive is held, in percent of one core, less that of a round
                      without looks: what a guest-hour costs is 36 s of CPU for each percent
    rss_mb            the daemon's resident memory at the end of it
    qmp_rtt_ratio     the second client's median round trip with looks, over that without
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).parent.parent.parent
sys.path.insert(0, str(TOP))

import psutil  # noqa: E402  (the path above is where the rest lies)

from pvehook.deadline import Deadline  # noqa: E402
from pvehook.guest.qmp import open_qmp  # noqa: E402
from pvehook.rehearsal.vzdump.player import Player  # noqa: E402
from tests.node_under_test import ALWAYS, NodeUnderTest  # noqa: E402
from tests.rig.guest_on_node import DISKS, WEB, put_on_node  # noqa: E402
from tests.rig.qemu_guest import qemu_guest  # noqa: E402

ASK_EVERY_S = 0.05


class Cost(NamedTuple):
    cpu_percent: float
    rss_mb: float
    rtt_ms: list[float]


def one_round(node: NodeUnderTest, qmp: str, seconds: float) -> Cost:
    """One backup, its archive held for that long."""
    with Player(node.run(WEB, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        daemon = psutil.Process(node.daemon.pid)
        time.sleep(4)  # the freeze and the governor's first seconds, which are not what an hour consists of
        before, began_s = daemon.cpu_times(), time.monotonic()
        rtt_ms = []
        while time.monotonic() - began_s < seconds:
            asked_s = time.perf_counter()
            deadline = Deadline.after(5)
            with open_qmp(qmp, deadline) as connection:
                connection.query_status(deadline)
            rtt_ms.append((time.perf_counter() - asked_s) * 1000)
            time.sleep(ASK_EVERY_S)
        after, lasted_s = daemon.cpu_times(), time.monotonic() - began_s
        cpu_s = after.user + after.system - before.user - before.system
        rss_mb = daemon.memory_info().rss / 1e6
        player.go_on()
        player.finish()
    return Cost(100 * cpu_s / lasted_s, rss_mb, rtt_ms)


def measure(rounds: int, seconds: float) -> dict[str, object]:
    root = Path(tempfile.mkdtemp(prefix="pvehook-"))
    node = NodeUnderTest(root)
    ways = {"on": ALWAYS, "off": ALWAYS + "metrics: {mode: off}\n"}
    costs: dict[str, list[Cost]] = {way: [] for way in ways}
    try:
        with qemu_guest(101, disks=DISKS) as vm, node.journal:
            put_on_node(vm, node)
            node.start_daemon()
            for number in range(2 * rounds):
                way = ("off", "on", "on", "off")[number % 4]
                node.configure(ways[way])
                costs[way].append(one_round(node, vm.qmp, seconds))
    finally:
        node.stop()
        shutil.rmtree(root)
    cpu = [on.cpu_percent - off.cpu_percent for on, off in zip(costs["on"], costs["off"], strict=True)]
    rtt = {way: statistics.median(each for cost in costs[way] for each in cost.rtt_ms) for way in ways}
    return {
        "cpu_percent": round(statistics.median(cpu), 2),
        "cpu_percent_range": [round(min(cpu), 2), round(max(cpu), 2)],
        "rss_mb": round(max(cost.rss_mb for cost in costs["on"]), 1),
        "rss_mb_without": round(max(cost.rss_mb for cost in costs["off"]), 1),
        "qmp_rtt_ratio": round(rtt["on"] / rtt["off"], 2),
        "qmp_rtt_ms": {way: round(value, 2) for way, value in rtt.items()},
        "rounds": rounds,
        "seconds": seconds,
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    figures = measure(max(arguments.rounds, 1), arguments.seconds)
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:<18} {value}")


if __name__ == "__main__":
    main()
