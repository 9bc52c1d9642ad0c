"""May this guest be frozen for its backup, and as far as which filesystems? Checked from top to bottom:

    NOT_ATTEMPTED   Proxmox will not freeze anyway, or the freeze is left to it: `none`
    UNSAFE          one of them fires: `veto`, Proxmox is kept from freezing too
    select          what is left out of the freeze so that the rest is safe: rules/freeze_selection.py

Every row that fires gives a reason, which begins with the row's name and says what was seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from pvehook.contract.agent_option import AgentOption
from pvehook.contract.guest_facts import Filesystem, FreezeStatus, GuestInfo
from pvehook.contract.text import printable
from pvehook.rules.freeze_selection import Guest, Selection, Wish, command_fault, freezable, named, select

RETRY_AFTER_S = 7.5 * 86_400
"""How long a freeze that hung, or a row of slow ones, counts: 7 nights. Then the guest is tried again, since otherwise
one bad backup would cost it its consistent backups for good. A week, so that a cause which comes once a week is not
met each time; half a day more, because no job begins at the same minute, and so that a weekly job skips one run.
`pvehook guest VMID freeze-check --forget` ends it earlier."""

LIST_OF_MOUNTS = "guest-get-fsinfo"
NEEDED_COMMANDS = ("guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-fsfreeze-status")


class PastFreeze(NamedTuple):
    """One freeze of this guest by pvehook."""

    at_s: float
    """Seconds since the epoch."""
    frozen_ms: int | None
    """From the freeze sent to the thaw confirmed; None: never confirmed."""
    outcome: Literal["ok", "slow", "hung", "failed"]


class FreezeFacts(NamedTuple):
    """What is known of a guest just before its backup. Nothing in it is trusted."""

    vmtype: str | None
    mode: str
    """vzdump's, the one in force for this guest."""
    run_state: str | None
    """Of QMP's query-status; None: QMP did not answer, and `qmp_fault` says why."""
    qmp_fault: str | None
    migrating: bool
    agent_option: AgentOption
    agent_fault: str | None
    """Why facts of the agent are missing; None if it answered."""
    info: GuestInfo | None
    os_id: str | None
    """`id` of guest-get-osinfo: `debian`, `mswindows`; None: not known."""
    status: FreezeStatus | None
    filesystems: tuple[Filesystem, ...] | None
    """In the agent's order."""
    history: tuple[PastFreeze, ...]
    """Newest last."""
    now_s: float
    """Seconds since the epoch, to know how old the history is."""
    unknown: str | None = None
    """Why the guest's configuration or its history could not be read: its tags and its past are not known."""


class FreezePolicy(NamedTuple):
    """What the administrator set for this guest."""

    mode: Literal["auto", "never", "mountpoints", "off"]
    mountpoints: tuple[str, ...]
    leave_out: tuple[str, ...]
    """`except` in the configuration: mountpoints of filesystems that are not to be frozen."""
    windows: Literal["auto", "never"]
    slow_after_ms: int
    slow_freezes: int
    because: str
    """Which entry of the configuration says so."""


class FreezeVerdict(NamedTuple):
    """The answer. `mountpoints` is what to freeze (None: all), and is given with `freeze` only."""

    action: Literal["none", "freeze", "veto"]
    mountpoints: tuple[str, ...] | None
    reasons: tuple[str, ...]
    alert: str | None
    """What needs attention now, whatever becomes of the backup."""


def decide(facts: FreezeFacts, policy: FreezePolicy) -> FreezeVerdict:
    """Decide. Of rows that speak against a freeze all are named, not only the first."""
    if reasons := _fired(NOT_ATTEMPTED, facts, policy):
        return FreezeVerdict("none", None, reasons, None)
    selection = _select(facts, policy)
    if reasons := _fired(UNSAFE, facts, policy) + selection.against:
        return FreezeVerdict("veto", None, reasons, _FROZEN_ALERT if facts.status == "frozen" else None)
    return FreezeVerdict("freeze", selection.mountpoints, selection.notes, None)


# Proxmox will not freeze anyway


def _container(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    if facts.vmtype == "qemu":
        return None
    return f"only VMs are frozen, and vzdump calls this guest {_seen(facts.vmtype)}"


def _mode(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    if facts.mode == "snapshot":
        return None
    return f"in mode {_seen(facts.mode)} the guest does not run while its backup begins"


def _paused(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    return f"the VM is {facts.run_state}" if facts.run_state in ("paused", "prelaunch") else None


def _agent_off(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    return None if facts.agent_option.enabled else "the option `agent` of the VM is off"


def _freeze_off(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    if not facts.agent_option.enabled or facts.agent_option.freezes:
        return None
    return "freeze-fs is off in the option `agent` of the VM"


def _left_to_pve(_: FreezeFacts, policy: FreezePolicy) -> str | None:
    return f"{policy.because} says off: the freeze is left to Proxmox" if policy.mode == "off" else None


# What makes a freeze unsafe


def _never(_: FreezeFacts, policy: FreezePolicy) -> str | None:
    return f"{policy.because} says never" if policy.mode == "never" else None


def _unknown(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    if facts.unknown is None:
        return None
    return f"{_seen(facts.unknown)}: a rule for its tags, or a freeze that hung, would not be seen"


def _no_monitor(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    if facts.run_state is not None:
        return None
    fault = f" ({_seen(facts.qmp_fault)})" if facts.qmp_fault else ""
    return f"QMP does not answer{fault}, so nobody would see the backup begin"


def _halted(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    if facts.run_state in (None, "running"):
        return None
    return f"the VM is in state {_seen(facts.run_state)}, not running: a freeze could not be ended"


def _migrating(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    return "the VM is being migrated: it would arrive frozen, where nobody thaws it" if facts.migrating else None


def _frozen_by_others(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    return "the guest is frozen already, by somebody else" if facts.status == "frozen" else None


def _agent_silent(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    if facts.status == "frozen":  # then it answers no more than a few questions, and that says nothing
        return None
    answers = {"guest-info": facts.info, "guest-fsfreeze-status": facts.status, LIST_OF_MOUNTS: facts.filesystems}
    missing = [command for command, answer in answers.items() if answer is None]
    if _cannot_list(facts):
        missing.remove(LIST_OF_MOUNTS)
    if facts.agent_fault is None and not missing:
        return None
    why = f": {_seen(facts.agent_fault)}" if facts.agent_fault else ""
    return f"the agent does not answer {' and '.join(missing) or 'everything'}{why}"


def _cannot_list(facts: FreezeFacts) -> bool:
    """FreeBSD's builds and old agents have no guest-get-fsinfo, or it is not allowed."""
    return facts.info is not None and not facts.info.commands.get(LIST_OF_MOUNTS) and facts.filesystems is None


def _unseen(facts: FreezeFacts, policy: FreezePolicy) -> str | None:
    if not _cannot_list(facts) or not (policy.leave_out or policy.mode == "mountpoints"):
        return None
    return f"{policy.because} names mountpoints, and the agent has no {LIST_OF_MOUNTS}: they cannot be told apart"


def _commands(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    if facts.info is None or facts.status == "frozen":  # a frozen agent of 7.2 reports its commands as disabled
        return None
    faults = [fault for command in NEEDED_COMMANDS if (fault := command_fault(facts.info, command))]
    return " and ".join(faults) or None


def _windows(facts: FreezeFacts, policy: FreezePolicy) -> str | None:
    if policy.windows != "never":
        return None
    if facts.os_id is not None:
        return "the guest is Windows and freeze.windows says never" if facts.os_id == "mswindows" else None
    letters = [each for each in facts.filesystems or () if re.match(r"[A-Za-z]:\\", each.mountpoint)]
    if not letters:
        return None
    return f"the guest has {named(letters)}, so it is Windows, and freeze.windows says never"


def _hung(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    finished = [past for past in facts.history if past.outcome != "failed"]
    if not finished or finished[-1].outcome != "hung" or not _counts(finished[-1], facts):
        return None
    return f"the last freeze hung ({_past(finished[-1], facts)}); {_TRIED_AGAIN}"


def _slow(facts: FreezeFacts, policy: FreezePolicy) -> str | None:
    finished = [past for past in facts.history if past.outcome != "failed"][-policy.slow_freezes :]
    if len(finished) < policy.slow_freezes or not all(_was_slow(past, policy) for past in finished):
        return None
    if not _counts(finished[-1], facts):
        return None
    each = "; ".join(_past(past, facts) for past in finished)
    count = "freeze was" if len(finished) == 1 else f"{len(finished)} freezes were all"
    return f"the last {count} longer than {policy.slow_after_ms} ms ({each}); {_TRIED_AGAIN}"


def _nothing_to_freeze(facts: FreezeFacts, _: FreezePolicy) -> str | None:
    if facts.filesystems is None or freezable(facts.filesystems):
        return None
    if not facts.filesystems:
        return "guest-get-fsinfo lists no filesystem (overlay, network filesystems and ZFS are not listed)"
    return f"guest-get-fsinfo lists only what cannot be frozen: {named(facts.filesystems)}"


# The tables


class Row(NamedTuple):
    """A rule that gives its reason, or None if it does not fire."""

    name: str
    reason: Callable[[FreezeFacts, FreezePolicy], str | None]


NOT_ATTEMPTED = (
    Row("not-a-vm", _container),
    Row("mode", _mode),
    Row("paused", _paused),
    Row("agent-off", _agent_off),
    Row("freeze-off", _freeze_off),
    Row("left-to-pve", _left_to_pve),
)

UNSAFE = (
    Row("never", _never),
    Row("unknown", _unknown),
    Row("no-monitor", _no_monitor),
    Row("halted", _halted),
    Row("migrating", _migrating),
    Row("frozen-by-others", _frozen_by_others),
    Row("agent-silent", _agent_silent),
    Row("commands", _commands),
    Row("unseen", _unseen),
    Row("windows", _windows),
    Row("hung", _hung),
    Row("slow", _slow),
    Row("nothing-to-freeze", _nothing_to_freeze),
)

_TRIED_AGAIN = "it is tried again 7 nights later, or after `pvehook guest VMID freeze-check --forget`"
_FROZEN_ALERT = (
    "the guest was frozen before this backup and still is: nothing in it can write. pvehook did not freeze it for this "
    "backup and does not thaw it; if nobody else will, `pvehook thaw VMID` can be forced to"
)


def _fired(rows: tuple[Row, ...], facts: FreezeFacts, policy: FreezePolicy) -> tuple[str, ...]:
    return tuple(f"{row.name}: {reason}" for row in rows if (reason := row.reason(facts, policy)) is not None)


def _select(facts: FreezeFacts, policy: FreezePolicy) -> Selection:
    if facts.info is not None and _cannot_list(facts):
        version = printable(facts.info.version, 20)
        seen = f"agent {version} answers and has no {LIST_OF_MOUNTS}: all is frozen, loop mounts could not be seen"
        return Selection(None, (f"safe: {seen}",), ())
    if facts.info is None or not freezable(facts.filesystems or ()):
        return Selection(None, (), ())  # a row of UNSAFE says so
    only = policy.mountpoints if policy.mode == "mountpoints" else None
    selection = select(Guest(facts.filesystems or (), facts.info), Wish(only, policy.leave_out, policy.because))
    if selection.notes or selection.against:
        return selection
    version, filesystems = printable(facts.info.version, 20), named(freezable(facts.filesystems or ()))
    return Selection(None, (f"safe: agent {version} answers, and nothing speaks against {filesystems}",), ())


# What was seen


def _was_slow(past: PastFreeze, policy: FreezePolicy) -> bool:
    """A measured freeze is held against today's limit, whatever it was called then."""
    if past.outcome == "hung" or past.frozen_ms is None:
        return past.outcome in ("hung", "slow")
    return past.frozen_ms > policy.slow_after_ms


def _counts(past: PastFreeze, facts: FreezeFacts) -> bool:
    # One that is dated ahead was remembered while the clock was wrong: it must not count until then.
    return abs(facts.now_s - past.at_s) < RETRY_AFTER_S


def _past(past: PastFreeze, facts: FreezeFacts) -> str:
    took = f"{past.outcome}, its end was never confirmed" if past.frozen_ms is None else f"{past.frozen_ms} ms"
    return f"{took}, {max(0.0, facts.now_s - past.at_s) / 86_400:.1f} days ago"


def _seen(text: str | None) -> str:
    return "nothing at all" if text is None else printable(text)
