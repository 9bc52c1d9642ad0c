"""What the node reports of one guest's backup: how long its vCPUs waited for a CPU, pressure, kernel log lines.

Everything here only grows, so it is read at the beginning and at the end; procfs and cgroupfs are memory, not disks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pvehook.contract.latency import RequestCounters
from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.pressure import RESOURCES, PressureTotals
from pvehook.contract.text import printable
from pvehook.host.kernel_log import HostKernelLog, open_kernel_log
from pvehook.host.node import Node
from pvehook.host.pressure import guest_pressure, host_pressure
from pvehook.host.run_delay import run_delay_ns
from pvehook.records.chart_points import ChartPoints, Piece
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.rules.kernel_lines import classify
from pvehook.rules.stalls import HostView, KernelEvent, PressureSeconds

EVENTS_KEPT = 50
"""Lines of a kernel's log in one record; more of them say nothing more."""

_NO_REQUESTS = RequestCounters(0, 0, 0, None)


class Reading(NamedTuple):
    """One reading of all that grows, as it is kept as JSON: pressure of the node and of the guest's cgroup."""

    cpu: Measured[PressureTotals]
    io: Measured[PressureTotals]
    memory: Measured[PressureTotals]
    guest_cpu: Measured[PressureTotals]
    guest_io: Measured[PressureTotals]
    guest_memory: Measured[PressureTotals]


def _read(node: Node, guest: GuestRecord) -> Reading:
    host_and_guest = host_pressure(node), guest_pressure(node, guest.vmid, guest.vmtype)
    return Reading(*(pressure[each] for pressure in host_and_guest for each in RESOURCES))


class KernelEvents:
    """The lines of one kernel's log that matter, from the guest or from the node."""

    def __init__(self) -> None:
        self.kept: list[KernelEvent] = []
        self._not_kept = 0

    def add(self, at_s: float, text: str) -> None:
        kind = classify(text)
        if kind is not None and len(self.kept) < EVENTS_KEPT:
            self.kept.append(KernelEvent(at_s, kind, printable(text)))
        elif kind is not None:
            self._not_kept += 1

    def seen(self, fault: Absent | Broken | None) -> Measured[tuple[KernelEvent, ...]]:
        """`fault` is why the log could not be read to its end; what was seen before counts."""
        return tuple(self.kept) if fault is None or self.kept else fault

    def not_kept(self) -> list[str]:
        """What is not among them, in words."""
        return [f"{self._not_kept} more lines of these kinds"] if self._not_kept else []


class HostSampler:
    """One guest's host view. Used by one thread; `close` it."""

    def __init__(self, context: Context, guest: GuestRecord, start: Reading | None) -> None:
        self._context = context
        self._node = context.node
        self._guest = guest
        self.start = start or _read(context.node, guest)
        self._log: Measured[HostKernelLog] = open_kernel_log(context.node, context.clock)
        self._events = KernelEvents()
        self._pid = 0
        self._delays_before: Measured[dict[int, int]] = Absent("QEMU has not named the threads of its vCPUs")
        self.chart = ChartPoints()
        """Of a container, which has no QEMU to ask: the time in which all of it waited for a disk."""
        self._charted: tuple[float, int] | None = None

    def vcpus_are(self, pid: int, threads: tuple[int, ...]) -> None:
        """From now on these threads' waiting is counted."""
        self._pid = pid
        self._delays_before = run_delay_ns(self._node, pid, threads)

    def sample(self) -> None:
        """Takes what the kernel has logged; to be called often enough that its ring does not run over."""
        if isinstance(self._log, HostKernelLog):
            for line in self._log.read_new():
                self._events.add(line.at_s, line.text)

    def chart_container(self) -> None:
        """The chart's next sample."""
        now_s = self._context.clock.steady_s()
        io = guest_pressure(self._node, self._guest.vmid, "lxc")["io"]
        if isinstance(io, (Absent, Broken)):
            return
        if self._charted is not None:
            last_s, last_us = self._charted
            waited_s = max(io.full_us - last_us, 0) / 1e6
            self.chart.add(Piece(now_s - self._guest.started_steady_s, now_s - last_s, _NO_REQUESTS, waited_s, 0))
        self._charted = now_s, io.full_us

    def view(self, agent_slowest_ms: Measured[float]) -> HostView:
        """What was seen from the start until now."""
        self.sample()
        start, now = self.start, _read(self._node, self._guest)
        delays_s = self._delays_s()
        cpu, io, memory = (seconds_between(getattr(start, each), getattr(now, each)) for each in RESOURCES)
        fault = self._log.fault if isinstance(self._log, HostKernelLog) else self._log
        return HostView(
            run_delay_s=sum(delays_s) if isinstance(delays_s, list) else delays_s,
            worst_vcpu_s=max(delays_s) if isinstance(delays_s, list) else delays_s,
            io_full_s=io.full_s if isinstance(io, PressureSeconds) else io,
            cpu_some_s=cpu.some_s if isinstance(cpu, PressureSeconds) else cpu,
            memory_full_s=memory.full_s if isinstance(memory, PressureSeconds) else memory,
            guest_cpu=seconds_between(start.guest_cpu, now.guest_cpu),
            guest_memory=seconds_between(start.guest_memory, now.guest_memory),
            guest_io=seconds_between(start.guest_io, now.guest_io),
            kernel=self._events.seen(fault),
            agent_slowest_ms=agent_slowest_ms,
            kernel_missing=(*self._events.not_kept(), *self._lost()),
        )

    def close(self) -> None:
        """Gives the log back."""
        if isinstance(self._log, HostKernelLog):
            self._log.close()

    def _delays_s(self) -> Measured[list[float]]:
        before = self._delays_before
        if not isinstance(before, dict):
            return before
        after = run_delay_ns(self._node, self._pid, before)
        if not isinstance(after, dict):
            return after
        delays_s = [(after[tid] - before[tid]) / 1e9 for tid in before if tid in after]
        return delays_s or Absent("the VM's vCPUs are gone: it ended during its backup")

    def _lost(self) -> Iterator[str]:
        """What could not be read."""
        if isinstance(self._log, HostKernelLog) and self._log.lost:
            yield f"{self._log.lost} lines were overwritten before they were read"
        if isinstance(self._log, HostKernelLog) and self._log.fault is not None:
            yield self._log.fault.why


def seconds_between(before: Measured[PressureTotals], after: Measured[PressureTotals]) -> Measured[PressureSeconds]:
    """The difference of two readings; absent or broken when one of them is, or when it began anew in between."""
    if not isinstance(after, PressureTotals):
        return after
    if not isinstance(before, PressureTotals):
        return before
    if after.some_us < before.some_us:
        return Absent("its counting began anew during the backup: it was started again")
    return PressureSeconds((after.some_us - before.some_us) / 1e6, (after.full_us - before.full_us) / 1e6)
