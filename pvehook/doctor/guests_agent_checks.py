"""PVH-401 to 406, 411, 412: what Proxmox and pvehook reach inside a guest, and what was found there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, TypeAlias

from pvehook.contract.guest_facts import GuestInfo
from pvehook.contract.measured import Absent, value_of
from pvehook.contract.text import printable
from pvehook.doctor.finding import Finding, Severity
from pvehook.doctor.guest_look import FILE_COMMANDS, AgentLook, Inside
from pvehook.doctor.guests_facts import GuestFacts, GuestsFacts
from pvehook.guest.lockup_settings import WATCHDOG_THRESH_DEFAULT_S
from pvehook.rules.freeze_safety import NEEDED_COMMANDS

Findings: TypeAlias = Iterator[Finding]

EVIDENCE_LIMIT: Final = 400
_ELSEWHERE: Final = ("agent-off", "commands", "mode", "paused", "migrating")
"""Reasons of a verdict that another check reports, or that pass by themselves."""
_CHOSEN: Final = ("never", "windows", "freeze-off", "left-to-pve")
"""Those that the administrator set."""
_RED_HAT: Final = ("rhel", "centos", "rocky", "almalinux", "ol", "fedora")
_HUGE_PAGES_FOR_ALL: Final = "always"


def agent_off(facts: GuestsFacts) -> Findings:
    """Proxmox does not talk to an agent."""
    for guest in facts.guests:
        if guest.vmtype != "qemu" or guest.agent.enabled:
            continue
        evidence = "its agent is off: no freeze, so its backups are as after a power cut; nothing is known from inside"
        remedy: tuple[str, ...] = ("in the guest: install the package qemu-guest-agent",)
        remedy += (f"qm set {guest.vmid} --agent 1",)
        restart = (f"qm reboot {guest.vmid}",)
        if guest.agent_after_restart.enabled:
            evidence, remedy = f"{evidence}; it is switched on, which waits for the VM's restart", restart
        elif guest.runs:
            remedy += restart
        yield _finding(guest, "warning", evidence, remedy)


def agent_silent(facts: GuestsFacts) -> Findings:
    """The agent is on, and does not answer."""
    for guest, agent in _asked(facts):
        if agent.info is not None:
            continue
        if agent.port_is_open is False:
            seen = "its agent is on, and nothing in the guest has the agent's port open"
            remedy = "in the guest: install the package qemu-guest-agent, then: systemctl enable --now qemu-guest-agent"
        else:
            seen = f"its agent is on and does not answer: {printable(agent.fault)}"
            remedy = "in the guest: systemctl restart qemu-guest-agent"
        evidence = f"{seen}; each backup waits 3 s for it and is then as after a power cut"
        yield _finding(guest, "warning", evidence, (remedy,))


def commands_blocked(facts: GuestsFacts) -> Findings:
    """The agent answers, and may not do what is needed."""
    for guest, agent in _asked(facts):
        if agent.info is None or agent.is_frozen:
            continue
        freeze, files = (_blocked(agent.info, each) for each in (NEEDED_COMMANDS, FILE_COMMANDS))
        parts = [f"{freeze}: it is not frozen"] if freeze and guest.agent.freezes else []
        severity: Severity = "warning" if parts else "note"
        if files:
            parts.append(f"{files}: its huge pages, pressure and kernel's log are not seen")
        if not parts:
            continue
        is_known = all(each in agent.info.commands for each in (*NEEDED_COMMANDS, *FILE_COMMANDS))
        remedy = (
            "in the guest: allow them, in /etc/sysconfig/qemu-ga or /etc/qemu/qemu-ga.conf",
            "in the guest: systemctl restart qemu-guest-agent",
        )
        newer = (f"in the guest: install a newer qemu-guest-agent than {printable(agent.info.version, 40)}",)
        yield _finding(guest, severity, "; ".join(parts), remedy if is_known else newer)


def not_frozen(facts: GuestsFacts) -> Findings:
    """The verdict: no freeze, by pvehook or by Proxmox."""
    for guest in facts.guests:
        verdict = guest.look.verdict
        if verdict is None or verdict.action == "freeze":
            continue
        agent = guest.look.agent
        elsewhere = _ELSEWHERE if agent is not None and agent.info is not None else (*_ELSEWHERE, "agent-silent")
        reasons = [each for each in verdict.reasons if each.partition(":")[0] not in elsewhere]
        names = {each.partition(":")[0] for each in reasons}
        if not reasons:
            continue
        remedy: tuple[str, ...] = (f"pvehook guest {guest.vmid} freeze-check",)
        severity: Severity = "warning"
        if names <= set(_CHOSEN):
            severity = "note"
            if verdict.action == "veto":
                remedy = (f"qm set {guest.vmid} --agent 1,freeze-fs=0    # the same without a wait of 3 s each time",)
        elif "frozen-by-others" in names:
            severity, remedy = "error", (f"pvehook thaw {guest.vmid} --force    # if nobody else will thaw it",)
        elif "halted" in names:
            severity, remedy = "error", (f"qm status {guest.vmid} --verbose", f"qm resume {guest.vmid}")
        elif names & {"hung", "slow"}:
            remedy = (f"pvehook guest {guest.vmid} freeze-check --forget    # once its cause is fixed",)
        yield _finding(guest, severity, f"it is not frozen for its backup: {_reasons(reasons)}", remedy)


def frozen_in_part(facts: GuestsFacts) -> Findings:
    """Some filesystems are left out of the freeze."""
    for guest in facts.guests:
        verdict = guest.look.verdict
        if verdict is not None and verdict.action == "freeze" and verdict.is_partial:
            remedy = (f"pvehook guest {guest.vmid} freeze-check",)
            yield _finding(guest, "note", f"it is frozen in part only: {_reasons(verdict.reasons)}", remedy)


def huge_pages(facts: GuestsFacts) -> Findings:
    """The guest's kernel makes huge pages for every program."""
    for guest, inside in _inside(facts):
        if value_of(inside.huge_pages.enabled) == _HUGE_PAGES_FOR_ALL:
            defrag = value_of(inside.huge_pages.defrag)
            seen = f"transparent huge pages are `always`{f' (defrag `{defrag}`)' if defrag else ''}"
            yield _finding(guest, "warning", f"{seen}; expected `never` or `madvise`", ("pvehook guests thp",))
    for guest in facts.guests:
        if guest.at_last_start is not None and guest.at_last_start[1] == _HUGE_PAGES_FOR_ALL:
            then = datetime.fromtimestamp(guest.at_last_start[0], facts.zone)
            seen = f"at its last start, {then:%Y-%m-%d %H:%M}, transparent huge pages were `always`"
            yield _finding(guest, "note", f"{seen}; expected `never` or `madvise`", ("pvehook guests thp",))


def pressure_off(facts: GuestsFacts) -> Findings:
    """The guest's kernel does not count what its programs wait for."""
    for guest, inside in _inside(facts):
        if not isinstance(inside.io_pressure, Absent):
            continue
        look = guest.look.agent
        remedy = "in the guest: add psi=1 to its kernel's command line (kernel 4.20 or later), then reboot it"
        if look is not None and look.os_id in _RED_HAT:
            remedy = "in the guest: grubby --update-kernel=ALL --args=psi=1, then reboot it (EL 8 or later)"
        evidence = "it has no /proc/pressure: what it waits for in a backup is known from outside only"
        yield _finding(guest, "note", evidence, (remedy,))


def lockups(facts: GuestsFacts) -> Findings:
    """A stall makes the guest panic, or is not reported by its kernel, or sooner than usual."""
    for guest, inside in _inside(facts):
        thresh_s, panic = value_of(inside.lockups.watchdog_thresh_s), value_of(inside.lockups.softlockup_panic)
        if thresh_s is None:
            continue
        if thresh_s == 0:
            evidence = "kernel.watchdog_thresh is 0: its kernel does not report that it was locked up; expected 10"
            yield _finding(guest, "note", evidence, _sysctl("kernel.watchdog_thresh", WATCHDOG_THRESH_DEFAULT_S))
        elif panic:
            after_s = 2 * thresh_s * panic
            evidence = f"kernel.softlockup_panic is {panic}: locked up for {after_s} s it panics instead of going on"
            yield _finding(guest, "warning", f"{evidence}; expected 0", _sysctl("kernel.softlockup_panic", 0))
        elif thresh_s < WATCHDOG_THRESH_DEFAULT_S:
            evidence = f"kernel.watchdog_thresh is {thresh_s}: it reports a lock-up after {2 * thresh_s} s already"
            remedy = _sysctl("kernel.watchdog_thresh", WATCHDOG_THRESH_DEFAULT_S)
            yield _finding(guest, "note", f"{evidence}; expected 10, which is 20 s", remedy)


def _blocked(info: GuestInfo, commands: tuple[str, ...]) -> str:
    """`guest-file-open and guest-file-read disabled in the guest`; empty: all of them may be used."""
    disabled = [each for each in commands if info.commands.get(each) is False]
    unknown = [each for each in commands if each not in info.commands]
    named = ((disabled, "disabled in the guest"), (unknown, "unknown to its agent"))
    return ", ".join(f"{' and '.join(names)} {why}" for names, why in named if names)


def _asked(facts: GuestsFacts) -> Iterator[tuple[GuestFacts, AgentLook]]:
    return ((guest, guest.look.agent) for guest in facts.guests if guest.look.agent is not None)


def _inside(facts: GuestsFacts) -> Iterator[tuple[GuestFacts, Inside]]:
    return ((guest, agent.inside) for guest, agent in _asked(facts) if agent.inside is not None)


def _finding(guest: GuestFacts, severity: Severity, evidence: str, remedy: tuple[str, ...]) -> Finding:
    """Of a guest that does not run now it is worth knowing only."""
    return Finding(guest.title, severity if guest.runs else "note", evidence, remedy, vmid=guest.vmid)


def _reasons(reasons: list[str] | tuple[str, ...]) -> str:
    return printable("; ".join(reasons), EVIDENCE_LIMIT)


def _sysctl(name: str, value: int) -> tuple[str, ...]:
    return (
        f"in the guest: sysctl -w {name}={value}",
        f"in the guest: echo {name}={value} > /etc/sysctl.d/90-lockup.conf",
    )
