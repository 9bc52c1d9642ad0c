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

from pvehook.rehearsal.vzdump.qmp_client import AgentError, Answer, TimeUpError, ask_agent
from pvehook.rehearsal.vzdump.session import Task

_STATUS_PATIENCE_S = 5.0
_STATUS_POLLS = 5
"""After a freeze that was not answered, each with the freeze's patience."""


def freeze(task: Task) -> bool:
    """True if PVE thaws afterwards: it has tried to freeze, whether that worked or not."""
    if not _is_applicable(task):
        return False
    task.info("issuing guest-agent 'fs-freeze' command")
    task.moment("pve-freezes")
    try:
        _freeze(task)
    except AgentError as error:
        task.moment("pve-freeze-failed", why=str(error))
        task.log("ERROR:", error)
    else:
        task.moment("pve-froze")
    return True


def thaw(task: Task) -> None:
    """Once, with patience; a thaw that fails is a line in the log."""
    task.info("issuing guest-agent 'fs-thaw' command")
    task.moment("pve-thaws")
    try:
        refusal = _ask(task, "guest-fsfreeze-thaw", task.session.run.thaw_patience_s).refusal
        if refusal is not None and _is_new(task):
            raise AgentError(f"Agent error: {refusal}")
    except AgentError as error:
        task.moment("pve-thaw-failed", why=str(error))
        task.log("ERROR:", error)
    else:
        task.moment("pve-thawed")


def _is_new(task: Task) -> bool:
    return task.session.run.qemu_server == "9.1.10"


def _is_applicable(task: Task) -> bool:
    guest = task.guest
    if not guest.agent or task.mode == "stop" or guest.state != "running":
        return False
    # the older one asks the agent even where it will not freeze
    if _is_new(task) and not guest.freeze_fs:
        return _skip(task, "disabled in VM options")
    if not _ping(task):
        return _skip(task, "agent configured but not running?")
    if not guest.freeze_fs:
        return _skip(task, "disabled in VM options")
    if _is_new(task) and _is_frozen(task):
        return _skip(task, "already frozen")
    return True


def _skip(task: Task, why: str) -> bool:
    task.moment("pve-skipped-freeze", why=why)
    what = "guest filesystem freeze -" if _is_new(task) else "guest-agent 'fs-freeze',"
    task.info(f"skipping {what} {why}")
    return False


def _ping(task: Task) -> bool:
    task.session.pause(f"before ping {task.guest.vmid}")
    task.moment("pve-pings")
    try:
        _ask(task, "guest-ping", task.session.run.ping_patience_s)  # a refusal is an answer too
    except AgentError:
        return False
    task.moment("pve-pinged")
    return True


def _is_frozen(task: Task) -> bool:
    try:
        answer = _ask(task, "guest-fsfreeze-status", _STATUS_PATIENCE_S)
        if answer.refusal is not None:
            raise AgentError(f"Agent error: {answer.refusal}")
    except AgentError as error:
        task.log("WARN:", f"unable to check guest fs freeze status - {error}")
        return False
    return answer.value == "frozen"


def _freeze(task: Task) -> None:
    """Raises AgentError: not frozen, as far as PVE can tell."""
    try:
        refusal = _ask(task, "guest-fsfreeze-freeze", task.session.run.freeze_patience_s).refusal
    except AgentError:
        status = _status_after_silence(task)
        if status != "frozen":
            raise AgentError(f"unable to freeze guest fs - unexpected status '{status}'") from None
        return
    if refusal is not None:
        raise AgentError(f"unable to freeze guest fs - {refusal}")


def _status_after_silence(task: Task) -> object:
    """The agent answers this as soon as the freeze has ended, however that went."""
    patience_s, failed = task.session.run.freeze_patience_s, "querying status after freezing guest fs failed - "
    for left in range(_STATUS_POLLS, 0, -1):
        task.log("", f"still waiting on guest fs freeze - timeout in {patience_s * left / 60:g} minutes")
        try:
            answer = _ask(task, "guest-fsfreeze-status", patience_s)
        except TimeUpError:
            continue
        except AgentError as error:
            raise AgentError(f"{failed}{error}") from error
        if answer.refusal is not None:
            raise AgentError(f"{failed}Agent error: {answer.refusal}")
        return answer.value
    raise AgentError(f"{failed}timeout after {patience_s * (_STATUS_POLLS + 1) / 60:g} minutes")


def _ask(task: Task, command: str, patience_s: float) -> Answer:
    return ask_agent(task.session, task.guest.vmid, command, patience_s)
