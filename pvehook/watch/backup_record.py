"""The record of one guest's backup, put together from what was sampled and what was done."""

from __future__ import annotations

import os

from pvehook.contract.measured import value_of
from pvehook.host.versions import Versions as NodeVersions
from pvehook.records.guest_record import GuestRecord
from pvehook.records.run_state import RunState
from pvehook.records.stall_record import (
    FreezeOutcome,
    IdlePriority,
    PacerSummary,
    StallRecord,
    Versions,
)
from pvehook.rules.pacing import PacerRecord
from pvehook.rules.stalls import Seen, judge
from pvehook.throttle.pacer import in_words as pacer_in_words
from pvehook.watch.backup_sampler import Views


def backup_record(
    run: RunState, guest: GuestRecord, views: Views, paced: PacerRecord, versions: NodeVersions
) -> StallRecord:
    """The whole record; its verdict is made here. `guest` has ended."""
    ended_s = guest.ended_s if guest.ended_s is not None else guest.started_s
    baseline = value_of(views.baseline)
    return StallRecord(
        node=os.uname().nodename,
        job=run.upid,
        vmid=guest.vmid,
        name=guest.name,
        vmtype=guest.vmtype,
        mode=guest.mode,
        result=guest.result,
        started_s=guest.started_s,
        ended_s=ended_s,
        backup_bytes=views.backup_bytes,
        verdict=judge(
            Seen(
                duration_s=ended_s - guest.started_s,
                vcpus=len(views.disks.vcpus) if views.disks is not None else 1,
                guest=views.guest,
                hypervisor=views.hypervisor,
                host=views.host,
                frozen_ms=guest.freeze.frozen_ms if guest.freeze is not None else None,
                shares_disk=shares_disk(paced),
                baseline_write_ms=baseline.write.mean_ms if baseline is not None else None,
            )
        ),
        guest=views.guest,
        hypervisor=views.hypervisor,
        host=views.host,
        baseline=views.baseline,
        points=views.points,
        freeze=_freeze(guest),
        idle=IdlePriority(
            threads=sum(each[1] for each in guest.idle.values()),
            confirmed=sum(each[2] for each in guest.idle.values()),
            effect=guest.effect_in_short,
        ),
        governor=views.governor,
        pacer=PacerSummary(
            mode=paced.mode,
            state="paced" if paced.has_paced and paced.end == "complete" else pacer_in_words(paced),
            paced_bytes=paced.paced_bytes,
            step_bytes=paced.step_bytes,
            waited_s=paced.blocked_s,
        ),
        admitted_by=guest.admitted_by,
        versions=Versions(
            pve_manager=value_of(versions.pve_manager),
            qemu=views.disks.qemu if views.disks is not None else None,
            kernel=value_of(versions.kernel),
        ),
        sampler_cpu_s=views.cpu_s,
    )


def shares_disk(paced: PacerRecord) -> bool | None:
    """Whether archive and guest are on one disk, as far as the pacer knows."""
    known = {"shared-disk": True, "no-shared-disk": False, "network": False}
    return known.get(paced.pacing.reason) if paced.pacing is not None else None


def _freeze(guest: GuestRecord) -> FreezeOutcome | None:
    if guest.freeze is None:
        return None
    freeze = guest.freeze
    at_s = freeze.frozen_at_s - guest.started_s if freeze.frozen_at_s is not None else None
    if at_s is not None and at_s < 0:
        at_s = None  # the clock was set
    return FreezeOutcome(freeze.action, freeze.consistency, freeze.frozen_ms, freeze.why, at_s)
