"""What is known of a guest before its freeze, gathered within a bound and with every gap named."""

from __future__ import annotations

import contextlib
import time

from pvehook.contract.guest_config import AgentOption, GuestConfig, parse_agent_option, parse_vm
from pvehook.deadline import Deadline
from pvehook.errors import GuestError, NodeError, Refused, TimedOut
from pvehook.freeze.history import past_freezes
from pvehook.guest.agent import open_agent
from pvehook.guest.qmp import open_qmp
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.rules.freeze_safety import LIST_OF_MOUNTS, FreezeFacts

CONFIG_S = 1.0
QMP_S = 1.2
EXEC = "guest-exec"
FACTS_ANSWERS = 4
"""Of the agent, at least: sync, guest-info, status and the list of filesystems."""


def agent_path(node: Node, vmid: int) -> str:
    return node.path(f"/var/run/qemu-server/{vmid}.qga")


def qmp_path(node: Node, vmid: int) -> str:
    return node.path(f"/var/run/qemu-server/{vmid}.qmp")


def gather(
    node: Node,
    reader: TimelyReader,
    vmid: int,
    vmtype: str | None,
    mode: str,
    facts_within_s: float,
    now_s: float,
    deadline: Deadline | None = None,
    first_answer_s: float | None = None,
) -> tuple[FreezeFacts, GuestConfig]:
    """Reads configuration, QEMU's state and the agent's facts; the agent has `facts_within_s` for all its answers, and
    nothing is waited for beyond the deadline. Never raises: what did not answer is a fact of its own, and a
    configuration that could not be read is an empty one. The agent is left alone in a guest that PVE never freezes.
    `first_answer_s`: an agent that has answered nothing by then counts as silent; None: the time for all answers."""
    deadline = deadline or Deadline.after(CONFIG_S + QMP_S + facts_within_s)
    config, unknown = _config(node, reader, vmid, deadline)
    option = parse_agent_option(config.agent) if unknown is None else AgentOption(True, True)
    facts = FreezeFacts(vmtype, mode, option, past_freezes(node, reader, vmid), now_s, unknown)
    if vmtype != "lxc" and mode == "snapshot":
        facts = _qemu_facts(facts, qmp_path(node, vmid), deadline.within(QMP_S))
        if facts.run_state == "running" and option.enabled and option.freezes:
            agent_deadline = deadline.within(facts_within_s)
            facts = _agent_facts(facts, agent_path(node, vmid), agent_deadline, first_answer_s or facts_within_s)
    return facts, config


def _config(node: Node, reader: TimelyReader, vmid: int, deadline: Deadline) -> tuple[GuestConfig, str | None]:
    path = f"/etc/pve/qemu-server/{vmid}.conf"
    try:
        text = reader.text(node.path(path), deadline.within(CONFIG_S).left_s())
    except NodeError as error:
        return parse_vm(""), str(error)
    return parse_vm(text or ""), f"{path} is not there" if text is None else None


def _qemu_facts(facts: FreezeFacts, path: str, deadline: Deadline) -> FreezeFacts:
    try:
        with open_qmp(path, deadline) as qmp:
            status = qmp.query_status(deadline)
            migration = qmp.execute("query-migrate", deadline=deadline)
    except GuestError as error:
        return facts._replace(qmp_fault=str(error))
    state = migration.get("status") if isinstance(migration, dict) else None
    return facts._replace(run_state=status, migrating=state in ("setup", "active", "pre-switchover", "device"))


def _agent_facts(facts: FreezeFacts, path: str, deadline: Deadline, first_answer_s: float) -> FreezeFacts:
    """All answers within the limit: an agent that cannot list its filesystems in that time is not one to freeze. What
    system it is comes last, since the guest can be frozen without it."""
    began_s = time.monotonic()
    latency_s = 0.0
    try:
        with open_agent(path, deadline.within(first_answer_s)) as agent:
            latency_s = time.monotonic() - began_s
            info = agent.guest_info(deadline)
            facts = facts._replace(info=info)
            facts = facts._replace(status=agent.fsfreeze_status(deadline))
            if facts.status != "thawed":
                return facts
            if info.commands.get(LIST_OF_MOUNTS):
                facts = facts._replace(filesystems=agent.get_fsinfo(deadline))
            if info.commands.get("guest-get-osinfo"):
                with contextlib.suppress(Refused, TimedOut):
                    facts = facts._replace(os_id=agent.os_id(deadline))
    except GuestError as error:
        fault = str(error)
        if isinstance(error, TimedOut) and FACTS_ANSWERS * latency_s >= deadline.total_s:
            fault = (
                f"it takes {latency_s:.1f} s for each answer, and frozen, the guest's writes would wait for several of "
                f"them (all facts are to come within {deadline.total_s:.3g} s)"
            )
        return facts._replace(agent_fault=fault)
    return facts


def pre_flush(node: Node, facts: FreezeFacts, vmid: int, within_s: float) -> tuple[int | None, str]:
    """A `sync` in the guest: it writes its dirty pages back while it still runs, since a freeze waits for every one of
    them, with every writer blocked (8566 ms became 185 ms, facts/qemu.md). How many ms it took, None when it did not
    end in its time or could not be started, and a text. Never raises."""
    if facts.info is None or not facts.info.commands.get(EXEC):
        return None, "the guest does not allow guest-exec"
    if facts.os_id == "mswindows":
        return None, "not for Windows"
    began_s = time.monotonic()
    deadline = Deadline.after(within_s)
    try:
        with open_agent(agent_path(node, vmid), deadline) as agent:
            started = agent.execute(EXEC, {"path": "sync", "capture-output": False}, deadline=deadline)
            pid = started.get("pid") if isinstance(started, dict) else None
            while deadline.left_s() > 0:
                answer = agent.execute("guest-exec-status", {"pid": pid}, deadline=deadline)
                if isinstance(answer, dict) and answer.get("exited") is True:
                    took_ms = round((time.monotonic() - began_s) * 1000)
                    if answer.get("exitcode") == 0:
                        return took_ms, f"sync took {took_ms} ms"
                    return None, "sync failed in the guest"
                time.sleep(min(0.05, deadline.left_s()))
    except GuestError as error:
        return None, str(error)
    return None, f"sync did not end within {within_s:g} s"
