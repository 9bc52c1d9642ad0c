"""`pvehook rehearse`: what tonight's backups would do, guest by guest, without starting one.

It reads what vzdump would read (/etc/pve/jobs.cfg, /etc/vzdump.conf, the guests' configurations) and asks the same
rules as the daemon. When a job runs next is asked of Proxmox itself (`pvesh get /cluster/backup`), because its
calendar events are its own language. How long a guest takes is not known: each is judged at its job's start.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, TextIO

from pvehook.config.in_force import InForce
from pvehook.contract.guest_config import parse_container, parse_vm
from pvehook.contract.section_config import Section, parse_sections
from pvehook.contract.vzdump_config import MODE_DEFAULT, parse_vzdump_config
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.host.volumes import Backup
from pvehook.priority.io_priority_effect import EffectOfIdle, effect_of_idle
from pvehook.rescue import allowances
from pvehook.rules.admission import Admission, Exemptions, Question, admit
from pvehook.rules.window import window_state

READ_DEADLINE_S = 5.0
PVESH = "/usr/bin/pvesh"
PVESH_DEADLINE_S = 20.0
HOOK = "/usr/local/lib/pvehook/hooks/vzdump-hook"


class Guest(NamedTuple):
    """One guest of this node."""

    vmid: int
    vmtype: str
    name: str | None
    running: bool


class Outlook(NamedTuple):
    """What would happen to one guest in one job."""

    job: str
    when: datetime
    when_from: str
    guest: Guest
    mode: str
    admission: Admission
    effect: EffectOfIdle
    pvehook_runs: bool
    """False: the job has another script, or none."""
    is_guess: bool
    """Proxmox could not be asked when the job runs next."""
    notes: tuple[str, ...]


def rehearse_tonight(
    node: Node,
    in_force: InForce,
    when: datetime | None,
    vmids: tuple[int, ...],
    *,
    as_json: bool,
    out: TextIO,
) -> int:
    """Prints the outlook. Exit code 0 when every guest would be backed up, 1 when one would be refused, 2 when there
    is nothing to say."""
    reader = TimelyReader()
    guests = _guests(node, reader)
    unknown = sorted(set(vmids) - {guest.vmid for guest in guests})
    if unknown:
        raise NodeError(f"guest {', '.join(map(str, unknown))} is not on this node")
    jobs = _jobs(node, reader)
    defaults = parse_vzdump_config(reader.text(node.path("/etc/vzdump.conf"), READ_DEADLINE_S) or "")
    next_runs = _next_runs(node) if when is None else {}
    outlooks = [
        _outlook(node, reader, in_force, job, defaults, guest, when, next_runs.get(job.id))
        for job in jobs
        for guest in guests
        if _takes(job, guest) and (not vmids or guest.vmid in vmids)
    ]
    if as_json:
        json.dump([_as_json(each) for each in outlooks], out, indent=1)
        out.write("\n")
    else:
        _print(outlooks, guests, jobs, vmids, in_force, out)
    if not outlooks:
        return 2
    return 0 if all(each.admission.allowed for each in outlooks) else 1


# What the node says


def _guests(node: Node, reader: TimelyReader) -> list[Guest]:
    def look() -> list[Guest]:
        found = []
        for kind, directory, parse in (
            ("qemu", "/etc/pve/qemu-server", parse_vm),
            ("lxc", "/etc/pve/lxc", parse_container),
        ):
            try:
                names = os.listdir(node.path(directory))
            except FileNotFoundError:
                continue
            for name in names:
                number, _, ending = name.partition(".")
                if ending == "conf" and number.isdigit():
                    with open(node.path(f"{directory}/{name}"), encoding="utf-8", errors="replace") as file:
                        config = parse(file.read(1 << 20))
                    found.append(Guest(int(number), kind, config.name, _runs(node, kind, number)))
        return sorted(found)

    return reader.within(READ_DEADLINE_S, "/etc/pve", look)


def _runs(node: Node, kind: str, number: str) -> bool:
    scope = f"qemu.slice/{number}.scope" if kind == "qemu" else f"lxc/{number}"
    return os.path.exists(node.path(f"/sys/fs/cgroup/{scope}"))


def _jobs(node: Node, reader: TimelyReader) -> list[Section]:
    """The enabled backup jobs that run on this node."""
    sections = parse_sections(reader.text(node.path("/etc/pve/jobs.cfg"), READ_DEADLINE_S) or "")
    here = socket.gethostname().partition(".")[0]
    return [
        section
        for section in sections
        if section.type == "vzdump"
        and section.properties.get("enabled", "1") not in ("0", "no", "off", "false")
        and section.properties.get("node", here) == here
    ]


def _takes(job: Section, guest: Guest) -> bool:
    """Whether the job backs this guest up. A job by pool is taken to mean every guest: pools are not read."""
    options = job.properties
    if "vmid" in options:
        return str(guest.vmid) in _list(options["vmid"])
    return str(guest.vmid) not in _list(options.get("exclude", ""))


def _list(text: str) -> list[str]:
    return text.replace(",", " ").replace(";", " ").split()


def _next_runs(node: Node) -> dict[str, float]:
    """Job id to its next run in seconds since the epoch, as Proxmox computes it; empty when it cannot be asked."""
    if not node.is_real or not os.path.exists(PVESH):
        return {}
    try:
        answer = subprocess.run(  # noqa: S603  (a fixed command)
            [PVESH, "get", "/cluster/backup", "--output-format", "json"],
            capture_output=True,
            check=True,
            timeout=PVESH_DEADLINE_S,
        )
        return {str(job["id"]): float(job["next-run"]) for job in json.loads(answer.stdout) if "next-run" in job}
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, KeyError):
        return {}


# What would happen


def _outlook(
    node: Node,
    reader: TimelyReader,
    in_force: InForce,
    job: Section,
    defaults: Mapping[str, str],
    guest: Guest,
    asked: datetime | None,
    next_run_s: float | None,
) -> Outlook:
    options = {**defaults, **job.properties}
    when, when_from = _when(in_force, asked, next_run_s, options.get("schedule"))
    exempt = in_force.config.window.exempt
    admission = admit(
        Question(
            phase="backup-start",
            now=when,
            vmid=guest.vmid,
            job_vmids=None,
            job_id=job.id,
            job_id_pending=False,
            storage=options.get("storage"),
            job_was_admitted=False,
        ),
        window_state(in_force.window, when),
        Exemptions(exempt.guests, exempt.jobs, exempt.storages),
        tuple(allowances.in_force(node, when.timestamp())),
        in_force.config.window.next_guest,
    )
    mode = options.get("mode", MODE_DEFAULT) if guest.running else "stop"
    backup = Backup(guest.vmid, guest.vmtype, mode, options.get("storage"), options.get("dumpdir"))
    return Outlook(
        job.id,
        when,
        when_from,
        guest,
        mode,
        admission,
        effect_of_idle(node, reader, backup),
        pvehook_runs=options.get("script") == HOOK,
        is_guess=asked is None and next_run_s is None,
        notes=_notes(job, options, guest),
    )


def _when(
    in_force: InForce, asked: datetime | None, next_run_s: float | None, schedule: str | None
) -> tuple[datetime, str]:
    zone = in_force.window.zone
    if asked is not None:
        return asked, "as asked"
    if next_run_s is not None:
        return datetime.fromtimestamp(next_run_s, zone), "its next run, as Proxmox says"
    now = datetime.now(zone)
    state = window_state(in_force.window, now)
    opens_at = now if state.open else state.opens_at or now
    return opens_at, f"Proxmox could not be asked when {schedule or 'it'!r} comes next, so when the window is open"


def _notes(job: Section, options: Mapping[str, str], guest: Guest) -> tuple[str, ...]:
    notes = []
    script = options.get("script")
    if script != HOOK and "script" in job.properties:
        notes.append(
            f"job {job.id} has a script of its own: {script}; to let pvehook watch over it: "
            f"pvesh set /cluster/backup/{job.id} --delete script"
        )
    elif script != HOOK:
        notes.append(f"/etc/vzdump.conf has {'script: ' + script if script else 'no script'}; run install.sh")
    elif options.get("ionice") != "8":
        notes.append(f"vzdump sets ionice {options.get('ionice', '7')} first; pvehook sets idle at job-start")
    if not guest.running and guest.vmtype == "qemu":
        notes.append("it is off: vzdump starts its QEMU at idle priority, pvehook puts that back to normal")
    if "pool" in options:
        notes.append(f"the job takes the guests of pool {options['pool']}; whether this one is in it was not read")
    return tuple(notes)


# What is shown


def _print(
    outlooks: Sequence[Outlook],
    guests: Sequence[Guest],
    jobs: Sequence[Section],
    vmids: tuple[int, ...],
    in_force: InForce,
    out: TextIO,
) -> None:
    window = in_force.config.window
    out.write(
        f"window: {', '.join(window.open) or 'never'} ({window.timezone or 'zone of the node'}); "
        f"next_guest: {window.next_guest}; running_guest: {window.running_guest}\n"
    )
    if not jobs:
        out.write("no enabled backup job of /etc/pve/jobs.cfg runs on this node\n")
    for job in jobs:
        mine = [each for each in outlooks if each.job == job.id]
        if not mine:
            continue
        out.write(f"\njob {job.id}, judged at {mine[0].when:%a %Y-%m-%d %H:%M %Z} ({mine[0].when_from})\n")
        for each in mine:
            _print_guest(each, out)
    in_a_job = {each.guest.vmid for each in outlooks}
    left_out = [guest for guest in guests if guest.vmid not in in_a_job and (not vmids or guest.vmid in vmids)]
    if left_out:
        out.write(f"\nin no job: {', '.join(str(guest.vmid) for guest in left_out)}\n")
    if outlooks and window.open:
        out.write(
            "\nA guest whose turn comes after the window has closed is "
            f"{'refused' if window.next_guest == 'refuse' else 'backed up all the same'}; "
            f"one that is running then is {'finished' if window.running_guest == 'finish' else 'cancelled'}.\n"
        )


def _print_guest(each: Outlook, out: TextIO) -> None:
    kind = "VM" if each.guest.vmtype == "qemu" else "CT"
    verdict = "would be backed up" if each.admission.allowed else "would be REFUSED"
    if not each.pvehook_runs:
        verdict = "would be backed up WITHOUT pvehook: no window, no priority, no freeze"
    elif each.is_guess:
        verdict += " if it starts then"
    state = "running" if each.guest.running else "off"
    out.write(f"  {kind} {each.guest.vmid} {each.guest.name or ''} ({state}, mode {each.mode}): {verdict}\n")
    shown = (*each.admission.lines, *each.effect.sentences) if each.pvehook_runs else ()
    for text in (*shown, *each.notes):
        out.write(f"      {text}\n")


def _as_json(each: Outlook) -> dict[str, object]:
    return {
        "job": each.job,
        "at": each.when.isoformat(),
        "at_from": each.when_from,
        "vmid": each.guest.vmid,
        "name": each.guest.name,
        "type": each.guest.vmtype,
        "running": each.guest.running,
        "mode": each.mode,
        "pvehook_runs": each.pvehook_runs,
        "at_is_guess": each.is_guess,
        "allowed": each.admission.allowed,
        "reason": each.admission.reason,
        "lines": list(each.admission.lines),
        "idle_effect": {"in_short": each.effect.in_short, "dump": each.effect.dump, "volumes": each.effect.volumes},
        "notes": list(each.notes),
    }
