"""The archive step of one guest: its child processes, the VM that vzdump starts for it, QMP's backup job.

Order and texts as in PVE::VZDump::QemuServer::archive_vma. The archive ends by completion, by a cancelled
backup job (seen in `query-backup`), or by a signal to the worker.
"""

from __future__ import annotations

import os
import time
from itertools import count
from typing import TYPE_CHECKING

from pvehook.rehearsal import monitor, stand_in
from pvehook.rehearsal.commands import CommandError, InterruptError
from pvehook.rehearsal.pipeline import Pipeline

if TYPE_CHECKING:
    from pvehook.rehearsal.turn import Task
    from pvehook.rehearsal.worker import Worker

_STEP_S = 0.02
"""Between two chunks of data."""

_STEPS_PER_QUESTION = 10
"""PVE asks `query-backup` each second; a rehearsal has no time for that."""


class Archive:
    """One guest's archive, made on behalf of the worker."""

    def __init__(self, worker: Worker, task: Task) -> None:
        self._worker = worker
        self._node = worker.node
        self._task = task
        self._guest = task.guest
        self._is_vm = task.guest.kind == "qemu"
        self._was_running = task.guest.state != "stopped"

    def stop_guest(self) -> None:
        """Mode stop shuts the guest down first. Ends this tree's stand-in, if one runs."""
        if self._is_vm:
            stand_in.stop(self._node, self._guest.vmid)

    def is_down(self) -> bool:
        return self._is_vm and stand_in.running_pid(self._node, self._guest.vmid) is None

    def start_guest(self) -> None:
        """Start the VM. It is a child of the worker and inherits its priorities, as on a node."""
        pid = stand_in.start(self._node, self._guest.vmid, self._guest.name)
        self._worker.player.tell("vm", vmid=self._guest.vmid, pid=pid)

    def make(self, temporary: str) -> None:
        """The whole step. Raises CommandError or InterruptError."""
        if not self._is_vm:
            self._run_pipeline(os.path.join(temporary, "rootfs"))
            return
        started_here = self._task.mode == "stop"
        if started_here:
            self._say("starting kvm to execute backup task")
            self.start_guest()
        try:
            self._run_pipeline(None)
        finally:
            if started_here and not self._was_running:
                self._say("stopping kvm after backup task")
                stand_in.stop(self._node, self._guest.vmid)

    def _run_pipeline(self, tree: str | None) -> None:
        run, target = self._worker.run, self._node.path(self._task.env["TARGET"])
        if run.to_pbs:
            self._poll(None)  # QEMU sends to the PBS itself: no file, no compressor
            return
        growing = os.path.splitext(target)[0] + ".dat"
        pipeline = Pipeline(growing, bool(run.compress), tree)
        try:
            self._worker.player.tell("children", vmid=self._guest.vmid, pids=pipeline.pids)
            self._poll(pipeline)
            pipeline.finish()
        except BaseException:
            pipeline.abort()
            if os.path.exists(growing):
                os.unlink(growing)
            raise
        os.rename(growing, target)
        self._say(f"archive file size: {os.path.getsize(target) // 1024}KB")

    def _poll(self, pipeline: Pipeline | None) -> None:
        """Let data flow until the archive may be completed, and the VM's backup job is done."""
        vmid = self._guest.vmid
        has_job = job_runs = self._is_vm and monitor.is_there(self._node, vmid)
        if has_job:
            self._start_backup_job()
        name = f"archive {vmid}"
        held = name in self._worker.run.pauses
        ends_s = time.monotonic() + self._guest.archive_s
        if pipeline is not None:
            pipeline.step(held)
        if held:
            self._worker.player.tell("pause", at=name)
        try:
            for step in count(1):
                if has_job and step % _STEPS_PER_QUESTION == 0:
                    job_runs = self._job_runs()
                if not (held or job_runs or time.monotonic() < ends_s):
                    return
                if self._worker.wait(_STEP_S, for_word=held):
                    self._worker.take_word()
                    held = False
                if pipeline is not None:
                    pipeline.step(held)
        except (CommandError, InterruptError) as error:
            self._worker.say("ERROR:", error, self._task)
            if has_job:
                self._say("aborting backup job")
                self._ask("backup-cancel")
            raise

    def _start_backup_job(self) -> None:
        asked = {"backup-file": "/dev/fdname/backup", "speed": 0, "devlist": "drive-scsi0"}
        job = self._ask("backup", **asked)
        self._say(f"started backup task '{job.get('UUID', '')}'")
        if self._task.mode == "stop" and self._was_running:
            self._say("resuming VM again")

    def _job_runs(self) -> bool:
        status = self._ask("query-backup")
        if status.get("status") == "error":
            raise CommandError(status.get("errmsg", "unknown error"))
        return status.get("status") == "active"

    def _ask(self, command: str, **arguments: object) -> dict[str, object]:
        try:
            answer = monitor.ask(self._node, self._guest.vmid, command, **arguments)
        except monitor.MonitorError as error:
            raise CommandError(str(error)) from error
        return answer if isinstance(answer, dict) else {}

    def _say(self, message: str) -> None:
        self._worker.say("INFO:", message, self._task)
