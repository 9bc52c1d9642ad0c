"""One guest's backup in a run of vzdump: everything between its lock and its `log-end`.

The order is PVE::VZDump's `exec_backup_task`; what it owes a stopped or suspended guest is kept in the Task.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from datetime import UTC, datetime

from pvehook.rehearsal.vzdump.archive import Archive
from pvehook.rehearsal.vzdump.commands import CommandError, InterruptError
from pvehook.rehearsal.vzdump.run import Guest
from pvehook.rehearsal.vzdump.session import Session, Task, TaskError


class GuestBackup:
    """One guest's backup."""

    def __init__(self, session: Session, guest: Guest) -> None:
        self._session = session
        self._guest = guest
        self._task = Task(session, guest, session.run.mode)
        self._archive = Archive(self._task)

    def run(self) -> tuple[bool, int]:
        """Whether the backup failed, and the number of warnings. Raises InterruptError once all is done."""
        task, guest, session = self._task, self._guest, self._session
        started_s = int(session.now_s())
        failure: Exception | None = None
        warnings = 0
        try:
            self._back_up()
        except (TaskError, CommandError, InterruptError) as error:
            failure = error
        self._bring_back()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._temporary())
        if failure is not None:
            task.log("ERROR:", f"Backup of VM {guest.vmid} failed - {failure}")
            session.log("INFO:", f"Failed at {session.time_text()}")
            warnings += self._tolerated("backup-abort")
        else:
            took = time.strftime("%H:%M:%S", time.gmtime(max(0, int(session.now_s()) - started_s)))
            task.info(f"Finished Backup of VM {guest.vmid} ({took})")
            session.log("INFO:", f"Backup finished at {session.time_text()}")
        if "LOGFILE" in task.env:
            path = session.node.path(task.env["LOGFILE"])
            with open(path, "w", encoding="utf-8", errors="surrogateescape") as log:
                log.writelines(line + "\n" for line in task.lines)
        warnings += self._tolerated("log-end")
        if isinstance(failure, InterruptError):
            raise failure
        return failure is not None, warnings

    def _tolerated(self, phase: str) -> int:
        """A phase whose failure is a warning: 1 if it failed."""
        try:
            self._task.hook(phase)
        except CommandError as error:
            self._session.log("WARN:", error)
            return 1
        return 0

    def _back_up(self) -> None:
        task, guest, run = self._task, self._guest, self._session.run
        if not guest.exists:
            raise TaskError(f"unable to find VM '{guest.vmid}'")
        if run.mode == "stop" and guest.is_ha_started:
            raise TaskError(
                "Cannot execute a backup with stop mode on a HA managed and enabled Service."
                " Use snapshot mode or disable the Service."
            )
        task.env.update(self._names())
        os.makedirs(self._temporary(), exist_ok=True)
        task.info(f"Starting Backup of VM {guest.vmid} ({guest.kind})")
        self._session.log("INFO:", f"Backup started at {self._session.time_text()}")
        runs = guest.state != "stopped"
        task.info(f"status = {'running' if runs else 'stopped'}")
        if not runs:
            task.mode = "stop"
        elif task.mode == "snapshot" and guest.kind == "lxc" and not guest.can_snapshot:
            task.info("mode failure - some volumes do not support snapshots")
            task.info("trying 'suspend' mode instead")
            task.mode = "suspend"
        if guest.name:
            task.env["HOSTNAME"] = guest.name
        task.info(f"backup mode: {task.mode}")
        task.info(f"ionice priority: {run.ionice}")
        if guest.name:
            task.info(f"{'VM' if guest.kind == 'qemu' else 'CT'} Name: {guest.name}")
        self._until_archive(runs)
        task.info(f"creating vzdump archive '{task.env['TARGET']}'")
        self._archive.make(self._temporary())
        task.hook("backup-end")

    def _until_archive(self, runs: bool) -> None:
        task = self._task
        task.hook("backup-start")
        if task.mode == "stop":
            if runs:
                task.info("stopping virtual guest")
                task.hook("pre-stop")
                self._archive.stop_guest()
                task.to_restart = True
            return
        if task.mode == "suspend":
            task.info("suspending guest")
        task.hook("pre-stop")
        if task.mode == "suspend" and task.guest.kind == "qemu":
            task.to_resume = True
            self._archive.suspend_guest()
            return
        if task.mode == "suspend":
            task.info("resuming guest")
        # from here on nobody owes the guest anything: if the hook fails now, PVE does not resume it
        task.hook("pre-restart")
        task.hook("post-restart")

    def _bring_back(self) -> None:
        """Resume or start again what was suspended or stopped. A failing hook is a warning, and ends it."""
        task = self._task
        if not (task.to_resume or task.to_restart):
            return
        try:
            task.hook("pre-restart")
            if task.to_resume:
                task.info("resume vm")
                self._archive.resume_guest()
            elif self._archive.is_down():
                task.info("restarting vm")
                self._archive.start_guest()
            task.hook("post-restart")
        except CommandError as error:
            self._session.log("", error)  # Perl's `warn`: to the task log without a prefix, and not counted
            return
        task.info("guest is online again after <1 seconds")

    def _names(self) -> dict[str, str]:
        run, guest = self._session.run, self._guest
        now = datetime.fromtimestamp(self._session.now_s(), self._session.zone)
        if run.to_pbs:
            group = "vm" if guest.kind == "qemu" else "ct"
            target = f"{group}/{guest.vmid}/{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
            return {"VMTYPE": guest.kind, "TARGET": target}
        base = f"{run.dumpdir}/vzdump-{guest.kind}-{guest.vmid}-{now:%Y_%m_%d-%H_%M_%S}"
        kind = ".vma" if guest.kind == "qemu" else ".tar"
        end = ".zst" if run.compress else ""
        return {"VMTYPE": guest.kind, "TARGET": base + kind + end, "LOGFILE": base + ".log"}

    def _temporary(self) -> str:
        """The directory beside the archive that PVE makes for one guest."""
        other = f"/var/tmp/vzdumptmp{os.getpid()}_{self._guest.vmid}"  # noqa: S108 - PVE's name, under the tree
        base = self._task.env.get("LOGFILE", other).removesuffix(".log")
        return self._session.node.path(base + ".tmp")
