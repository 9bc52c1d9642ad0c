"""The archive step of one guest: its child processes, the VM that vzdump starts for it, freeze, backup job and thaw.

Order and texts as in PVE::VZDump::QemuServer::archive_vma. The archive ends by completion, by a backup job that
failed or was cancelled, or by a signal to the worker.
"""

from __future__ import annotations

import os
import time
from itertools import count

from pvehook.rehearsal.vm import fake_vm_process
from pvehook.rehearsal.vzdump.commands import CommandError, InterruptError
from pvehook.rehearsal.vzdump.native_freeze import NativeFreeze
from pvehook.rehearsal.vzdump.pipeline import Pipeline
from pvehook.rehearsal.vzdump.qmp_client import ask_monitor, has_monitor
from pvehook.rehearsal.vzdump.session import Session, Task
from pvehook.rehearsal.vzdump.vm_job import VmJob, vm_job

_STEP_S = 0.02
"""Between two chunks of data."""

_STEPS_PER_QUESTION = 10
"""PVE asks `query-backup` each second; a rehearsal has no time for that."""


class Archive:
    """One guest's archive."""

    def __init__(self, session: Session, task: Task) -> None:
        self._session = session
        self._node = session.node
        self._task = task
        self._guest = task.guest
        self._is_vm = task.guest.kind == "qemu"
        self._was_running = task.guest.state != "stopped"

    def stop_guest(self) -> None:
        """Mode stop shuts the guest down first. Ends this tree's fake VM, if one runs."""
        if self._is_vm:
            fake_vm_process.stop(self._node, self._guest.vmid)

    def is_down(self) -> bool:
        return self._is_vm and fake_vm_process.running_pid(self._node, self._guest.vmid) is None

    def start_guest(self) -> None:
        """Start the VM. It is a child of the worker and inherits its priorities, as on a node."""
        pid = fake_vm_process.start(self._node, self._guest.vmid, self._guest.name)
        self._session.player.send("vm", vmid=self._guest.vmid, pid=pid)

    def suspend_guest(self) -> None:
        """Mode suspend pauses a VM that runs. Raises CommandError."""
        self._monitor("stop")

    def resume_guest(self) -> None:
        """Let a VM that was running run again, which is no error when it does already. Raises CommandError."""
        self._monitor("cont")

    def make(self, temporary: str) -> None:
        """The whole step. Raises CommandError or InterruptError."""
        if not self._is_vm:
            self._run_pipeline(os.path.join(temporary, "rootfs"))
            return
        started_here = self._task.mode == "stop"
        if started_here:
            self._log("starting kvm to execute backup task")
            self.start_guest()
        try:
            self._run_pipeline(None)
        finally:
            if started_here and not self._was_running:
                self._log("stopping kvm after backup task")
                fake_vm_process.stop(self._node, self._guest.vmid)

    def _run_pipeline(self, tree: str | None) -> None:
        run, target = self._session.run, self._node.path(self._task.env["TARGET"])
        job = self._prepared_job()
        if run.to_pbs:
            self._flow(None, job)  # QEMU sends to the PBS itself: no file, no compressor
            return
        growing = os.path.splitext(target)[0] + ".dat"
        pipeline = Pipeline(growing, bool(run.compress), tree)
        try:
            self._session.player.send("children", vmid=self._guest.vmid, pids=pipeline.pids)
            self._flow(pipeline, job)
            pipeline.finish()
        except BaseException:
            pipeline.abort()
            if os.path.exists(growing):
                os.unlink(growing)
            raise
        os.rename(growing, target)
        self._log(f"archive file size: {os.path.getsize(target) // 1024}KB")

    def _prepared_job(self) -> VmJob | None:
        """None for a container, and for a VM that has no monitor in this play."""
        if not self._is_vm or not has_monitor(self._node, self._guest.vmid):
            return None
        job = vm_job(self._session.run, self._guest)
        job.prepare()
        return job

    def _flow(self, pipeline: Pipeline | None, job: VmJob | None) -> None:
        """Start the VM's job, then let data flow until the archive may be completed and the job is done."""
        name = f"archive {self._guest.vmid}"
        held = name in self._session.run.pauses
        try:
            if self._is_vm:
                self._start_between_freeze_and_thaw(job, held)
            job_runs = job is not None
            ends_s = time.monotonic() + self._guest.archive_s
            if pipeline is not None:
                pipeline.step(held)
            if held:
                self._session.player.send("pause", at=name)
            for step in count(1):
                if job is not None and job_runs and step % _STEPS_PER_QUESTION == 0:
                    job_runs = job.runs()
                if not (held or job_runs or time.monotonic() < ends_s):
                    return
                if self._session.wait(_STEP_S, self._session.player.words.fileno() if held else None):
                    self._session.take_word()
                    held = False
                    if job is not None:
                        job.let_go()
                if pipeline is not None:
                    pipeline.step(held)
        except (CommandError, InterruptError) as error:
            self._session.log("ERROR:", error, self._task)
            if job is not None:
                self._log("aborting backup job")
                self._cancel(job)
            raise

    def _start_between_freeze_and_thaw(self, job: VmJob | None, held: bool) -> None:
        vmid, send = self._guest.vmid, self._session.player.send
        freeze = NativeFreeze(self._session, self._task)
        owes_thaw = freeze.freeze()
        self._session.pause(f"before backup {vmid}")
        try:
            started = job.start(held) if job is not None else ""
        except CommandError as error:
            send("job-failed", vmid=vmid, at_s=time.monotonic(), why=str(error))
            raise
        else:
            if job is not None:
                send("job-started", vmid=vmid, at_s=time.monotonic(), name=started)
        finally:
            if owes_thaw:
                freeze.thaw()
        if job is None:
            return
        self._log(f"started backup task '{started}'")
        if self._guest.state == "running":
            self._log("resuming VM again")
            self.resume_guest()

    def _cancel(self, job: VmJob) -> None:
        try:
            job.cancel()
        except CommandError as error:  # PVE tries once and logs it
            self._session.log("ERROR:", error, self._task)

    def _monitor(self, command: str) -> None:
        if self._guest.state == "running" and has_monitor(self._node, self._guest.vmid):
            ask_monitor(self._node, self._guest.vmid, command)

    def _log(self, message: str) -> None:
        self._session.log("INFO:", message, self._task)
