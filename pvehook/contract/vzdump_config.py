"""The options of a vzdump run: /etc/vzdump.conf, and how they combine with those of one job.

Source: `read_vzdump_defaults` and `new` in PVE/VZDump.pm, `parse_config` in PVE/JSONSchema.pm.

    script: /usr/local/lib/pvehook/hooks/vzdump-hook      a key whose colon touches it; blanks may stand before it
    mode: snap                                            no value of this option: dropped, the default counts
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pvehook.contract.vzdump_options import OPTIONS

MODE_DEFAULT = "snapshot"
STORAGE_DEFAULT = "local"

_LINE = re.compile(r"\s*([^\s#]\S*?):\s*(.*?)\s*", re.ASCII)


def parse_vzdump_config(text: str) -> dict[str, str]:
    """The options that are set. Of a key that comes twice the last one counts; other lines are skipped."""
    return dict(option for line in text.split("\n") if (option := _option(line)))


def with_option(text: str, key: str, value: str) -> str:
    """The same with this option: in place of the line that counts now, or as a new line at its end."""
    lines = text.split("\n")
    counts = [number for number, line in enumerate(lines) if (option := _option(line)) and option[0] == key]
    if counts:
        lines[counts[-1]] = f"{key}: {value}"
        return "\n".join(lines)
    return f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{key}: {value}\n"


def without_option(text: str, key: str) -> str:
    """The same without any line of this option."""
    lines = text.split("\n")
    return "\n".join(line for line in lines if not (match := _LINE.fullmatch(line)) or match[1] != key)


def ignored_lines(text: str) -> list[str]:
    """The lines that say something, but nothing that Proxmox takes."""
    lines = (line.strip() for line in text.split("\n") if _option(line) is None)
    return [line for line in lines if line and not line.startswith("#")]


def _option(line: str) -> tuple[str, str] | None:
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    key, value = match.groups()
    return (key, value) if key not in OPTIONS or OPTIONS[key].fullmatch(value) else None


def options_of_job(defaults: Mapping[str, str], job: Mapping[str, str]) -> dict[str, str]:
    """A job's own options over those of vzdump.conf. `storage` and `dumpdir` are one choice, of both the storage
    counts, with neither it is `local`: exactly one is in the result. `performance` is merged setting by setting."""
    target = job if job.keys() & {"storage", "dumpdir"} else defaults
    options = {**defaults, **job}
    for key in ("storage", "dumpdir"):
        options.pop(key, None)
    if "storage" in target or "dumpdir" not in target:
        options["storage"] = target.get("storage", STORAGE_DEFAULT)
    else:
        options["dumpdir"] = target["dumpdir"]
    if "performance" in options:
        parts = f"{defaults.get('performance', '')},{job.get('performance', '')}".split(",")
        merged = dict(part.strip().split("=", 1) for part in parts if "=" in part)
        options["performance"] = ",".join(f"{key}={value}" for key, value in merged.items())
    return options
