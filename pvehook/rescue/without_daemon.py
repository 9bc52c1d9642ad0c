"""What the hook does when no daemon answers: the window check, the I/O priority and thaws, within seconds.

    job-init, job-start, backup-start    the window, by the last good configuration; a closed one refuses
    every phase but the last             idle I/O class for the worker and what it has forked so far
    every guest phase                    a VM that vzdump started is restored to normal priority
    every phase                          a guest that a dead daemon left frozen is thawed

It knows less than the daemon: no job ids, no configured other processes, nothing between the phases, and it does
not read /etc/pve. One line says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from pvehook.contract.call import BadCall, HookCall, call_from, encode_lines
from pvehook.contract.phases import LAST_JOB_PHASES, REFUSABLE_PHASES
from pvehook.contract.upid import parse_upid
from pvehook.errors import ConfigError
from pvehook.host.clock import SystemClock, at, local_zone
from pvehook.host.ioprio import IDLE, restore_normal, set_all_threads
from pvehook.host.node import Node
from pvehook.host.processes import backup_processes, command_line, guests_left_idle, identify, vm_processes
from pvehook.rescue import allowances
from pvehook.rescue.last_good import stored_config, window_of
from pvehook.rescue.thaw import thaw_left_over
from pvehook.rules.admission import Admission, Question, admit
from pvehook.rules.window import Window, window_state
from pvehook.settings import DEFAULT, Config

LEFT_OVER_PATIENCE_S = 1.0


def answer(
    root: str, argv: list[str], env: dict[str, str], worker_pid: int, why: str
) -> tuple[int, bytes, bytes, Callable[[], bytes]]:
    """The exit code, the chained script and the lines, as the hook wants them, and what does the rest and gives its
    lines: the verdict is known before anything that may hang is tried."""
    node = Node(root)
    try:
        call = call_from(argv, env, worker_pid)
    except BadCall as bad:
        return 0, b"", _text(f"this call was not served: {bad}"), bytes
    config, doubt = _config(node)
    window, window_doubt = window_of(config, local_zone(node))
    unanswered = f"the daemon does not answer ({why}); see `systemctl status pvehook.socket pvehook.service`"
    lines = [unanswered, *filter(None, (doubt, window_doubt))]
    if call.phase in REFUSABLE_PHASES:
        admission = _ask_window(node, call, config, window)
        lines += admission.lines
        if not admission.allowed:
            return 1, b"", _text(*lines), bytes
    chain = os.fsencode(node.path(config.chain)) if config.chain else b""
    return 0, chain, _text(*lines), lambda: _text(*_settle(node, call, config))


def _settle(node: Node, call: HookCall, config: Config) -> Iterator[str]:
    yield from _restore_priorities(node, call, config)
    if call.phase == "post-restart" and call.vmtype != "lxc" and config.freeze.mode != "off":
        yield f"freezing of VM {call.vmid} is left to Proxmox this time, without a check and without a limit"
    # A daemon that died may have left a guest frozen, and the next one may never have come.
    yield from (report.text for report in thaw_left_over(node, LEFT_OVER_PATIENCE_S, spare_living_daemon=True))


def _text(*lines: str) -> bytes:
    return encode_lines(f"pvehook: {line}" for line in lines)


def _config(node: Node) -> tuple[Config, str]:
    try:
        stored = stored_config(node)
    except ConfigError as error:
        return DEFAULT, f"{error}; the built-in defaults are in force"
    return (stored, "") if stored else (DEFAULT, "")


def _ask_window(node: Node, call: HookCall, config: Config, window: Window) -> Admission:
    now = at(SystemClock(), window.zone)
    upid = parse_upid(command_line(node, call.worker_pid))
    question = Question(
        phase=call.phase,
        now=now,
        vmid=call.vmid,
        job_vmids=None if upid is None or upid.vmid is None else (upid.vmid,),
        # Only the daemon finds out which job this is. A job-init that may be an exempt job's passes;
        # at job-start it is refused, for the guests' sake.
        job_id_pending=bool(config.window.exempt.jobs),
        storage=call.storeid,
        # Nor is it known whether the run was admitted; `next_guest: allow` can only mean to trust it.
        job_was_admitted=True,
    )
    return admit(
        question,
        window_state(window, now),
        config.window.exempt,
        tuple(allowances.in_force(node, now.timestamp())),
        config.window.next_guest,
    )


def _restore_priorities(node: Node, call: HookCall, config: Config) -> list[str]:
    worker = identify(node, call.worker_pid)
    if worker is None:
        return []
    lines = []
    if config.io_priority.mode == "idle" and call.phase not in LAST_JOB_PHASES:
        done = [set_all_threads(node, each.process.pid, IDLE) for each in backup_processes(node, worker, ())]
        threads, confirmed = sum(each.threads for each in done), sum(each.confirmed for each in done)
        lines.append(f"idle I/O priority set without it, on {confirmed} of {threads} threads, read back")
    if call.vmid is not None and call.vmtype != "lxc":
        found = {each.process: each for each in vm_processes(node, call.vmid, worker)}
        found |= {each.process: each for each in guests_left_idle(node, worker)}
        for each in found.values():
            back = restore_normal(node, each.process.pid)
            if back.changed:
                lines.append(f"{each.comm} {each.process.pid} restored to normal priority")
    return lines
