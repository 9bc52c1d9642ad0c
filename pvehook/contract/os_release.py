"""/etc/os-release, by which a Linux system says what it is (os-release(5)):

    ID=ubuntu
    ID_LIKE="debian"
"""

from __future__ import annotations

import re
from typing import Final

_LINE: Final = re.compile(r"""^(ID|ID_LIKE)=(["']?)([a-z0-9._ -]{1,100})\2[ \t]*$""", re.MULTILINE | re.ASCII)


def ids_of(text: str) -> tuple[str, ...]:
    """ID, then what it is like, the closest first; empty where the text does not say."""
    values = {match[1]: match[3].split() for match in _LINE.finditer(text)}
    return (*values.get("ID", ()), *values.get("ID_LIKE", ()))
