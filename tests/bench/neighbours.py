#!/usr/bin/env python3
"""What a backup costs the guests beside it: without one, ungoverned, governed, and at a fixed limit.

    python tests/bench/neighbours.py [--json] [--rounds N] [--setup NAME ...] [--scale 0.5]

Each guest is a QEMU of its own with one disk and a load (governor_guest.py); guests whose disks are on one model
(disk_models.py) share its queue, and each of them is a logical volume with counters of its own, which the model writes
(neighbours_node.py). Guest 101 is backed up by QEMU's own job (`blockdev-backup`, 16 workers) beside the others:

    raid                101 asks for two things a second, 102 is busy (120/s); four disks
    one-disk            the same on one slow disk, 102 asks 25/s
    raid-five           101 and 105 ask for two things a second, 102, 103, 104 for 60/s each; four disks
    one-disk-five       the same on one slow disk, 8/s each
    raid-files          as `raid`, the disks are files in a directory: nobody but QEMU counts their requests
    raid-on-off         102 asks 350/s, half of what the disks can do, for 10 s of every 30 s, and nothing in the rest
    raid-idle           all five ask for two things a second: nobody suffers
    elsewhere           from 5 s on, 102 asks the slow disk that it has for itself for more than that can do
    beyond              the same on the slow disk that it shares with 101

`governed` is the whole path: the program's own hook and daemon, as shipped, on a tree in which they find guests, disks
and counters by themselves, called by the rehearsal's vzdump in vzdump's order; the run begins 30 s before the backup,
so that there is a time before it. `ungoverned` and `best_static` are the same run with `/bin/true` as the hook.
`best_static`: the fixed limit with which a backup takes as long as the governed one did in the same round. `alone`: no
backup, for 30 s. `static_of_same_p99`, where 102's load comes and goes: the highest fixed limit, to 2 %, with which
102's p99 is that of the governed backups (of the rounds' medians), and how long a backup takes at it; it is looked for
at the end, with backups of two of 102's cycles.

`duration_s` is from QEMU's start of the job to its end. Of each guest meanwhile: `stalled_s`, seconds in which a
request was over 100 ms old; `p99_ms` of its requests, from when it wanted them. Of each: median, min, max of the
rounds. Of `governed` too: how long the backup was slowed, reasons and what the journal told of the last round, faults
of all rounds, the daemon's CPU.

What is not real is what governor.py names, and: a backup goes nowhere; the counters of the volumes are as old as 50 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

TOP = Path(__file__).parent.parent.parent
sys.path.insert(0, str(TOP))

import psutil  # noqa: E402  (the path above is where the rest lies)

from pvehook.deadline import Deadline  # noqa: E402
from pvehook.guest.sockets import connect  # noqa: E402
from pvehook.rehearsal.tree import RehearsalNode  # noqa: E402
from pvehook.rehearsal.vzdump.player import Player  # noqa: E402
from pvehook.rehearsal.vzdump.run import Guest, Run  # noqa: E402
from tests.bench.disk_models import MIB, ONE_DISK, RAID, DiskModel, served_disk, stalled_s  # noqa: E402
from tests.bench.governor_guest import Load, LoadedGuest, loaded_guest  # noqa: E402
from tests.bench.neighbours_job import DEVICE, JOB  # noqa: E402
from tests.bench.neighbours_node import Placed, counters_of, node_of  # noqa: E402

IN_BACKUP: Final = 101
BUSY: Final = 102
BEFORE_S: Final = 30.0
"""From job-start to the backup, for the guests' baselines: in a night minutes, and one cycle of a load that changes."""
BEFORE_WITHOUT_S: Final = 6.0
"""The same for runs that need no baselines."""
ALONE_S: Final = 30.0
LONGEST_S: Final = 600.0
IDLE: Final = Load(per_s=2)
RISES_AFTER_S: Final = 5.0
"""From when the backup is let go on, which is a second or less before its job starts."""
CYCLE_S: Final = 30.0
SEARCHED_S: Final = 2 * CYCLE_S
SEARCH_STEPS: Final = 7
SLOWEST: Final = 12.0
"""How much slower than an ungoverned backup a fixed limit may be that is searched for."""
STARTS_S: Final = 30.0

Way = str
"""`alone`, `ungoverned`, `governed` or `best_static`."""
NO_HOOK: Final = "/bin/true"


class Beside(NamedTuple):
    """One guest."""

    load: Load = IDLE
    disk: str = "sda"


class Setup(NamedTuple):
    """One kind of night. The guests are 101, 102, ..., of which 101 is backed up."""

    models: Mapping[str, DiskModel]
    size_mib: int
    guests: tuple[Beside, ...]
    in_files: bool = False


_RISING: Final = Load(per_s=150, from_s=RISES_AFTER_S, rest_per_s=10)
_ON_OFF: Final = Load(per_s=350, from_s=RISES_AFTER_S, on_s=10, every_s=CYCLE_S)
_THREE_BUSY: Final = (Beside(), *3 * (Beside(Load(per_s=60)),), Beside())
_THREE_BUSY_ON_ONE: Final = (Beside(), *3 * (Beside(Load(per_s=8)),), Beside())

SETUPS: Final = {
    "raid": Setup({"sda": RAID}, 3200, (Beside(), Beside(Load(per_s=120)))),
    "one-disk": Setup({"sda": ONE_DISK}, 3800, (Beside(), Beside(Load(per_s=25)))),
    "raid-five": Setup({"sda": RAID}, 3000, _THREE_BUSY),
    "one-disk-five": Setup({"sda": ONE_DISK}, 2500, _THREE_BUSY_ON_ONE),
    "raid-files": Setup({"sda": RAID}, 3200, (Beside(), Beside(Load(per_s=120))), in_files=True),
    "raid-on-off": Setup({"sda": RAID}, 6500, (Beside(), Beside(_ON_OFF))),
    "raid-idle": Setup({"sda": RAID}, 2500, 5 * (Beside(),)),
    "elsewhere": Setup({"sda": RAID, "sdb": ONE_DISK}, 2500, (Beside(), Beside(_RISING, "sdb"))),
    "beyond": Setup({"sda": ONE_DISK}, 1500, (Beside(), Beside(_RISING))),
}


class Told(NamedTuple):
    """What the daemon told of a governed backup."""

    slowed_s: float
    reasons: tuple[str, ...]
    others: tuple[str, ...]
    """Other events that are no fault: who suffered, what was advised."""
    faults: tuple[str, ...]
    cpu_percent: float


class Suffered(NamedTuple):
    """One guest's part of a run."""

    p99_ms: float
    stalled_s: float


class Night(NamedTuple):
    """One run."""

    duration_s: float
    guests: Mapping[int, Suffered]
    told: Told | None = None


def run(setup: Setup, way: Way, seed: int, *, lasts_s: float = 0.0) -> Night:
    """One backup of one setup; `lasts_s` is for how long at a fixed limit, 0 for none."""
    placed = [Placed(101 + index, each.disk, setup.in_files) for index, each in enumerate(setup.guests)]
    with contextlib.ExitStack() as cleanup:
        root = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="nb-", dir="/dev/shm"))
        node = node_of(root, placed)
        counters = counters_of(node.node, placed)
        sockets = {each.vmid: node.node.path(f"/disk{each.vmid}") for each in placed}
        for number, (name, model) in enumerate(setup.models.items()):
            here = {sockets[each.vmid]: setup.size_mib * MIB for each in placed if each.disk == name}
            counted = {sockets[vmid]: directory for vmid, directory in counters.items() if sockets[vmid] in here}
            cleanup.enter_context(served_disk(model, here, seed + number, counted))
        guests = []
        for each, (load, _) in zip(placed, setup.guests, strict=True):
            disk, seeded = sockets[each.vmid], load._replace(seed=seed + each.vmid)
            started = loaded_guest({disk: setup.size_mib * MIB}, {disk: ""}, seeded, root=root, vmid=each.vmid)
            guests.append(cleanup.enter_context(started))
        if way == "alone":
            return _alone(guests)
        if way != "governed":
            return _backed_up(node, guests, NO_HOOK, BEFORE_WITHOUT_S, lasts_s)
        with node:
            return _backed_up(node, guests, node.hook, BEFORE_S, 0.0)


def _alone(guests: Sequence[LoadedGuest]) -> Night:
    _change_loads(guests, time.monotonic() + BEFORE_WITHOUT_S)
    time.sleep(BEFORE_WITHOUT_S)
    began_s = time.monotonic()
    time.sleep(ALONE_S)
    return _night(guests, began_s, time.monotonic())


def _backed_up(
    node: RehearsalNode, guests: Sequence[LoadedGuest], hook: str, before_s: float, lasts_s: float
) -> Night:
    guest = Guest(IN_BACKUP, name=f"guest{IN_BACKUP}", archive_s=lasts_s)
    vzdump = Run((guest,), hook, node.node.root, storeid="pbs", to_pbs=True, vm_job=JOB, pauses=("after job-start",))
    with Player(vzdump) as player, _events(guests[0]) as events:
        player.wait_for("after job-start")
        zero_s = time.monotonic() + before_s
        _change_loads(guests, zero_s)
        time.sleep(before_s)
        player.go_on()
        began_s = float(player.wait_for_event("job-started", IN_BACKUP)["at_s"])
        cpu_s = _cpu_s(node) if hook != NO_HOOK else 0.0
        _wait_for_end(events)
        ended_s = time.monotonic()
        night = _night(guests, began_s, ended_s)
        cpu_s = _cpu_s(node) - cpu_s if hook != NO_HOOK else 0.0
        _finish(player)
    if hook == NO_HOOK:
        return night
    return night._replace(told=_told(node, 100 * cpu_s / night.duration_s))


def _change_loads(guests: Sequence[LoadedGuest], zero_s: float) -> None:
    for guest in guests:
        guest.zero_s = zero_s


@contextlib.contextmanager
def _events(guest: LoadedGuest) -> Iterator[Any]:
    deadline = Deadline.after(STARTS_S)
    with connect(guest.events) as events:
        events.allow()
        events.read_line(deadline)  # the greeting
        events.send(b'{"execute": "qmp_capabilities"}\n', deadline)
        yield events


def _wait_for_end(events: Any) -> None:
    deadline = Deadline.after(LONGEST_S)
    while True:
        events.allow()
        shown = json.loads(events.read_line(deadline))
        if shown.get("event") == "BLOCK_JOB_COMPLETED" and shown["data"]["device"] == DEVICE:
            if "error" in shown["data"]:
                raise RuntimeError(f"the backup failed: {shown}")
            return


def _finish(player: Player) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        if player.finish().exit_code != 0:
            raise RuntimeError(f"vzdump failed: {player.so_far().task_log}")
        return
    raise RuntimeError(f"vzdump did not end: {player.events()[-3:]}")


def _cpu_s(node: RehearsalNode) -> float:
    times = psutil.Process(node.daemon.pid).cpu_times()
    return float(times.user + times.system)


def _night(guests: Sequence[LoadedGuest], began_s: float, ended_s: float) -> Night:
    suffered = {}
    for guest in guests:
        done = [(each.wanted_s, each.done_s) for each in guest.stop() if began_s <= each.wanted_s < ended_s]
        latencies = sorted(done_s - wanted_s for wanted_s, done_s in done)
        p99_ms = latencies[int(0.99 * (len(latencies) - 1))] * 1000 if latencies else 0.0
        suffered[guest.vmid] = Suffered(p99_ms, stalled_s(done, ended_s))
    return Night(ended_s - began_s, suffered)


def _told(node: RehearsalNode, cpu_percent: float) -> Told:
    events = [each.fields for each in node.journal.events]
    named = {name: [each for each in events if each.get("PVEHOOK_EVENT") == name] for name in node.event_names()}
    slowed_s = sum(float(each.get("PVEHOOK_SLOWED_S", 0.0)) for each in named.get("governor-done", ()))
    told = [each for name in ("guest-suffered", "governor-done", "governor-stopped") for each in named.get(name, ())]
    faults = [each for each in events if int(each.get("PRIORITY", 6)) <= 3]
    return Told(
        slowed_s,
        tuple(dict.fromkeys(each["MESSAGE"] for each in named.get("governor-speed", ()))),
        tuple(each["MESSAGE"] for each in told),
        tuple(each["MESSAGE"] for each in faults),
        cpu_percent,
    )


def measure(names: Sequence[str], rounds: int, scale: float) -> dict[str, object]:
    setups = {name: SETUPS[name]._replace(size_mib=round(SETUPS[name].size_mib * scale)) for name in names}
    nights: dict[str, dict[Way, list[Night]]] = {name: {} for name in names}
    for number in range(rounds):
        for name, setup in setups.items():
            seed = 1000 * number + 1
            found = {way: run(setup, way, seed) for way in ("alone", "ungoverned", "governed")}
            found["best_static"] = run(setup, "best_static", seed, lasts_s=found["governed"].duration_s)
            for way, night in found.items():
                nights[name].setdefault(way, []).append(night)
                _show(f"round {number + 1}, {name}, {way}", night)
    return {"rounds": rounds, "setups": {name: _figures(setups[name], nights[name]) for name in names}}


def _show(what: str, night: Night) -> None:
    guests = ", ".join(f"{vmid} {p99_ms:.0f} ms {stalled:.2f} s" for vmid, (p99_ms, stalled) in night.guests.items())
    print(f"{what}: {night.duration_s:.1f} s; p99 and stalled of {guests}", file=sys.stderr, flush=True)


def _figures(setup: Setup, ways: Mapping[Way, Sequence[Night]]) -> dict[str, object]:
    figures: dict[str, object] = {way: _spread(nights) for way, nights in ways.items()}
    if any(load.every_s for load, _ in setup.guests):
        p99_ms = statistics.median(each.guests[BUSY].p99_ms for each in ways["governed"])
        fastest_s = statistics.median(each.duration_s for each in ways["ungoverned"])
        figures["static_of_same_p99"] = _static_of_p99(setup, p99_ms, fastest_s)
    return figures


def _static_of_p99(setup: Setup, p99_ms: float, fastest_s: float) -> dict[str, object]:
    """By halving, as the p99 grows with the limit. Runs of whole cycles; the backup is as long as the cycles last."""
    fast, slow = fastest_s, SLOWEST * fastest_s  # how long a whole backup takes: too fast, and slow enough
    tried: list[dict[str, float]] = []
    for number in range(SEARCH_STEPS):
        lasts_s = (fast * slow) ** 0.5
        part = setup._replace(size_mib=round(setup.size_mib * SEARCHED_S / lasts_s))
        night = run(part, "best_static", 1 + number, lasts_s=SEARCHED_S)
        _show(f"a fixed limit of {lasts_s:.0f} s", night)
        tried.append({"duration_s": round(lasts_s, 1), "p99_ms": round(night.guests[BUSY].p99_ms, 1)})
        if night.guests[BUSY].p99_ms > p99_ms:
            fast = lasts_s
        else:
            slow = lasts_s
    was_found = any(each["p99_ms"] <= p99_ms for each in tried)
    return {"p99_ms": round(p99_ms, 1), "duration_s": round(slow, 1) if was_found else None, "tried": tried}


def _spread(nights: Sequence[Night]) -> dict[str, object]:
    guests = {
        str(vmid): {
            name: _of([getattr(each.guests[vmid], name) for each in nights]) for name in Suffered._fields
        }
        for vmid in nights[0].guests
    }
    figures: dict[str, object] = {"duration_s": _of([each.duration_s for each in nights]), "guests": guests}
    told = [each.told for each in nights if each.told is not None]
    if told:
        figures["slowed_s"] = _of([each.slowed_s for each in told])
        figures["daemon_cpu_percent"] = _of([each.cpu_percent for each in told])
        figures["reasons"] = told[-1].reasons
        figures["told"] = told[-1].others
        figures["faults"] = [fault for each in told for fault in each.faults]
    return figures


def _of(values: Sequence[float]) -> dict[str, float]:
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 2) for name, value in figures.items()}


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
    print(f"{'':<16}{'':<20}{'seconds':>20}  {'guest: p99 ms, stalled s'}")
    for name, ways in setups.items():
        for way, found in ways.items():
            if way == "static_of_same_p99":
                print(f"{name:<16}{way:<20}{found['duration_s']}: {found}")
                continue
            seconds = found["duration_s"]
            guests = "  ".join(
                f"{vmid}: {each['p99_ms']['median']:.0f}, {each['stalled_s']['median']:.2f}"
                for vmid, each in found["guests"].items()
            )
            print(f"{name:<16}{way:<20}{seconds['median']:>8.1f} ({seconds['min']:.1f}-{seconds['max']:.1f})  {guests}")


if __name__ == "__main__":
    main()
