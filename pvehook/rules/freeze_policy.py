"""What the administrator set for one guest: the first rule of `freeze.rules` that matches it, else the section.

A rule matches by any one of its guests, tags and names. Case does not matter: Proxmox compares tags without it,
and names are host names.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from pvehook.rules.freeze_safety import FreezePolicy
from pvehook.settings import FreezeConfig, FreezeRule


def policy_for(config: FreezeConfig, vmid: int, name: str | None, tags: Iterable[str]) -> FreezePolicy:
    """The policy; its `because` names the entry: `freeze.rules[0] (tag db)`, counted as `pvehook config check` does."""
    tags = {tag.lower() for tag in tags}
    for index, rule in enumerate(config.rules):
        if by := _match(rule, vmid, (name or "").lower(), tags):
            return _policy(config, rule, f"freeze.rules[{index}] ({by})")
    return _policy(config, FreezeRule(mode=config.mode), "freeze.mode")


def _match(rule: FreezeRule, vmid: int, name: str, tags: set[str]) -> str | None:
    if vmid in rule.guests:
        return f"guest {vmid}"
    for tag in rule.tags:
        if tag.lower() in tags:
            return f"tag {tag}"
    for pattern in rule.names:
        if name and fnmatchcase(name, pattern.lower()):
            return f"name {pattern}"
    return None


def _policy(config: FreezeConfig, rule: FreezeRule, because: str) -> FreezePolicy:
    return FreezePolicy(
        mode=rule.mode,
        mountpoints=rule.mountpoints,
        leave_out=rule.leave_out,
        windows=config.windows,
        slow_after_ms=round(config.slow_after_s * 1000),
        slow_freezes=config.slow_freezes,
        because=because,
    )
