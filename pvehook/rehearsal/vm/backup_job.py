"""The backup job of a simulated VM, as QMP shows it: to vzdump by `query-backup`, to others as a block job."""

from __future__ import annotations

import time
import uuid
from typing import Final, Literal

from pvehook.rehearsal.vm.sockets import DenialError

DEVICE: Final = "drive-scsi0"
TOTAL_BYTES: Final = 8 * 1024**3

_State = Literal["none", "active", "done", "cancelled"]


class BackupJob:
    """One job at a time, and what is left of the last one. `lasts_s` None: until `finish` or `cancel`."""

    def __init__(self, lasts_s: float | None) -> None:
        self._lasts_s = lasts_s
        self._uuid = ""
        self._provider_reads = False
        self.foreign: list[dict[str, object]] = []
        """Block jobs that somebody else has started in QEMU, as `query-block-jobs` shows them."""
        self._state: _State = "none"
        self._started_at_s = 0.0
        self._started_epoch_s = 0
        self._speed = 0
        self.speeds_set: list[int] = []
        """Every speed that was asked for, in bytes a second, in order."""

    @property
    def state(self) -> _State:
        if self._state == "active" and self.read_bytes == TOTAL_BYTES:
            self._state = "done"
        return self._state

    @property
    def read_bytes(self) -> int:
        """How far the job is; one that waits for `finish` stays in the middle."""
        if self._state in ("none", "done"):
            return TOTAL_BYTES if self._state == "done" else 0
        if self._lasts_s is None or self._state == "cancelled":
            return TOTAL_BYTES // 2
        part = (time.monotonic() - self._started_at_s) / self._lasts_s
        return int(TOTAL_BYTES * min(part, 1.0))

    def start(self) -> dict[str, object]:
        """`backup`."""
        if self.state == "active":
            raise DenialError("GenericError", "previous backup not finished")
        self._started_at_s, self._started_epoch_s = time.monotonic(), int(time.time())
        self._state, self._speed, self._uuid = "active", 0, str(uuid.uuid4())
        return {"UUID": self._uuid}

    def start_provider(self) -> list[dict[str, object]]:
        """`backup-access-setup`: a provider reads the disks itself, and neither command shows a backup."""
        self._provider_reads = True
        return [{"node-name": f"{DEVICE}-access", "device": DEVICE, "size": TOTAL_BYTES, "bitmap-mode": "none"}]

    def end_provider(self) -> None:
        """`backup-access-teardown`."""
        self._provider_reads = False

    def as_nodes(self) -> list[dict[str, object]]:
        """`query-named-block-nodes`: what a backup adds to the disks' own nodes."""
        disk = {"node-name": DEVICE, "drv": "raw", "ro": False}
        cbw = {"node-name": f"{DEVICE}-cbw", "drv": "copy-before-write", "ro": False}
        access = {"node-name": f"{DEVICE}-access", "drv": "snapshot-access", "ro": True}
        if self._provider_reads:
            return [disk, cbw, access]
        return [disk, cbw] if self.state == "active" or self.foreign else [disk]

    def finish(self) -> None:
        """The job comes to its good end."""
        if self.state == "active":
            self._state = "done"

    def cancel(self) -> None:
        """`backup-cancel`, which is no error when there is nothing to cancel."""
        if self.state == "active":
            self._state = "cancelled"

    def set_speed(self, device: object, speed: object) -> None:
        """`block-job-set-speed`."""
        if device != DEVICE or self.state != "active":
            raise DenialError("DeviceNotActive", f"Block job '{device}' not found")
        if type(speed) is not int:
            raise DenialError("GenericError", "Invalid parameter type for 'speed', expected: integer")
        self._speed = speed
        self.speeds_set.append(speed)

    def as_block_jobs(self) -> list[dict[str, object]]:
        """`query-block-jobs`."""
        if self.state != "active":
            return [*self.foreign]
        job = {"device": DEVICE, "type": "backup", "status": "running", "io-status": "ok"}
        numbers = {"offset": self.read_bytes, "len": TOTAL_BYTES, "speed": self._speed}
        return [{**job, **numbers, "busy": True, "paused": False, "ready": False}, *self.foreign]

    def as_backup(self) -> dict[str, object]:
        """`query-backup`: empty before the first backup, an error after a cancelled one."""
        state = self.state
        if state == "none":
            return {}
        shown: dict[str, object] = {"status": state}
        if state == "cancelled":
            shown = {"status": "error", "errmsg": "backup canceled"}
        numbers = {"total": TOTAL_BYTES, "transferred": self.read_bytes, "zero-bytes": 0}
        return {**shown, **numbers, "start-time": self._started_epoch_s, "uuid": self._uuid, "finishing": False}
