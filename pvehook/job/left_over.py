"""What a daemon that died has left behind: guests that are frozen, backups that are slowed. Stdlib only, as thaw.py.

systemd runs this when the daemon has ended, whatever ended it (`pvehook thaw --left-over`).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pvehook.job.governor_record import PutBack, put_back_left_over
from pvehook.job.thaw import Report, thaw_left_over

if TYPE_CHECKING:
    from pvehook.host.node import Node


def put_right(node: Node) -> list[Report | PutBack]:
    """Both at once: a guest whose freeze hangs must not keep another one's backup slow, nor the other way round."""
    put_back: list[PutBack] = []
    speeds = threading.Thread(target=lambda: put_back.extend(put_back_left_over(node)), daemon=True)
    speeds.start()
    thawed = thaw_left_over(node)
    speeds.join()
    return [*thawed, *put_back]
