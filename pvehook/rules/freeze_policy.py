"""What the administrator set for one guest: the first rule of `freeze.rules` that matches it, else the section.

rules/guest_match.py says when a rule matches.
"""

from __future__ import annotations

from collections.abc import Collection

from pvehook.rules.freeze_safety import FreezePolicy
from pvehook.rules.guest_match import match
from pvehook.settings import FreezeConfig, FreezeRule


def policy_for(config: FreezeConfig, vmid: int, name: str | None, tags: Collection[str]) -> FreezePolicy:
    """The policy; its `because` names the entry: `freeze.rules[0] (tag db)`, counted as `pvehook config check` does."""
    for index, rule in enumerate(config.rules):
        if by := match(rule, vmid, name, tags):
            return _policy(config, rule, f"freeze.rules[{index}] ({by})")
    return _policy(config, FreezeRule(mode=config.mode), "freeze.mode")


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
