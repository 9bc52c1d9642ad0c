"""Proxmox's section configurations: /etc/pve/storage.cfg and /etc/pve/jobs.cfg.

Source: PVE/SectionConfig.pm of pve-common. Example:

    lvmthin: local-lvm
            thinpool data
            vgname pve
            content rootdir,images

A line in the first column opens a section, indented lines are its properties, a blank line ends it, `#` in
the first column is a comment. Only the shape is read here: what a property means, its reader knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_HEADER = re.compile(r"(\S+):\s*(\S+)\s*")
_PROPERTY = re.compile(r"\s+(\S+)(?:\s+(.*\S))?\s*")


class Section(NamedTuple):
    """One section. A property without a value, which is how booleans may be written, has the value "1"."""

    type: str
    id: str
    properties: Mapping[str, str]


def parse_sections(text: str) -> list[Section]:
    """All sections in their order. Lines of another shape are skipped; nothing is raised."""
    sections: list[Section] = []
    properties: dict[str, str] | None = None  # of the section that is open
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if not line.strip():
            properties = None
        elif header := _HEADER.fullmatch(line):
            properties = {}
            sections.append(Section(header[1], header[2], properties))
        elif properties is not None and (match := _PROPERTY.fullmatch(line)):
            properties[match[1]] = match[2] or "1"
    return sections


def find_section(sections: Iterable[Section], section_id: str) -> Section | None:
    """The first section with this id: Proxmox ignores a later one of the same id. None if there is none."""
    return next((section for section in sections if section.id == section_id), None)
