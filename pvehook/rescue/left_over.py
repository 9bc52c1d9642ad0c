"""Undoes what a daemon that died has left behind: frozen guests and throttled backups.

systemd runs this when the daemon has ended for whatever reason (`pvehook thaw --left-over`).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pvehook.rescue.speed_record import Restored, restore_left_over_speeds
from pvehook.rescue.thaw import Report, thaw_left_over

if TYPE_CHECKING:
    from pvehook.host.node import Node


def undo_left_over(node: Node) -> list[Report | Restored]:
    """Both at once: a guest whose freeze hangs must not keep another one's backup slow, nor the other way round."""
    restored: list[Restored] = []
    speeds = threading.Thread(target=lambda: restored.extend(restore_left_over_speeds(node)), daemon=True)
    speeds.start()
    thawed = thaw_left_over(node)
    speeds.join()
    return [*thawed, *restored]
