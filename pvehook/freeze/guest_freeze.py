"""One guest's freeze, phase by phase: facts and verdict, the rendezvous, and who thaws when vzdump dies.

pre-stop       facts -> verdict; a `sync` in the guest where that is wanted
post-restart   the rendezvous is armed (rendezvous.py)
backup-end     the backup is over: nothing of ours stays frozen beyond it
log-end        the summary
worker died    thaw ours; and a freeze that PVE itself left behind
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

from pvehook.contract.measured import Absent, Broken
from pvehook.contract.text import printable
from pvehook.deadline import Deadline
from pvehook.freeze.facts import agent_path, gather, pre_flush
from pvehook.freeze.history import remember
from pvehook.freeze.limits import Limits, Outcome
from pvehook.freeze.open_freezes import OpenFreezes
from pvehook.freeze.pve_watch import OnBegun
from pvehook.freeze.rendezvous import Rendezvous
from pvehook.host.processes import ProcessId
from pvehook.records.context import Context
from pvehook.records.guest_record import FreezeSummary, GuestRecord
from pvehook.records.guest_summary import guest_title
from pvehook.records.journal import Log
from pvehook.rescue.freeze_record import (
    FROZEN_BY_US,
    FreezeRecord,
    freeze_records,
    leave_thaw_note,
    read_record,
    record_path,
    remove_record,
    take_thaw_note,
)
from pvehook.rescue.thaw import Waiting, note_thaw, patience, pves_own_freeze, thawing
from pvehook.rules.freeze_policy import policy_for
from pvehook.rules.freeze_safety import FreezeFacts, PastFreeze, decide
from pvehook.settings import FreezeConfig

OVER_S = 2.5
"""How long backup-end waits for a thaw that takes its time; the thread goes on whatever the phase does."""

LEFT_BY_PVE_S = 900.0
"""How long a guest is polled after its vzdump was killed: a freeze of PVE's own may hang for as long (10 min)."""

ENDED_POLL_S = 0.05
"""Between two polls whether our own freeze of that guest is over."""

LEFT_OVER_HUNG_S = 2.0
"""A left-over freeze that takes longer than this to thaw was one that hung: a thaw takes 4 to 20 ms."""

REASONS_KEPT, REASON_CHARACTERS, LIST_CHARACTERS = 20, 300, 8192
"""In a guest's record: a guest can have any number of filesystems, and name them as it likes."""


class GuestFreeze:
    """The freeze of one guest's backup. `on_over` is called, by whatever thread, when PVE has come or will not come
    any more and nothing of ours is frozen: from then on the agent and the monitor are free. `on_begun` is what is done
    on the monitor's connection between the backup's start and the thaw."""

    def __init__(
        self,
        context: Context,
        freezes: OpenFreezes,
        worker: ProcessId,
        guest: GuestRecord,
        log: Log,
        on_over: Callable[[], None],
        on_begun: OnBegun,
    ) -> None:
        self._node = context.node
        self._clock = context.clock
        self._reader = context.readers.config
        self._freezes = freezes
        self._worker = worker
        self._guest = guest
        self._log = log.bind(vmid=guest.vmid)
        self._title = guest_title(guest)
        self._on_over = on_over
        self._on_begun = on_begun
        self._rendezvous: Rendezvous | None = None
        self._waited = False
        self._mountpoints = tuple(guest.freeze.mountpoints) if guest.freeze and guest.freeze.mountpoints else None
        """What is to be frozen; None: all, or nothing."""
        self.silent_agent: Absent | Broken | None = None
        """Known from pre-stop on. None: the agent answered, or was not asked because PVE does not freeze this guest."""

    # Phases

    def prepare(self, config: FreezeConfig, deadline: Deadline, more_time: Callable[[float], None]) -> list[str]:
        """pre-stop: what is known, what follows from it. Lines for the task log. `more_time` is asked for a pre-flush,
        which takes as long as it takes."""
        guest = self._guest
        if guest.vmtype == "lxc":
            return []
        # Asked in mode off too: what a killed vzdump leaves frozen is thawed in every mode, if it was thawed before.
        if guest.mode == "snapshot" and config.pre_flush:
            more_time(config.pre_flush_within_s)
        within_s, now_s = config.facts_within_s, self._clock.now_s()
        facts, vm = gather(self._node, self._reader, guest.vmid, guest.vmtype, guest.mode, within_s, now_s, deadline)
        self.silent_agent = _silent_agent(facts)
        policy = policy_for(config, guest.vmid, vm.name or guest.name, vm.tags)
        verdict = decide(facts, policy)
        summary = guest.freeze = FreezeSummary(
            action=verdict.action,
            reasons=[printable(reason, REASON_CHARACTERS) for reason in verdict.reasons[:REASONS_KEPT]],
            alert=verdict.alert,
            was_thawed=facts.status == "thawed",
            is_windows=facts.os_id == "mswindows",
        )
        self._mountpoints = verdict.mountpoints
        if verdict.mountpoints is not None:
            summary.has_list, summary.is_partial = True, verdict.is_partial
            is_short = sum(map(len, verdict.mountpoints)) <= LIST_CHARACTERS
            summary.mountpoints = list(verdict.mountpoints) if is_short else None
        if verdict.action == "freeze" and config.pre_flush:
            within_s = config.pre_flush_within_s
            summary.pre_flush_ms, summary.pre_flush = pre_flush(self._node, facts, guest.vmid, within_s)
        self._report_verdict(summary)
        if verdict.action == "none":
            return []
        what = {"freeze": "will be frozen for the backup's start", "veto": "will NOT be frozen"}[verdict.action]
        return [f"{self._title} {what}: {'; '.join(summary.reasons)}"]

    def arm(self, config: FreezeConfig) -> list[str]:
        """post-restart: from here on PVE cannot reach the agent before we let it. Lines for the task log."""
        guest, summary = self._guest, self._guest.freeze
        if summary is not None:
            summary.in_archive = True
        if summary is None or summary.action == "none":
            self._on_over()
            return []
        # A long list was lost with the daemon that knew it: whatever it left out must not be frozen now.
        is_lost = summary.has_list and self._mountpoints is None
        rendezvous = Rendezvous(
            self._node,
            guest.vmid,
            self._worker,
            self._freezes,
            veto=summary.action == "veto" or is_lost,
            mountpoints=self._mountpoints,
            limits=Limits(config, summary.is_windows),
            on_begun=self._on_begun,
            on_end=lambda outcome: self._rendezvous_ended(summary, config, outcome),
        )
        # An older run's thaw of this guest must not take the coming freeze for its own, nor be taken for its end.
        take_thaw_note(record_path(self._node, guest.vmid))
        self._freezes.cancel(guest.vmid)
        self._freezes.begin()
        try:
            rendezvous.arm(self._clock.now_s())
        except Exception as error:  # whatever it is, it must not end as a fault that keeps the daemon for ever
            self._freezes.end()
            self._on_over()
            summary.consistency, summary.why = "left-to-pve", f"the agent's socket could not be held: {error}"
            line = f"{self._title}: {summary.why}; PVE decides about the freeze alone"
            self._log.warning("freeze-not-armed", message=line)
            return [line]
        if rendezvous.alert:
            summary.alert = rendezvous.alert
            self._log.critical("freeze-alert", message=f"{self._title}: {summary.alert}")
        self._rendezvous = rendezvous
        return []

    def over(self, deadline: Deadline) -> None:
        """backup-end, backup-abort: the backup is over, so nothing of ours may stay frozen."""
        if self._rendezvous is not None:
            self._rendezvous.abandoned.set()
            self._waited = not self._rendezvous.not_frozen.wait(deadline.within(OVER_S).left_s())

    def settle(self, deadline: Deadline) -> None:
        """log-end: the summary is complete, or says that its freeze still hangs. What backup-end has waited for in vain
        is not waited for a second time."""
        summary = self._guest.freeze
        if summary is None:
            return
        if self._rendezvous is None:
            self._say_how_it_was_left(summary)
            return
        self._rendezvous.abandoned.set()
        wait_s = 0.0 if self._waited else deadline.within(OVER_S).left_s()
        if not self._rendezvous.ended.wait(wait_s) and summary.consistency is None:
            summary.consistency, summary.hung = "crash-consistent", True
            # Remembered now: should the daemon not live to see its end, the next backup must know of it.
            remember(self._node, self._reader, self._guest.vmid, PastFreeze(self._clock.now_s(), None, "hung"))
            summary.why = "it has not reported yet that it is thawed; it is sent thaws until it does, see the journal"
            self._log.critical(
                "freeze-not-thawed",
                message=f"{self._title}: STILL FROZEN, as far as we know, after its backup: it is sent thaws "
                "until it reports that it is thawed; if it stays frozen, reset the VM",
            )

    def _say_how_it_was_left(self, summary: FreezeSummary) -> None:
        """The daemon that froze it is gone. Whether the backup began before the thaw nobody saw, so no more is claimed
        for it than is sure."""
        record = record_path(self._node, self._guest.vmid)
        left, note = read_record(record), take_thaw_note(record)
        if not summary.in_archive or summary.action != "freeze" or summary.consistency is not None:
            return
        if note is not None:
            summary.consistency = "crash-consistent"
            summary.frozen_ms, by = note
            summary.why = f"the daemon ended during its freeze; {by}"
        elif left is not None and left.state in FROZEN_BY_US:
            summary.consistency, summary.hung = "crash-consistent", True
            summary.why = "the daemon ended during its freeze, and it has not reported yet that it is thawed"
        else:
            summary.consistency, summary.why = "left-to-pve", "the daemon ended before it was frozen"

    def worker_died(self) -> None:
        """No PVE any more that could thaw: neither what we froze, nor what PVE froze itself."""
        guest, rendezvous, summary = self._guest, self._rendezvous, self._guest.freeze
        if rendezvous is not None:
            rendezvous.abandoned.set()
        if summary is None or not summary.in_archive or not summary.was_thawed:
            return

        def thaw(cancelled: threading.Event) -> Waiting[None]:
            too_long = patience(LEFT_BY_PVE_S)
            while rendezvous is not None and not rendezvous.ended.is_set() and not too_long():
                yield None, time.monotonic() + ENDED_POLL_S
            too_long = patience(LEFT_BY_PVE_S)
            path = agent_path(self._node, guest.vmid)
            done = yield from thawing(path, lambda: cancelled.is_set() or too_long())
            if done.outcome == "thawed":
                self._log.warning(
                    "freeze-left-by-pve",
                    message=f"{self._title}: vzdump was killed and left it frozen; {done.text}",
                )
            elif done.outcome == "not-answered" and not cancelled.is_set():
                self._log.critical(
                    "freeze-unknown",
                    message=f"{self._title}: vzdump was killed during its backup, and whether it is frozen "
                    f"cannot be found out: {done.text}; try: pvehook thaw {guest.vmid} --force",
                )

        self._freezes.thaw(guest.vmid, thaw)

    # Reports

    def _report_verdict(self, summary: FreezeSummary) -> None:
        # What the administrator has switched off is no news either.
        wanted = all(reason.startswith("never:") for reason in summary.reasons)
        write = self._log.warning if summary.action == "veto" and not wanted else self._log.info
        write(
            "freeze-verdict",
            message=f"{self._title}: verdict {summary.action}: {'; '.join(summary.reasons)}",
            action=summary.action,
            reasons=summary.reasons,
            mountpoints=self._mountpoints,
            pre_flush=summary.pre_flush,
            pre_flush_ms=summary.pre_flush_ms,
        )
        if summary.alert:
            self._log.critical("freeze-alert", message=f"{self._title}: {summary.alert}")

    def _rendezvous_ended(self, summary: FreezeSummary, config: FreezeConfig, outcome: Outcome) -> None:
        """In the thread that thawed it, when nothing is frozen any more."""
        for name, value in outcome._asdict().items():
            setattr(summary, name, value)
        if summary.is_partial and outcome.consistency == "filesystem-consistent":
            summary.consistency = "partly-consistent"
        try:
            if outcome.frozen_ms is not None:
                now_s = self._clock.now_s()  # it was thawed a moment ago
                summary.frozen_at_s = now_s - outcome.frozen_ms / 1000
                how: Literal["ok", "slow", "hung"] = "slow" if outcome.frozen_ms > config.slow_after_s * 1000 else "ok"
                past = PastFreeze(now_s, outcome.frozen_ms, "hung" if outcome.hung else how)
                remember(self._node, self._reader, self._guest.vmid, past)
            # A veto was logged with its reasons before; what follows from it is no news.
            went_wrong = outcome.consistency == "left-to-pve" and outcome.frozen_ms is not None
            is_news = (outcome.consistency == "crash-consistent" and summary.action != "veto") or went_wrong
            write = self._log.warning if is_news else self._log.info
            write(
                "freeze-done",
                message=f"{self._title}: {summary.in_words()}",
                consistency=summary.consistency,
                why=outcome.why,
                frozen_ms=outcome.frozen_ms,
                filesystems_frozen=outcome.filesystems_frozen,
                filesystems_thawed=outcome.filesystems_thawed,
                waited_for_pve_ms=outcome.waited_for_pve_ms,
                hung=outcome.hung,
            )
        finally:
            self._freezes.end()
            self._on_over()


def _silent_agent(facts: FreezeFacts) -> Absent | Broken | None:
    """Why it is of no use to ask the agent anything more."""
    if facts.run_state not in (None, "running"):
        return Absent(f"the VM does not run: it is {facts.run_state}")
    fault = facts.qmp_fault or facts.agent_fault
    return Broken(fault) if fault is not None else None


def thaw_left_over_in_daemon(context: Context, freezes: OpenFreezes) -> None:
    """What a new daemon does first: every guest that a record calls frozen by us is thawed, however long it takes."""
    for left in freeze_records(context.node):
        if left.state not in FROZEN_BY_US:
            if left.state == "thawed":
                leave_thaw_note(left, "thawed by it", left.thawed_at_s)
            remove_record(left)
            continue

        def thaw(cancelled: threading.Event, left: FreezeRecord = left) -> Waiting[None]:
            yield from pves_own_freeze(context.node, left)
            began_s = time.monotonic()
            done = yield from thawing(left.agent_path, cancelled.is_set)
            if cancelled.is_set():
                return  # the record is a newer freeze's by now
            note_thaw(left, done, "the next daemon")
            remove_record(left)
            if time.monotonic() - began_s > LEFT_OVER_HUNG_S:
                past = PastFreeze(context.clock.now_s(), None, "hung")
                remember(context.node, context.readers.config, left.vmid, past)
            context.log.warning(
                "freeze-left-over",
                message=f"VM {left.vmid}: a freeze of ours was left over by a daemon that died; {done.text}",
                vmid=left.vmid,
                outcome=done.outcome,
            )

        freezes.thaw(left.vmid, thaw)
