"""Plays one folder of this directory: night.yaml through the real hook and the real daemon, on a clock that stands.

The clock moves only where the night says so, so every duration that pvehook takes from it is exact. What still
differs from one playing to the next (process ids, measured milliseconds, this machine's disks) is replaced in one
place: `normalised`.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import tempfile
import textwrap
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count, groupby
from pathlib import Path
from typing import Any

import yaml

from pvehook.rehearsal.journal_receiver import Event
from pvehook.rehearsal.tree import RehearsalNode, pvehook_command
from pvehook.rehearsal.vm import fake_vm_process
from pvehook.rehearsal.vzdump.player import WAIT_S, Played, Player
from pvehook.rehearsal.vzdump.run import Guest, Run
from tests.guest_files import SimulatedGuest
from tests.native_freeze import NATIVE_FREEZE

WIDTH = 100
_PRIORITIES = {"2": "crit", "3": "err", "4": "warning", "5": "notice", "6": "info", "7": "debug"}

_CLUSTER_CONFIG = "pacer: {mode: off}\nfreeze: {facts_within: 5s}\n"
"""In force in every night that does not set it otherwise: pacing depends on this machine's disks, and a simulated guest
on a busy machine may need more than 2 s to answer."""

_BACKGROUND = ("freeze-done", "io-priority-set", "io-priority-restored")
"""Events of threads that run beside vzdump's phases: which of two neighbours comes first is chance."""

_UNSTABLE = re.compile(
    r"MESSAGE|PRIORITY|SYSLOG_IDENTIFIER|PVEHOOK_(EVENT|JOB|WORKER|PROCESS|CLOCK|REASONS|WHY|.*EFFECT.*|.*THREADS.*"
    r"|WAS_(IDLE|NICE)|STARTED_BY|KERNEL|.*_(MS|S|US|MIB|BYTES|STEPS|PERCENT))"
)
"""Fields that are shown elsewhere, or measured."""

_REPLACEMENTS: tuple[tuple[str, str], ...] = (
    (r"/tmp/night-\w+", ""),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<UUID>"),
    (r"UPID:[^\s:]+(:[^\s:]*)+:", "<UPID>"),
    (r"\b(kvm|process|pid) \d{2,}\b", r"\1 <PID>"),
    (r"\b(\d+) of \1 threads", "all threads"),
    (r"kvm <PID> \(QEMU of VM \d+, by its pid file\)|kvm <PID> \(all threads at idle I/O priority\)", "kvm <PID>"),
    (r"\((\d+) were idle, 0 were nice\)", "(idle until then)"),
    (r"\bidle \(.*?\) on", "idle on"),
    (r"(On the (?:dump|guest's own disks)[^:]*): .*", r"\1: <this node's disks>"),
    (r"\breading [\w-]+(?=, dump )", "reading <this node>"),
    (r"(compressor only|reading <this node>), dump [\w -]+?(?=;|:|$)", r"\1, dump <this node>"),
    (r"\b\d+ MiB in \d+ steps", "<N> MiB in <N> steps"),
    (r"\d+\.\d+ s for the disk, at most \d+\.\d+ s for a step", "<T> for the disk, at most <T> for a step"),
    (r"\b\d+(\.\d+)? ms\b", "<T> ms"),
    (r"\b(for|within) \d+\.\d+ s\b", r"\1 <T> s"),
    (r"\b(stalled|slowed) for [1-9]\d* s\b", r"\1 for <T> s"),
    (r"archive file size: \d+KB", "archive file size: <N>KB"),
    (r" +\d+/\d+  ", "   all  "),
    (r" +(\d\.\d|[1-9]\d?)s  ", "   <T>s  "),
)


def normalised(text: str) -> str:
    """Without what differs from one playing to the next."""
    for pattern, replacement in _REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    return text


def play(folder: Path) -> dict[str, str]:
    """What the administrator saw of this night, by file name."""
    root = tempfile.mkdtemp(prefix="night-", dir="/tmp")
    try:
        with ExitStack() as stack:
            night = _Night(yaml.safe_load((folder / "night.yaml").read_text()), root, stack)
            night.play()
            return night.shown()
    finally:
        shutil.rmtree(root)


def without_scripts(text: str, scripts: Iterable[str]) -> str:
    """Whether a chained script, a child of the hook, lives when a check looks for processes to set idle is chance, and
    with it the numbers of processes and threads; that what was found is read back on all threads is not."""
    for name in scripts:
        text = re.sub(rf"\b{re.escape(name)}, |, {re.escape(name)}\b", "", text)
        text = re.sub(r"\(\d+ process(?:es)?, ", "(<N> processes, ", text)
    return text


class _Night:
    def __init__(self, given: dict[str, Any], root: str, stack: ExitStack) -> None:
        self._given = given
        self._stack = stack
        self._now = _instant(given["begins"])
        self._node = RehearsalNode(root, self._files())
        self._steady_s = self._now.timestamp()
        self._node.stop_clock_at(self._now.timestamp(), self._steady_s)
        self._markers = count(1)
        self._daemon_began = 0
        """Number of events that came before this daemon."""
        self._guests: dict[int, SimulatedGuest] = {}
        self._scripts = [Path(path).name for path in given.get("scripts", {})]
        self._players: list[Player] = []
        self._played: list[Played] = []

    # The night

    def play(self) -> None:
        self._stack.enter_context(self._node.journal)
        self._stack.callback(self._node.stop)
        self._node.start_daemon()
        for path, text in self._given.get("scripts", {}).items():
            self._node.write(path, text, mode=0o755)
        for given in self._all_guests():
            self._start_guest(given)
        for number in range(len(self._given["runs"])):
            if number == len(self._players):
                self._start_run()
            self._follow(number)
            with suppress(TimeoutError):
                self._played.append(self._players[number].finish())
        self._see_all_events()
        self._node.stop()

    def _start_run(self) -> None:
        given = self._given["runs"][len(self._players)]
        guests = tuple(_guest(each) for each in given["guests"])
        storage = given.get("storage", "local")
        run = Run(
            guests,
            hook=self._node.hook,
            root=self._node.node.root,
            mode=given.get("mode", "snapshot"),
            storeid=storage,
            to_pbs=storage == "pbs",
            compress="zstd",
            clock_file=self._node.clock_file,
            freeze=NATIVE_FREEZE,
            pauses=tuple(pause for guest in guests for pause in _pauses(guest, given.get("mode", "snapshot"))),
        )
        self._players.append(self._stack.enter_context(Player(run)))

    def _follow(self, number: int) -> None:
        """Each guest of this run, until its archive may be completed."""
        player, run = self._players[number], self._given["runs"][number]
        for given in sorted(run["guests"], key=lambda each: each["vmid"]):
            vmid = given["vmid"]
            try:
                begun = player.wait_until(partial(_has_begun, vmid), f"guest {vmid}")
                if begun["event"] == "pause" and begun["at"].startswith("after"):
                    self._let_vm_start(player, vmid)
                    begun = player.wait_until(partial(_is_over, vmid), f"guest {vmid}")
            except EOFError:  # the run was refused, or its worker was killed
                return
            if begun["event"] != "pause":
                continue  # it never came to an archive
            self._settle(player, given)
            for step in given.get("during", ()):
                self._take(step, player, given)
            self._pass_time(given.get("minutes", 10))
            if vmid in self._guests:
                self._guests[vmid].finish_backup()
            with suppress(BrokenPipeError):  # the worker was killed
                player.go_on()

    def _let_vm_start(self, player: Player, vmid: int) -> None:
        """The daemon stands still meanwhile, or it would be chance what it sees of a VM that is half started."""
        self._node.daemon.send_signal(signal.SIGSTOP)
        player.go_on()
        player.started_vm(vmid)
        self._node.daemon.send_signal(signal.SIGCONT)

    def _settle(self, player: Player, given: Mapping[str, Any]) -> None:
        """Until the daemon has done and logged what it does at an archive's beginning."""
        if self._node.daemon.poll() is not None:
            return
        vmid = given["vmid"]
        seen = player.events()
        for event in seen:
            if event["event"] == "children" and event["vmid"] == vmid:
                for pid in event["pids"].values():
                    self._wait_for("io-priority-set", process=str(pid))
            if event["event"] == "vm" and event["vmid"] == vmid:
                self._wait_for("io-priority-restored", process=str(event["pid"]))
        armed = {"PVEHOOK_EVENT": "freeze-verdict", "PVEHOOK_VMID": str(vmid)}
        events = self._node.journal.events[self._daemon_began :]
        verdicts = [each.fields for each in events if armed.items() <= each.fields.items()]
        if verdicts and verdicts[-1]["PVEHOOK_ACTION"] != "none" and not given.get("hangs"):
            self._wait_for("freeze-done", vmid=str(vmid))

    def _take(self, step: Mapping[str, Any], player: Player, given: Mapping[str, Any]) -> None:
        """One step of a night; README.md lists them."""
        ((verb, what),) = step.items()
        match verb, what:
            case "clock", _:
                self._go_to(_instant(what))
            case "set clock", _:
                self._set_clock(_instant(what))
            case "journal", _:
                self._wait_for(what)
            case "task log", _:
                self._players[-1].wait_until(lambda event: what in event.get("line", ""), what)
            case "start", "next run":
                self._start_run()
            case "kill", "daemon":
                self._node.kill_daemon()
            case "start", "daemon":
                self._restart_daemon()
                self._settle(player, given)
            case ("kill", "worker") | ("stop", "worker"):
                player.send_signal(signal.SIGKILL if verb == "kill" else signal.SIGTERM)
            case "hang", _:
                self._guests[given["vmid"]].stick(what)
            case "recover", _:
                self._guests[given["vmid"]].unstick(what)
            case _:
                raise ValueError(f"no such step: {step}")

    def _restart_daemon(self) -> None:
        """What systemd does: ExecStopPost= of the unit whose daemon died, then the socket starts a new one."""
        thaw = [*pvehook_command(), "thaw", "--left-over", "--root", self._node.node.root]
        subprocess.run(thaw, check=False, timeout=WAIT_S, capture_output=True)
        self._daemon_began = len(self._node.journal.events)
        self._node.start_daemon()

    # The clock and the journal

    def _pass_time(self, minutes: int) -> None:
        self._go_to(self._now + timedelta(minutes=minutes))

    def _go_to(self, now: datetime) -> None:
        self._steady_s += (now - self._now).total_seconds()
        self._set_clock(now)

    def _set_clock(self, now: datetime) -> None:
        self._see_all_events()
        self._now = now
        self._node.stop_clock_at(now.timestamp(), self._steady_s)

    def _see_all_events(self) -> None:
        """All that was logged until now has its time."""
        number = str(next(self._markers))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as marking:
            marking.sendto(f"NIGHT_MARKER={number}\n".encode(), self._node.node.journal_socket)
        self._node.journal.wait_for(lambda event: event.get("NIGHT_MARKER") == number, "the marker")

    def _wait_for(self, name: str, **fields: str) -> None:
        wanted = {"PVEHOOK_EVENT": name, **{f"PVEHOOK_{key.upper()}": value for key, value in fields.items()}}
        self._node.journal.wait_for(lambda event: wanted.items() <= event.items(), str(wanted), self._daemon_began)

    # The guests

    def _all_guests(self) -> Iterable[Mapping[str, Any]]:
        return (guest for run in self._given["runs"] for guest in run["guests"])

    def _files(self) -> dict[str, str]:
        files = {
            "/etc/pve/pvehook.yaml": _CLUSTER_CONFIG,
            "/etc/pvehook.yaml": self._given.get("config", ""),
            "/etc/vzdump.conf": "script: /usr/local/lib/pvehook/hooks/vzdump-hook\n",
            "/etc/pve/storage.cfg": "dir: local\n\tpath /var/lib/vz\n\tcontent images,rootdir,backup\n\n"
            "pbs: pbs\n\tserver 192.0.2.1\n\tdatastore store\n\tcontent backup\n",
        }
        for guest in self._all_guests():
            vmid, name = guest["vmid"], guest.get("name", "")
            disk = f"local:{vmid}/vm-{vmid}-disk-0.raw"
            files[f"/var/lib/vz/images/{vmid}/vm-{vmid}-disk-0.raw"] = ""
            if guest.get("kind", "VM") == "VM":
                agent = "agent: 1\n" if guest.get("agent") else ""
                files[f"/etc/pve/qemu-server/{vmid}.conf"] = f"{agent}name: {name}\nscsi0: {disk},size=32G\n"
            else:
                files[f"/etc/pve/lxc/{vmid}.conf"] = f"arch: amd64\nhostname: {name}\nrootfs: {disk},size=8G\n"
        return files

    def _start_guest(self, given: Mapping[str, Any]) -> None:
        """A VM's process, if it runs, and its sockets."""
        guest = _guest(given)
        if guest.kind != "qemu" or not guest.exists:
            return
        if guest.state != "stopped":
            fake_vm_process.start(self._node.node, guest.vmid)
            self._stack.callback(fake_vm_process.stop, self._node.node, guest.vmid)
        sockets = self._node.node.path("/var/run/qemu-server")
        vm = SimulatedGuest(sockets, guest.vmid, running=guest.state != "stopped", has_agent=guest.agent)
        self._guests[guest.vmid] = self._stack.enter_context(vm)
        if guest.state == "paused":
            vm.pause()
        if "hangs" in given:
            vm.stick(given["hangs"])

    # What is shown

    def shown(self) -> dict[str, str]:
        """The golden files."""
        several = len(self._played) > 1
        logs, tables = [], []
        for number, played in enumerate(self._played, 1):
            title = [f"== run {number}"] if several else []
            logs += [*title, *played.task_log]
            ends = [call.lines for call in played.calls if call.argv[0] in ("job-end", "job-abort")]
            tables += [*title, *(ends[-1] if ends else ("(the run ended without a table)",))]
        return {
            "task-log.txt": _page((without_scripts(line, self._scripts) for line in logs), "    "),
            "journal.txt": self._journal(),
            "table.txt": "".join(f"{normalised(line)}\n" for line in tables),
        }

    def _journal(self) -> str:
        # A guest's states, and that past runs were read, are for who debugs the daemon: threads report them, beside
        # other events.
        by_chance = {("io-priority-set", script) for script in self._scripts}
        events = [
            event
            for event in self._node.journal.events
            if event.fields.get("PVEHOOK_EVENT", "guest-state") not in ("guest-state", "past-runs-read")
            and (event.fields["PVEHOOK_EVENT"], event.fields.get("PVEHOOK_COMMAND")) not in by_chance
        ]
        entries = []
        for is_background, group in groupby(events, lambda event: event.fields["PVEHOOK_EVENT"] in _BACKGROUND):
            texts = [_entry(event, self._scripts) for event in group]
            entries += sorted(texts) if is_background else texts
        return "".join(entries)


def _entry(event: Event, scripts: Collection[str]) -> str:
    fields = {key: without_scripts(value, scripts) for key, value in event.fields.items()}
    if scripts and "PVEHOOK_IDLE_PROCESSES" in fields:
        fields["PVEHOOK_IDLE_PROCESSES"] = "<N>"
    when = datetime.fromtimestamp(event.at_s, UTC)
    shown = {
        key.removeprefix("PVEHOOK_").lower(): normalised(value)
        for key, value in sorted(fields.items())
        if not _UNSTABLE.fullmatch(key)
    }
    own = " ".join(f"{key}={value}" if " " not in value else f'{key}="{value}"' for key, value in shown.items())
    head = f"{when:%H:%M:%S} {_PRIORITIES[fields['PRIORITY']]:<7} {fields['PVEHOOK_EVENT']}\n"
    return head + textwrap.indent(_page([fields["MESSAGE"], own], "  "), " " * 4)


def _page(lines: Iterable[str], indent: str) -> str:
    """Normalised and wrapped, as a page to read."""
    pieces = [
        textwrap.wrap(normalised(line), WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
        for line in lines
    ]
    return "".join(f"{piece}\n" for wrapped in pieces for piece in wrapped)


def _pauses(guest: Guest, mode: str) -> list[str]:
    """Where vzdump waits for us: in the archive, and before it starts the VM for its backup."""
    archive = f"archive {guest.vmid}"
    if guest.kind == "qemu" and guest.state == "stopped":
        return [f"after backup-start {guest.vmid}", archive]
    return [f"after pre-stop {guest.vmid}", archive] if mode == "stop" and guest.kind == "qemu" else [archive]


def _has_begun(vmid: int, event: Mapping[str, Any]) -> bool:
    return (event["event"] == "pause" and event["at"].endswith(f" {vmid}")) or _is_over(vmid, event)


def _is_over(vmid: int, event: Mapping[str, Any]) -> bool:
    """The guest's archive is held, or the guest had its last phase."""
    if event["event"] == "pause":
        return str(event["at"]) == f"archive {vmid}"
    return (event["event"], event.get("argv", ())[::2]) == ("called", ["log-end", str(vmid)])


def _guest(given: Mapping[str, Any]) -> Guest:
    guest = Guest(given["vmid"], name=given.get("name", ""), state=given.get("state", "running"))
    if given.get("kind", "VM") == "CT":
        guest = replace(guest, kind="lxc", can_snapshot=given.get("snapshots", True))
    return replace(guest, agent=given.get("agent", False), exists=given.get("exists", True))


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
