"""What `pvehook guest 101 freeze-check` shows: the facts, the verdict and its reasons."""

from __future__ import annotations

from pvehook.contract.text import printable
from pvehook.rules.freeze_safety import FreezeFacts, FreezeVerdict

_VERDICTS = {
    "freeze": "would be FROZEN for the start of its backup",
    "veto": "would NOT be frozen, and Proxmox would be kept from freezing it",
    "none": "would be left as Proxmox does it, without pvehook",
}


def freeze_check_lines(vmid: int, name: str | None, facts: FreezeFacts, verdict: FreezeVerdict) -> list[str]:
    """For people: the verdict with all its reasons, then one fact a line."""
    title = f"VM {vmid}" + (f" ({printable(name, 64)})" if name else "")
    if facts.mode == "stop":  # in which the guest is down while its backup begins, as vzdump takes a VM that is off
        return [f"{title} does not run: nothing of it would be frozen"]
    lines = [f"{title} {_VERDICTS[verdict.action]}"]
    lines += [f"  because {reason}" for reason in verdict.reasons]
    if verdict.mountpoints is not None:
        lines.append(f"  to be frozen: {', '.join(printable(each) for each in verdict.mountpoints) or 'nothing'}")
    if verdict.alert:
        lines.append(f"  ALERT: {verdict.alert}")
    lines.append("facts")
    lines += [f"  {key:<13} {value}" for key, value in _facts(facts)]
    return lines


def freeze_check_json(vmid: int, name: str | None, facts: FreezeFacts, verdict: FreezeVerdict) -> dict[str, object]:
    """The same for programs."""
    return {
        "vmid": vmid,
        "name": name,
        "verdict": verdict.action,
        "mountpoints": None if verdict.mountpoints is None else list(verdict.mountpoints),
        "reasons": list(verdict.reasons),
        "alert": verdict.alert,
        "facts": dict(_facts(facts)),
    }


def _facts(facts: FreezeFacts) -> list[tuple[str, str]]:
    option = facts.agent_option
    agent_option = "off" if not option.enabled else "on" if option.freezes else "on, freezing switched off"
    agent = f"version {printable(facts.info.version, 40)}" if facts.info else "not asked"
    if facts.agent_fault:
        agent = "does not answer everything" if facts.info else "does not answer"  # the reason tells more
    state = facts.run_state or f"unknown: {printable(facts.qmp_fault or 'not asked')}"
    mounts = [
        f"{printable(each.mountpoint)} ({printable(each.name, 40)}, {printable(each.type, 20)})"
        for each in facts.filesystems or ()
    ]
    past = [each.outcome + ("" if each.frozen_ms is None else f" {each.frozen_ms} ms") for each in facts.history]
    return [
        ("VM", "does not run" if facts.mode == "stop" else printable(state)),
        ("migrating", "yes" if facts.migrating else "no"),
        ("agent option", agent_option),
        ("agent", agent),
        ("system", printable(facts.os_id, 40) if facts.os_id else "unknown"),
        ("status", facts.status or "unknown"),
        ("filesystems", "unknown" if facts.filesystems is None else ", ".join(mounts) or "none"),
        ("history", ", ".join(past) or "no freeze yet"),
    ]
