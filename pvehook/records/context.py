"""What every room that acts is given, so that none of them reaches for the real node, clock or journal by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pvehook.host.clock import Clock
from pvehook.host.node import Node
from pvehook.host.timely_files import Readers
from pvehook.records.journal import Log
from pvehook.records.notice import Notices, nobody


class Context(NamedTuple):
    """The node, its time, the readers of what may hang, the journal, and who is told beside it."""

    node: Node
    clock: Clock
    readers: Readers
    log: Log
    tell: Callable[[Notices], None] = nobody
    """Returns at once."""
