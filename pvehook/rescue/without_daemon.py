"""What the hook does when no daemon answers: the window check and the I/O priority, within seconds, stdlib only.

    job-init, job-start, backup-start    the window, by the last good configuration; a shut one refuses
    every phase but the last             idle I/O priority on the worker and what it has forked so far
    every guest phase                    a VM that vzdump started goes back to normal
    every phase                          a guest that a daemon froze and left behind is thawed

It knows less than the daemon: no job ids, no configured other processes, nothing between the phases, and it does
not read /etc/pve. It says so in one line.
"""

from __future__ import annotations

from pvehook.contract.call import BadCall, HookCall, Reply, call_from, encode_reply
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
from pvehook.rules.admission import Admission, Exemptions, Question, admit
from pvehook.rules.window import Window, window_state
from pvehook.settings import DEFAULT, Config

LEFT_OVER_PATIENCE_S = 1.0


def answer(root: str, argv: list[str], env: dict[str, str], worker_pid: int, why: str) -> tuple[int, bytes, bytes]:
    """The exit code, the chained script and the lines, as the hook wants them."""
    head, _, text = encode_reply(_answer(Node(root), argv, env, worker_pid, why)).partition(b"\n")
    code, _, chain = head.removeprefix(b"exit ").partition(b" chain ")
    return int(code), chain, text


def _answer(node: Node, argv: list[str], env: dict[str, str], worker_pid: int, why: str) -> Reply:
    try:
        call = call_from(argv, env, worker_pid)
    except BadCall as bad:
        return Reply((f"pvehook: this call was not served: {bad}",))
    lines = [f"pvehook: the daemon does not answer ({why}); see `systemctl status pvehook.socket pvehook.service`"]
    config, doubt = _config(node)
    window, window_doubt = window_of(config, local_zone(node))
    lines += [f"pvehook: {text}" for text in (doubt, window_doubt) if text]
    if call.phase in REFUSABLE_PHASES:
        admission = _ask_window(node, call, config, window)
        lines += [f"pvehook: {line}" for line in admission.lines]
        if not admission.allowed:
            return Reply(tuple(lines), exit_code=1)
    lines += [f"pvehook: {line}" for line in _put_priorities_right(node, call, config)]
    if call.phase == "post-restart" and call.vmtype != "lxc" and config.freeze.mode != "off":
        lines.append(f"pvehook: freezing of VM {call.vmid} is left to Proxmox this time: neither judged nor bounded")
    # A daemon that died may have left a guest frozen, and the next one may never have come.
    lines += [
        f"pvehook: {report.text}" for report in thaw_left_over(node, LEFT_OVER_PATIENCE_S, spare_living_daemon=True)
    ]
    return Reply(tuple(lines), chain=node.path(config.chain) if config.chain else None)


def _config(node: Node) -> tuple[Config, str]:
    try:
        stored = stored_config(node)
    except ConfigError as error:
        return DEFAULT, f"{error}; the built-in defaults are in force"
    return (stored, "") if stored else (DEFAULT, "")


def _ask_window(node: Node, call: HookCall, config: Config, window: Window) -> Admission:
    now = at(SystemClock(), window.zone)
    upid = parse_upid(command_line(node, call.worker_pid))
    exempt = config.window.exempt
    question = Question(
        phase=call.phase,
        now=now,
        vmid=call.vmid,
        job_vmids=None if upid is None or upid.vmid is None else (upid.vmid,),
        job_id=None,
        # Without the daemon nobody finds out which job this is. A job-init that may be an exempt job's passes;
        # at job-start it is refused, for the guests' sake.
        job_id_pending=bool(exempt.jobs),
        storage=call.storeid,
        # Nor does anybody remember whether the run was admitted; next_guest: allow can only mean to trust it.
        job_was_admitted=True,
    )
    return admit(
        question,
        window_state(window, now),
        Exemptions(exempt.guests, exempt.jobs, exempt.storages),
        tuple(allowances.in_force(node, now.timestamp())),
        config.window.next_guest,
    )


def _put_priorities_right(node: Node, call: HookCall, config: Config) -> list[str]:
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
                lines.append(f"{each.comm} {each.process.pid} put back to normal priority")
    return lines
