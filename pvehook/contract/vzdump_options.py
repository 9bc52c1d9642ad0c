"""The options that vzdump knows, and which values of them it takes.

Source: `$confdesc` and the formats `backup-performance` and `backup-fleecing` in PVE/VZDump/Common.pm of
pve-guest-common 6.0.2; `check_type` and `parse_property_string` in PVE/JSONSchema.pm of pve-common. What was taken out:
`size` in pve-guest-common 4.0-2 (PVE 7), `maxfiles`, `notification-policy` and `notification-target` in PVE 9.0
(pve-manager 9.0.0~13, pve-guest-common 6.0.1). /etc/vzdump.conf may hold any other key: Proxmox passes over it without
a word. A value that it does not take costs a warning in the task log, and the option counts as not set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from pvehook.contract.guest_config import boolean, property_string

WORKERS_DEFAULT: Final = 16

_BOOLEAN: Final = "(?i:[01]|on|off|yes|no|true|false)"
_OFF: Final = "(?i:0|off|no|false)"
_NUMBER: Final = r"\+?\d{1,15}"
_WORKERS: Final = "max-workers=(?:[1-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-6])"
_PERFORMANCE: Final = rf"(?:{_WORKERS}|pbs-entries-max=[1-9][0-9]*)"
_KEEP: Final = rf"keep-(?:all={_BOOLEAN}|(?:last|hourly|daily|weekly|monthly|yearly)={_NUMBER})"
_STORAGE: Final = r"storage=[a-zA-Z][a-zA-Z0-9._-]*"
_ANY: Final = ".*"

OPTIONS: Final[Mapping[str, re.Pattern[str]]] = {
    option: re.compile(values, re.ASCII)
    for option, values in {
        **dict.fromkeys(("all", "stdexcludes", "quiet", "stop", "remove", "protected"), _BOOLEAN),
        **dict.fromkeys(("bwlimit", "lockwait", "stopwait"), _NUMBER),
        **dict.fromkeys(("pigz", "zstd"), f"-?{_NUMBER}"),
        **dict.fromkeys(("vmid", "node", "exclude", "exclude-path", "mailto", "tmpdir", "dumpdir", "script"), _ANY),
        **dict.fromkeys(("storage", "pool", "notes-template"), _ANY),
        "compress": "0|1|gzip|lzo|zstd",
        "fleecing": rf"(?:enabled=)?{_OFF}|(?:enabled=)?{_BOOLEAN},{_STORAGE}|{_STORAGE}(?:,(?:enabled=)?{_BOOLEAN})?",
        "ionice": "[0-8]",
        "mailnotification": "always|failure",
        "mode": "snapshot|suspend|stop",
        "notification-mode": "auto|legacy-sendmail|notification-system",
        "pbs-change-detection-mode": "legacy|data|metadata",
        "performance": rf"(?:{_PERFORMANCE}(?:,|$))*",
        "prune-backups": rf"(?:{_KEEP}(?:,|$))*",
    }.items()
}
"""Each option with the values that are taken, as far as a pattern tells."""

KNOWN_VERSION: Final = 9
"""The major version of Proxmox VE whose options these are; a later one may have others."""
REMOVED_IN: Final[Mapping[str, int]] = {"size": 7, "maxfiles": 9, "notification-policy": 9, "notification-target": 9}
"""The major version of Proxmox VE that does not know the option any more."""


class Fleecing(NamedTuple):
    enabled: bool
    storage: str | None


def parse_fleecing(text: str | None) -> Fleecing:
    """Parses `enabled=1,storage=local-lvm`; None and whatever has no `enabled` is off, Proxmox's default."""
    enabled, settings = property_string(text or "", default_key="enabled")
    return Fleecing(boolean(enabled) is True, settings.get("storage"))


def workers_set(performance: str | None) -> int | None:
    """`max-workers` of `max-workers=4,pbs-entries-max=...`; None: it is not set, and WORKERS_DEFAULT counts."""
    found = re.search(r"(?:^|,)\s*max-workers=(\d{1,3})\s*(?:,|$)", performance or "")
    return int(found[1]) if found else None


def with_workers(performance: str | None, workers: int) -> str:
    """The same setting with another `max-workers`."""
    others = [part for part in (performance or "").split(",") if part.strip() and "max-workers" not in part]
    return ",".join([f"max-workers={workers}", *others])
