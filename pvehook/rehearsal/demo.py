"""`pvehook rehearse --simulated`: one night through the real hook and the real daemon, on any Linux, without root.

    04:40  VM 101 was off: vzdump starts it, and it inherits the idle priority of the backup
    04:46  CT 102: tar and zstd
    04:52  VM 103: still in backup at 05:00, when the window closes; it may finish (running_guest: finish); one of its
           writes takes 1.8 s
    05:19  VM 104: refused (next_guest: refuse)

The clock, the guests and their configurations are invented. The processes (worker, zstd, tar, the fake VMs), their
priorities and every line of the hook, the daemon and the journal are real. What the daemon reports is checked against
the kernel through another library.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TextIO

from pvehook.rehearsal.demo_report import Check, print_report
from pvehook.rehearsal.journal_receiver import Event
from pvehook.rehearsal.tree import RehearsalNode
from pvehook.rehearsal.vm import fake_vm_process
from pvehook.rehearsal.vm.simulated_guest import SimulatedGuest
from pvehook.rehearsal.vzdump.kernel_ioprio import all_idle, all_normal, io_priorities
from pvehook.rehearsal.vzdump.player import Played, Player
from pvehook.rehearsal.vzdump.run import Guest, Run

GUESTS = (
    Guest(101, name="build", state="stopped"),
    Guest(102, kind="lxc", name="files"),
    Guest(103, name="db"),
    Guest(104, name="web"),
)

FILES = {
    "/etc/pvehook.yaml": """\
window: {open: ["02:00-05:00"], timezone: UTC, next_guest: refuse, running_guest: finish}
io_priority: {mode: idle, check_every: 500ms}
""",
    "/etc/vzdump.conf": "script: /usr/local/lib/pvehook/hooks/vzdump-hook\n",
    "/etc/pve/storage.cfg": "dir: local\n\tpath /var/lib/vz\n\tcontent images,rootdir,backup\n",
    "/etc/pve/lxc/102.conf": "arch: amd64\nhostname: files\nrootfs: local:102/vm-102-disk-0.raw,size=8G\n",
}
STALL_MS = 1800.0
_VM_CONFIG = "name: {guest.name}\nmemory: 2048\nscsi0: local:{guest.vmid}/vm-{guest.vmid}-disk-0.raw,size=32G\n"


class Night:
    """What it showed, as far as it came."""

    def __init__(self) -> None:
        self.played = Played((), (), (), 0, "")
        self.events: list[Event] = []
        self.checks: list[Check] = []


def simulated_night(out: TextIO) -> int:
    """Plays the night and prints it. Returns 0 if every check holds, else 1."""
    night = Night()
    root = tempfile.mkdtemp(prefix="pvehook-")
    # SIGTERM must take the same way out as Ctrl-C, or the daemon and the fake VMs would stay behind
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        _play(root, night)
    except (TimeoutError, EOFError, RuntimeError, OSError) as error:
        night.checks.append(Check(f"the night comes to its end ({error})", False))
    finally:
        shutil.rmtree(root, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)
    print_report(out, GUESTS, night.played, night.events, night.checks)
    return 0 if all(check.held for check in night.checks) else 1


def _play(root: str, night: Night) -> None:
    checks = night.checks
    files = dict(FILES)
    for guest in GUESTS:
        if guest.kind == "qemu":
            files[f"/etc/pve/qemu-server/{guest.vmid}.conf"] = _VM_CONFIG.format(guest=guest)
        files[f"/var/lib/vz/images/{guest.vmid}/vm-{guest.vmid}-disk-0.raw"] = ""
    node = RehearsalNode(root, files)
    node.run_clock_from(_at(4, 40))
    night.events = node.journal.events
    with ExitStack() as stack:
        stack.enter_context(node)
        sockets = {
            103: _running_vm(stack, node, 103, backup_s=None),  # until `finish_backup`
            104: _running_vm(stack, node, 104, backup_s=0.1),  # must not begin
        }
        run = Run(
            GUESTS,
            hook=node.hook,
            root=root,
            compress="zstd",
            ionice=7,  # vzdump's default: only pvehook sets the idle class
            clock_file=node.clock_file,
            pauses=("archive 101", "archive 102", "archive 103"),
        )
        player = stack.enter_context(Player(run))
        try:
            _stopped_vm(player, node, checks)
            _container(player, node, checks)
            _over_the_end(player, node, checks, sockets[103])
            night.played = player.finish()
        except BaseException:
            night.played = player.so_far()
            raise
        node.wait_for_event("job-ended")
        checks += _at_the_end(night.played, night.events)
        untouched = [fake_vm_process.running_pid(node.node, vmid) for vmid in sockets]
        checks.append(
            Check(
                "VM 103 and VM 104, which ran all the time, have normal priority",
                all(pid is not None and all_normal(pid) for pid in untouched),
            )
        )
        checks.append(Check("the daemon itself has normal priority", all_normal(node.daemon.pid)))


# The night, guest by guest


def _stopped_vm(player: Player, node: RehearsalNode, checks: list[Check]) -> None:
    player.wait_for("archive 101")
    compressor, vm = _compressor(player, 101), player.started_vm(101)
    node.wait_for_event("io-priority-set", process=str(compressor[1]))
    restored = node.wait_for_event("io-priority-restored", process=str(vm))
    checks.append(Check("every thread of the vzdump worker is in the idle I/O class", all_idle(player.pid)))
    checks.append(_idle_check("VM 101", *compressor))
    checks.append(
        Check(
            f"VM 101: vzdump started it in the idle class, and all of its {len(io_priorities(vm))} threads are back at"
            " normal priority while its backup runs",
            restored["PVEHOOK_WAS_IDLE"] == restored["PVEHOOK_THREADS"] and all_normal(vm),
        )
    )
    node.run_clock_from(_at(4, 46))
    player.go_on()


def _container(player: Player, node: RehearsalNode, checks: list[Check]) -> None:
    player.wait_for("archive 102")
    for name, pid in player.children(102).items():
        node.wait_for_event("io-priority-set", process=str(pid))
        checks.append(_idle_check("CT 102", name, pid))
    node.run_clock_from(_at(4, 52))
    player.go_on()


def _over_the_end(player: Player, node: RehearsalNode, checks: list[Check], guest: SimulatedGuest) -> None:
    player.wait_for("archive 103")
    compressor = _compressor(player, 103)
    node.wait_for_event("io-priority-set", process=str(compressor[1]))
    checks.append(_idle_check("VM 103", *compressor))
    node.run_clock_from(_at(5, 0))
    node.wait_for_event("window-closed-on-guest", vmid="103")
    checks.append(Check("VM 103: still in backup after the window has closed", guest.backup_runs))
    guest.serve_requests("read", 0.8, 60)
    guest.serve_requests("write", 1.5, 200)
    guest.serve_requests("write", STALL_MS, 1)
    node.run_clock_from(_at(5, 19))
    guest.finish_backup()
    player.go_on()


def _at_the_end(played: Played, events: Sequence[Event]) -> list[Check]:
    done = {
        event.fields["PVEHOOK_VMID"]: event.fields
        for event in events
        if event.fields.get("PVEHOOK_EVENT") == "guest-done"
    }
    results = {vmid: fields["PVEHOOK_RESULT"] for vmid, fields in done.items()}
    stalled = done.get("103", {}).get("PVEHOOK_STALLED_S")
    refused = [call for call in played.calls if call.exit_code == 1 and call.argv[2:] == ("104",)]
    names = [event.fields.get("PVEHOOK_EVENT") for event in events]
    return [
        Check(
            "the journal has one summary per guest: 101, 102, 103 ok, 104 refused",
            results == {"101": "ok", "102": "ok", "103": "ok", "104": "refused"},
        ),
        Check(
            f"VM 103: the {STALL_MS / 1000:.1f} s that one of its writes took are in its summary "
            f"(seen: {stalled})",
            abs(float(stalled or 0) - STALL_MS / 1000) < 0.13 * STALL_MS / 1000,  # a bin of the histogram
        ),
        Check(
            "VM 104: refused in backup-start with one line",
            [(call.argv[0], len(call.lines)) for call in refused] == [("backup-start", 1)],
        ),
        Check(
            "the hook failed in no other phase",
            [call.argv[0] for call in played.calls if call.exit_code != 0] == ["backup-start"],
        ),
        Check(
            "vzdump made three archives and ended with `job errors` because of the refusal",
            played.task_log[-1] == "TASK ERROR: job errors"
            and sum(line.startswith("INFO: Finished Backup of VM ") for line in played.task_log) == 3,
        ),
        Check("nothing in the journal is a fault of pvehook's own", "fault" not in names),
    ]


# What it stands on


def _running_vm(stack: ExitStack, node: RehearsalNode, vmid: int, backup_s: float | None) -> SimulatedGuest:
    """A VM that runs already: its process and its sockets."""
    fake_vm_process.start(node.node, vmid)
    stack.callback(fake_vm_process.stop, node.node, vmid)
    return stack.enter_context(SimulatedGuest(node.node.path("/var/run/qemu-server"), vmid, backup_s=backup_s))


def _compressor(player: Player, vmid: int) -> tuple[str, int]:
    """Name and pid: zstd, or gzip where there is none."""
    return next((name, pid) for name, pid in player.children(vmid).items() if name != "tar")


def _idle_check(guest: str, name: str, pid: int) -> Check:
    return Check(f"{guest}: every thread of {name} is in the idle I/O class ({len(io_priorities(pid))})", all_idle(pid))


def _leave(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _at(hour: int, minute: int) -> float:
    return datetime(2026, 11, 23, hour, minute, tzinfo=UTC).timestamp()
