"""The write-ahead record of a throttled backup: whoever finds it restores the original speed.

    /run/pvehook/speeds/101.json
        {"vmid": 101, "qmp": "/var/run/qemu-server/101.qmp",
         "original": {"drive-scsi0": 0}, "ours": [51200000, 48000000]}

Written before each change. `ours` holds the speed that is being set and the one before it: a job with any other speed
was set by somebody else since and is left alone. 0 means no limit, as in QEMU.

Stdlib only: `pvehook thaw --left-over`, which systemd runs when the daemon has died, restores speeds as well.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import NamedTuple

from pvehook.deadline import Deadline
from pvehook.errors import GuestError, NotActive, Unreachable
from pvehook.guest.qmp import open_qmp
from pvehook.host.node import Node
from pvehook.host.regular_file import DAMAGED, files_in, read_regular_file, remove_file, replace_file
from pvehook.rescue.left_over import Report, at_once, has_ended

ATTEMPT_S = 1.0
"""One attempt: QEMU answers in a millisecond; a client that is served before us, such as vzdump, is soon done."""
PATIENCE_S = 4.0
"""systemd waits for it (TimeoutStopSec), and a slow backup does not hurt the guest meanwhile."""
PAUSE_S = 0.05
RECORD_LIMIT_BYTES = 64 * 1024


class SpeedRecord(NamedTuple):
    vmid: int
    qmp_path: str
    original: Mapping[str, int]
    """Bytes per second by device."""
    ours: tuple[int, ...]


def record_path(node: Node, vmid: int) -> str:
    return os.path.join(node.run_dir, "speeds", f"{vmid}.json")


def write_record(node: Node, left: SpeedRecord) -> None:
    """To be called before a speed is changed. Raises OSError: then it must not be changed."""
    body = {"vmid": left.vmid, "qmp": left.qmp_path, "original": dict(left.original), "ours": list(left.ours)}
    replace_file(record_path(node, left.vmid), json.dumps(body) + "\n")


def read_record(node: Node, vmid: int) -> SpeedRecord | None:
    """None where there is no record that can be read: then nothing is known to be ours."""
    try:
        body = json.loads(read_regular_file(record_path(node, vmid), RECORD_LIMIT_BYTES))
        return SpeedRecord(
            vmid=int(body["vmid"]),
            qmp_path=str(body["qmp"]),
            original={str(device): int(speed) for device, speed in body["original"].items()},
            ours=tuple(int(speed) for speed in body["ours"]),
        )
    except DAMAGED:
        return None


def remove_record(node: Node, vmid: int) -> None:
    """Nothing is throttled by us any more. One that stays costs the next reader a query of a job not as we left it."""
    remove_file(record_path(node, vmid))


def restore_speed(node: Node, vmid: int, patience_s: float = PATIENCE_S) -> Report | None:
    """Restores the original speed of the guest's jobs that are as we left them. None: there is no record."""
    left = read_record(node, vmid)
    if left is None:
        return None
    until_s = time.monotonic() + patience_s
    while True:
        try:
            text = _restore_once(left, Deadline.after(min(ATTEMPT_S, max(until_s - time.monotonic(), 0.1))))
            break
        except Unreachable as error:
            if has_ended(left.qmp_path, error):
                text = "its VM has ended"
                break
            fault: Exception = error
        except (GuestError, OSError) as error:  # OSError: no file descriptor left, no memory; that passes
            fault = error
        if time.monotonic() >= until_s:
            return Report(vmid, False, f"guest {vmid}: its backup is STILL THROTTLED, as far as we know: {fault}")
        time.sleep(PAUSE_S)
    if read_record(node, vmid) == left:  # one that was rewritten since belongs to a newer backup
        remove_record(node, vmid)
    return Report(vmid, True, f"guest {vmid}: its backup was throttled by us; {text}")


def restore_left_over_speeds(node: Node) -> list[Report]:
    names = [os.path.basename(path) for path in files_in(os.path.dirname(record_path(node, 0)), ".json")]
    vmids = [int(name[:-5]) for name in names if name[:-5].isdecimal()]
    return list(filter(None, at_once(lambda vmid: restore_speed(node, vmid), vmids)))


def _restore_once(left: SpeedRecord, deadline: Deadline) -> str:
    """What was done. Raises GuestError."""
    put: list[str] = []
    with open_qmp(left.qmp_path, deadline) as qmp:
        for job in qmp.query_block_jobs(deadline):
            original = left.original.get(job.device)
            if original is None or job.type != "backup" or job.speed_bytes_per_s not in left.ours:
                continue
            try:
                qmp.set_job_speed(job.device, original, deadline)
                put.append(f"{job.device} to {_limit(original)}")
            except NotActive:
                continue  # it has ended in this moment
    return f"restored {', '.join(put)}" if put else "no job is as we left it, nothing to restore"


def _limit(bytes_per_s: int) -> str:
    return f"{bytes_per_s / 1e6:.3g} MB/s" if bytes_per_s else "no limit"
