#!/usr/bin/env python3
"""What the governor gains a guest and what it costs its backup: ungoverned, governed, and at a fixed limit.

    python tests/bench/governor.py [--json] [--rounds N] [--setup NAME ...] [--scale 0.5]

Each run is a QEMU of its own with QEMU's own backup job (`blockdev-backup`), a guest load that enters through a device
(governor_guest.py), and disks with queues (disk_models.py) behind unix sockets:

    raid-16, raid-1     guest and backup share four disks; the backup has 16 workers, or one
    one-disk-16         they share one slow disk
    slow-target         fast disk, a target that takes 120 ms for each request, however little it has to do
    fast-16             a fast disk: what the backup has in flight is done in milliseconds (64 KiB a worker, since the
                        bench could not keep up with a disk that does that with 1 MiB)
    idle-16             the four disks, and a guest that asks them for two things a second
    two-disks-16        two of the guest's disks on the four; as under Proxmox both jobs are there from the beginning,
                        and the second runs when the first is complete (until then it is paused)
    neighbours-16       the four disks, and others who ask them for 256 KiB 150 times a second, for two seconds of four
    rewriting-16        twelve disks and a guest that writes 20 MB/s' worth of first writes

`governed` is the daemon's own sampler with its governor, as shipped (daemon_sampler.py). `best_static`: the fixed limit
with which a backup takes as long as the governed one did in the same round; there is no other of equal duration. The
runs of a round follow each other. `stalled_s`: seconds of the backup in which a request of the guest was over 100 ms
old; `p99_ms`: of its requests, from when it wanted them; `p99_later_ms` leaves the first three seconds out, in which
the governor finds out that the guest suffers: of half a minute they are much, of a night nothing. Of each: median, min,
max of the rounds.

Ungoverned a backup takes half a minute or a minute: its start is a second or two, whose part in the figures would be
too large in less, and is smaller in a night.

What is not real: the disks, and that no guest system stands between the load and the device. QEMU has no more than 16
requests on their way to one NBD disk; the others wait in QEMU, first come first served, as they would in the disk's own
queue. Two shared cores move the digits; a run in which the bench itself was late shows in `max`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

TOP = Path(__file__).parent.parent.parent
sys.path.insert(0, str(TOP))

from pvehook.contract.latency import DiskCounters  # noqa: E402  (the path above is where it lies)
from pvehook.deadline import Deadline  # noqa: E402
from pvehook.guest.block_stats import arm_histograms, read_disks  # noqa: E402
from pvehook.guest.qmp import open_qmp  # noqa: E402
from pvehook.guest.sockets import connect  # noqa: E402
from pvehook.records.stall_record import Baseline, GovernorSummary  # noqa: E402
from pvehook.rules.latency import disks_between, latency_of, sum_of  # noqa: E402
from tests.bench.daemon_sampler import Sampled, sampled  # noqa: E402
from tests.bench.disk_models import (  # noqa: E402
    FAR_TARGET,
    FAST_DISK,
    MIB,
    ONE_DISK,
    RAID,
    DiskModel,
    served_disk,
    stalled_s,
)
from tests.bench.governor_guest import Load, LoadedGuest, loaded_guest  # noqa: E402

BEFORE_S: Final = 30.0
"""The guest alone: its baseline, which in a night is from minutes, or from other nights. In half of that, the p99 of a
guest that asks for little is one of its three slowest requests."""
ALONE_S: Final = 5.0
"""The same for runs that need no baseline."""
BEGINNING_S: Final = 3.0
LONGEST_S: Final = 400.0


class Setup(NamedTuple):
    """One kind of night."""

    source: DiskModel
    size_mib: int
    workers: int = 16
    target: DiskModel | None = None
    load: Load = Load()
    disks: int = 1
    chunk: int = 0
    """The most that a worker copies at once; 0 is QEMU's own, 1 MiB."""


SETUPS: Final = {
    "raid-16": Setup(RAID, 2800),
    "raid-1": Setup(RAID, 800, workers=1),
    "one-disk-16": Setup(ONE_DISK, 3000, load=Load(per_s=25)),
    "slow-target": Setup(FAST_DISK, 2500, target=FAR_TARGET, load=Load(per_s=40)),
    "fast-16": Setup(FAST_DISK._replace(bytes_per_s=10e6), 4800, chunk=64 * 1024),
    "idle-16": Setup(RAID, 1500, load=Load(per_s=2)),
    "two-disks-16": Setup(RAID, 1000, load=Load(per_s=60), disks=2),
    "neighbours-16": Setup(RAID._replace(neighbour_per_s=150), 1500),
    "rewriting-16": Setup(RAID._replace(servers=12, bytes_per_s=10e6), 1500, load=Load(per_s=320, reads=0.0)),
}


class Run(NamedTuple):
    """One backup."""

    duration_s: float
    p99_ms: float
    p99_later_ms: float
    stalled_s: float
    cpu_percent: float = 0.0
    summary: GovernorSummary | None = None


def run(setup: Setup, seed: int, *, governed: bool = False, limit: int = 0) -> Run:
    """One backup of one setup."""
    size = setup.size_mib * MIB
    with tempfile.TemporaryDirectory(prefix="nbd-") as place, contextlib.ExitStack() as cleanup:
        disks = {os.path.join(place, f"disk{index}"): size for index in range(setup.disks)}
        target = dict.fromkeys(disks, "")
        cleanup.enter_context(served_disk(setup.source, disks, seed))
        if setup.target is not None:
            target = {path: f"{path}.target" for path in disks}
            cleanup.enter_context(served_disk(setup.target, dict.fromkeys(target.values(), size), seed + 1))
        guest = cleanup.enter_context(loaded_guest(disks, target, setup.load._replace(seed=seed)))
        before = _begin(guest)
        time.sleep(BEFORE_S if governed else ALONE_S)
        beginning = threading.Lock()
        sampler: contextlib.AbstractContextManager[Sampled | None] = contextlib.nullcontext()
        if governed:
            sampler = sampled(guest.root, lambda after: _baseline(before, after), beginning.locked)
        with sampler as found:
            began_s = time.monotonic()
            _back_up(guest, setup, limit, beginning)
            ended_s = time.monotonic()
        done = [(each.wanted_s, each.done_s) for each in guest.stop() if began_s <= each.wanted_s < ended_s]
        figures = Run(
            duration_s=ended_s - began_s,
            p99_ms=_p99_ms(done, began_s),
            p99_later_ms=_p99_ms(done, began_s + BEGINNING_S),
            stalled_s=stalled_s(done, ended_s),
        )
        if found is None:
            return figures
        cpu_percent = 100 * found.views.cpu_s / figures.duration_s
        return figures._replace(cpu_percent=cpu_percent, summary=found.views.governor)


def _p99_ms(done: Sequence[tuple[float, float]], from_s: float) -> float:
    latencies = sorted(done_s - wanted_s for wanted_s, done_s in done if wanted_s >= from_s)
    return latencies[int(0.99 * (len(latencies) - 1))] * 1000


def _begin(guest: LoadedGuest) -> tuple[DiskCounters, ...]:
    deadline = Deadline.after(10.0)
    with open_qmp(guest.qmp, deadline) as qmp:
        arm_histograms(qmp, read_disks(qmp, deadline), deadline)
        return read_disks(qmp, deadline)


def _baseline(before: Sequence[DiskCounters], after: Sequence[DiskCounters]) -> Baseline:
    kinds = disks_between(before, after)
    read, write, flush = (latency_of(kinds[kind]) for kind in ("read", "write", "flush"))
    return Baseline(BEFORE_S, "before", read, write, flush, latency_of(sum_of(kinds.values())).p99_ms)


def _back_up(guest: LoadedGuest, setup: Setup, limit: int, beginning: threading.Lock) -> None:
    """The disks' jobs, until they are complete. All are there from the beginning, and run one after the other."""
    deadline = Deadline.after(LONGEST_S)
    first, *others = (f"drive-virtio{index}" for index in range(setup.disks))
    with connect(guest.events) as events:

        def send(command: str, **given: object) -> None:
            events.send(json.dumps({"execute": command, "arguments": given}).encode() + b"\n", deadline)

        def start(device: str, speed: int) -> None:
            job = {"job-id": device, "device": device, "target": device.replace("drive-virtio", "target")}
            perf = {"max-workers": setup.workers, "max-chunk": setup.chunk}
            send("blockdev-backup", **job, **{"sync": "full", "speed": speed, "x-perf": perf})

        def wait_for(event: str, **data: str) -> None:
            while True:
                shown = json.loads(events.read_line(deadline))
                if "error" in shown or "error" in shown.get("data", {}):
                    raise RuntimeError(f"the backup failed: {shown}")
                if shown.get("event") == event and data.items() <= shown["data"].items():
                    return

        events.allow()
        events.read_line(deadline)  # the greeting
        send("qmp_capabilities")
        with beginning:  # nobody samples before all are there, as with PVE's one command for all
            for device in others:
                start(device, 1)  # a byte a second, and not all workers at once
                send("block-job-pause", device=device)
                wait_for("JOB_STATUS_CHANGE", id=device, status="paused")
                send("block-job-set-speed", device=device, speed=limit)
            start(first, limit)
        wait_for("BLOCK_JOB_COMPLETED", device=first)
        for device in others:
            send("block-job-resume", device=device)
            wait_for("BLOCK_JOB_COMPLETED", device=device)


def measure(names: Sequence[str], rounds: int, scale: float) -> dict[str, object]:
    runs: dict[str, dict[str, list[Run]]] = {name: {} for name in names}
    for number in range(rounds):
        for name in names:
            setup = SETUPS[name]._replace(size_mib=round(SETUPS[name].size_mib * scale))
            seed = 100 * number + 1
            found = {"ungoverned": run(setup, seed), "governed": run(setup, seed, governed=True)}
            limit = round(setup.disks * setup.size_mib * MIB / found["governed"].duration_s)
            found["best_static"] = run(setup, seed, limit=limit)
            for way, each in found.items():
                runs[name].setdefault(way, []).append(each)
                figures = f"{each.duration_s:.1f} s, p99 {each.p99_ms:.0f} ms, stalled {each.stalled_s:.1f} s"
                print(f"round {number + 1}, {name}, {way}: {figures}", file=sys.stderr, flush=True)
    return {
        "rounds": rounds,
        "setups": {name: {way: _spread(found) for way, found in ways.items()} for name, ways in runs.items()},
    }


def _spread(runs: Sequence[Run]) -> dict[str, object]:
    figures: dict[str, object] = {}
    for name in ("duration_s", "p99_ms", "p99_later_ms", "stalled_s", "cpu_percent"):
        values = [getattr(each, name) for each in runs]
        if any(values) or name == "stalled_s":
            figures[name] = {
                "median": round(statistics.median(values), 2),
                "min": round(min(values), 2),
                "max": round(max(values), 2),
            }
    accounts = [each.summary for each in runs if each.summary is not None]
    if accounts:
        figures["slowed_s"] = round(statistics.median(each.slowed_s for each in accounts), 1)
        figures["target_ms"] = round(statistics.median(each.target_ms or 0.0 for each in accounts), 1)
        figures["reasons"] = accounts[-1].reasons
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--setup", action="append", choices=sorted(SETUPS), help="only this one (can be repeated)")
    parser.add_argument("--scale", type=float, default=1.0, help="backups of this part of their size")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # else QEMU and the disks outlive it
    figures = measure(arguments.setup or list(SETUPS), arguments.rounds, arguments.scale)
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    setups = figures["setups"]
    assert isinstance(setups, dict)
    print(f"{'':<16}{'':<12}{'seconds':>16}{'p99 ms':>18}{'stalled s':>18}")
    for name, ways in setups.items():
        for way, found in ways.items():
            cells = [found[key] for key in ("duration_s", "p99_ms", "stalled_s")]
            texts = [f"{each['median']:.1f} ({each['min']:.1f}-{each['max']:.1f})" for each in cells]
            print(f"{name:<16}{way:<12}{texts[0]:>16}{texts[1]:>18}{texts[2]:>18}")


if __name__ == "__main__":
    main()
