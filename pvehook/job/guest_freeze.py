"""One guest's freeze, phase by phase: facts and verdict, the rendezvous, and who thaws when vzdump dies.

pre-stop       facts -> verdict; a `sync` in the guest where that is wanted
post-restart   the rendezvous is armed (freeze.py)
backup-end     the backup is over: nothing of ours stays frozen beyond it
log-end        the account
worker died    thaw ours; and a freeze that PVE itself left behind
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pvehook.errors import GuestError, NodeError
from pvehook.job.freeze import Limits, Outcome, Rendezvous, Step
from pvehook.job.freeze_facts import KnownGuest, agent_path, gather, pre_flush
from pvehook.job.freeze_history import remember
from pvehook.job.frozen_record import OURS, left_records
from pvehook.job.thaw import patience, thaw_until_thawed
from pvehook.records.guest_record import FreezeAccount
from pvehook.rules.freeze_policy import policy_for
from pvehook.rules.freeze_safety import FreezeVerdict, PastFreeze, decide

if TYPE_CHECKING:
    from pvehook.host.clock import Clock
    from pvehook.host.node import Node
    from pvehook.host.processes import ProcessId
    from pvehook.host.timely_files import TimelyReader
    from pvehook.records.guest_record import GuestRecord
    from pvehook.records.journal import Log
    from pvehook.settings import FreezeConfig

OVER_S = 4.0
"""How long backup-end waits for a thaw that takes its time; the thread goes on whatever the phase does."""

LEFT_BY_PVE_S = 900.0
"""How long a guest is asked after its vzdump was killed: a freeze of PVE's own may hang for as long (10 min)."""

WINDOWS = "mswindows"


class OpenFreezes:
    """What the daemon must not leave before it has ended, and the seam by which tests stop at a step."""

    def __init__(self, at_step: Callable[[Step], None] = lambda step: None) -> None:
        self.at_step = at_step
        self._open = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        with self._lock:
            self._open += 1

    def end(self) -> None:
        with self._lock:
            self._open -= 1

    @property
    def any(self) -> bool:
        return self._open > 0

    def run(self, work: Callable[[], None], name: str) -> None:
        """Runs `work` in a thread that the daemon waits for."""
        self.begin()

        def run() -> None:
            try:
                work()
            finally:
                self.end()

        threading.Thread(target=run, name=name, daemon=True).start()


class GuestFreeze:
    """The freezes of one job, one guest after the other."""

    def __init__(
        self, node: Node, clock: Clock, reader: TimelyReader, freezes: OpenFreezes, worker: ProcessId, log: Log
    ) -> None:
        self._node = node
        self._clock = clock
        self._reader = reader
        self._freezes = freezes
        self._worker = worker
        self._log = log
        self._rendezvous: Rendezvous | None = None
        self._verdict: FreezeVerdict | None = None
        self._known: KnownGuest | None = None

    # Phases

    def prepare(self, guest: GuestRecord, config: FreezeConfig, more_time: Callable[[float], None]) -> list[str]:
        """pre-stop: what is known, what follows from it. Lines for the task log."""
        self._rendezvous = self._verdict = None
        if config.mode == "off" and not config.rules:
            return []
        more_time(4 * config.facts_within_s + (config.pre_flush_within_s if config.pre_flush else 0.0))
        known = gather(
            self._node,
            self._reader,
            guest.vmid,
            guest.vmtype,
            guest.mode,
            config.facts_within_s,
            self._clock.now_s(),
        )
        policy = policy_for(config, guest.vmid, known.name or guest.name, known.tags)
        verdict = decide(known.facts, policy)
        self._known, self._verdict = known, verdict
        account = guest.freeze = FreezeAccount(
            action=verdict.action,
            reasons=list(verdict.reasons),
            mountpoints=list(verdict.mountpoints) if verdict.mountpoints is not None else None,
            alert=verdict.alert,
            was_thawed=known.facts.status == "thawed",
        )
        if verdict.action == "freeze" and config.pre_flush:
            flushed = pre_flush(self._node, known.facts, guest.vmid, config.pre_flush_within_s)
            account.pre_flush_ms, account.pre_flush = flushed.took_ms, flushed.text
        self._report_verdict(guest, account)
        if verdict.action == "none":
            return []
        what = {"freeze": "will be frozen for the backup's start", "veto": "will NOT be frozen"}[verdict.action]
        return [f"{guest_text(guest)} {what}: {'; '.join(verdict.reasons)}"]

    def arm(self, guest: GuestRecord, config: FreezeConfig) -> list[str]:
        """post-restart: from here on PVE cannot reach the agent before we let it."""
        account, verdict = guest.freeze, self._verdict
        if account is None or verdict is None or guest.result != "running":
            return []
        account.in_archive = True
        if verdict.action == "none":
            return []
        is_windows = self._known is not None and self._known.facts.os_id == WINDOWS
        limits = Limits(
            reply_within_s=config.reply_within_s,
            frozen_at_most_s=config.windows_frozen_at_most_s if is_windows else config.frozen_at_most_s,
            wait_for_pve_s=config.wait_for_pve_s,
            veto_hold_at_most_s=config.veto_hold_at_most_s,
        )
        rendezvous = Rendezvous(
            self._node,
            guest.vmid,
            self._worker,
            veto=verdict.action == "veto",
            mountpoints=verdict.mountpoints,
            limits=limits,
            at_step=self._freezes.at_step,
            on_end=lambda outcome: self._rendezvous_ended(guest, account, config, outcome),
        )
        self._freezes.begin()
        try:
            rendezvous.arm(self._clock.now_s())
        except (GuestError, NodeError, OSError) as error:
            self._freezes.end()
            account.consistency, account.why = "left-to-pve", f"the agent's socket could not be held: {error}"
            self._log.warning(
                "freeze-not-armed",
                message=f"{guest_text(guest)}: {account.why}; PVE decides about the freeze alone",
                vmid=guest.vmid,
            )
            return [f"{guest_text(guest)}: {account.why}; PVE decides about the freeze alone"]
        self._rendezvous = rendezvous
        return []

    def over(self) -> None:
        """backup-end, backup-abort: the job is over, so nothing of ours may stay frozen."""
        if self._rendezvous is not None:
            self._rendezvous.abandon()
            self._rendezvous.wait_until_not_frozen(OVER_S)

    def settle(self, guest: GuestRecord) -> None:
        """log-end: the account is complete, or says that its freeze still hangs."""
        account = guest.freeze
        if account is None or self._rendezvous is None:
            return
        self._rendezvous.abandon()
        if not self._rendezvous.wait_until_ended(OVER_S) and account.consistency is None:
            account.consistency, account.hung = "crash-consistent", True
            account.why = "it has not said yet that it is thawed; it is asked until it does, the journal will say so"
            self._log.critical(
                "freeze-not-thawed",
                message=f"{guest_text(guest)}: STILL FROZEN, as far as we know, after its backup: it is asked to thaw "
                "until it says that it is; if it stays so, reset the VM",
                vmid=guest.vmid,
            )
        self._rendezvous = None

    def worker_died(self, guest: GuestRecord) -> None:
        """No PVE any more that could thaw: neither what we froze, nor what PVE froze itself."""
        rendezvous, account = self._rendezvous, guest.freeze
        if rendezvous is not None:
            rendezvous.abandon()
        if account is None or not account.in_archive or not account.was_thawed:
            return

        def thaw() -> None:
            if rendezvous is not None:
                rendezvous.wait_until_ended(LEFT_BY_PVE_S)
            done = thaw_until_thawed(agent_path(self._node, guest.vmid), patience(LEFT_BY_PVE_S))
            if done.outcome == "thawed":
                self._log.warning(
                    "freeze-left-by-pve",
                    message=f"{guest_text(guest)}: vzdump was killed and left it frozen; {done.text}",
                    vmid=guest.vmid,
                )
            elif done.outcome == "not-answered":
                self._log.critical(
                    "freeze-unknown",
                    message=f"{guest_text(guest)}: vzdump was killed during its backup, and whether it is frozen "
                    f"cannot be found out: {done.text}; try: pvehook thaw {guest.vmid} --force",
                    vmid=guest.vmid,
                )

        self._freezes.run(thaw, f"thaw-{guest.vmid}")

    # Reports

    def _report_verdict(self, guest: GuestRecord, account: FreezeAccount) -> None:
        write = self._log.warning if account.action == "veto" else self._log.info
        write(
            "freeze-verdict",
            message=f"{guest_text(guest)}: freeze {account.action}: {'; '.join(account.reasons)}",
            vmid=guest.vmid,
            action=account.action,
            reasons=account.reasons,
            mountpoints=account.mountpoints,
            pre_flush=account.pre_flush,
            pre_flush_ms=account.pre_flush_ms,
        )
        if account.alert:
            self._log.critical("freeze-alert", message=f"{guest_text(guest)}: {account.alert}", vmid=guest.vmid)

    def _rendezvous_ended(
        self, guest: GuestRecord, account: FreezeAccount, config: FreezeConfig, outcome: Outcome
    ) -> None:
        """In the rendezvous' own thread, when nothing is frozen any more."""
        account.consistency, account.why, account.hung = outcome.consistency, outcome.why, outcome.hung
        account.frozen_ms = outcome.frozen_ms
        account.filesystems_frozen, account.filesystems_thawed = outcome.filesystems_frozen, outcome.filesystems_thawed
        account.waited_for_pve_ms = outcome.waited_for_pve_ms
        try:
            if outcome.frozen_ms is not None:
                word = _outcome_word(outcome, config)
                remember(self._node, self._reader, guest.vmid, PastFreeze(self._clock.now_s(), outcome.frozen_ms, word))
            # A veto was told with its reasons before; what follows from it is no news.
            is_news = outcome.consistency == "crash-consistent" and account.action != "veto"
            write = self._log.warning if is_news else self._log.info
            write(
                "freeze-done",
                message=f"{guest_text(guest)}: {account.in_words()}",
                vmid=guest.vmid,
                consistency=outcome.consistency,
                why=outcome.why,
                frozen_ms=outcome.frozen_ms,
                filesystems_frozen=outcome.filesystems_frozen,
                filesystems_thawed=outcome.filesystems_thawed,
                waited_for_pve_ms=outcome.waited_for_pve_ms,
                hung=outcome.hung,
            )
        finally:
            self._freezes.end()


def _outcome_word(outcome: Outcome, config: FreezeConfig) -> Literal["ok", "slow", "hung"]:
    if outcome.hung:
        return "hung"
    assert outcome.frozen_ms is not None  # noqa: S101  (asked by the caller)
    return "slow" if outcome.frozen_ms > config.slow_after_s * 1000 else "ok"


def guest_text(guest: GuestRecord) -> str:
    """`VM 101 (web)`. Freezes are for VMs only."""
    return f"VM {guest.vmid}" + (f" ({guest.name})" if guest.name else "")


def thaw_left_over_in_daemon(node: Node, freezes: OpenFreezes, log: Log) -> None:
    """A new daemon's first deed: every guest that a record calls frozen by us is thawed, however long it takes."""
    for left in left_records(node):
        if left.state not in OURS:
            _unlink(left.path)
            continue

        def thaw(path: str = left.path, vmid: int = left.vmid, agent: str = left.agent_path) -> None:
            done = thaw_until_thawed(agent, give_up=lambda: False)
            _unlink(path)
            log.warning(
                "freeze-left-over",
                message=f"VM {vmid}: a freeze of ours was left over by a daemon that died; {done.text}",
                vmid=vmid,
                outcome=done.outcome,
            )

        freezes.run(thaw, f"thaw-{left.vmid}")


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
