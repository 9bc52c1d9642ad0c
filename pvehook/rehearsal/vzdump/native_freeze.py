"""PVE's own freeze around the start of a backup, with its order, its timeouts and its texts.

    guest-ping              no answer: no freeze
    guest-fsfreeze-status   since qemu-server 9.1.10; frozen already: neither freeze nor thaw
    guest-fsfreeze-freeze   if it fails, the backup is made all the same, and PVE thaws
    (the backup job is started)
    guest-fsfreeze-thaw

Source: qemu-server, `qga_fs_freeze` and `qga_fs_thaw` in PVE/VZDump/QemuServer.pm, `guest_fs_freeze_applicable` and
`guest_fs_freeze` in PVE/QemuServer/Agent.pm. A signal ends only the command that is being waited for, because each of
them stands in an `eval`: PVE then goes on with the next.
"""

from __future__ import annotations

import time

from pvehook.rehearsal.vzdump.qmp_client import AgentError, Answer, TimeUpError, ask_agent
from pvehook.rehearsal.vzdump.session import Session, Task

_STATUS_PATIENCE_S = 5.0
_STATUS_POLLS = 5
"""After a freeze that was not answered, each with the freeze's patience."""


class NativeFreeze:
    """The freeze and the thaw of one guest's backup."""

    def __init__(self, session: Session, task: Task) -> None:
        self._session = session
        self._run = session.run
        self._task = task
        self._guest = task.guest

    def freeze(self) -> bool:
        """True if PVE thaws afterwards: it has tried to freeze, whether that worked or not."""
        if not self._is_applicable():
            return False
        self._log("INFO:", "issuing guest-agent 'fs-freeze' command")
        self._send("pve-freezes")
        try:
            self._freeze()
        except AgentError as error:
            self._send("pve-freeze-failed", why=str(error))
            self._log("ERROR:", error)
        else:
            self._send("pve-froze")
        return True

    def thaw(self) -> None:
        """Once, with patience; a thaw that fails is a line in the log."""
        self._log("INFO:", "issuing guest-agent 'fs-thaw' command")
        self._send("pve-thaws")
        try:
            refusal = self._ask("guest-fsfreeze-thaw", self._run.thaw_patience_s).refusal
            if refusal is not None and self._is_new:
                raise AgentError(f"Agent error: {refusal}")
        except AgentError as error:
            self._send("pve-thaw-failed", why=str(error))
            self._log("ERROR:", error)
        else:
            self._send("pve-thawed")

    @property
    def _is_new(self) -> bool:
        return self._run.qemu_server == "9.1.10"

    def _is_applicable(self) -> bool:
        guest = self._guest
        if not guest.agent or self._task.mode == "stop" or guest.state != "running":
            return False
        # the older one asks the agent even where it will not freeze
        if self._is_new and not guest.freeze_fs:
            return self._skip("disabled in VM options")
        if not self._ping():
            return self._skip("agent configured but not running?")
        if not guest.freeze_fs:
            return self._skip("disabled in VM options")
        if self._is_new and self._is_frozen():
            return self._skip("already frozen")
        return True

    def _skip(self, why: str) -> bool:
        self._send("pve-skipped-freeze", why=why)
        what = "guest filesystem freeze -" if self._is_new else "guest-agent 'fs-freeze',"
        self._log("INFO:", f"skipping {what} {why}")
        return False

    def _ping(self) -> bool:
        self._session.pause(f"before ping {self._guest.vmid}")
        self._send("pve-pings")
        try:
            self._ask("guest-ping", self._run.ping_patience_s)  # a refusal is an answer too
        except AgentError:
            return False
        self._send("pve-pinged")
        return True

    def _is_frozen(self) -> bool:
        try:
            answer = self._ask("guest-fsfreeze-status", _STATUS_PATIENCE_S)
            if answer.refusal is not None:
                raise AgentError(f"Agent error: {answer.refusal}")
        except AgentError as error:
            self._log("WARN:", f"unable to check guest fs freeze status - {error}")
            return False
        return answer.value == "frozen"

    def _freeze(self) -> None:
        """Raises AgentError: not frozen, as far as PVE can tell."""
        try:
            refusal = self._ask("guest-fsfreeze-freeze", self._run.freeze_patience_s).refusal
        except AgentError:
            status = self._status_after_silence()
            if status != "frozen":
                raise AgentError(f"unable to freeze guest fs - unexpected status '{status}'") from None
            return
        if refusal is not None:
            raise AgentError(f"unable to freeze guest fs - {refusal}")

    def _status_after_silence(self) -> object:
        """The agent answers this as soon as the freeze has ended, however that went."""
        patience_s, failed = self._run.freeze_patience_s, "querying status after freezing guest fs failed - "
        for left in range(_STATUS_POLLS, 0, -1):
            self._log("", f"still waiting on guest fs freeze - timeout in {patience_s * left / 60:g} minutes")
            try:
                answer = self._ask("guest-fsfreeze-status", patience_s)
            except TimeUpError:
                continue
            except AgentError as error:
                raise AgentError(f"{failed}{error}") from error
            if answer.refusal is not None:
                raise AgentError(f"{failed}Agent error: {answer.refusal}")
            return answer.value
        raise AgentError(f"{failed}timeout after {patience_s * (_STATUS_POLLS + 1) / 60:g} minutes")

    def _ask(self, command: str, patience_s: float) -> Answer:
        return ask_agent(self._session, self._guest.vmid, command, patience_s)

    def _send(self, event: str, **fields: str) -> None:
        self._session.player.send(event, vmid=self._guest.vmid, at_s=time.monotonic(), **fields)

    def _log(self, prefix: str, message: object) -> None:
        self._session.log(prefix, message, self._task)
