#!/usr/bin/env python3
"""How long a real guest stands still for the start of its backup: frozen by PVE itself, and by pvehook.

    python tests/bench/freeze_window.py [--json] [--pairs N] [--hangs N] [--agent 7.2|10.0]

One guest, one daemon, one run after the other, by turns: pvehook's freeze off (PVE freezes and thaws), then on. Each
run finds 1 MiB that is to be written out. `native_ms`: PVE's freeze sent to its thaw answered, as vzdump's player saw
it. `frozen_ms`: our freeze sent to our thaw answered, as pvehook told the journal. `native_blocked_ms` and
`blocked_ms`: how long a write in the guest had to wait in the same runs, which is what a user of the guest notices.

Then freezes that hang, on a disk that takes 1 byte/s: from the moment the disk is fast again, `hung_thawed_after_ms` is
until the thaw was confirmed and in the journal, `hung_writes_after_ms` until the guest's first write.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TOP = Path(__file__).parent.parent.parent
sys.path.insert(0, str(TOP))

from pvehook.deadline import Deadline  # noqa: E402
from pvehook.freeze.history import forget_freezes  # noqa: E402
from pvehook.guest.agent import open_agent  # noqa: E402  (the path above is where it lies)
from pvehook.rehearsal.vzdump.player import Player, play  # noqa: E402
from tests.native_freeze import freeze_events  # noqa: E402
from tests.node_under_test import ALWAYS, NodeUnderTest  # noqa: E402
from tests.rig.guest_image import AGENT_SUITES  # noqa: E402
from tests.rig.guest_on_node import DISKS, WEB, Witness, dirty, put_on_node, witnessed  # noqa: E402
from tests.rig.qemu_guest import QemuGuest, qemu_guest  # noqa: E402

LEFT_TO_PVE = ALWAYS + "freeze: {rules: [{guests: [101], mode: off}]}\n"
HUNG_MIB = 16


def native_ms(node: NodeUnderTest) -> float:
    node.configure(LEFT_TO_PVE)
    at_s = {event.name: event.at_s for event in freeze_events(play(node.run(WEB)))}
    if not {"pve-froze", "pve-thawed"} <= at_s.keys():
        raise SystemExit("PVE did not freeze by itself")
    return (at_s["pve-thawed"] - at_s["pve-freezes"]) * 1000  # from the command to the answer to the thaw


def frozen_ms(node: NodeUnderTest) -> float:
    node.configure(ALWAYS)
    before = len(node.journal.events)
    play(node.run(WEB))
    done = node.wait_for_event("freeze-done", after=before, vmid="101")
    if done["PVEHOOK_CONSISTENCY"] != "filesystem-consistent":
        raise SystemExit(f"pvehook did not freeze: {done['MESSAGE']}")
    return float(done["PVEHOOK_FROZEN_MS"])


def hung_ms(vm: QemuGuest, node: NodeUnderTest, witness: Witness) -> tuple[float, float]:
    """One freeze that hangs, from the moment it need not any more: to the confirmed thaw, to the first write."""
    node.configure(ALWAYS)
    dirty(vm, HUNG_MIB)
    witness.throttle(1)
    before = len(node.journal.events)
    with Player(node.run(WEB, pauses=("archive 101",))) as player:
        player.wait_for("archive 101")
        lifted_s = time.time()
        witness.throttle(0)
        done = node.wait_for_event("freeze-done", after=before, vmid="101", hung="yes")
        thawed_s = next(each.at_s for each in node.journal.events if each.fields is done)
        witness.wait_for_a_write(10.0)
        player.go_on()
        player.finish()
    forget_freezes(node.node, 101)  # else the next one is vetoed
    writes_s = min(each.until_s for each in witness.writes() if each.until_s > lifted_s)
    return (thawed_s - lifted_s) * 1000, (writes_s - lifted_s) * 1000


def measure(pairs: int, hangs: int, agent: str) -> dict[str, object]:
    root = Path(tempfile.mkdtemp(prefix="pvehook-"))
    node = NodeUnderTest(root)
    times: dict[str, list[float]] = {name: [] for name in ("native", "frozen", "native_blocked", "blocked")}
    ways = {"native": native_ms, "frozen": frozen_ms}
    blocked_in = {"native": "native_blocked", "frozen": "blocked"}
    try:
        with qemu_guest(101, agent=agent, disks=DISKS) as vm, node.journal, witnessed(vm) as witness:
            put_on_node(vm, node)
            node.start_daemon()
            for number in range(2 * pairs):
                # Who comes first changes too: native, ours, ours, native, ...
                way = "native" if number % 4 in (0, 3) else "frozen"
                dirty(vm, 1)
                began_s = time.time()
                times[way].append(ways[way](node))
                witness.wait_for_a_write(10.0)
                writes = [each.lasted_s for each in witness.writes() if each.until_s > began_s]
                times[blocked_in[way]].append(max(writes) * 1000)
            hung = [hung_ms(vm, node, witness) for _ in range(hangs)]
            deadline = Deadline.after(10)
            with open_agent(vm.qga, deadline) as connection:
                version = connection.guest_info(deadline).version
            node.stop()
    finally:
        node.stop()
        shutil.rmtree(root)
    return {
        "pairs": pairs,
        **{f"{name}_ms_{key}": value for name, each in times.items() for key, value in spread(each).items()},
        "hung_freezes": hangs,
        **{f"hung_thawed_after_ms{key}": value for key, value in hung_spread([each[0] for each in hung]).items()},
        **{f"hung_writes_after_ms{key}": value for key, value in hung_spread([each[1] for each in hung]).items()},
        "qemu": qemu_version(),
        "qemu_ga": version,
    }


def spread(times_ms: Sequence[float]) -> dict[str, object]:
    quartiles = [round(each, 1) for each in statistics.quantiles(times_ms, n=4)[::2]]
    return {
        "median": round(statistics.median(times_ms), 1),
        "min": round(min(times_ms), 1),
        "max": round(max(times_ms), 1),
        "quartiles": quartiles,
    }


def hung_spread(times_ms: Sequence[float]) -> dict[str, object]:
    return {"": round(statistics.median(times_ms), 1), "_max": round(max(times_ms), 1)} if times_ms else {}


def qemu_version() -> str:
    shown = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    return shown.split("version ")[1].split()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--hangs", type=int, default=3)
    parser.add_argument("--agent", choices=sorted(AGENT_SUITES), default="7.2")
    arguments = parser.parse_args()
    figures = measure(max(arguments.pairs, 2), arguments.hangs, arguments.agent)
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    print(f"QEMU {figures['qemu']}, qemu-ga {figures['qemu_ga']}, {figures['pairs']} pairs, milliseconds")
    for name, what in (("native", "frozen by PVE"), ("frozen", "frozen by pvehook")):
        print(f"  {what:<18} median {figures[f'{name}_ms_median']:>6}  max {figures[f'{name}_ms_max']:>6}")
    for name, what in (("native_blocked", "a write, by PVE"), ("blocked", "a write, by pvehook")):
        print(f"  {what:<18} median {figures[f'{name}_ms_median']:>6}  max {figures[f'{name}_ms_max']:>6}")
    if arguments.hangs:
        print(f"  a hung freeze, thawed after it could be: median {figures['hung_thawed_after_ms']}")


if __name__ == "__main__":
    main()
