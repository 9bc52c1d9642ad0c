"""Whether a rule of the configuration is for a guest.

A rule matches by any one of its guests, tags and names. Case does not matter: Proxmox compares tags without it,
and names are host names.
"""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase

from pvehook.settings import FreezeRule, GovernorRule


def match(rule: FreezeRule | GovernorRule, vmid: int, name: str | None, tags: Collection[str]) -> str | None:
    """By what it matches, as one would say it: `tag db`; None: it is not for this guest."""
    if vmid in rule.guests:
        return f"guest {vmid}"
    lower = {tag.lower() for tag in tags}
    for tag in rule.tags:
        if tag.lower() in lower:
            return f"tag {tag}"
    for pattern in rule.names:
        if name and fnmatchcase(name.lower(), pattern.lower()):
            return f"name {pattern}"
    return None
