"""Proxmox's section configurations: /etc/pve/storage.cfg and /etc/pve/jobs.cfg.

Source: PVE/SectionConfig.pm of pve-common. Example:

    lvmthin: local-lvm
            thinpool data
            vgname pve
            content rootdir,images

A line in the first column opens a section, indented lines are its properties, an empty line ends it, lines that begin
with `#` are comments. By Proxmox's rules a line of blanks ends no section, a header that follows a property without an
empty line between them is ignored, of a property that is set twice the first value counts, and of two sections with
one id the last. Only a line feed ends a line, and blanks are ASCII: Proxmox reads bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_COMMENT = re.compile(r"\s*#", re.ASCII)
_HEADER = re.compile(r"(\S+):\s*(\S+)\s*", re.ASCII)
_PROPERTY = re.compile(r"\s+(\S+)(?:\s+(.*\S))?\s*", re.ASCII)


class Section(NamedTuple):
    """One section. A property without a value, which is how booleans may be written, has the value "1"."""

    type: str
    id: str
    properties: Mapping[str, str]


def parse_sections(text: str) -> list[Section]:
    """All sections in their order. Lines of another shape are skipped; nothing is raised."""
    sections: list[Section] = []
    properties: dict[str, str] | None = None  # of the section that is open
    for line in text.split("\n"):
        if _COMMENT.match(line):
            continue
        if not line:
            properties = None
        elif properties is None:
            if header := _HEADER.fullmatch(line):
                properties = {}
                sections.append(Section(header[1], header[2], properties))
        elif match := _PROPERTY.fullmatch(line):
            properties.setdefault(match[1], match[2] or "1")
    return sections


def find_section(sections: Sequence[Section], section_id: str) -> Section | None:
    """The last section with this id, which replaces earlier ones in Proxmox. None if there is none."""
    return next((section for section in reversed(sections) if section.id == section_id), None)
