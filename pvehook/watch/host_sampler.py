"""What the node reports of one guest's backup: how long its vCPUs waited for a CPU, pressure, kernel log lines.

Everything here only grows, so it is read at the beginning and at the end; procfs and cgroupfs are memory, not disks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.contract.pressure import PressureTotals, Resource
from pvehook.contract.text import printable
from pvehook.host.clock import Clock
from pvehook.host.kernel_log import HostKernelLog, open_kernel_log
from pvehook.host.node import Node
from pvehook.host.pressure import guest_pressure, host_pressure
from pvehook.host.run_delay import run_delay_ns
from pvehook.rules.kernel_lines import classify
from pvehook.rules.stalls import HostView, KernelEvent, PressureSeconds

EVENTS_KEPT = 50
"""Lines of a kernel's log in one record; more of them say nothing more."""

_NO_VCPUS = "QEMU has not named the threads of its vCPUs"


class Reading(NamedTuple):
    """One reading of all that grows. Named tuples instead of mappings, so that it can be kept as JSON."""

    cpu: Measured[PressureTotals]
    io: Measured[PressureTotals]
    memory: Measured[PressureTotals]
    guest_cpu: Measured[PressureTotals]
    guest_io: Measured[PressureTotals]
    guest_memory: Measured[PressureTotals]


def read_host(node: Node, vmid: int, vmtype: str | None) -> Reading:
    """Pressure of the node and of the guest's cgroup, now."""
    host: Mapping[Resource, Measured[PressureTotals]] = host_pressure(node)
    guest: Mapping[Resource, Measured[PressureTotals]] = guest_pressure(node, vmid, vmtype)
    return Reading(host["cpu"], host["io"], host["memory"], guest["cpu"], guest["io"], guest["memory"])


class HostSampler:
    """One guest's host view. Used by one thread; `close` it."""

    def __init__(self, node: Node, clock: Clock, vmid: int, vmtype: str | None, start: Reading | None) -> None:
        self._node = node
        self._vmid = vmid
        self._vmtype = vmtype
        self.start = start or read_host(node, vmid, vmtype)
        self._log: Measured[HostKernelLog] = open_kernel_log(node, clock)
        self._events: list[KernelEvent] = []
        self._not_kept = 0
        self._pid = 0
        self._delays_before: Measured[dict[int, int]] = Absent(_NO_VCPUS)

    def vcpus_are(self, pid: int, threads: tuple[int, ...]) -> None:
        """From now on these threads' waiting is counted."""
        self._pid = pid
        self._delays_before = run_delay_ns(self._node, pid, threads)

    def sample(self) -> None:
        """Takes what the kernel has logged; to be called often enough that its ring does not run over."""
        if not isinstance(self._log, HostKernelLog):
            return
        for line in self._log.read_new():
            kind = classify(line.text)
            if kind is not None and len(self._events) < EVENTS_KEPT:
                self._events.append(KernelEvent(self._log.at_s(line), kind, printable(line.text)))
            elif kind is not None:
                self._not_kept += 1

    def view(self, agent_slowest_ms: Measured[float]) -> HostView:
        """What was seen from the start until now."""
        self.sample()
        now = read_host(self._node, self._vmid, self._vmtype)
        delays_s = self._delays_s()
        io, cpu, memory = (
            seconds_between(getattr(self.start, each), getattr(now, each)) for each in ("io", "cpu", "memory")
        )
        return HostView(
            run_delay_s=sum(delays_s) if isinstance(delays_s, list) else delays_s,
            worst_vcpu_s=max(delays_s) if isinstance(delays_s, list) else delays_s,
            io_full_s=io.full_s if isinstance(io, PressureSeconds) else io,
            cpu_some_s=cpu.some_s if isinstance(cpu, PressureSeconds) else cpu,
            memory_full_s=memory.full_s if isinstance(memory, PressureSeconds) else memory,
            guest_cpu=seconds_between(self.start.guest_cpu, now.guest_cpu),
            guest_memory=seconds_between(self.start.guest_memory, now.guest_memory),
            guest_io=seconds_between(self.start.guest_io, now.guest_io),
            kernel=self._kernel(),
            agent_slowest_ms=agent_slowest_ms,
            kernel_missing=self._missing(),
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

    def _kernel(self) -> Measured[tuple[KernelEvent, ...]]:
        if not isinstance(self._log, HostKernelLog):
            return self._log
        if self._log.fault is not None and not self._events:
            return self._log.fault
        return tuple(self._events)

    def _missing(self) -> tuple[str, ...]:
        """What is not among the events."""
        missing = [f"{self._not_kept} more lines of these kinds"] if self._not_kept else []
        if isinstance(self._log, HostKernelLog):
            missing += [f"{self._log.lost} lines were overwritten before they were read"] if self._log.lost else []
            missing += [self._log.fault.why] if self._log.fault is not None else []
        return tuple(missing)


def seconds_between(before: Measured[PressureTotals], after: Measured[PressureTotals]) -> Measured[PressureSeconds]:
    """The difference of two readings; absent or broken when one of them is, or when it began anew in between."""
    for reading in (after, before):
        if isinstance(reading, (Absent, Broken)):
            return reading
    assert isinstance(before, PressureTotals)  # noqa: S101  (neither absent nor broken)
    assert isinstance(after, PressureTotals)  # noqa: S101
    if after.some_us < before.some_us:
        return Absent("its counting began anew during the backup: it was started again")
    return PressureSeconds((after.some_us - before.some_us) / 1e6, (after.full_us - before.full_us) / 1e6)
