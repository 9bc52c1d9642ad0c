"""What the administrator set for one guest: the first rule of `freeze.rules` that matches it, else the section."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

from pvehook.rules.guest_match import match
from pvehook.settings import FreezeConfig, FreezeRule


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


def policy_for(config: FreezeConfig, vmid: int, name: str | None, tags: Collection[str]) -> FreezePolicy:
    """The policy; its `because` names the entry: `freeze.rules[0] (tag db)`, counted as `pvehook config check` does."""
    rule, because = FreezeRule(mode=config.mode), "freeze.mode"
    for index, each in enumerate(config.rules):
        if by := match(each, vmid, name, tags):
            rule, because = each, f"freeze.rules[{index}] ({by})"
            break
    return FreezePolicy(
        mode=rule.mode,
        mountpoints=rule.mountpoints,
        leave_out=rule.leave_out,
        windows=config.windows,
        slow_after_ms=round(config.slow_after_s * 1000),
        slow_freezes=config.slow_freezes,
        because=because,
    )
