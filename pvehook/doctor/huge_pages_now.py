"""`pvehook guests thp --apply-now`: sets a guest's huge pages until its next boot, and reads back what is in force."""

from __future__ import annotations

from typing import NamedTuple

from pvehook.contract.huge_pages import ENABLED
from pvehook.contract.measured import Absent, Broken
from pvehook.doctor.guest_insides import GuestInside, ask_agent
from pvehook.doctor.huge_pages_report import os_of, title, why_not_known
from pvehook.guest.huge_pages import set_huge_pages
from pvehook.host.guest_configs import ConfiguredGuest
from pvehook.host.node import Node
from pvehook.rules.huge_page_remedy import NEEDED_TO_SET, why_forbidden


class Applied(NamedTuple):
    vmid: int
    done: bool
    """It is in force now, or would be written."""
    text: str


def apply_now(node: Node, guest: ConfiguredGuest, inside: GuestInside, choice: str, *, is_dry_run: bool) -> Applied:
    """Writes `choice`, if this guest lets it be written and something else is in force. A dry run writes nothing."""
    why_not = _why_not(inside)
    before = inside.huge_pages.enabled
    if why_not is not None:
        return _result(inside, False, f"not changed: {why_not}")
    if before == choice:
        return _result(inside, True, f"`{choice}` is in force already")
    if is_dry_run:
        return _result(inside, True, f"would write `{choice}` to {ENABLED}, where `{before}` is in force")
    after = ask_agent(node, guest, lambda agent, deadline: set_huge_pages(agent, choice, deadline))
    if isinstance(after, (Absent, Broken)):
        return _result(inside, False, f"not changed, as far as is known: {after.why}")
    if after != choice:
        return _result(inside, False, f"`{choice}` was written, but `{after}` is in force")
    return _result(inside, True, f"`{after}` is in force (read back) until its next boot; it was `{before}`")


def _why_not(inside: GuestInside) -> str | None:
    if inside.vmtype == "lxc":
        return "a container shares the node's kernel"
    if (why := why_not_known(inside)) is not None:
        return why
    known = inside.known
    return why_forbidden(known.blocked, NEEDED_TO_SET, os_of(known)) if known is not None else None


def _result(inside: GuestInside, done: bool, what: str) -> Applied:
    return Applied(inside.vmid, done, f"{title(inside)}: {what}")
