"""Feeds damaged input to every parser of files and sockets: nothing but the documented errors may come out.

    python -m tests.bench.fuzz_parsers                          2.5 million executions, some 10 minutes on one core
    python -m tests.bench.fuzz_parsers --only agent --first 4711 --times 1      one execution again

Each input follows from the seed, the parser's name and the execution's number, and from nothing else. A few of them
are a test (tests/contract/test_damaged_input.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock
from zoneinfo import ZoneInfo

from pvehook import config, hook_call, settings
from pvehook.cli import governor
from pvehook.config import merge, parse
from pvehook.contract.archive_name import parse_archive_name
from pvehook.contract.call import BadCall, parse_call, parse_started
from pvehook.contract.debian_version import compare, parse_range
from pvehook.contract.guest_config import (
    options_after_restart,
    options_of,
    parse_agent_option,
    parse_container,
    parse_vm,
)
from pvehook.contract.guest_facts import GuestFacts
from pvehook.contract.huge_pages import parse_choice
from pvehook.contract.kernel_line import parse_kernel_line
from pvehook.contract.lvm_report import parse_lvs
from pvehook.contract.node_memory import available_bytes, parse_numbers, parse_swaps, steal_share
from pvehook.contract.os_release import ids_of
from pvehook.contract.pressure import parse_pressure
from pvehook.contract.section_config import parse_sections
from pvehook.contract.storage_config import can_snapshot_container, parse_storages, why_no_backup
from pvehook.contract.task_log import parse_task_list, parse_task_log
from pvehook.contract.text import printable
from pvehook.contract.upid import parse_upid
from pvehook.contract.vm_disks import vm_disks
from pvehook.contract.vzdump_config import ignored_lines, options_of_job, parse_vzdump_config
from pvehook.deadline import Deadline
from pvehook.doctor import fault_atlas
from pvehook.errors import ConfigError, GuestError, NodeError, WindowSpecError
from pvehook.freeze import history as freezes
from pvehook.guest.agent import AgentConnection, synchronise, thaw_at_once
from pvehook.guest.block_stats import read_disks
from pvehook.guest.guest_counters import read_guest_counters
from pvehook.guest.guest_facts import read_guest_facts
from pvehook.guest.huge_pages import set_huge_pages
from pvehook.guest.kernel_log import KernelLogHandle, open_kernel_log, read_kernel_log
from pvehook.guest.lockup_settings import read_lockup_settings
from pvehook.guest.qmp import QmpConnection, greet
from pvehook.guest.sockets import Connection
from pvehook.host.backup_jobs import parse_cron
from pvehook.host.mounts import read_mounts
from pvehook.host.node import Node
from pvehook.host.processes import ProcessId, command_line
from pvehook.host.versions import installed_packages
from pvehook.night.past_runs import attempts_of
from pvehook.night.told import read_told
from pvehook.records import beside_history, encoding, history, nights, run_state
from pvehook.records.attempt import RESULTS
from pvehook.records.beside_record import BesideRecord
from pvehook.records.guest_record import GuestRecord
from pvehook.records.history_schema import packed, unpacked
from pvehook.records.history_writing import append, append_beside
from pvehook.records.stall_record import StallRecord
from pvehook.report.terminal_style import TerminalStyle
from pvehook.rescue import allowances, freeze_record, last_good, speed_record
from pvehook.rules.schedule import starts_between
from pvehook.rules.window import parse_span
from pvehook.watch import watch_status
from tests.records.backups import NOW_S, beside, charted, container, record

SEED = 20261128
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 101, 1.5, -0.0, 1e308, float("inf"), float("nan"), 2**31, 2**63, 2**64, 10**400,
    "", "x", "101", "frozen", "thawed", "\0", "\ud800", "\u202e", "a" * 5000, "9" * 5000, [], {}, [[]], [{}], {"": {}},
    [None], ["x"], {"x": 1}, [[[[[[[[]]]]]]]],
)  # fmt: skip
TOKENS = (
    b"\0", b"\n", b"\r", b"\n\n", b"\xff", b"\xff\n", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\x85", b"\t", b" ", b":",
    b": ", b",", b"=", b"-", b"[", b"]", b"{", b"}", b'"', b"'", b"#", b"&a ", b"*a", b"!!python/object:x ", b"%",
    b"|\n", b"<<: ", b"9" * 5000, b"9" * 300, b"-1", b"1e999", b"0x1F", b"[" * 2000, b"{" * 300, b"a" * 9000,
    b"null", b"true", b"NaN", b"99999999999", b"24:00", b"UPID:", b"task ", b"exit ", b"wait ", b"chain ",
    b"taken-up\n", b"not-served\n",
)  # fmt: skip


class Parser(NamedTuple):
    """One reader of foreign or damaged bytes."""

    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    errors: tuple[type[Exception], ...] = ()
    """What its docstring lets out."""
    share: float = 1.0
    """Of --times: slow ones are tried less often."""


class Peer(Connection):
    """A peer that sends these bytes, in pieces of any size, and hangs up."""

    def __init__(self, data: bytes) -> None:
        super().__init__("/peer", None)  # type: ignore[arg-type]  # nothing that is left reaches for the socket
        self._data: bytes = data

    def close(self) -> None:
        pass

    def send(self, data: bytes, deadline: Deadline) -> None:
        pass

    def _wait(self, event: int, deadline: Deadline, fault: str) -> None:
        self._socket = self  # type: ignore[assignment]

    def recv(self, most: int) -> bytes:
        size = min(most, 1 + len(self._data) % 4099)
        piece, self._data = self._data[:size], self._data[size:]
        return piece


SOON = Deadline.after(3600)


def agent(data: bytes) -> None:
    """Every answer that is read from a guest's agent, each from the same bytes."""
    questions: tuple[Callable[[AgentConnection], object], ...] = (
        lambda each: each.ping(SOON),
        lambda each: each.guest_info(SOON),
        lambda each: each.get_fsinfo(SOON),
        lambda each: each.fsfreeze_status(SOON),
        lambda each: each.fsfreeze_thaw(SOON),
        lambda each: each.file_open("/x", SOON),
        lambda each: each.file_read(1, 4096, SOON),
    )
    for question in questions:
        with contextlib.suppress(GuestError):
            question(AgentConnection(Peer(data)))


def agent_files(data: bytes) -> None:
    read_guest_counters(AgentConnection(Peer(data)), SOON)
    open_kernel_log(AgentConnection(Peer(data)), SOON)
    read_kernel_log(AgentConnection(Peer(data)), KernelLogHandle(5, "b", 0.0, 0.0), SOON)
    read_lockup_settings(AgentConnection(Peer(data)), SOON)
    set_huge_pages(AgentConnection(Peer(data)), "never", SOON)
    with contextlib.suppress(GuestError):
        encoding.decode(GuestFacts, encoding.encode(read_guest_facts(AgentConnection(Peer(data)), NOW_S, SOON)))


def agent_sync(data: bytes) -> None:
    """With a real socket, from the first byte on."""
    exchanges: tuple[Callable[[Connection, Deadline], object], ...] = (
        synchronise,
        lambda peer, until: thaw_at_once(peer, until, lambda: None),
    )
    for exchange in exchanges:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(data[:60_000])
            theirs.shutdown(socket.SHUT_WR)
            with contextlib.suppress(GuestError):
                exchange(Connection("/peer", ours), Deadline.after(1))


def qmp(data: bytes) -> None:
    questions: tuple[Callable[[QmpConnection], object], ...] = (
        lambda each: each.query_status(SOON),
        lambda each: each.query_block_jobs(SOON),
        lambda each: each.query_backup(SOON),
        lambda each: each.query_access_nodes(SOON),
        lambda each: each.query_version(SOON),
        lambda each: each.query_cpus_fast(SOON),
        lambda each: each.is_agent_running(101, SOON),
        lambda each: read_disks(each, SOON),
    )
    for question in questions:
        with contextlib.suppress(GuestError):
            question(QmpConnection(Peer(data)))
    greet(Peer(data), SOON)


def hook_reply(data: bytes) -> None:
    """The daemon's answer, as the hook reads it."""

    size = 1 + len(data) % 997
    pieces = iter([*(data[at : at + size] for at in range(0, len(data), size)), b""])

    def nothing(*_: object) -> int:
        return 0

    connection = SimpleNamespace(
        recv=lambda most: next(pieces), settimeout=nothing, connect=nothing, sendall=nothing, close=nothing
    )
    signals = SimpleNamespace(alarm=nothing)
    with mock.patch.multiple(hook_call, socket=lambda *_: connection, _signal=signals):
        code, chain, first, text = hook_call.ask_daemon("/nowhere", ["job-init"], {}, 4711, time.monotonic() + 9, False)
    assert 0 <= code <= 255
    assert b"\n" not in chain
    assert chain or not first
    assert isinstance(text, bytes)


def task_log(data: bytes) -> None:
    """As it is read: with the times that it tells put on the time line."""
    upid = parse_upid(UPID.decode())
    assert upid is not None
    for attempt in attempts_of(upid, parse_task_log(data), ZoneInfo("Europe/Berlin")):
        assert attempt.result in RESULTS
        assert attempt.duration_s >= 0


def configuration(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    parsed = parse(text, "/etc/pvehook.yaml")
    loaded = merge(parsed, parse("window: {open: [22:00-06:00]}\n", "/etc/pve/pvehook.yaml"))
    for problem in loaded.problems:
        str(problem)
    if loaded.config is not None:
        config.describe(loaded)
        settings.from_json(settings.to_json(loaded.config))


def guest_configs(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for guest in (parse_vm(text), parse_container(text)):
        printable(guest.name or "")
    parse_agent_option(text)
    for disk in vm_disks(options_of(text)) + vm_disks(options_after_restart(text)):
        disk.changed(iothread="1", cache=None)


def sections(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    defaults = parse_vzdump_config(text)
    for job in parse_sections(text):
        options_of_job(defaults, job.properties)
    storages = parse_storages(text)
    for each in storages:
        why_no_backup(storages, each.id, "pve1")
        can_snapshot_container(each, f"{each.id}:subvol-101-disk-0")
    ignored_lines(text)
    parse_cron(text, "/etc/pve/vzdump.cron")


def node_memory(data: bytes) -> None:
    text = data.decode(errors="replace")
    parse_swaps(text)
    with contextlib.suppress(KeyError):
        available_bytes(parse_numbers(text), parse_numbers(text))
    steal_share(text)


def debian_version(data: bytes) -> None:
    text = data.decode(errors="replace")
    with contextlib.suppress(ValueError):
        assert compare(text, text) == 0
    parse_range(text).includes("6.17.4-2")


def schedule(data: bytes) -> None:
    text, now = data.decode("utf-8", "surrogateescape"), datetime(2026, 10, 24, tzinfo=ZoneInfo("Europe/Warsaw"))
    for is_cron in (False, True):
        with contextlib.suppress(ValueError):
            starts_between(text, now, now + timedelta(days=3), is_cron=is_cron)


def upid(data: bytes) -> None:
    found = parse_upid(data.decode("utf-8", "surrogateescape"))
    if found is not None:
        found.vmid  # noqa: B018  (it parses)


def in_tree(directory: str) -> dict[str, Parser]:
    """Readers of our own files, which may be damaged, and of the kernel's."""
    node = Node(directory)
    reader: Any = SimpleNamespace(text=lambda path, _: Path(path).read_text(encoding="utf-8"))

    def of(path: str, read: Callable[[], object]) -> Callable[[bytes], object]:
        file = Path(node.path(path))
        file.parent.mkdir(parents=True, exist_ok=True)

        def parse_file(data: bytes) -> object:
            file.write_bytes(data)
            return read()

        return parse_file

    mark = node.path("/run/pvehook/not-taken-up")
    database = Path(directory, "history.db")
    records = (record(), container(), charted(number=5))
    append(str(database), *records, now_s=NOW_S)
    append_beside(str(database), [beside()], now_s=NOW_S)

    def read_history() -> None:
        path = node.path("/var/lib/pvehook/history.db")
        with history.reading(path) as opened:
            for each, _ in nights.last_backups(opened, 0.0, NOW_S):
                history.record_of(opened, each.id)
                nights.nights(opened, each.vmid, 0.0, 0.0, NOW_S)
                nights.backups_json(opened, each.vmid, 0.0, 0.0, NOW_S, str)
            history.last_records(opened, 0.0)
            beside_history.beside_records(opened, 0.0, NOW_S)
            beside_history.last_beside(opened, 0.0, NOW_S)
        history.last_samples(path, 0.0, 1e12)
        history.past_baselines(path, 101)

    def read_watch_status() -> None:
        status = watch_status.read_status(node, 5.0)
        if isinstance(status, watch_status.WatchStatus):
            governor._watch_lines(status, (), TerminalStyle(80, unicode=False, colour=False))

    watched = watch_status.WatchedGuest(105, "db", "qemu", "shared", "requests", True, 12.5, 64.0, 412.0, 1310.0, 35.0)
    hung = watch_status.WatchedGuest(106, None, "lxc", "unknown", None, not_watched="its monitor does not answer")
    watch = watch_status.status_of(1.0, "UPID:", 101, 105, (watched, hung))
    run = run_state.RunState(worker=ProcessId(1, 1), upid="UPID:", started_s=1.0)
    run.guest = GuestRecord(vmid=101, mode="snapshot", vmtype="qemu", name="web", started_s=1.0)
    run.done = [GuestRecord(vmid=100, mode="stop", vmtype="lxc", name=None, started_s=1.0)]
    run_state.save(node, run)
    kept_run = Path(node.path("/run/pvehook/jobs/1-1.json"))
    allowance = {"vmids": [101], "until_s": 1795312800.0, "reason": "restore test", "who": "root"}
    speeds = {"vmid": 101, "qmp": "/x.qmp", "daemon": 4712, "original": {"drive-scsi0": 0}, "ours": [51200000, 0]}
    frozen = {"vmid": 101, "worker": 4711, "agent": "/x.qga", "armed_s": 1795312800.0, "daemon": 4712}
    past = [
        {"at_s": 1795312800.0, "frozen_ms": 184, "outcome": "ok"},
        {"at_s": 1, "frozen_ms": None, "outcome": "hung"},
    ]
    mounts = (
        b"36 35 98:0 / /mnt/nas rw,noatime shared:1 - nfs4 nas:/export rw,hard\n"
        b"22 1 8:1 / /a\\040b rw - ext4 /dev/sda1 rw\n"
    )
    return {
        "run-state": Parser(
            of("/run/pvehook/jobs/1-1.json", lambda: run_state.load_all(node)), (kept_run.read_bytes(),)
        ),
        "allowances": Parser(
            of("/run/pvehook/allow/a1.json", lambda: allowances.in_force(node, 1795312000.0)), (plain(allowance),)
        ),
        "speed-record": Parser(
            of("/run/pvehook/speeds/101.json", lambda: speed_record.read_record(node, 101)), (plain(speeds),)
        ),
        "watch-status": Parser(of("/run/pvehook/watch.json", read_watch_status), (plain(encoding.encode(watch)),)),
        "freeze-record": Parser(
            of("/run/pvehook/frozen/101.freeze", lambda: freeze_record.freeze_records(node)),
            (b"frozen         \n" + plain(frozen) + b"\0" * 100, plain(frozen)),
        ),
        "last-good": Parser(
            of(last_good.LAST_GOOD_FILE, lambda: last_good.stored_config(node)),
            (settings.to_json(settings.DEFAULT).encode(),),
            (ConfigError,),
        ),
        "freeze-history": Parser(
            of("/var/lib/pvehook/freezes/101.json", lambda: freezes.past_freezes(node, reader, 101)),
            (plain(past),),
        ),
        "told": Parser(
            of("/var/lib/pvehook/told.json", lambda: read_told(node.path("/var/lib/pvehook/told.json"), 0.0).guests()),
            (plain({"v": 1, "night_s": 0.0, "sent": {"guest-stalled": [[101, 102], [104]], "guest-overdue": []}}),),
        ),
        "hook-mark": Parser(of("/run/pvehook/not-taken-up", lambda: hook_call.read_number(mark)), (b"4711",)),
        "hook-ancestors": Parser(
            of(f"/proc/{os.getppid()}/stat", lambda: hook_call.find_worker(node.path("/proc"))),
            (b"4711 (a) b) S 1 4711 4711 0 -1 4194560 1\n",),
        ),
        "mounts": Parser(of("/proc/self/mountinfo", lambda: read_mounts(node)), (mounts,)),
        "dpkg-status": Parser(of("/var/lib/dpkg/status", lambda: installed_packages(node)), (DPKG,)),
        "command-line": Parser(
            of("/proc/9/cmdline", lambda: upid(os.fsencode(command_line(node, 9)))), (UPID.replace(b" ", b"\0"), UPID)
        ),
        "history": Parser(
            of("/var/lib/pvehook/history.db", read_history), (database.read_bytes(),), (NodeError,), share=0.02
        ),
        "stall-record": Parser(
            lambda data: encoding.decode(StallRecord, unpacked(zlib.compress(data, 0))),
            tuple(plain(encoding.encode(each)) for each in records),
            (ValueError,),
        ),
        "beside-record": Parser(
            lambda data: encoding.decode(BesideRecord, unpacked(zlib.compress(data, 0))),
            (plain(encoding.encode(beside())),),
            (ValueError,),
        ),
        "stall-record-packed": Parser(
            unpacked, tuple(packed(encoding.encode(each)) for each in records), (ValueError,)
        ),
    }


def plain(value: object) -> bytes:
    return json.dumps(value, default=list).encode() + b"\n"


def answer(value: object, number: int | None = None) -> bytes:
    """A peer's line; QEMU numbers its answers."""
    return plain({"return": value} | ({} if number is None else {"id": number}))


UPID = b"task UPID:pve1:0003A6C1:00C0FFEE:6921B2F0:vzdump:101:root@pam:"
TASK_LOGS = (
    b"INFO: starting new backup job: vzdump 101 102 103 --storage local\nINFO: skip external VMs: 103\n"
    b"INFO: Starting Backup of VM 101 (qemu)\nINFO: Backup started at 2026-10-25 02:30:05\n"
    b"INFO: VM Name: db\nINFO: backup mode: snapshot\nINFO: transferred 32.00 GiB in 312 seconds (105.0 MiB/s)\n"
    b"INFO: Finished Backup of VM 101 (00:50:13)\nINFO: Backup finished at 2026-10-25 02:20:18\n"
    b"ERROR: Backup of VM 102 failed - no space\nERROR: on device\nINFO: Failed at 2026-10-25 02:20:31\n"
    b"TASK ERROR: job errors\n",
    b"INFO: Starting Backup of VM 110 (lxc)\nINFO: Backup started at 2026-11-28 02:00:05\nINFO: CT Name: mail\n"
    b"INFO: Total bytes written: 1288490240 (1.2GiB, 34MiB/s)\n"
    b"INFO: pvehook: guest 110 is refused: it is 05:19; it opens next: x\n"
    b"ERROR: Backup of VM 110 failed - interrupted by signal\nTASK WARNINGS: 2\n",
)
KMSG = b"4,1203,88412345678,-;watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [kworker/1:1:44]\n SUBSYSTEM=x\n"
PRESSURE = b"some avg10=0.00 avg60=0.12 avg300=0.00 total=112345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"
LVS = plain(
    {"report": [{"lv": [{"vg_name": "pve", "lv_name": "data", "lv_attr": "twi-aotz--", "lv_size": "1000204886016",
     "origin": "", "data_percent": "61.24", "metadata_percent": "2.11", "vg_free": "17175674880"}]}]}
)
SECTIONS = (
    b"vzdump: backup-1\n\tschedule 03:00\n\tall 1\n\tstorage nas\n\tperformance max-workers=2\n\n"
    b"nfs: nas\n\tpath /mnt/nas\n"
    b"\tcontent backup,images\n\tnodes pve1,pve2\n\nzfspool: tank\n\tpool tank/vm\n\tcontent rootdir\n",
    b"# vzdump\nscript: /usr/local/lib/pvehook/hooks/vzdump-hook\nionice: 8\n"
    b"performance: max-workers=1,pbs-entries-max=9\n",
    b"SHELL=/bin/sh\n0 3 * * 6 root vzdump 101 102 --quiet 1 --storage nas --script /x\n",
)
GUESTS = (
    b"#web\nagent: 1,freeze-fs-on-backup=0\nname: web\nscsi0: local-lvm:vm-101-disk-0,iothread=1,size=32G\ntags: a;b\n"
    b"scsi1: file=nas:101/x.qcow2,backup=0\n\n[before]\nname: old\n",
    b"hostname: mail\nmp0: local-lvm:vm-103-disk-1,mp=/var/mail,backup=1,size=8G\n"
    b"rootfs: local-lvm:x,size=8G\nlock: backup\n",
    b"enabled=1,fstrim_cloned_disks=1,type=virtio",
)
CONFIGURATION = (
    b'window:\n  open: ["22:00-06:00", "sat,sun 10:00-12:00"]\n  timezone: Europe/Berlin\n'
    b"  exempt: {guests: [101], jobs: [backup-1]}\n",
    b"chain: /usr/local/bin/theirs\nio_priority: {mode: idle, also: [{comm: rclone, why: x}]}\n",
    b"freeze:\n  mode: auto\n  veto_hold_at_most: 4s\n"
    b"  rules:\n  - {guests: [101], mode: off}\n  - {tags: [db], mountpoints: [/data]}\n",
    b"governor: {mode: on, latency_floor: 20ms, latency_factor: 3, "
    b"rules: [{names: ['web*'], mode: off}]}\npacer: {mode: off}\n",
)
BASE64 = {"count": 4, "buf-b64": "OTkuMjEgMS4wMAo=", "eof": True}
STATS = {"rd_operations": 9, "rd_bytes": 9, "rd_total_time_ns": 9, "wr_operations": 9, "wr_bytes": 9,
         "wr_total_time_ns": 9, "flush_operations": 9, "flush_total_time_ns": 9,
         "rd_latency_histogram": {"boundaries": [10, 20], "bins": [1, 2, 3]}}  # fmt: skip
AGENT = (
    *map(
        answer,
        (
            {},
            {"version": "9.0.3", "supported_commands": [{"name": "guest-ping", "enabled": True}]},
            [{"name": "sda1", "mountpoint": "/", "type": "ext4", "disk": []}],
            "frozen",
            7,
            BASE64,
        ),
    ),
    plain({"error": {"class": "GenericError", "desc": "no"}}),
)
AGENT_FILES = (
    b"".join(map(answer, [5, BASE64, {}] * 6)),
    b"".join(
        map(answer, (5, {"count": 36, "buf-b64": "YjFkMg==", "eof": False}, {}, 5, BASE64, {}, 9, {"position": 0}))
    ),
)
QMP = (
    answer({"status": "running", "running": True}, 1),
    answer([{"device": "drive-scsi0", "type": "backup", "offset": 1, "len": 9, "speed": 0}], 1),
    answer({"status": "active", "uuid": "x", "start-time": 1795312800}, 1),
    answer([{"node-name": "a", "drv": "snapshot-access"}], 1),
    answer({"qemu": {"major": 9, "minor": 2, "micro": 0}, "package": "pve-qemu-kvm_9.2.0-7"}, 1),
    answer([{"cpu-index": 0, "thread-id": 99}], 1),
    answer([{"filename": "unix:/var/run/qemu-server/101.qga,server=on", "frontend-open": True}], 1),
    answer([{"qdev": "scsi0", "node-name": "n", "stats": STATS}], 1) + answer("scsi-hd", 2),
    plain({"QMP": {"version": {"qemu": {"major": 9}}, "capabilities": ["oob"]}}) + answer({}, 1),
    plain({"error": {"class": "CommandNotFound", "desc": "no"}, "id": 1}),
)
CALL = plain(
    {"v": 1, "argv": ["pre-stop", "snapshot", "101"], "env": {"STOREID": "local"}, "worker": 4711, "until": 9.5}
)

FAULT = (fault_atlas.FILE.read_bytes().partition(b"- id: PVH-604")[0],)
DPKG = (
    b"Package: pve-manager\nStatus: install ok installed\nVersion: 9.2.11\n\n"
    b"Package: proxmox-kernel-6.17.4-2-pve-signed\nStatus: deinstall ok config-files\nVersion: 6.17.4-2\n"
)
MEMORY = (
    b"MemTotal:       65764500 kB\nMemAvailable:    1024000 kB\n",
    b"12 1 0x01 147 39984\nname type data\nsize   4    34359738368\nc_min   4    2147483648\n",
    b"Filename Type Size Used Priority\n/dev/dm-0 partition 8388604 1048576 -2\n/srv/my\\040swap file 1024 0 -3\n",
    b"cpu  100 0 100 700 0 0 50 50 90 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n",
)

OF_BYTES = {
    "call": Parser(parse_call, (CALL,), (BadCall,)),
    "started": Parser(parse_started, (b'{"v": 1, "started": 101}\n',)),
    "hook-reply": Parser(
        hook_reply,
        (
            b"taken-up\nwait 60\nexit 0 chain /usr/local/bin/theirs\npvehook: VM 101: ok\n",
            b"taken-up\nnot-served\nno\n",
            b"exit 1\n",
        ),
        (hook_call.NoAnswer,),
    ),
    "agent": Parser(agent, AGENT),
    "agent-files": Parser(agent_files, AGENT_FILES, share=0.5),
    "agent-sync": Parser(
        agent_sync, (b'\xff{"return": 4711}\n', b'{"return": 2}\n\xff{"return": 1}\n{"return": "thawed"}\n'), share=0.3
    ),
    "qmp": Parser(qmp, QMP, (GuestError,)),
    "configuration": Parser(configuration, CONFIGURATION, share=0.5),
    "guest-configs": Parser(guest_configs, GUESTS),
    "sections": Parser(sections, SECTIONS),
    "kernel-line": Parser(lambda data: parse_kernel_line(data.decode("ascii", "replace")), (KMSG,), (ValueError,)),
    "pressure": Parser(lambda data: parse_pressure(data.decode("ascii", "replace")), (PRESSURE,), (ValueError,)),
    "huge-pages": Parser(
        lambda data: parse_choice(data.decode("ascii", "replace")), (b"always [madvise] never\n",), (ValueError,)
    ),
    "node-memory": Parser(node_memory, MEMORY, (ValueError,)),
    "debian-version": Parser(debian_version, (b"1:10.0.2-1~bpo12+1", b">= 6.17, < 6.17.4-2"), (ValueError,)),
    "faults": Parser(lambda data: fault_atlas.parse_atlas(data.decode(errors="replace")), FAULT, share=0.3),
    "os-release": Parser(
        lambda data: ids_of(data.decode("ascii", "replace")), (b'ID=rocky\nID_LIKE="rhel centos fedora"\n',)
    ),
    "span": Parser(
        lambda data: parse_span(data.decode("utf-8", "replace")),
        (b"mon,fri 22:00-06:00", b"sat 10:00-24:00"),
        (WindowSpecError,),
    ),
    "schedule": Parser(
        schedule, (b"mon..fri 21:00", b"*-1..7 2,4:00/30 UTC", b"30 2 */2,1-5 nov 6", b"@daily"), share=0.2
    ),
    "lvs": Parser(lambda data: parse_lvs(data.decode(errors="replace")), (LVS,), (ValueError,)),
    "upid": Parser(upid, (UPID,)),
    "task-log": Parser(task_log, TASK_LOGS),
    "task-list": Parser(
        lambda data: parse_task_list(data.decode("ascii", "replace")),
        (UPID.removeprefix(b"task ") + b" 6921C2F0 OK\n", UPID.removeprefix(b"task ") + b" 1 6921C2F0 job errors\n"),
    ),
    "archive-name": Parser(
        lambda data: parse_archive_name(data.decode("utf-8", "surrogateescape")),
        (b"vzdump-qemu-101-2026_11_28-02_00_00.vma.zst", b"vzdump-lxc-110-2026_11_28-02_00_00.tar"),
    ),
}


def damaged(seeds: tuple[bytes, ...], chance: random.Random) -> bytes:
    """One of the seeds, with a few changes of its bytes, or of the JSON in it."""
    data = chance.choice(seeds)
    if chance.random() < 0.5:
        data = b"\n".join(_damaged_json(line, chance) for line in data.split(b"\n"))
        if chance.random() < 0.7:
            return data
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        if chance.random() < 0.8:
            end = min(end, at + 8)
        change = chance.randrange(7)
        if change == 0:
            data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        elif change == 1:
            data = data[:at] + data[end:]
        elif change == 2:
            data = data[:end] + data[at:]
        elif change == 3:
            data = data[:at]
        elif change == 4:
            other = chance.choice(seeds)
            data = data[:at] + other[chance.randrange(len(other) + 1) :] + data[end:]
        else:
            data = data[:at] + chance.choice(TOKENS) + data[end:]
        data = data[:200_000]
    return data


def _damaged_json(line: bytes, chance: random.Random) -> bytes:
    if line[:1] not in (b"{", b"[") or chance.random() < 0.3:
        return line
    try:
        top: Any = [json.loads(line)]
    except ValueError:
        return line
    holder, place = top, 0
    for _ in range(chance.randrange(9)):
        inner = holder[place]
        if not isinstance(inner, (dict, list)) or not inner or chance.random() < 0.15:
            break
        holder, place = inner, chance.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
    change = chance.randrange(4)
    if change == 0 and holder is not top:
        del holder[place]
    elif change == 1 and isinstance(holder, dict):
        holder[chance.choice(("", "x", "return", "id", "error"))] = holder.pop(place)
    else:
        holder[place] = chance.choice(ODD)
    return json.dumps(top[0]).encode()


def execute(name: str, parser: Parser, seed: int, number: int) -> str:
    """What went wrong, or ""."""
    data = damaged(parser.seeds, random.Random(f"{seed} {name} {number}"))
    try:
        parser.parse(data)
    except parser.errors:
        pass
    except Exception as error:  # the point of it all
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {error!s:.90} of {data[:120]!r}"
    return ""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--times", type=int, default=115_000, help="executions of each parser; slow ones get a share"
    )
    arguments.add_argument("--seed", type=int, default=SEED)
    arguments.add_argument("--only", metavar="NAME")
    arguments.add_argument("--first", type=int, default=0, metavar="N", help="the first execution's number")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:
        parsers = {**OF_BYTES, **in_tree(directory)}
        executions = found = 0
        for name, parser in parsers.items():
            if chosen.only not in (None, name):
                continue
            began_s, faults = time.monotonic(), dict[str, str]()
            times = max(1, int(chosen.times * parser.share))
            for number in range(chosen.first, chosen.first + times):
                fault = execute(name, parser, chosen.seed, number)
                if fault:
                    faults.setdefault(fault.partition(": ")[0], f"--only {name} --first {number}: {fault}")
            executions, found = executions + times, found + len(faults)
            print(
                f"{name:20} {times:8} executions {time.monotonic() - began_s:7.1f} s {len(faults)} faults", flush=True
            )
            for fault in faults.values():
                print(f"    {fault}", flush=True)
    print(f"{executions} executions with seed {chosen.seed}, {found} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
