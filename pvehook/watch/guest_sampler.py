"""What a guest reports of itself by its agent: pressure, stolen time, its kernel's log, how long it lets a ping wait.

    begin    pre-stop: its counters, and its kernel's log opened at its end
    ping     now and then while the archive is made
    view     after the backup: the counters again, and what the kernel has logged in between

Each is one connection with one deadline, and the agent is PVE's first: see backup_sampler.py for when it may be asked.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from pvehook.contract.guest_config import parse_agent_option, parse_vm
from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.deadline import Deadline
from pvehook.errors import GuestError, NodeError, TimedOut, Unreachable
from pvehook.guest.agent import AgentConnection, open_agent
from pvehook.guest.guest_counters import GuestCounters, read_guest_counters
from pvehook.guest.kernel_log import KernelLogHandle, close_kernel_log, open_kernel_log, read_kernel_log
from pvehook.guest.qmp import open_qmp
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.rules.stalls import GuestView
from pvehook.watch.host_sampler import EVENTS_KEPT, KernelEvents, seconds_between

BEGIN_S = 2.0
VIEW_S = 2.0
"""Of which the kernel's log gets what the counters leave: some 5000 characters, sixty lines. It is read at each ping
as well, so little is left for the end."""
CLOSE_S = 0.5
PING_S = 5.0
CONFIG_S = 1.0


class CountersStart(NamedTuple):
    """Where the guest's own counting began, as the run's recovery note keeps it."""

    inside: GuestCounters
    log: Measured[KernelLogHandle]


class GuestSampler:
    """One guest's own view. The phases call `begin`, the sampler's thread the others."""

    def __init__(
        self, context: Context, guest: GuestRecord, with_kernel_log: bool, start: CountersStart | None
    ) -> None:
        self._context = context
        self._guest = guest
        self._path = context.node.path(f"/var/run/qemu-server/{guest.vmid}.qga")
        self._with_kernel_log = with_kernel_log
        self.start: Measured[CountersStart] = start or Absent("its agent was not asked before its backup")
        self._slowest_ms: Measured[float] | None = None
        if guest.vmtype == "lxc":
            self.start = Absent("a container shares the node's kernel: see the node's view")
            self._slowest_ms = Absent("a container has no agent")
        self._events = KernelEvents()
        self._missing: list[str] = []
        self._log_fault: Absent | Broken | None = None

    def begin(self, deadline: Deadline, silent_agent: Absent | Broken | None) -> None:
        """Reads the counters and opens the kernel's log. Never raises. An agent that was silent a moment ago, or that
        cannot answer, is not asked a second time."""
        if isinstance(self.start, CountersStart) or self._guest.vmtype == "lxc":
            return
        why_not = self._why_not_asked(deadline)
        self.start = why_not or silent_agent or self._read_start(deadline.within(BEGIN_S))
        if why_not is None and isinstance(self.start, Broken) and self._no_agent_runs(deadline):
            self.start = Absent("no agent runs in it")

    def ping(self) -> None:
        """Asks for a sign of life, and takes what the kernel has logged: its ring and the time at the end are short."""
        asked_s = time.monotonic()
        try:
            deadline = Deadline.after(PING_S)
            with open_agent(self._path, deadline) as agent:
                agent.ping(deadline)
                self._note_wait(asked_s)
                self._read_log(agent, Deadline.after(VIEW_S))
        except TimedOut:  # no answer is one that took at least this long
            self._note_wait(asked_s)
        except GuestError as error:  # a socket that is gone is none
            if not isinstance(self._slowest_ms, float):
                self._slowest_ms = _fault(error)

    @property
    def slowest_ms(self) -> Measured[float]:
        """The longest that its agent let a ping wait."""
        if self._slowest_ms is not None:
            return self._slowest_ms
        if isinstance(self.start, CountersStart):
            return Absent("its backup was over before the first ping")
        return self.start

    def view(self, deadline: Deadline) -> Measured[GuestView]:
        """What was seen from `begin` until now. The log in the guest is closed."""
        if not isinstance(self.start, CountersStart):
            return self.start
        before, log = self.start
        deadline = deadline.within(VIEW_S)
        try:
            with open_agent(self._path, deadline) as agent:
                now = read_guest_counters(agent, deadline)
                self._read_log(agent, deadline)
                if isinstance(self.start.log, KernelLogHandle):
                    close_kernel_log(agent, self.start.log, Deadline.after(CLOSE_S))
        except GuestError as error:
            if not self._events.kept:
                return _fault(error)
            # Its own counters are lost, but what its kernel has logged is the more important part.
            lost = Broken(str(error))
            now = GuestCounters(lost, lost, lost, lost, lost)
        log_fault = log if isinstance(log, (Absent, Broken)) else self._log_fault
        log_ended = [log_fault.why] if log_fault is not None and self._events.kept else []
        return GuestView(
            cpu=seconds_between(before.cpu, now.cpu),
            io=seconds_between(before.io, now.io),
            memory=seconds_between(before.memory, now.memory),
            steal_s=_grown(before.steal_s, now.steal_s),
            kernel=self._events.seen(log_fault),
            kernel_missing=(*self._missing[:EVENTS_KEPT], *self._events.not_kept(), *log_ended),
        )

    def _read_start(self, deadline: Deadline) -> Measured[CountersStart]:
        try:
            with open_agent(self._path, deadline) as agent:
                inside = read_guest_counters(agent, deadline)
                if not self._with_kernel_log:
                    return CountersStart(inside, Absent("switched off (metrics.guest_kernel_log)"))
                return CountersStart(inside, open_kernel_log(agent, deadline))
        except GuestError as error:
            return _fault(error)

    def _note_wait(self, asked_s: float) -> None:
        waited_ms = (time.monotonic() - asked_s) * 1000
        self._slowest_ms = max(self._slowest_ms if isinstance(self._slowest_ms, float) else 0.0, waited_ms)

    def _read_log(self, agent: AgentConnection, deadline: Deadline) -> None:
        if not isinstance(self.start, CountersStart) or not isinstance(self.start.log, KernelLogHandle):
            return
        if self._log_fault is not None:
            return
        read = read_kernel_log(agent, self.start.log, deadline)
        if isinstance(read, (Absent, Broken)):
            self._log_fault = read
            return
        self.start = self.start._replace(log=read.handle)
        self._missing += read.missing
        for line in read.lines:
            self._events.add(line.at_s, line.text)

    def _no_agent_runs(self, deadline: Deadline) -> bool:
        """Whether QEMU says so: an agent that hangs and one that is not there are silent alike."""
        deadline = deadline.within(CONFIG_S)
        try:
            with open_qmp(self._context.node.path(f"/var/run/qemu-server/{self._guest.vmid}.qmp"), deadline) as qmp:
                return not qmp.is_agent_running(self._guest.vmid, deadline)
        except GuestError:
            return False

    def _why_not_asked(self, deadline: Deadline) -> Absent | Broken | None:
        if self._guest.mode != "snapshot":
            return Absent(f"vzdump pauses or stops the guest in mode {self._guest.mode}")
        path = f"/etc/pve/qemu-server/{self._guest.vmid}.conf"
        try:
            text = self._context.readers.config.text(self._context.node.path(path), deadline.within(CONFIG_S).left_s())
        except NodeError as error:
            return Broken(str(error))
        if text is None:
            return Absent(f"{path} is not there")
        return None if parse_agent_option(parse_vm(text).agent).enabled else Absent("it has no agent (option agent)")


def _fault(error: GuestError) -> Absent | Broken:
    return Absent(f"no agent runs: {error}") if isinstance(error, Unreachable) else Broken(str(error))


def _grown(before: Measured[float], after: Measured[float]) -> Measured[float]:
    """Seconds more than before; absent or broken where one of them is."""
    if isinstance(after, (Absent, Broken)):
        return after
    if isinstance(before, (Absent, Broken)):
        return before
    return after - before if after >= before else Absent("the guest was started anew during its backup")
