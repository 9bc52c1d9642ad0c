"""/etc/vzdump.conf: `key: value` lines, `#` comments. Source: `parse_config` of PVE/JSONSchema.pm.

A key begins in the first column and its colon follows at once; only a line feed ends a line, and blanks are ASCII.
"""

from __future__ import annotations

import re

_OPTION = re.compile(r"(\S+?):\s*(.*?)\s*", re.ASCII)

MODE_DEFAULT = "snapshot"


def parse_vzdump_config(text: str) -> dict[str, str]:
    """The options that are set. Of a key that comes twice the last one counts; other lines are skipped."""
    options = {}
    for line in text.split("\n"):
        if not line.startswith("#") and (match := _OPTION.fullmatch(line)):
            options[match[1]] = match[2]
    return options
