"""Gives notices to Proxmox's notifications, one after the other, in one thread that ends when none is left.

No phase waits for it: whoever tells returns at once. What cannot be sent costs one line of the journal, which has the
event itself in any case.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from pvehook.config.in_force import Configuration
from pvehook.deadline import Deadline
from pvehook.errors import NodeError
from pvehook.host.notification import hand_over
from pvehook.night.notices import alert_notice
from pvehook.night.told import ToldTonight, read_told, write_told
from pvehook.records.context import Context
from pvehook.records.notice import Notice, Notices, template_data
from pvehook.report.beside import night_of

HAND_OVER_S: Final = 125.0
"""hooks/notify ends itself after 120 s."""
FILE_S: Final = 2.0
MOST_WAITING: Final = 32
MOST_A_NIGHT: Final = 6
"""Of one event. The guests of one run share a notice; a job for each guest must not fill a mailbox."""


class Notifier:
    """The daemon's one."""

    def __init__(self, context: Context, configuration: Configuration) -> None:
        """`context.log` must not be one that `hear` listens to."""
        self._context = context
        self._configuration = configuration
        self._socket = context.node.notify_socket
        self._file = os.path.join(context.node.state_dir, "told.json")
        self._waiting: deque[Notices] = deque()
        self._is_running = False
        self._lock = threading.Lock()
        self._told: ToldTonight | None = None

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be sent."""
        return self._is_running

    def tell(self, make: Notices) -> None:
        """Returns at once. Where there is no socket (a rehearsal, a node without our unit) there is the journal."""
        if not os.path.exists(self._socket):
            return
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                self._not_sent(f"more than {MOST_WAITING} wait already")
                return
            self._waiting.append(make)
            if self._is_running:
                return
            self._is_running = True
        try:
            threading.Thread(target=self._run, name="notifier", daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self._is_running = False
                self._waiting.clear()
            self._not_sent(f"no thread could be started: {error}")

    def hear(self, event: str, level: str, fields: Mapping[str, Any]) -> None:
        """An event of the journal: some are told of at once."""
        notice = alert_notice(event, level, fields)
        if notice is not None:
            self.tell(partial(_unless_told, notice))

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_running = False
                    return
                make = self._waiting.popleft()
            try:
                self._send_new(make)
            except Exception as fault:  # of ours; the next notice has its turn
                self._not_sent(repr(fault))

    def _send_new(self, make: Notices) -> None:
        in_force = self._configuration.now()
        if in_force.config.notify == "off":
            return
        night_s, _ = night_of(self._context.clock.now_s(), in_force.zone)
        told = self._told_in(night_s)
        for notice in make(told.guests()):
            if told.number(notice.event) >= MOST_A_NIGHT:
                continue
            try:
                hand_over(self._socket, _as_json(notice), Deadline.after(HAND_OVER_S))
            except NodeError as error:
                self._not_sent(f"{error}; it was: {notice.title}")
                return
            self._remember(told, notice)

    def _remember(self, told: ToldTonight, notice: Notice) -> None:
        told.add(notice)
        try:
            write = partial(write_told, self._file, told)
            self._context.readers.history.within(FILE_S, self._file, write)
        except (NodeError, OSError) as error:  # it is in memory; the next daemon may tell it again
            self._context.log.error("record-not-written", message=f"what was told tonight was not kept: {error}")
        message = f"given to Proxmox's notifications ({notice.severity}): {notice.title}"
        self._context.log.info("notification-sent", message=message, notice=notice.event, guests=list(notice.vmids))

    def _told_in(self, night_s: float) -> ToldTonight:
        if self._told is None or self._told.night_s != night_s:
            self._told = ToldTonight(night_s, {})
            try:
                read = partial(read_told, self._file, night_s)
                self._told = self._context.readers.history.within(FILE_S, self._file, read)
            except NodeError:
                pass  # at worst something is told twice
        return self._told

    def _not_sent(self, why: str) -> None:
        self._context.log.warning("notification-not-sent", message=f"a notification was not sent: {why}")


def _as_json(notice: Notice) -> dict[str, object]:
    """As hooks/notify takes it."""
    vmids = ",".join(map(str, notice.vmids))
    return {"severity": notice.severity, "event": notice.event, "vmid": vmids, "data": template_data(notice)}


def _unless_told(notice: Notice, told: Mapping[str, Any]) -> list[Notice]:
    return [] if set(notice.vmids) <= set(told.get(notice.event, ())) else [notice]
