"""May this guest be frozen for its backup, and as far as which filesystems? Checked from top to bottom:

    _not_attempted   Proxmox will not freeze anyway, or the freeze is left to it: `none`
    _unsafe          any reason in it: `veto`, Proxmox is kept from freezing too
    select           what is left out of the freeze so that the rest is safe: rules/freeze_selection.py

Every reason begins with the rule's name, which docs/freeze.md explains, and says what was seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from pvehook.contract.guest_config import AgentOption
from pvehook.contract.guest_facts import Filesystem, FreezeStatus, GuestInfo
from pvehook.contract.text import printable
from pvehook.rules.freeze_policy import FreezePolicy
from pvehook.rules.freeze_selection import Selection, command_fault, freezable, named, select

RETRY_AFTER_S = 7.5 * 86_400
"""How long a freeze that hung, or a row of slow ones, counts: 7 nights. Then the guest is tried again, since otherwise
one bad backup would cost it its consistent backups for good. A week, so that a cause which comes once a week is not
met each time; half a day more, because no job begins at the same minute, and so that a weekly job skips one run.
`pvehook guest VMID freeze-check --forget` ends it earlier."""

LIST_OF_MOUNTS = "guest-get-fsinfo"
NEEDED_COMMANDS = ("guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-fsfreeze-status")

_TRIED_AGAIN = "it is tried again 7 nights later, or after `pvehook guest VMID freeze-check --forget`"
_FROZEN_ALERT = (
    "the guest was frozen before this backup and still is: nothing in it can write. pvehook did not freeze it for this "
    "backup and does not thaw it; if nobody else will, `pvehook thaw VMID` can be forced to"
)


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
    agent_option: AgentOption
    history: tuple[PastFreeze, ...]
    """Newest last."""
    now_s: float
    """Seconds since the epoch, to know how old the history is."""
    unknown: str | None = None
    """Why the guest's configuration could not be read: its tags are not known."""
    run_state: str | None = None
    """Of QMP's query-status; None: QMP did not answer, and `qmp_fault` says why."""
    qmp_fault: str | None = None
    migrating: bool = False
    agent_fault: str | None = None
    """Why facts of the agent are missing; None if it answered."""
    info: GuestInfo | None = None
    os_id: str | None = None
    """`id` of guest-get-osinfo: `debian`, `mswindows`; None: not known."""
    status: FreezeStatus | None = None
    filesystems: tuple[Filesystem, ...] | None = None
    """In the agent's order."""


class FreezeVerdict(NamedTuple):
    """The answer. `mountpoints` is what to freeze (None: all), and is given with `freeze` only."""

    action: Literal["none", "freeze", "veto"]
    mountpoints: tuple[str, ...] | None
    reasons: tuple[str, ...]
    alert: str | None
    """What needs attention now, whatever becomes of the backup."""
    is_partial: bool = False
    """Some filesystems are left out, and so crash-consistent."""


def decide(facts: FreezeFacts, policy: FreezePolicy) -> FreezeVerdict:
    """Decide. Of rules that speak against a freeze all are named, not only the first."""
    if reasons := tuple(_not_attempted(facts, policy)):
        return FreezeVerdict("none", None, reasons, None)
    selection = _select(facts, policy)
    if reasons := (*_unsafe(facts, policy), *selection.against):
        return FreezeVerdict("veto", None, reasons, _FROZEN_ALERT if facts.status == "frozen" else None)
    return FreezeVerdict("freeze", selection.mountpoints, selection.notes, None, selection.is_partial)


def _not_attempted(facts: FreezeFacts, policy: FreezePolicy) -> Iterator[str]:
    if facts.vmtype != "qemu":
        yield f"not-a-vm: only VMs are frozen, and vzdump calls this guest {_seen(facts.vmtype)}"
    if facts.mode != "snapshot":
        yield f"mode: in mode {_seen(facts.mode)} the guest does not run while its backup begins"
    if facts.run_state in ("paused", "prelaunch"):
        yield f"paused: the VM is {facts.run_state}"
    if not facts.agent_option.enabled:
        yield "agent-off: the option `agent` of the VM is off"
    elif not facts.agent_option.freezes:
        yield "freeze-off: freeze-fs is off in the option `agent` of the VM"
    if policy.mode == "off":
        yield f"left-to-pve: {policy.because} says off: the freeze is left to Proxmox"


def _unsafe(facts: FreezeFacts, policy: FreezePolicy) -> Iterator[str]:
    if policy.mode == "never":
        yield f"never: {policy.because} says never"
    if facts.unknown is not None:
        yield f"unknown: {_seen(facts.unknown)}: a rule for its tags, or a freeze that hung, would not be seen"
    if facts.run_state is None:
        fault = f" ({_seen(facts.qmp_fault)})" if facts.qmp_fault else ""
        yield f"no-monitor: QMP does not answer{fault}, so nobody would see the backup begin"
    elif facts.run_state != "running":
        yield f"halted: the VM is in state {_seen(facts.run_state)}, not running: a freeze could not be ended"
    if facts.migrating:
        yield "migrating: the VM is being migrated: it would arrive frozen, where nobody thaws it"
    if facts.status == "frozen":
        yield "frozen-by-others: the guest is frozen already, by somebody else"
    else:
        yield from _agent_faults(facts)
    if _cannot_list(facts) and (policy.leave_out or policy.mode == "mountpoints"):
        yield (
            f"unseen: {policy.because} names mountpoints, and the agent has no {LIST_OF_MOUNTS}:"
            " they cannot be told apart"
        )
    if policy.windows == "never" and (windows := _windows(facts)):
        yield f"windows: {windows} and freeze.windows says never"
    yield from _bad_freezes(facts, policy)
    if facts.filesystems is not None and not freezable(facts.filesystems):
        listed = f"only what cannot be frozen: {named(facts.filesystems)}"
        none = "no filesystem (overlay, network filesystems and ZFS are not listed)"
        yield f"nothing-to-freeze: {LIST_OF_MOUNTS} lists {listed if facts.filesystems else none}"


def _agent_faults(facts: FreezeFacts) -> Iterator[str]:
    """Not for a frozen agent: it answers few questions, and one of 7.2 reports its commands as disabled."""
    answers = {"guest-info": facts.info, "guest-fsfreeze-status": facts.status, LIST_OF_MOUNTS: facts.filesystems}
    missing = [command for command, answer in answers.items() if answer is None]
    if _cannot_list(facts):
        missing.remove(LIST_OF_MOUNTS)
    if facts.agent_fault is not None or missing:
        why = f": {_seen(facts.agent_fault)}" if facts.agent_fault else ""
        yield f"agent-silent: the agent does not answer {' and '.join(missing) or 'everything'}{why}"
    if facts.info is not None:
        faults = [fault for command in NEEDED_COMMANDS if (fault := command_fault(facts.info, command))]
        if faults:
            yield f"commands: {' and '.join(faults)}"


def _cannot_list(facts: FreezeFacts) -> bool:
    """FreeBSD's builds and old agents have no guest-get-fsinfo, or it is not allowed."""
    return facts.info is not None and not facts.info.commands.get(LIST_OF_MOUNTS) and facts.filesystems is None


def _windows(facts: FreezeFacts) -> str | None:
    """What shows that the guest is Windows."""
    if facts.os_id is not None:
        return "the guest is Windows" if facts.os_id == "mswindows" else None
    letters = [each for each in facts.filesystems or () if re.match(r"[A-Za-z]:\\", each.mountpoint)]
    return f"the guest has {named(letters)}, so it is Windows," if letters else None


def _bad_freezes(facts: FreezeFacts, policy: FreezePolicy) -> Iterator[str]:
    finished = [past for past in facts.history if past.outcome != "failed"]
    # One that is dated ahead was remembered while the clock was wrong: it must not count until then.
    if not finished or abs(facts.now_s - finished[-1].at_s) >= RETRY_AFTER_S:
        return
    if finished[-1].outcome == "hung":
        yield f"hung: the last freeze hung ({_past(finished[-1], facts)}); {_TRIED_AGAIN}"
    last = finished[-policy.slow_freezes :]
    if len(last) == policy.slow_freezes and all(_was_slow(past, policy) for past in last):
        each = "; ".join(_past(past, facts) for past in last)
        count = "freeze was" if len(last) == 1 else f"{len(last)} freezes were all"
        yield f"slow: the last {count} longer than {policy.slow_after_ms} ms ({each}); {_TRIED_AGAIN}"


def _select(facts: FreezeFacts, policy: FreezePolicy) -> Selection:
    if facts.info is not None and _cannot_list(facts):
        version = printable(facts.info.version, 20)
        seen = f"agent {version} answers and has no {LIST_OF_MOUNTS}: all is frozen, loop mounts could not be seen"
        return Selection(None, (f"safe: {seen}",), ())
    if facts.info is None or not freezable(facts.filesystems or ()):
        return Selection(None, (), ())  # _unsafe says so
    selection = select(facts.filesystems or (), facts.info, policy)
    if selection.notes or selection.against:
        return selection
    version, filesystems = printable(facts.info.version, 20), named(freezable(facts.filesystems or ()))
    return Selection(None, (f"safe: agent {version} answers, and nothing speaks against {filesystems}",), ())


def _was_slow(past: PastFreeze, policy: FreezePolicy) -> bool:
    """A measured freeze is held against today's limit, whatever it was called then."""
    if past.outcome == "hung" or past.frozen_ms is None:
        return past.outcome in ("hung", "slow")
    return past.frozen_ms > policy.slow_after_ms


def _past(past: PastFreeze, facts: FreezeFacts) -> str:
    took = f"{past.outcome}, its end was never confirmed" if past.frozen_ms is None else f"{past.frozen_ms} ms"
    return f"{took}, {max(0.0, facts.now_s - past.at_s) / 86_400:.1f} days ago"


def _seen(text: str | None) -> str:
    return "nothing at all" if text is None else printable(text)
