"""Linux's transparent huge pages, as the kernel shows them (Documentation/admin-guide/mm/transhuge.rst):

    /sys/kernel/mm/transparent_hugepage/enabled     always [madvise] never
    /sys/kernel/mm/transparent_hugepage/defrag      always defer defer+madvise [madvise] never

The word in brackets is in force. To write a word puts it in force until the next boot.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from pvehook.contract.measured import Measured

ENABLED: Final = "/sys/kernel/mm/transparent_hugepage/enabled"
DEFRAG: Final = "/sys/kernel/mm/transparent_hugepage/defrag"

_CHOICE: Final = re.compile(r"(?:[a-z+]{1,20} )*\[([a-z+]{1,20})\](?: [a-z+]{1,20})*\n?")


class HugePages(NamedTuple):
    enabled: Measured[str]
    """Who gets them: `always` every process, `madvise` one that asks for them, `never` nobody."""
    defrag: Measured[str]
    """Whether a process waits while the kernel makes room for one."""


def parse_choice(text: str) -> str:
    """The word in brackets. Raises ValueError."""
    shown = _CHOICE.fullmatch(text)
    if shown is None:
        raise ValueError(f"no choice in brackets: {text[:60]!r}")
    return shown[1]
