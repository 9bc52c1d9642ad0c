"""`pvehook rehearse`: what tonight's backups would do, guest by guest, without starting one.

It reads what vzdump would read (jobs, /etc/vzdump.conf, storages, the guests' configurations) and asks the same rules
as the daemon. When a job runs next is asked of Proxmox itself (`pvesh get /cluster/backup`), because its calendar
events are its own language. Each guest is judged at its job's start, and with what its last backups took it is
said when its turn is expected, and who would be refused if the job does not fit into the window.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple, TextIO

from pvehook.config.in_force import InForce
from pvehook.contract.pools import parse_pools
from pvehook.contract.section_config import Section, parse_sections
from pvehook.contract.storage_config import why_no_backup
from pvehook.contract.text import printable
from pvehook.contract.vzdump_config import ignored_lines, options_of_job, parse_vzdump_config
from pvehook.errors import NodeError
from pvehook.host.backup_jobs import READ_DEADLINE_S, Job, jobs_of_node, named_guests, takes
from pvehook.host.backup_target import Target, look_at_target
from pvehook.host.guest_configs import node_of_guests, read_guest_configs
from pvehook.host.node import HOOK, Node
from pvehook.host.timely_files import TimelyReader
from pvehook.host.volumes import Backup, read_storages
from pvehook.night.overdue_now import overdue_at
from pvehook.preview.expected_run import ExpectedGuest, expect_run
from pvehook.preview.next_runs import next_runs_of
from pvehook.preview.plan import (
    Guest,
    mode_of,
    notes_on_job,
    why_guest_fails,
    why_job_does_not_start,
)
from pvehook.priority.io_priority_effect import EffectOfIdle, effect_of_idle
from pvehook.rescue import allowances
from pvehook.rules.admission import Admission, Question, admit
from pvehook.rules.window import window_state

TEXT_LIMIT = 1000
TARGET_DEADLINE_S = 5.0

Would = Literal["be-backed-up", "be-backed-up-without-pvehook", "be-refused-by-window", "be-refused-by-pve"]

_VERDICTS: Mapping[Would, str] = {
    "be-backed-up": "would be backed up",
    "be-backed-up-without-pvehook": "would be backed up WITHOUT pvehook: no window, no priority, no freeze",
    "be-refused-by-window": "the window would REFUSE it",
    "be-refused-by-pve": "PVE would REFUSE it",
}


class Outlook(NamedTuple):
    """What would happen to one guest in one job."""

    job: str
    when: datetime
    when_from: str
    guest: Guest
    mode: str
    would: Would
    pvehook_runs: bool
    """False: the job has another script, or none."""
    pve_refuses: str | None
    """Why; None: nothing that was read speaks against it."""
    admission: Admission
    effect: EffectOfIdle
    is_guess: bool
    """Proxmox could not be asked when the job runs next."""
    target: Target
    notes: tuple[str, ...]
    run_in_words: str = ""
    """When the whole job is expected to end."""
    expected: ExpectedGuest | None = None


class _Node(NamedTuple):
    """What all jobs of the node have in common."""

    node: Node
    name: str
    reader: TimelyReader
    in_force: InForce
    vzdump_conf: str
    storages: list[Section]
    guests: Sequence[Guest]
    pools: Mapping[str, set[int]]
    ha: Collection[int]
    """The guests that HA manages."""
    node_of: Mapping[int, str]
    """Of every guest of the cluster."""
    overdue: tuple[int, ...]
    """Guests that may run outside the window (window.overdue: allow)."""


def rehearse_tonight(
    node: Node, in_force: InForce, when: datetime | None, vmids: tuple[int, ...], *, as_json: bool, out: TextIO
) -> int:
    """Prints the outlook. Exit code 0 when every guest would be backed up, 1 when one would be refused, 2 when there
    is nothing to say."""
    reader = TimelyReader()
    name = socket.gethostname().partition(".")[0]
    guests = _guests(node, reader)
    unknown = sorted(set(vmids) - {guest.vmid for guest in guests})
    if unknown:
        raise NodeError(f"guest {', '.join(map(str, unknown))} is not on this node")
    jobs = jobs_of_node(node, reader, name)
    vzdump_conf = reader.text(node.path("/etc/vzdump.conf"), READ_DEADLINE_S) or ""
    storages = read_storages(node, reader)
    pools = parse_pools(reader.text(node.path("/etc/pve/user.cfg"), READ_DEADLINE_S) or "")
    ha, node_of = _ha_guests(node, reader), node_of_guests(node, reader, READ_DEADLINE_S)
    is_let_in = in_force.config.window.overdue == "allow"
    overdue = overdue_at(node, reader, in_force, datetime.now(UTC).timestamp()) if is_let_in else ()
    common = _Node(node, name, reader, in_force, vzdump_conf, storages, guests, pools, ha, node_of, overdue)
    next_runs = next_runs_of(node) if when is None else {}
    wanted = [guest for guest in guests if not vmids or guest.vmid in vmids]
    taking = [job for job in jobs if any(takes(job, guest.vmid, pools) for guest in wanted)]
    # All of their guests, whoever is asked for: when one begins depends on those before it.
    of_jobs = [_expected(common, job, _outlooks(common, job, guests, when, next_runs.get(job.id))) for job in taking]
    outlooks = [each for of_job in of_jobs for each in of_job if each.guest in wanted]
    not_started = {job.id: why for job in jobs if (why := why_job_does_not_start(job, pools))}
    if as_json:
        # A job that names a pool which is not there has no guests; a program must hear of it all the same.
        without = [_job_as_json(job, why) for job, why in not_started.items() if job not in {o.job for o in outlooks}]
        json.dump([*map(_as_json, outlooks), *without], out, indent=1)
        out.write("\n")
    else:
        _print(common, outlooks, wanted, jobs, out)
    refused = any(each.would in ("be-refused-by-window", "be-refused-by-pve") for each in outlooks)
    if refused or not_started:
        return 1
    return 0 if outlooks else 2


def _guests(node: Node, reader: TimelyReader) -> list[Guest]:
    found = read_guest_configs(node, reader, READ_DEADLINE_S)
    return [Guest(each.vmid, each.vmtype, _runs(node, each.vmtype, each.vmid), each.config) for each in found]


def _ha_guests(node: Node, reader: TimelyReader) -> set[int]:
    """The guests that HA may move: `vm: 101` and `ct: 102` of its resources."""
    sections = parse_sections(reader.text(node.path("/etc/pve/ha/resources.cfg"), READ_DEADLINE_S) or "")
    return {int(each.id) for each in sections if each.type in ("vm", "ct") and re.fullmatch("[0-9]{1,9}", each.id)}


def _runs(node: Node, kind: str, number: int) -> bool:
    """By its cgroup, which with cgroup v1 (PVE 8 can still boot with it) lies below one controller or another."""
    scope = f"qemu.slice/{number}.scope" if kind == "qemu" else f"lxc/{number}"
    hierarchies = ("", "/systemd", "/memory", "/unified")
    return any(os.path.exists(node.path(f"/sys/fs/cgroup{each}/{scope}")) for each in hierarchies)


def _why_script_fails(common: _Node, script: str) -> str | None:
    """As PVE asks: is it a plain file, may it be executed."""
    path = common.node.path(script)

    def ask() -> str | None:
        if not os.path.isfile(path):
            return f"the hook script '{script}' does not exist"
        return None if os.access(path, os.X_OK) else f"the hook script '{script}' is not executable"

    return common.reader.within(READ_DEADLINE_S, "the hook script", ask)


def _outlooks(
    common: _Node, job: Job, guests: Iterable[Guest], asked: datetime | None, next_run_s: float | None
) -> list[Outlook]:
    """One job's guests, in the order in which vzdump takes them."""
    mine = [guest for guest in guests if takes(job, guest.vmid, common.pools)]
    if not mine:
        return []
    defaults = parse_vzdump_config(common.vzdump_conf)
    options = options_of_job(defaults, job.options)
    script, storage = options.get("script"), options.get("storage")
    job_fails = why_job_does_not_start(job, common.pools) or (script and _why_script_fails(common, script))
    if not job_fails and storage:
        job_fails = why_no_backup(common.storages, storage, common.name)
    target = look_at_target(common.node, options, common.storages, TARGET_DEADLINE_S)
    job_fails = job_fails or target.refusal
    when, when_from = _when(common.in_force, asked, next_run_s, job.schedule)
    notes = notes_on_job(job, options, defaults, ignored_lines(common.vzdump_conf))
    pvehook_runs = script == HOOK
    found = []
    for guest in mine:
        admission = _ask_window(common, job, options, guest, when)
        pve_refuses = f"{job_fails}, so the whole job fails" if job_fails else why_guest_fails(guest)
        would: Would = "be-backed-up" if pvehook_runs else "be-backed-up-without-pvehook"
        if would == "be-backed-up" and not admission.allowed:
            would = "be-refused-by-window"
        if pve_refuses and (job_fails or would != "be-refused-by-window"):
            would = "be-refused-by-pve"
        mode, why_mode = mode_of(options, guest, common.storages)
        backup = Backup(guest.vmid, guest.vmtype, mode, storage, options.get("dumpdir"))
        own_notes = [why_mode] if why_mode else []
        if not guest.running and guest.vmtype == "qemu" and would == "be-backed-up":
            own_notes.append("it is off: vzdump starts its QEMU in the idle I/O class, pvehook restores it")
        if guest.vmid in common.ha:
            own_notes.append(
                "HA manages it: which node it is on when the job starts is not known; only that node backs it up"
            )
        found.append(
            Outlook(
                job=job.id,
                when=when,
                when_from=when_from,
                guest=guest,
                mode=mode,
                would=would,
                pvehook_runs=pvehook_runs,
                pve_refuses=pve_refuses,
                admission=admission,
                effect=effect_of_idle(common.node, common.reader, backup),
                is_guess=asked is None and next_run_s is None,
                target=target,
                notes=(*own_notes, *notes),
            )
        )
    return found


def _expected(common: _Node, job: Job, outlooks: list[Outlook]) -> list[Outlook]:
    """With when they begin and end."""
    run = {each.guest.vmid: each for each in outlooks if each.would.startswith("be-backed-up")}
    if not run:
        return outlooks
    options = options_of_job(parse_vzdump_config(common.vzdump_conf), job.options)

    def is_bound(vmid: int, when: datetime) -> bool:
        window = common.in_force.config.window
        is_let_in = window.next_guest == "allow" or _ask_window(common, job, options, run[vmid].guest, when).allowed
        return run[vmid].pvehook_runs and not is_let_in

    job_id, when = None if job.is_cron else job.id, outlooks[0].when
    text, guests = expect_run(common.node, common.reader, common.in_force, job_id, when, run.keys(), is_bound)
    found = []
    for each in outlooks:
        expected = guests.get(each.guest.vmid)
        would: Would = "be-refused-by-window" if expected is not None and expected.is_refused else each.would
        found.append(each._replace(would=would, run_in_words=text, expected=expected))
    return found


def _ask_window(common: _Node, job: Job, options: Mapping[str, str], guest: Guest, when: datetime) -> Admission:
    in_force = common.in_force
    return admit(
        Question(
            phase="backup-start",
            now=when,
            vmid=guest.vmid,
            job_id=None if job.is_cron else job.id,
            storage=options.get("storage"),
            overdue=common.overdue,
        ),
        window_state(in_force.window, when),
        in_force.config.window.exempt,
        tuple(allowances.in_force(common.node, when.timestamp())),
        in_force.config.window.next_guest,
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


def _print(
    common: _Node, outlooks: Sequence[Outlook], guests: Sequence[Guest], jobs: Sequence[Job], out: TextIO
) -> None:
    def write(indent: int, text: str) -> None:
        out.write(" " * indent + printable(text, TEXT_LIMIT) + "\n")  # texts of configuration files are in it

    window = common.in_force.config.window
    write(
        0,
        f"window: {', '.join(window.open) or 'never'} ({window.timezone or 'zone of the node'}); "
        f"next_guest: {window.next_guest}; running_guest: {window.running_guest}",
    )
    if not jobs:
        write(0, "no enabled backup job runs on this node, neither of /etc/pve/jobs.cfg nor of cron")
    for job in jobs:
        mine = [each for each in outlooks if each.job == job.id]
        why_not = why_job_does_not_start(job, common.pools)
        elsewhere = sorted(set(named_guests(job, common.pools)) - {guest.vmid for guest in common.guests})
        if not (mine or why_not or elsewhere):
            continue
        out.write("\n")
        if mine:
            write(0, f"job {job.id}, judged at {mine[0].when:%a %Y-%m-%d %H:%M %Z} ({mine[0].when_from})")
            for text in filter(None, (mine[0].target.in_words(), mine[0].run_in_words)):
                write(2, text)
        else:
            write(0, f"job {job.id}: " + (f"PVE would REFUSE it: {why_not}" if why_not else "no guest of this node"))
        for vmid in elsewhere:
            there = common.node_of.get(vmid)
            where = f"on node {there}: this node's run leaves it out" if there else "not on this node"
            nowhere = ", nor on another: PVE fails its backup" if common.node_of and not there else ""
            write(2, f"guest {vmid} is {where}{nowhere}")
        for each in mine:
            write(2, _verdict(each))
            expected = (each.expected.in_words(),) if each.expected is not None else ()
            shown = (*expected, *each.admission.lines, *each.effect.sentences) if each.pvehook_runs else expected
            for text in (*(shown if each.would != "be-refused-by-pve" else ()), *each.notes):
                write(6, text)
    out.write("\n")
    in_a_job = {each.guest.vmid for each in outlooks}
    if left_out := [guest for guest in guests if guest.vmid not in in_a_job]:
        write(0, f"in no job: {', '.join(str(guest.vmid) for guest in left_out)}")
    if outlooks:
        counts = Counter(each.would for each in outlooks)
        backed_up = counts["be-backed-up"] + counts["be-backed-up-without-pvehook"]
        write(
            0,
            f"{backed_up} would be backed up, the window would refuse {counts['be-refused-by-window']}, "
            f"PVE would refuse {counts['be-refused-by-pve']}.",
        )
    if outlooks and window.open:
        write(
            0,
            "A guest whose turn comes after the window has closed is "
            f"{'refused' if window.next_guest == 'refuse' else 'backed up all the same'}; "
            f"one that is running then is {'finished' if window.running_guest == 'finish' else 'cancelled'}.",
        )


def _verdict(each: Outlook) -> str:
    kind = "VM" if each.guest.vmtype == "qemu" else "CT"
    verdict = _VERDICTS[each.would]
    if each.would == "be-refused-by-pve":
        verdict += f": {each.pve_refuses}"
    elif each.is_guess and each.pvehook_runs:
        verdict += " if it starts then"
    state = "running" if each.guest.running else "off"
    return f"{kind} {each.guest.vmid} {each.guest.config.name or ''} ({state}, mode {each.mode}): {verdict}"


def _job_as_json(job: str, why: str) -> dict[str, object]:
    """Of a job that does not start and has no guest on this node."""
    return {"job": job, "vmid": None, "would": "be-refused-by-pve", "pve_refuses": why}


def _as_json(each: Outlook) -> dict[str, object]:
    return {
        "job": each.job,
        "at": each.when.isoformat(),
        "at_from": each.when_from,
        "vmid": each.guest.vmid,
        "name": each.guest.config.name,
        "type": each.guest.vmtype,
        "running": each.guest.running,
        "mode": each.mode,
        "would": each.would,
        "pve_refuses": each.pve_refuses,
        "pvehook_runs": each.pvehook_runs,
        "at_is_guess": each.is_guess,
        "allowed": each.admission.allowed,
        "reason": each.admission.reason,
        "lines": list(each.admission.lines),
        "idle_effect": {"in_short": each.effect.in_short, "dump": each.effect.dump, "volumes": each.effect.volumes},
        "target_free_bytes": each.target.free_bytes,
        "notes": list(each.notes),
        "expected": each.expected.as_json() if each.expected is not None else None,
    }
