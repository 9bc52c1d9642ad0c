"""The guests of resource pools: /etc/pve/user.cfg.

    pool:web:a comment:101,102:local,nas:

Source: `parse_user_config` in PVE/AccessControl.pm. A guest that two pools name is the first one's. Pools may be nested
(`web/test`); a backup of the outer one takes its own guests only (`get_resource_pool_guest_members` of pve-manager).
"""

from __future__ import annotations

import re

from pvehook.contract.guest_config import split_list

_NAME = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+){0,2}")


def parse_pools(text: str) -> dict[str, set[int]]:
    """Each pool's guests. Lines of another kind or shape are skipped; nothing is raised."""
    pools: dict[str, set[int]] = {}
    taken: set[int] = set()
    for line in text.split("\n"):
        kind, name, _, guests, *_ = [field.strip(" \t\r\f\v") for field in line.split(":")] + [""] * 4
        if kind != "pool" or not _NAME.fullmatch(name):
            continue
        for end in re.finditer("/|$", name):  # the outer ones are there too
            pools.setdefault(name[: end.start()], set())
        found = {int(vmid) for vmid in split_list(guests) if re.fullmatch("[0-9]{1,9}", vmid)}
        pools[name] |= found - taken
        taken |= found
    return pools
