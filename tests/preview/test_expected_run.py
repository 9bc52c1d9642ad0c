"""`pvehook rehearse` says when each guest is expected to begin and end, and who goes without."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pvehook.config.in_force import Configuration
from pvehook.host.node import HOOK, Node
from pvehook.host.timely_files import TimelyReader
from pvehook.preview.preview import rehearse_tonight
from pvehook.records.attempt import Attempt
from pvehook.records.history import history_file
from pvehook.records.history_writing import append_attempts

BEGINS = datetime(2026, 11, 24, 2, tzinfo=UTC)


def backup(vmid: int, nights_ago: int, hours: float) -> Attempt:
    started_s = (BEGINS - timedelta(days=nights_ago)).timestamp() + vmid
    return Attempt(
        vmid=vmid, started_s=started_s, ended_s=started_s + hours * 3600, node="pve1", job=f"UPID:{nights_ago}",
        job_id="nightly", trigger="schedule", name=None, vmtype="qemu", mode="snapshot", result="ok", reason="",
    )  # fmt: skip


def rehearse(root: Path, *past: Attempt, more: str = "", vmids: tuple[int, ...] = ()) -> tuple[str, dict[int, Any]]:
    files = {
        "etc/pvehook.yaml": f'window: {{open: ["02:00-05:00"], timezone: UTC{more}}}\n',
        "etc/vzdump.conf": f"script: {HOOK}\nionice: 8\n",
        "etc/pve/jobs.cfg": "vzdump: nightly\n\tenabled 1\n\tschedule 02:00\n\tvmid 101,102,103\n\tstorage local\n",
        "etc/pve/storage.cfg": "dir: local\n\tpath /var/lib/vz\n\tcontent backup\n",
        HOOK.lstrip("/"): "#!/bin/sh\n",
        **{f"etc/pve/qemu-server/{vmid}.conf": "scsi0: local:d,size=8G\n" for vmid in (101, 102, 103)},
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / HOOK.lstrip("/")).chmod(0o755)
    (root / "var/lib/vz").mkdir(parents=True, exist_ok=True)
    node = Node(str(root))
    append_attempts(history_file(node), past, now_s=BEGINS.timestamp())
    in_force = Configuration(node, TimelyReader(), None, remembers=False).now()
    out, as_json = io.StringIO(), io.StringIO()
    rehearse_tonight(node, in_force, BEGINS, vmids, as_json=False, out=out)
    rehearse_tonight(node, in_force, BEGINS, vmids, as_json=True, out=as_json)
    return out.getvalue(), {each["vmid"]: each["expected"] for each in json.loads(as_json.getvalue())}


def test_a_job_that_fits(tmp_path: Path) -> None:
    text, guests = rehearse(tmp_path, *(backup(vmid, night, 0.5) for vmid in (101, 102, 103) for night in (1, 2, 3)))
    assert "expected to end at 03:30 (03:1" in text
    assert "expected from 02:30 to 03:00 (02:" in text
    assert guests[102]["start"] == "2026-11-24T02:30:00+00:00"
    assert guests[102]["end"].startswith("2026-11-24T03:00:00")
    assert not any(each["gives_way_to"] or each["is_late"] for each in guests.values())


WAITED = [backup(vmid, night, 2.0) for vmid in (101, 102) for night in (1, 2)] + [backup(103, 2, 2.0)]


def test_a_job_that_does_not_fit_says_who_gives_way(tmp_path: Path) -> None:
    text, guests = rehearse(tmp_path, *WAITED)
    assert "the window would REFUSE it\n      it would give way to 103, which waited longer" in text
    assert "2 would be backed up, the window would refuse 1" in text
    assert guests[102]["gives_way_to"] == [103]
    assert guests[103]["start"] == "2026-11-24T04:00:00+00:00"


def test_in_order_the_last_one_is_too_late(tmp_path: Path) -> None:
    text, guests = rehearse(tmp_path, *WAITED, more=", when_short: in-order")
    assert "expected to begin at 06:00, too late: the window has closed by then" in text
    assert [each["is_late"] for each in guests.values()] == [False, False, True]


def test_who_may_run_all_the_same_is_not_too_late(tmp_path: Path) -> None:
    _, guests = rehearse(tmp_path, *WAITED, more=", when_short: in-order, exempt: {guests: [103]}")
    assert guests[103]["end"].startswith("2026-11-24T08:00:00")


def test_of_one_guest_alone_it_is_said_when_it_comes_in_its_jobs_run(tmp_path: Path) -> None:
    _, of_all = rehearse(tmp_path, *WAITED)
    text, guests = rehearse(tmp_path, *WAITED, vmids=(102,))
    assert guests == {102: of_all[102]}
    assert "VM 102" in text
    assert "VM 101" not in text
