"""`pvehook rehearse` says what would happen: field cases (F02 to F23) in which it once said something else.

Each tree has what the case had; what PVE does with it was read in its sources and seen in its runs (facts/vzdump.md).
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pvehook.config.in_force import Configuration
from pvehook.host.backup_jobs import parse_cron
from pvehook.host.node import HOOK, Node
from pvehook.host.timely_files import TimelyReader
from pvehook.preview.preview import rehearse_tonight

AT_NOON = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
IN_WINDOW = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)

NIGHTLY = "vzdump: nightly\n\tenabled 1\n\tschedule 02:30\n\tvmid 101\n\tstorage nas\n"
NAS = "nfs: nas\n\tserver 10.0.0.9\n\texport /e\n\tpath /mnt/pve/nas\n\tcontent backup\n"
BASE = {
    "etc/pvehook.yaml": 'window: {open: ["02:00-05:00"], timezone: UTC}\n',
    "etc/vzdump.conf": f"script: {HOOK}\nionice: 8\n",
    "etc/pve/jobs.cfg": NIGHTLY,
    "etc/pve/storage.cfg": NAS,
    "etc/pve/qemu-server/101.conf": "name: a\nagent: 1\nscsi0: local-lvm:vm-101-disk-0,size=8G\n",
    "sys/fs/cgroup/qemu.slice/101.scope/cgroup.procs": "",
    HOOK.lstrip("/"): "#!/bin/sh\n",
}


class Shown(NamedTuple):
    code: int
    text: str
    guests: dict[int | None, dict[str, Any]]
    """Of the JSON, by VMID; None is a job without a guest."""

    def would(self, vmid: int = 101) -> str:
        return str(self.guests[vmid]["would"])


Preview = Callable[..., Shown]


@pytest.fixture
def preview(tmp_path: Path) -> Preview:
    """The preview of a node that has BASE and the given files; None takes one of BASE away."""

    def show(files: Mapping[str, str | None] = {}, at: datetime = IN_WINDOW) -> Shown:
        for name, text in {**BASE, **files}.items():
            if text is None:
                continue
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
            if text.startswith("#!"):
                (tmp_path / name).chmod(0o755)
        node = Node(str(tmp_path))
        in_force = Configuration(node, TimelyReader(), None, remembers=False).now()
        printed, as_json = io.StringIO(), io.StringIO()
        code = rehearse_tonight(node, in_force, at, (), as_json=False, out=printed)
        assert rehearse_tonight(node, in_force, at, (), as_json=True, out=as_json) == code
        return Shown(code, printed.getvalue(), {each["vmid"]: each for each in json.loads(as_json.getvalue())})

    return show


def notes(shown: Shown, vmid: int = 101) -> str:
    return "\n".join(shown.guests[vmid]["notes"])


# The three answers


def test_one_sentence_tells_the_three_answers_apart(preview: Preview) -> None:
    files = {
        "etc/pve/jobs.cfg": NIGHTLY.replace("vmid 101", "vmid 101,102,103"),
        "etc/pve/qemu-server/102.conf": "name: b\nlock: backup\n",
        "etc/pve/qemu-server/103.conf": "name: c\n",
        "etc/pvehook.yaml": "window: {open: [], exempt: {guests: [101, 102]}}\n",
    }
    shown = preview(files)
    assert {vmid: each["would"] for vmid, each in shown.guests.items()} == {
        101: "be-backed-up",
        102: "be-refused-by-pve",
        103: "be-refused-by-window",
    }
    assert "VM 101 a (running, mode snapshot): would be backed up\n" in shown.text
    assert "VM 102 b (off, mode stop): PVE would REFUSE it: VM is locked (backup)" in shown.text
    assert "VM 103 c (off, mode stop): the window would REFUSE it\n" in shown.text
    assert "1 would be backed up, the window would refuse 1, PVE would refuse 1." in shown.text
    assert shown.code == 1


def test_what_is_in_order_is_backed_up(preview: Preview) -> None:
    shown = preview()
    assert (shown.code, shown.would(), notes(shown)) == (0, "be-backed-up", "")


# F02: jobs of cron

CRON = """PATH="/usr/sbin:/usr/bin:/sbin:/bin"
30 2 * * 6 root vzdump 102 --quiet 1 --mode snapshot --storage nas --ionice 7 --script /root/own.sh
"""


@pytest.mark.parametrize("path", ["etc/pve/vzdump.cron", "etc/cron.d/x"])
def test_a_job_of_cron_is_a_job(preview: Preview, path: str) -> None:
    shown = preview(
        {
            path: CRON,
            "etc/pve/jobs.cfg": "",
            "etc/pve/lxc/102.conf": "hostname: mail\nrootfs: nas:102/vm-102-disk-0.raw,size=8G\n",
            "root/own.sh": "#!/bin/sh\n",
        }
    )
    assert shown.would(102) == "be-backed-up-without-pvehook"
    assert shown.guests[102]["job"] == f"/{path}:2"
    assert "own script" not in notes(shown, 102)
    assert f"line /{path}:2 has a script of its own: /root/own.sh" in notes(shown, 102)
    assert "in no job: 101" in shown.text


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("0 1 * * * root vzdump --all 1 --exclude 104", {"all": "1", "exclude": "104"}),
        ("@daily root /usr/bin/vzdump 101 102 --storage=nas >/dev/null 2>&1", {"vmid": "101,102", "storage": "nas"}),
        ("0 1 * * * root vzdump --all --quiet && touch /x", {"all": "1", "quiet": "1"}),
        ("0 1 * * * root cd /mnt && vzdump 101 --dumpdir ./dump", {"vmid": "101", "dumpdir": "./dump"}),
        ("#0 1 * * * root vzdump 101", None),
        ("0 1 * * * root rsync -a /vzdump.old /x", None),
        ("0 1 * * * root vzdump 'unclosed", None),
        ("vzdump", None),
    ],
)
def test_lines_of_cron(line: str, options: dict[str, str] | None) -> None:
    assert [job.options for job in parse_cron(line, "/etc/cron.d/x")] == ([] if options is None else [options])


# F03: storage and dumpdir are one choice


def test_a_jobs_dumpdir_drops_the_default_storage_and_its_exemption(preview: Preview) -> None:
    """PVE sets no STOREID then, so the hook refuses."""
    files = {
        "etc/pve/jobs.cfg": NIGHTLY.replace("storage nas", "dumpdir /var/lib/vz/dump"),
        "etc/vzdump.conf": BASE["etc/vzdump.conf"] + "storage: nas\n",
        "etc/pvehook.yaml": "window:\n  exempt:\n    storages: [nas]\n",
        "var/lib/vz/dump/x": "",
    }
    assert preview(files, AT_NOON).would() == "be-refused-by-window"


def test_without_storage_and_dumpdir_it_is_the_storage_local(preview: Preview) -> None:
    files = {
        "etc/pve/jobs.cfg": NIGHTLY.replace("\tstorage nas\n", ""),
        "etc/pvehook.yaml": "window:\n  exempt:\n    storages: [local]\n",
    }
    assert preview(files, AT_NOON).would() == "be-backed-up"


@pytest.mark.parametrize("job", [NIGHTLY, NIGHTLY.replace("\tstorage nas\n", "")])
def test_a_storage_drops_a_default_dumpdir(preview: Preview, job: str) -> None:
    files = {
        "etc/pve/jobs.cfg": job,
        "etc/vzdump.conf": BASE["etc/vzdump.conf"] + "dumpdir: /dev/shm\nstorage: nas\n",
    }
    shown = preview(files)
    assert "/dev/shm" not in shown.text
    assert "nfs storage nas" in shown.text


# F05: a script that PVE does not find


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"etc/vzdump.conf": "script: /usr/local/bin/gone.sh\n"}, "'/usr/local/bin/gone.sh' does not exist"),
        ({"etc/pve/jobs.cfg": NIGHTLY + "\tscript /root/gone.sh\n"}, "'/root/gone.sh' does not exist"),
        ({"etc/vzdump.conf": "script: /root/no.sh\n", "root/no.sh": "echo\n"}, "'/root/no.sh' is not executable"),
        ({HOOK.lstrip("/"): None}, f"'{HOOK}' does not exist"),
    ],
)
def test_a_script_that_cannot_be_run_fails_the_job(preview: Preview, files: dict[str, str | None], why: str) -> None:
    shown = preview(files)
    assert (shown.code, shown.would()) == (1, "be-refused-by-pve")
    assert f"PVE would REFUSE it: the hook script {why}, so the whole job fails" in shown.text


def test_a_line_of_vzdump_conf_that_pve_ignores_is_named(preview: Preview) -> None:
    shown = preview({"etc/vzdump.conf": f"script : {HOOK}\nionice: 8\n"})
    assert shown.would() == "be-backed-up-without-pvehook"
    assert f"vzdump ignores this line of /etc/vzdump.conf: script : {HOOK}" in notes(shown)


# F06: `performance` is merged setting by setting


def test_which_max_workers_wins_is_said_only_where_two_differ(preview: Preview) -> None:
    conf = {"etc/vzdump.conf": BASE["etc/vzdump.conf"] + "performance: max-workers=1\n"}
    merged = preview({**conf, "etc/pve/jobs.cfg": NIGHTLY + "\tperformance pbs-entries-max=100000\n"})
    assert notes(merged) == ""
    other = preview({**conf, "etc/pve/jobs.cfg": NIGHTLY + "\tperformance max-workers=2\n"})
    assert "max-workers=2 of job nightly wins over max-workers=1 of /etc/vzdump.conf" in notes(other)


# F12: the storage `local` is always there


@pytest.mark.parametrize("storages", [NAS, NAS + "\ndir: local\n\tpath /srv/other\n"])
def test_local_is_always_there(preview: Preview, storages: str) -> None:
    shown = preview({"etc/pve/storage.cfg": storages, "etc/pve/jobs.cfg": NIGHTLY.replace("nas", "local")})
    assert shown.would() == "be-backed-up"
    assert "tells no dump directory" not in shown.text
    assert "/srv/other" not in shown.text
    assert "storage local is not configured" not in shown.text


def test_a_local_that_is_not_for_backups_is_refused(preview: Preview) -> None:
    files = {
        "etc/pve/storage.cfg": "dir: local\n\tcontent iso\n\n" + NAS,
        "etc/pve/jobs.cfg": NIGHTLY.replace("nas", "local"),
    }
    assert preview(files).guests[101]["pve_refuses"].startswith("storage 'local' does not hold backups")


# F14: a relative dumpdir


def test_the_disks_under_a_relative_dumpdir_are_not_known(preview: Preview) -> None:
    line = "0 3 * * * root cd /mnt/usb && vzdump 101 --dumpdir ./dump/\n"
    shown = preview({"etc/pve/jobs.cfg": "", "etc/cron.d/usb": line})
    assert shown.guests[101]["idle_effect"]["dump"] == "unknown"
    assert "dumpdir ./dump/ is relative to the directory in which vzdump is started" in notes(shown)


# F15: a lock that a killed backup left


def test_a_locked_guest_is_refused(preview: Preview) -> None:
    shown = preview({"etc/pve/qemu-server/101.conf": "lock: backup\n" + BASE["etc/pve/qemu-server/101.conf"]})
    assert "PVE would REFUSE it: VM is locked (backup); if nothing works on it any more: qm unlock 101" in shown.text


def test_the_lock_of_a_snapshot_section_is_none(preview: Preview) -> None:
    config = BASE["etc/pve/qemu-server/101.conf"] + "\n[before]\nlock: backup\n"
    assert preview({"etc/pve/qemu-server/101.conf": config}).would() == "be-backed-up"


# F16: containers whose storage has no snapshots

CONTAINER = {
    "etc/pve/jobs.cfg": NIGHTLY.replace("101", "102"),
    "sys/fs/cgroup/lxc/102/cgroup.procs": "",
}


@pytest.mark.parametrize(
    ("volume", "storage", "mode"),
    [
        ("local:102/vm-102-disk-0.raw", "", "suspend"),
        ("nas:102/vm-102-disk-0.raw", "", "suspend"),
        ("thick:vm-102-disk-0", "lvm: thick\n\tvgname v\n", "suspend"),
        ("thin:vm-102-disk-0", "lvmthin: thin\n\tvgname v\n\tthinpool t\n", "snapshot"),
        ("tank:subvol-102-disk-0", "zfspool: tank\n\tpool tank\n", "snapshot"),
    ],
)
def test_a_container_falls_back_to_suspend(preview: Preview, volume: str, storage: str, mode: str) -> None:
    config = {"etc/pve/lxc/102.conf": f"hostname: m\nrootfs: {volume}\n", "etc/pve/storage.cfg": f"{NAS}\n{storage}"}
    shown = preview({**CONTAINER, **config})
    assert shown.guests[102]["mode"] == mode
    assert ("rsync" in shown.text) == (mode == "suspend")
    assert ("falls back from snapshot to suspend" in notes(shown, 102)) == (mode == "suspend")


def test_whether_an_unknown_storage_has_snapshots_is_not_known(preview: Preview) -> None:
    config = {"etc/pve/lxc/102.conf": "rootfs: new:x\n", "etc/pve/storage.cfg": NAS + "\nnewfs: new\n"}
    shown = preview({**CONTAINER, **config})
    assert shown.guests[102]["mode"] == "snapshot"
    assert "whether new:x can be snapshotted is not known" in notes(shown, 102)


# F17: cgroup v1


def test_with_cgroup_v1_running_guests_run(preview: Preview) -> None:
    files = {
        "sys/fs/cgroup/qemu.slice/101.scope/cgroup.procs": None,
        "sys/fs/cgroup/systemd/qemu.slice/101.scope/tasks": "",
        "sys/fs/cgroup/memory/lxc/102/tasks": "",
        "etc/pve/jobs.cfg": NIGHTLY.replace("101", "101,102"),
        "etc/pve/lxc/102.conf": "rootfs: local-lvm:vm-102-disk-0\n",
    }
    shown = preview(files)
    assert {vmid: each["running"] for vmid, each in shown.guests.items()} == {101: True, 102: True}


# F21: small print of the files


def test_a_job_that_names_no_guests_takes_none(preview: Preview) -> None:
    shown = preview({"etc/pve/jobs.cfg": NIGHTLY.replace("\tvmid 101\n", "")})
    assert (shown.code, shown.guests) == (2, {})
    assert "in no job: 101" in shown.text


def test_an_invalid_mode_of_vzdump_conf_is_dropped(preview: Preview) -> None:
    shown = preview({"etc/vzdump.conf": BASE["etc/vzdump.conf"] + "mode: snap\n"})
    assert shown.guests[101]["mode"] == "snapshot"
    assert "vzdump ignores this line of /etc/vzdump.conf: mode: snap" in notes(shown)


# F23: storages that PVE will not use, and runs that are made up for


@pytest.mark.parametrize(
    ("storage", "why"),
    [
        ("pbs: nas\n\tdisable\n\tdatastore x\n\tserver 10.0.0.9\n\tcontent backup\n", "storage 'nas' is disabled"),
        (NAS + "\tnodes elsewhere\n", "storage 'nas' is not available on node"),
        (NAS.replace("content backup", "content images"), "storage 'nas' does not hold backups (content images)"),
        ("", "storage 'nas' does not exist"),
    ],
)
def test_a_storage_that_pve_will_not_use_fails_the_job(preview: Preview, storage: str, why: str) -> None:
    shown = preview({"etc/pve/storage.cfg": storage})
    assert (shown.code, shown.would()) == (1, "be-refused-by-pve")
    assert shown.guests[101]["pve_refuses"].startswith(why)
    assert "whole job fails" in shown.text


def test_a_storage_of_this_node_is_used(preview: Preview) -> None:
    here = socket.gethostname().partition(".")[0]
    assert preview({"etc/pve/storage.cfg": NAS + f"\tnodes other,{here}\n"}).would() == "be-backed-up"


def test_a_run_that_is_made_up_for_is_mentioned(preview: Preview) -> None:
    shown = preview({"etc/pve/jobs.cfg": NIGHTLY + "\trepeat-missed 1\n"})
    assert "repeat-missed: a run that was missed while the node was off starts when it boots" in notes(shown)


# Pools, HA and the other nodes

BY_POOL = {
    "etc/pve/jobs.cfg": NIGHTLY.replace("vmid 101", "pool web"),
    "etc/pve/user.cfg": "pool:web::101,105:nas:\npool:web/test::102:\n",
    "etc/pve/qemu-server/102.conf": "name: b\n",
}


def test_a_pool_takes_its_own_guests_and_nobody_elses(preview: Preview) -> None:
    shown = preview(BY_POOL)
    assert (shown.code, shown.would(), list(shown.guests)) == (0, "be-backed-up", [101])
    assert "in no job: 102" in shown.text
    assert "guest 105 is not on this node\n" in shown.text


def test_a_pool_takes_also_what_the_job_excludes(preview: Preview) -> None:
    files = {**BY_POOL, "etc/pve/jobs.cfg": BY_POOL["etc/pve/jobs.cfg"] + "\texclude 101\n"}
    assert preview(files).would() == "be-backed-up"


def test_exclude_alone_means_all_others(preview: Preview) -> None:
    files = {**BY_POOL, "etc/pve/jobs.cfg": NIGHTLY.replace("vmid 101", "exclude 101")}
    assert list(preview(files).guests) == [102]


def test_a_pool_that_is_not_there_ends_the_job(preview: Preview) -> None:
    shown = preview({**BY_POOL, "etc/pve/user.cfg": "pool:other::101:\n"})
    job = {"job": "nightly", "vmid": None, "would": "be-refused-by-pve", "pve_refuses": "pool 'web' does not exist"}
    assert (shown.code, shown.guests) == (1, {None: job})
    assert "job nightly: PVE would REFUSE it: pool 'web' does not exist\n" in shown.text


@pytest.mark.parametrize("option", ["all 1", "exclude 102", "pool web"])
def test_guests_named_twice_over_end_the_job(preview: Preview, option: str) -> None:
    shown = preview({**BY_POOL, "etc/pve/jobs.cfg": f"{NIGHTLY}\t{option}\n"})
    assert (shown.code, shown.would()) == (1, "be-refused-by-pve")
    why = f"option '{option.partition(' ')[0]}' conflicts with option 'vmid', so the whole job fails"
    assert shown.guests[101]["pve_refuses"] == why


def test_a_guest_of_another_node_is_left_out_and_one_of_none_fails(preview: Preview) -> None:
    files = {
        "etc/pve/jobs.cfg": NIGHTLY.replace("101", "101,102,103"),
        "etc/pve/nodes/pve1/qemu-server/101.conf": "name: a\n",
        "etc/pve/nodes/pve2/lxc/102.conf": "hostname: b\n",
    }
    shown = preview(files)
    assert list(shown.guests) == [101]
    assert "guest 102 is on node pve2: this node's run leaves it out\n" in shown.text
    assert "guest 103 is not on this node, nor on another: PVE fails its backup\n" in shown.text


def test_a_job_without_a_guest_of_this_node_says_so(preview: Preview) -> None:
    shown = preview({"etc/pve/jobs.cfg": NIGHTLY.replace("101", "102")})
    assert (shown.code, shown.guests) == (2, {})
    assert "job nightly: no guest of this node\n  guest 102 is not on this node\n" in shown.text


@pytest.mark.parametrize(("resource", "managed"), [("vm: 101", True), ("ct: 102", False)])
def test_where_ha_puts_a_guest_is_not_known(preview: Preview, resource: str, managed: bool) -> None:
    shown = preview({"etc/pve/ha/resources.cfg": f"{resource}\n\tstate started\n"})
    assert ("which node it is on when the job starts is not known" in notes(shown)) == managed


# The target as it is now

USB = "dir: nas\n\tpath /mnt/usb\n\tcontent backup\n"


def test_what_is_free_on_a_directory_is_shown(preview: Preview, tmp_path: Path) -> None:
    shown = preview({"etc/pve/storage.cfg": USB, "mnt/usb/dump/x": ""})
    free = os.statvfs(tmp_path)
    assert abs(shown.guests[101]["target_free_bytes"] - free.f_bavail * free.f_frsize) < 1 << 30
    assert re.search(r"\n  free on storage nas: [0-9.]+ GiB; PVE does not check whether an archive fits\n", shown.text)


@pytest.mark.parametrize(
    ("storage", "why"),
    [
        (NAS, "free on storage nas: not known (not mounted now)"),
        ("pbs: nas\n\tdatastore x\n\tcontent backup\n", "free on storage nas: not known (a storage of type pbs)"),
        (USB, "free on storage nas: not known (the directory is not there)"),
    ],
)
def test_what_is_free_elsewhere_is_said_to_be_not_known(preview: Preview, storage: str, why: str) -> None:
    shown = preview({"etc/pve/storage.cfg": storage})
    assert (shown.would(), shown.guests[101]["target_free_bytes"]) == ("be-backed-up", None)
    assert why in shown.text


def test_a_directory_that_hangs_costs_only_what_is_free_there(
    preview: Preview, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr("pvehook.host.backup_target.os.statvfs", lambda _: released.wait())
    monkeypatch.setattr("pvehook.preview.preview.TARGET_DEADLINE_S", 0.05)
    shown = preview({"etc/pve/storage.cfg": USB, "mnt/usb/dump/x": ""})
    released.set()
    assert shown.would() == "be-backed-up"
    assert "free on storage nas: not known (/mnt/usb did not answer within 0.05 s)" in shown.text


@pytest.mark.parametrize("is_mountpoint", ["1", "yes", "/mnt"])
def test_a_disk_that_is_not_mounted_fails_the_job(preview: Preview, is_mountpoint: str) -> None:
    files = {"etc/pve/storage.cfg": f"{USB}\tis_mountpoint {is_mountpoint}\n", "mnt/usb/dump/x": ""}
    shown = preview(files)
    assert (shown.code, shown.would()) == (1, "be-refused-by-pve")
    assert "storage nas is to be a mount point, and nothing is mounted at /mnt" in shown.guests[101]["pve_refuses"]


def test_a_disk_that_is_mounted_is_used(preview: Preview, tmp_path: Path) -> None:
    files = {
        "etc/pve/storage.cfg": f"{USB}\tis_mountpoint 1\n",
        "mnt/usb/dump/x": "",
        "proc/self/mountinfo": f"36 35 8:1 / {tmp_path}/mnt/usb rw - ext4 /dev/sdz1 rw\n",
    }
    assert preview(files).would() == "be-backed-up"


def test_a_dumpdir_that_is_not_there_fails_the_job(preview: Preview) -> None:
    shown = preview({"etc/pve/jobs.cfg": NIGHTLY.replace("storage nas", "dumpdir /srv/dump")})
    assert (shown.code, shown.would()) == (1, "be-refused-by-pve")
    assert shown.guests[101]["pve_refuses"] == "dumpdir /srv/dump does not exist, so the whole job fails"


def test_texts_of_files_move_no_cursor(preview: Preview) -> None:
    shown = preview({"etc/pve/qemu-server/101.conf": "name: \x1b[2Jweb\n"})
    assert "\x1b" not in shown.text
    assert "\\x1b[2Jweb" in shown.text
