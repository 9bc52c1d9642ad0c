"""The archive step of one guest: its child processes, the VM that vzdump starts for it, freeze, backup job and thaw.

Order and texts as in PVE::VZDump::QemuServer::archive_vma. The archive ends by completion, by a backup job that
failed or was cancelled, or by a signal to the worker.
"""

from __future__ import annotations

import contextlib
import os
import time
from itertools import count

from pvehook.rehearsal.vm import fake_vm_process
from pvehook.rehearsal.vzdump.commands import CommandError, InterruptError
from pvehook.rehearsal.vzdump.pipeline import Pipeline
from pvehook.rehearsal.vzdump.qmp_client import ask_monitor, has_monitor
from pvehook.rehearsal.vzdump.session import Task
from pvehook.rehearsal.vzdump.vm_job import VmJob, named, vm_job

_STEP_S = 0.02
"""Between two chunks of data."""

_STEPS_PER_QUESTION = 10
"""PVE asks `query-backup` each second; a rehearsal has no time for that."""


class Archive:
    """One guest's archive."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._session = task.session
        self._node = task.session.node
        self._guest = task.guest
        self._is_vm = task.guest.kind == "qemu"

    def stop_guest(self) -> None:
        """Mode stop shuts the guest down first. Ends this tree's fake VM, if one runs."""
        if self._is_vm:
            fake_vm_process.stop(self._node, self._guest.vmid)

    def is_down(self) -> bool:
        return self._is_vm and fake_vm_process.running_pid(self._node, self._guest.vmid) is None

    def start_guest(self) -> None:
        """Start the VM. It is a child of the worker and inherits its priorities, as on a node."""
        self._task.send("vm", pid=fake_vm_process.start(self._node, self._guest.vmid, self._guest.name))

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
            self._task.info("starting kvm to execute backup task")
            self.start_guest()
        try:
            self._run_pipeline(None)
        finally:
            if started_here and self._guest.state == "stopped":
                self._task.info("stopping kvm after backup task")
                self.stop_guest()

    def _run_pipeline(self, tree: str | None) -> None:
        run, target = self._session.run, self._node.path(self._task.env["TARGET"])
        job = self._prepared_job()
        if run.to_pbs:
            self._flow(None, job)  # QEMU sends to the PBS itself: no file, no compressor
            return
        growing = os.path.splitext(target)[0] + ".dat"
        pipeline = Pipeline(growing, bool(run.compress), tree)
        try:
            self._task.send("children", pids=pipeline.pids)
            self._flow(pipeline, job)
            pipeline.finish()
        except BaseException:
            pipeline.abort()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(growing)
            raise
        os.rename(growing, target)
        self._task.info(f"archive file size: {os.path.getsize(target) // 1024}KB")

    def _prepared_job(self) -> VmJob | None:
        """None for a container, and for a VM that has no monitor in this play."""
        if not self._is_vm or not has_monitor(self._node, self._guest.vmid):
            return None
        job = vm_job(self._session.run, self._guest)
        job.prepare()
        return job

    def _flow(self, pipeline: Pipeline | None, job: VmJob | None) -> None:
        """Start the VM's job, then let data flow until the archive may be completed and the job is done."""
        session, name = self._session, f"archive {self._guest.vmid}"
        held = name in session.run.pauses
        try:
            if self._is_vm:
                self._start_between_freeze_and_thaw(job, held)
            job_runs = job is not None
            ends_s = time.monotonic() + self._guest.archive_s
            if pipeline is not None:
                pipeline.step(held)
            if held:
                session.send("pause", at=name)
            for step in count(1):
                if job is not None and job_runs and step % _STEPS_PER_QUESTION == 0:
                    job_runs = job.runs()
                if not (held or job_runs or time.monotonic() < ends_s):
                    return
                if session.wait(_STEP_S, session.words.fileno() if held else None):
                    session.take_word()
                    held = False
                    if job is not None:
                        job.let_go()
                if pipeline is not None:
                    pipeline.step(held)
        except (CommandError, InterruptError) as error:
            self._task.log("ERROR:", error)
            if job is not None:
                self._task.info("aborting backup job")
                self._cancel(job)
            raise

    def _start_between_freeze_and_thaw(self, job: VmJob | None, held: bool) -> None:
        task = self._task
        freeze = self._session.run.freeze
        with named(freeze)(task) if freeze else contextlib.nullcontext():
            self._session.pause(f"before backup {self._guest.vmid}")
            started = ""
            try:
                if job is not None:
                    started = job.start(held)
                    task.moment("job-started", name=started)
            except CommandError as error:
                task.moment("job-failed", why=str(error))
                raise
        if job is None:
            return
        task.info(f"started backup task '{started}'")
        if self._guest.state == "running":
            task.info("resuming VM again")
            self.resume_guest()

    def _cancel(self, job: VmJob) -> None:
        try:
            job.cancel()
        except CommandError as error:  # PVE tries once and logs it
            self._task.log("ERROR:", error)

    def _monitor(self, command: str) -> None:
        if self._guest.state == "running" and has_monitor(self._node, self._guest.vmid):
            ask_monitor(self._node, self._guest.vmid, command)
