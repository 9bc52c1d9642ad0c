"""What a guest asked between the run's start and its own turn."""

from __future__ import annotations

import io
import time

from pvehook.contract.latency import DiskCounters
from pvehook.deadline import Deadline
from pvehook.guest.block_stats import read_disks
from pvehook.guest.qmp import open_qmp
from pvehook.host.clock import SystemClock
from pvehook.host.processes import ProcessId
from pvehook.host.timely_files import Readers
from pvehook.records.context import Context
from pvehook.records.journal import journal_log
from pvehook.records.run_state import RunState
from pvehook.rehearsal.vm import fake_vm_process
from pvehook.watch.node_watch import NodeWatch
from tests.guest_files import SimulatedGuest
from tests.node_under_test import NodeUnderTest
from tests.watch.test_guest_monitor import running_vm


def disks(guest: SimulatedGuest) -> tuple[DiskCounters, ...]:
    deadline = Deadline.after(5.0)
    with open_qmp(guest.qmp_path, deadline) as qmp:
        return read_disks(qmp, deadline)


def test_a_guest_that_was_started_anew_is_not_taken_for_an_idle_one(node: NodeUnderTest) -> None:
    run = RunState(worker=ProcessId(1, 1), upid="UPID:", started_s=1.0)
    log = journal_log(node.node.journal_socket, stderr=io.StringIO())
    watch = NodeWatch(Context(node.node, SystemClock(), Readers(), log), run, lambda _: None, lambda: None)
    with running_vm(node) as guest:
        as_if_started_anew = disks(guest)
        guest.serve_requests("write", 5.0, 100)
        fake_vm_process.start(node.node, 101)
        try:
            watch.begin()
            until_s = time.monotonic() + 20
            while watch.requests_before(101, disks(guest)) is None:
                assert time.monotonic() < until_s, run.waiting
                time.sleep(0.01)
            guest.serve_requests("write", 5.0, 20)
            found = watch.requests_before(101, disks(guest))
            assert found is not None
            assert found[:2] == (20, 100.0)
            assert watch.requests_before(101, as_if_started_anew) is None
            assert watch.requests_before(102, as_if_started_anew) is None
        finally:
            fake_vm_process.stop(node.node, 101)
            watch.end()
