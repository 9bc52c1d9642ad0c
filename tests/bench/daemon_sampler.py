"""The daemon's own sampler with its governor, as the daemon runs them for one guest, with the settings' defaults."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pvehook.contract.latency import DiskCounters
from pvehook.host.clock import SystemClock
from pvehook.host.node import Node
from pvehook.host.timely_files import Readers
from pvehook.records.context import Context
from pvehook.records.guest_record import GuestRecord
from pvehook.records.journal import journal_log
from pvehook.records.stall_record import Baseline
from pvehook.rules.governor_policy import Setup
from pvehook.settings import GovernorConfig, MetricsConfig
from pvehook.throttle.governor import Governor
from pvehook.watch.backup_sampler import BackupSampler, Views

VMID = 101
BEFORE_ARCHIVE_S, AWAITED_S = 0.7, 0.3
"""In a run a second or two pass from backup-start to post-restart, and then some tenths until the job is there."""
LAST_SAMPLE_S = 10.0


class Sampled:
    """`views` is there when the block is left."""

    views: Views


@contextmanager
def sampled(
    root: str,
    baseline_of: Callable[[Sequence[DiskCounters]], Baseline],
    is_left_to_pve: Callable[[], bool] = lambda: False,
) -> Iterator[Sampled]:
    """From backup-start to the guest's last phase; the block is the archive. `is_left_to_pve`: the jobs are being made,
    and nobody else comes to the monitor."""
    node = Node(root)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        log = journal_log(node.journal_socket, stderr=nowhere)
        clock = SystemClock()
        context = Context(node, clock, Readers(), log)
        guest = GuestRecord(VMID, "snapshot", "qemu", None, clock.now_s())
        governor = Governor(node, VMID, "on", GovernorConfig(), log, setup=Setup())
        sampler = BackupSampler(context, guest, MetricsConfig(), governor, baseline_of, lambda _: None, is_left_to_pve)
        found = Sampled()
        sampler.begin()
        try:
            time.sleep(BEFORE_ARCHIVE_S)
            sampler.archive_begins()
            time.sleep(AWAITED_S)
            yield found
        finally:
            views = sampler.views(LAST_SAMPLE_S)
        if views is None:
            raise RuntimeError("the sampler failed")
        found.views = views
