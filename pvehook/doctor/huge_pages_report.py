"""`pvehook guests thp`: each guest's huge pages, or why they are not known, and how to keep them off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from pvehook.contract.guest_facts import GuestFacts, GuestOs
from pvehook.contract.measured import Absent, Broken, value_of
from pvehook.contract.text import printable
from pvehook.doctor.guest_insides import GuestInside
from pvehook.report.terminal_style import TerminalStyle
from pvehook.rules.huge_page_remedy import EXPLAINED, NEEDED_TO_READ, PARAMETER, Remedy, remedy_for, why_forbidden

HARMFUL: Final = "always"
_NAME_CHARACTERS: Final = 40


def title(inside: GuestInside) -> str:
    """`VM 101 web`."""
    name = f" {printable(inside.name, _NAME_CHARACTERS)}" if inside.name else ""
    return f"{'CT' if inside.vmtype == 'lxc' else 'VM'} {inside.vmid}{name}"


def in_force(inside: GuestInside) -> str | None:
    """`always`, `madvise`, `never`: now, or as of the guest's last start; None: not known."""
    enabled = value_of(inside.huge_pages.enabled)
    return enabled if enabled is not None or inside.kept is None else value_of(inside.kept.huge_pages.enabled)


def why_not_known(inside: GuestInside) -> str | None:
    """Of now; None: it is known."""
    enabled = inside.huge_pages.enabled
    if isinstance(enabled, Absent):
        facts = inside.facts
        if isinstance(facts, GuestFacts):
            return why_forbidden(facts.blocked, NEEDED_TO_READ, os_of(facts)) or enabled.why
        return enabled.why
    return f"not known: {enabled.why}" if isinstance(enabled, Broken) else None


def os_of(facts: GuestFacts | None) -> GuestOs | None:
    return value_of(facts.os) if facts is not None else None


def needed_remedy(inside: GuestInside) -> Remedy | None:
    """None: nothing needs to be done. Of a guest that does not let itself be asked it is not known."""
    known = in_force(inside)
    facts = inside.facts
    forbidden = isinstance(facts, GuestFacts) and why_forbidden(facts.blocked, NEEDED_TO_READ, os_of(facts))
    if known == HARMFUL or (known is None and forbidden):
        return remedy_for(os_of(inside.known), inside.boot)
    return None


def huge_pages_lines(
    insides: Sequence[GuestInside], style: TerminalStyle, at: Callable[[float], datetime]
) -> list[str]:
    """For people. `at`: seconds since the epoch as the node's time."""
    lines: list[str] = []
    for each in insides:
        lines += style.wrapped(f"{title(each)}{_system(each)}: {_state(each, at)}", "", "  ")
        remedy = needed_remedy(each)
        if remedy is None:
            continue
        where = "on the node" if each.vmtype == "lxc" else "in the guest"
        condition = "" if in_force(each) is not None else f"if it is `{HARMFUL}`: "
        if remedy.commands:
            lines.append(f"  {condition}off from its next boot on, {where}:")
            lines += [f"    {command}" for command in remedy.commands]
        else:
            how = f"{where}, add {PARAMETER} to its kernel's command line ({remedy.boot_loader})"
            lines += style.wrapped(f"{condition}off from its next boot on: {how}", "  ", "  ")
        if value_of(each.huge_pages.enabled) == HARMFUL and each.vmtype == "qemu":
            lines.append(f"  off until then: pvehook guests thp --apply-now {each.vmid}")
    if any(needed_remedy(each) for each in insides):
        lines += ["", *style.wrapped(EXPLAINED)]
    return lines or ["this node has no guests"]


def _state(inside: GuestInside, at: Callable[[float], datetime]) -> str:
    parts = []
    enabled, defrag = inside.huge_pages
    why_not = why_not_known(inside)
    if why_not is not None:
        parts.append(why_not)
    else:
        parts.append(f"{enabled} (defrag: {value_of(defrag) or 'not known'})")
    if inside.vmtype == "lxc":
        parts.append("the node's")
    if inside.kept is not None:
        then = value_of(inside.kept.huge_pages.enabled) or "not known"
        parts.append(f"at its last start, {at(inside.kept.at_s):%Y-%m-%d %H:%M}: {then}")
    return "; ".join(parts)


def _system(inside: GuestInside) -> str:
    os = os_of(inside.known)
    name = (os.name or os.id) if os is not None else None
    return f", {printable(name, _NAME_CHARACTERS)}" if name else ""


def huge_pages_json(insides: Sequence[GuestInside], at: Callable[[float], datetime]) -> list[dict[str, object]]:
    """For programs. `enabled` and `defrag` are of now; null: not known, and `why` says why."""
    found: list[dict[str, object]] = []
    for each in insides:
        os, facts, remedy = os_of(each.known), each.known, needed_remedy(each)
        kept = each.kept
        found.append(
            {
                "vmid": each.vmid,
                "type": each.vmtype,
                "name": each.name,
                "enabled": value_of(each.huge_pages.enabled),
                "defrag": value_of(each.huge_pages.defrag),
                "why": why_not_known(each),
                "at_last_start": None
                if kept is None
                else {"at": at(kept.at_s).isoformat(), "enabled": value_of(kept.huge_pages.enabled)},
                "system": None if os is None else os._asdict(),
                "agent_version": None if facts is None else facts.agent_version,
                "blocked": None if facts is None else list(facts.blocked),
                "boot_loader": None if remedy is None else remedy.boot_loader,
                "remedy": None if remedy is None else list(remedy.commands),
            }
        )
    return found
