"""How long threads of a process waited for a CPU although they could have run.

    /proc/PID/task/TID/schedstat     2183940221 1598004511 8123

Nanoseconds on a CPU, **nanoseconds on a run queue**, times it was put on a CPU; since the thread was made. For a VM's
vCPU threads the second number is what the guest calls stolen time, seen from outside. Source:
Documentation/scheduler/sched-stats.rst of Linux.

Without CONFIG_SCHEDSTATS, which Debian's and Proxmox's kernels have, there is no file; a kernel with only delay
accounting, turned off, writes three zeros for every thread, even for one that has run (`sched_info_on` in
kernel/sched/stats.h).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from pvehook.contract.measured import Absent, Broken, Measured
from pvehook.host.node import Node

_LIMIT_BYTES = 128
_NOT_COUNTED = "the node's kernel does not count how long threads wait for a CPU (CONFIG_SCHEDSTATS)"


def run_delay_ns(node: Node, pid: int, tids: Iterable[int]) -> Measured[dict[int, int]]:
    """The nanoseconds that each thread has waited for a CPU in its life, by thread id; without those that have ended.
    Costs some 10 microseconds each."""
    delays_ns: dict[int, int] = {}
    has_run = False
    for tid in tids:
        thread = node.path(f"/proc/{pid}/task/{tid}")
        try:
            with open(f"{thread}/schedstat", "rb") as file:
                _, waited_ns, times = map(int, file.read(_LIMIT_BYTES).split())
        except (FileNotFoundError, ProcessLookupError):
            if os.path.isdir(thread):
                return Absent(_NOT_COUNTED)
        except OSError as error:
            return Broken(f"{thread}/schedstat cannot be read: {error.strerror}")
        except ValueError:
            return Broken(f"{thread}/schedstat: three numbers were expected")
        else:
            delays_ns[tid] = waited_ns
            has_run = has_run or times > 0
    # A running VM's vCPU has been on a CPU at least once, so these zeros are not measured.
    if delays_ns and not has_run:
        return Absent(_NOT_COUNTED)
    return delays_ns
