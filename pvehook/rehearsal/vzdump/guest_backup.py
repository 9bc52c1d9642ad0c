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
        self._task = Task(guest, session.run.mode, {}, [])
        self._archive = Archive(session, self._task)

    def run(self) -> tuple[bool, int]:
        """Whether the backup failed, and the number of warnings. Raises InterruptError once all is done."""
        task, guest = self._task, self._guest
        started_s = int(self._session.now_s())
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
            self._session.log("ERROR:", f"Backup of VM {guest.vmid} failed - {failure}", task)
            self._session.log("INFO:", f"Failed at {self._session.time()}")
            warnings += self._session.tolerated("backup-abort", task)
        else:
            took = time.strftime("%H:%M:%S", time.gmtime(max(0, int(self._session.now_s()) - started_s)))
            self._info(f"Finished Backup of VM {guest.vmid} ({took})")
            self._session.log("INFO:", f"Backup finished at {self._session.time()}")
        if "LOGFILE" in task.env:
            path = self._session.node.path(task.env["LOGFILE"])
            with open(path, "w", encoding="utf-8", errors="surrogateescape") as log:
                log.writelines(line + "\n" for line in task.log)
        warnings += self._session.tolerated("log-end", task, into_guest_log=False)
        if isinstance(failure, InterruptError):
            raise failure
        return failure is not None, warnings

    def _back_up(self) -> None:
        task, guest = self._task, self._guest
        if not guest.exists:
            raise TaskError(f"unable to find VM '{guest.vmid}'")
        if self._session.run.mode == "stop" and guest.is_ha_started:
            raise TaskError(
                "Cannot execute a backup with stop mode on a HA managed and enabled Service."
                " Use snapshot mode or disable the Service."
            )
        task.env.update(self._names())
        os.makedirs(self._temporary(), exist_ok=True)
        self._info(f"Starting Backup of VM {guest.vmid} ({guest.kind})")
        self._session.log("INFO:", f"Backup started at {self._session.time()}")
        runs = guest.state != "stopped"
        self._info(f"status = {'running' if runs else 'stopped'}")
        if not runs:
            task.mode = "stop"
        elif task.mode == "snapshot" and guest.kind == "lxc" and not guest.can_snapshot:
            self._info("mode failure - some volumes do not support snapshots")
            self._info("trying 'suspend' mode instead")
            task.mode = "suspend"
        if guest.name:
            task.env["HOSTNAME"] = guest.name
        self._info(f"backup mode: {task.mode}")
        self._info(f"ionice priority: {self._session.run.ionice}")
        if guest.name:
            self._info(f"{'VM' if guest.kind == 'qemu' else 'CT'} Name: {guest.name}")
        self._until_archive(runs)
        self._info(f"creating vzdump archive '{task.env['TARGET']}'")
        self._archive.make(self._temporary())
        self._hook("backup-end")

    def _until_archive(self, runs: bool) -> None:
        task = self._task
        self._hook("backup-start")
        if task.mode == "stop":
            if runs:
                self._info("stopping virtual guest")
                self._hook("pre-stop")
                self._archive.stop_guest()
                task.to_restart = True
            return
        if task.mode == "suspend":
            self._info("suspending guest")
        self._hook("pre-stop")
        if task.mode == "suspend" and task.guest.kind == "qemu":
            task.to_resume = True
            self._archive.suspend_guest()
            return
        if task.mode == "suspend":
            self._info("resuming guest")
        # from here on nobody owes the guest anything: if the hook fails now, PVE does not resume it
        self._hook("pre-restart")
        self._hook("post-restart")

    def _bring_back(self) -> None:
        """Resume or start again what was suspended or stopped. A failing hook is a warning, and ends it."""
        task = self._task
        if not (task.to_resume or task.to_restart):
            return
        try:
            self._hook("pre-restart")
            if task.to_resume:
                self._info("resume vm")
                self._archive.resume_guest()
            elif self._archive.is_down():
                self._info("restarting vm")
                self._archive.start_guest()
            self._hook("post-restart")
        except CommandError as error:
            self._session.log("", error)  # Perl's `warn`: to the task log without a prefix, and not counted
            return
        self._info("guest is online again after <1 seconds")

    def _hook(self, phase: str) -> None:
        self._session.guest_hook(phase, self._task)

    def _info(self, message: str) -> None:
        self._session.log("INFO:", message, self._task)

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
