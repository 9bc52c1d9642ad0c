"""Guests that were just started: what each tells of itself, once its agent answers, for when it is off or silent.

    the hookscript's post-start  ->  add  ->  every PAUSE_S: does something in the guest have the agent's port open?
                                              then one look through the agent (guest/guest_facts.py), which is kept

Nobody waits for it. While a run of vzdump is under way no agent is asked, and none of a guest that Proxmox has locked:
between a freeze and its thaw nobody else may be connected (facts/vzdump.md). What a daemon that ends has not seen by
then is not kept: the guest's next start tells it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final

from pvehook.contract.guest_config import GuestConfig, parse_agent_option, parse_vm
from pvehook.contract.guest_facts import GuestFacts
from pvehook.contract.measured import value_of
from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.errors import GuestError, NodeError, TimedOut
from pvehook.freeze.facts import agent_path, qmp_path
from pvehook.guest.agent import open_agent
from pvehook.guest.guest_facts import read_guest_facts
from pvehook.records.context import Context
from pvehook.records.guest_facts import keep_guest_facts
from pvehook.watch.short_look import short_look

PAUSE_S: Final = 10.0
PATIENCE_S: Final = 600.0
"""For a guest whose agent does not come; then its next start."""
GUESTS_AT_MOST: Final = 1000
CONFIG_S: Final = 2.0
MONITOR_S: Final = 0.5
AGENT_S: Final = 2.0
WRITE_S: Final = 5.0


class StartedGuests:
    """One thread for all of them, which ends when none is left."""

    def __init__(self, context: Context, run_is_under_way: Callable[[], bool]) -> None:
        self._context = context
        self._run_is_under_way = run_is_under_way
        self._until_s: dict[int, float] = {}
        """By number: when it is given up, on the monotonic clock."""
        self._hung: set[int] = set()
        """Whose monitor did not answer the last time."""
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._pause = threading.Event()

    @property
    def any(self) -> bool:
        return bool(self._until_s)

    def add(self, vmid: int) -> None:
        """A guest that was started; one of too many is left out."""
        with self._lock:
            if len(self._until_s) < GUESTS_AT_MOST:
                self._until_s[vmid] = time.monotonic() + PATIENCE_S
            if self._thread is None:
                thread = threading.Thread(target=self._follow, name="started-guests", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # out of threads: the next start tries again
                    self._until_s.clear()
                    return
                self._thread = thread

    def _follow(self) -> None:
        while True:
            with self._lock:
                now_s = time.monotonic()
                self._until_s = {vmid: until_s for vmid, until_s in self._until_s.items() if until_s > now_s}
                if not self._until_s:
                    self._thread = None
                    return
                vmids = list(self._until_s)
            for vmid in vmids:
                if not self._run_is_under_way() and self._ends(vmid):
                    with self._lock:
                        self._until_s.pop(vmid, None)
            self._pause.wait(PAUSE_S)

    def _ends(self, vmid: int) -> bool:
        try:
            return self._is_done(vmid)
        except Exception as fault:  # a fault of ours costs a log line, and this guest's facts
            self._context.log.error("fault", message=f"started guests: {fault!r}", vmid=vmid)
            return True

    def _is_done(self, vmid: int) -> bool:
        """Whether its facts are kept, or never will be."""
        node = self._context.node
        if not os.path.exists(qmp_path(node, vmid)):
            return True  # it has ended, or is a container
        try:
            config = self._config(vmid)
            if config is None or not parse_agent_option(config.agent).enabled:
                return True
            if config.lock is not None or not self._agent_runs(vmid):
                return False
            deadline = Deadline.after(AGENT_S)
            with open_agent(agent_path(node, vmid), deadline) as agent:
                facts = read_guest_facts(agent, self._context.clock.now_s(), deadline)
        except (NodeError, GuestError):
            return False
        self._keep(vmid, facts)
        return True

    def _config(self, vmid: int) -> GuestConfig | None:
        path = self._context.node.path(f"/etc/pve/qemu-server/{vmid}.conf")
        text = self._context.readers.guests.text(path, CONFIG_S)
        return None if text is None else parse_vm(text)

    def _agent_runs(self, vmid: int) -> bool:
        """As QEMU sees it: to ask at the agent's own socket would leave bytes there while nobody reads them."""
        try:
            with short_look(self._context.node, vmid, hung=vmid in self._hung) as qmp:
                runs = qmp.is_agent_running(vmid, Deadline.after(MONITOR_S))
        except TimedOut:
            self._hung.add(vmid)
            raise
        self._hung.discard(vmid)
        return runs

    def _keep(self, vmid: int, facts: GuestFacts) -> None:
        try:
            self._context.readers.history.within(
                WRITE_S, self._context.node.state_dir, lambda: keep_guest_facts(self._context.node, vmid, facts)
            )
        except (NodeError, OSError) as error:
            self._context.log.warning("guest-facts-not-kept", message=f"VM {vmid}: {error}", vmid=vmid)
            return
        os_info = value_of(facts.os)
        self._context.log.debug(
            "guest-facts",
            message=f"VM {vmid} was started, and its agent answers",
            vmid=vmid,
            system=printable(os_info.name or os_info.id or "unknown", 80) if os_info is not None else "unknown",
            kernel=printable(os_info.kernel or "unknown", 80) if os_info is not None else "unknown",
            huge_pages=value_of(facts.huge_pages.enabled) or "unknown",
        )
