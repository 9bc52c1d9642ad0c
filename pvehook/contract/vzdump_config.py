"""/etc/vzdump.conf: `key: value` lines, `#` comments. Source: PVE/VZDump.pm `read_vzdump_defaults`."""

from __future__ import annotations

MODE_DEFAULT = "snapshot"


def parse_vzdump_config(text: str) -> dict[str, str]:
    """The options that are set. Of a key that comes twice the last one counts; other lines are skipped."""
    options = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and not line.lstrip().startswith("#"):
            options[key.strip()] = value.strip()
    return options
