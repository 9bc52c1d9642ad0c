"""PVH-1xx: is pvehook called by every backup, does it run as it is installed and configured, is its history kept."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime
from typing import Final, TypeAlias

from pvehook.config import parse
from pvehook.config.in_force import CLUSTER_FILE, NODE_FILE
from pvehook.contract.measured import Broken, Measured, value_of
from pvehook.contract.text import printable
from pvehook.contract.vzdump_config import parse_vzdump_config, with_option
from pvehook.doctor.finding import Check, Command, Finding, Group, Severity, Step, Write
from pvehook.doctor.ours_facts import (
    HISTORY,
    HOOK_SOCKET,
    NOTIFY_SOCKET,
    VZDUMP_CONF,
    History,
    OursFacts,
    Socket,
    gather,
    missing,
    socket_link,
)
from pvehook.host.backup_jobs import JOBS, Job
from pvehook.host.hook_script import HookScript
from pvehook.host.node import HOOK

Findings: TypeAlias = Iterator[Finding]

INSTALL: Final = "./install.sh    # from a copy of pvehook's repository"
FAILURES_REPORTED: Final = 2
"""One failure may be a daemon that was killed; it is started again at once."""
CLOCK_S: Final = 2.0
"""By which the time of a boot, kept in whole seconds, may be wrong."""


def not_called(facts: OursFacts) -> Findings:
    """`script:` of /etc/vzdump.conf is not ours, and what stands there does not call us."""
    if isinstance(facts.vzdump_conf, Broken):
        return
    found = _script(facts, path := _defaults(facts).get("script"))
    if isinstance(found, Broken) or (found is not None and (found.is_ours or found.calls_ours)):
        return
    text = value_of(facts.vzdump_conf)
    ours = Write(VZDUMP_CONF, text, with_option(text or "", "script", HOOK))
    if path is None:
        evidence = f"there is no `script:` line, so vzdump does not call pvehook; expected script: {HOOK}"
        yield Finding(VZDUMP_CONF, "error", evidence, (f"add the line script: {HOOK}",), (ours,))
        return
    if isinstance(found, HookScript) and _why_not_run(found):
        return  # PVH-102
    shown = printable(path)
    evidence = f"`script:` names {shown}, which does not call pvehook; expected {HOOK}, which can run it (`chain:`)"
    chained = _chained(facts, path)
    yield Finding(VZDUMP_CONF, "error", evidence, (INSTALL,), () if chained is None else (*chained, ours))


def _chained(facts: OursFacts, path: str) -> tuple[Step, ...] | None:
    """The steps after which pvehook runs this script; None where it runs another one, or its file cannot be edited."""
    if facts.in_force.problems:
        return None
    if facts.in_force.config.chain is not None:
        return () if facts.in_force.config.chain == path else None
    if isinstance(facts.node_yaml, Broken):
        return None
    text = value_of(facts.node_yaml)
    quoted = path.replace("'", "''")
    start = text or ""
    new = f"{start}{'' if not start or start.endswith(chr(10)) else chr(10)}chain: '{quoted}'\n"
    parsed = parse(new, NODE_FILE)  # a file that is one line in braces cannot have a line added
    chain = parsed.values.get("chain")
    return (Write(NODE_FILE, text, new),) if not parsed.errors and chain is not None and chain.value == path else None


def called_through_another(facts: OursFacts) -> Findings:
    """Another tool's script calls our hook."""
    found = _script(facts, _defaults(facts).get("script"))
    if isinstance(found, HookScript) and found.calls_ours:
        yield _wrapped(VZDUMP_CONF, found, (f"set script: {HOOK} and chain: to what else that script does",))
    for job in value_of(facts.jobs) or ():
        found = _script(facts, job.options.get("script"))
        if isinstance(found, HookScript) and found.calls_ours:
            yield _wrapped(_named(job), found, _remedy_of_job(job, "script"))


def _wrapped(subject: str, script: HookScript, remedy: tuple[str, ...]) -> Finding:
    evidence = f"`script` names {printable(script.path)}, which calls pvehook's hook itself; the window is held only if"
    return Finding(subject, "note", f"{evidence} it passes all arguments on and ends with the hook's exit code", remedy)


def hook_cannot_run(facts: OursFacts) -> Findings:
    """vzdump ends a job whose script is not there or cannot be executed (PVE/VZDump.pm `new`)."""
    text = value_of(facts.vzdump_conf)
    script = _script(facts, _defaults(facts).get("script"))
    if isinstance(script, HookScript) and (why := _why_not_run(script)):
        evidence = f"the hook script {printable(script.path)} {why}, so vzdump fails every backup"
        if script.is_ours:
            yield Finding(VZDUMP_CONF, "error", evidence, (INSTALL,))
        else:
            ours = Write(VZDUMP_CONF, text, with_option(text or "", "script", HOOK))
            yield Finding(VZDUMP_CONF, "error", evidence, (f"set the line script: {HOOK}",), (ours,))
    for job in value_of(facts.jobs) or ():
        script = _script(facts, job.options.get("script"))
        if isinstance(script, HookScript) and (why := _why_not_run(script)):
            evidence = f"its own hook script {printable(script.path)} {why}, so vzdump fails all of its backups"
            yield Finding(_named(job), "error", evidence, _remedy_of_job(job, "script"), _steps_of_job(job, "script"))


def _why_not_run(script: HookScript) -> str | None:
    if not script.is_file:
        return "does not exist"
    return None if script.is_executable else "is not executable"


def ionice_is_not_ours(facts: OursFacts) -> Findings:
    """pvehook sets the idle class at job-start anyway, unless it is told not to."""
    if isinstance(facts.vzdump_conf, Broken) or _sets_no_priority(facts):
        return
    ionice = _defaults(facts).get("ionice")
    if ionice != "8":
        text = value_of(facts.vzdump_conf)
        seen = "there is no `ionice:` line, so it is 7" if ionice is None else f"ionice is {ionice}"
        evidence = f"{seen}; expected 8: the idle I/O class from the start of vzdump on, before pvehook sets it"
        steps = (Write(VZDUMP_CONF, text, with_option(text or "", "ionice", "8")),)
        yield Finding(VZDUMP_CONF, "note", evidence, ("add the line ionice: 8",), steps)


def job_has_its_own_script(facts: OursFacts) -> Findings:
    """A job's own `script` wins over /etc/vzdump.conf."""
    for job in value_of(facts.jobs) or ():
        script = _script(facts, path := job.options.get("script"))
        if path is None or not isinstance(script, HookScript) or script.is_ours or script.calls_ours:
            continue
        if _why_not_run(script):
            continue  # PVH-102
        evidence = f"its own script {printable(path)} wins over {VZDUMP_CONF}, so it runs without pvehook"
        yield Finding(_named(job), "error", evidence, _remedy_of_job(job, "script"), _steps_of_job(job, "script"))


def job_has_its_own_ionice(facts: OursFacts) -> Findings:
    """A job's own `ionice` wins too."""
    if _sets_no_priority(facts):
        return
    for job in value_of(facts.jobs) or ():
        ionice = job.options.get("ionice", "8")
        if ionice != "8":
            evidence = f"its own ionice {printable(ionice)} wins over {VZDUMP_CONF} until pvehook sets the idle class"
            yield Finding(_named(job), "note", evidence, _remedy_of_job(job, "ionice"), _steps_of_job(job, "ionice"))


def _sets_no_priority(facts: OursFacts) -> bool:
    """With `io_priority.mode: off` the administrator has chosen an ionice."""
    return facts.in_force.config.io_priority.mode == "off"


def chain_is_broken(facts: OursFacts) -> Findings:
    """The script that vzdump ran before pvehook came."""
    path = facts.in_force.config.chain
    script = _script(facts, path)
    if path is None or not isinstance(script, HookScript):
        return
    shown = printable(path)
    remedy = (f"correct `chain:` in {NODE_FILE} or {CLUSTER_FILE}",)
    if script.is_ours or script.calls_ours:
        what = "is pvehook's own hook" if script.is_ours else "calls pvehook's own hook"
        yield Finding("chain", "warning", f"{shown} {what}, and that call does nothing", remedy)
    elif why := _why_not_run(script):
        yield Finding("chain", "error", f"{shown} {why}, and then every run fails before its first guest", remedy)


def socket_does_not_listen(facts: OursFacts) -> Findings:
    """Without it no daemon is started: the hook checks the window and the priorities, and nothing else."""
    what_then = "no freeze, no governor, no record of any guest; the hook holds the window alone"
    yield from _not_listening(HOOK_SOCKET, "/run/pvehook/hook.sock", facts.socket, "error", what_then)


def notifications_are_not_sent(facts: OursFacts) -> Findings:
    """The journal has what it would send."""
    if facts.in_force.config.notify == "on":
        what_then = "nobody is told of a night in which guests stalled, froze or went without a backup"
        yield from _not_listening(NOTIFY_SOCKET, "/run/pvehook/notify.sock", facts.notify_socket, "warning", what_then)


def _not_listening(unit: str, path: str, socket: Measured[Socket], severity: Severity, what_then: str) -> Findings:
    state = value_of(socket)
    if state is None or state == "listens":
        return
    remedies = {
        "masked": (f"systemctl unmask {unit}", f"systemctl enable --now {unit}"),
        "not enabled": (f"systemctl enable --now {unit}",),
        "no unit": (INSTALL,),
        "does not listen": (f"systemctl restart {unit}",),
    }
    words = {
        "masked": "is masked",
        "not enabled": "is not enabled",
        "no unit": "is enabled, but its unit is not there",
        "does not listen": f"is enabled, but nothing listens at {path}",
    }
    enable, disable = (("systemctl", verb, "--now", unit) for verb in ("enable", "disable"))
    steps = (Command(enable, disable, socket_link(unit)),) if state == "not enabled" else ()
    yield Finding(unit, severity, f"it {words[state]}: {what_then}", remedies[state], steps)


def daemon_fails(facts: OursFacts) -> Findings:
    """hooks/systemd/restart-pause counts failures in a row."""
    if facts.failures >= FAILURES_REPORTED:
        evidence = f"it has failed {facts.failures} times in a row; backups run without it meanwhile"
        remedy = ("journalctl -u pvehook.service -n 30", "systemctl restart pvehook.service    # once it is fixed")
        yield Finding("pvehook.service", "error", evidence, remedy)


def configuration_has_problems(facts: OursFacts) -> Findings:
    """The configuration in force is then another one than what is written."""
    source = facts.in_force.source
    meanwhile = "" if source == "files" else f"; until that is fixed, this is in force: {source}"
    for problem in facts.in_force.problems:
        yield Finding("configuration", "warning", f"{printable(problem, 400)}{meanwhile}", ("pvehook config check",))


def daemon_is_older(facts: OursFacts) -> Findings:
    """One that was started before an update runs as it was until it ends."""
    daemon, program_s = facts.daemon, value_of(facts.program_s)
    if daemon is None or program_s is None or daemon.started_s >= program_s - CLOCK_S:
        return
    zone = facts.in_force.zone
    at = [f"{datetime.fromtimestamp(at_s, zone):%Y-%m-%d %H:%M}" for at_s in (daemon.started_s, program_s)]
    evidence = f"process {daemon.pid} runs since {at[0]}, and the program was installed at {at[1]}"
    remedy = "nothing while a backup runs, it ends by itself; at once: systemctl restart pvehook.service"
    yield Finding("pvehook.service", "note", evidence, (remedy,))


def history_cannot_be_written(facts: OursFacts) -> Findings:
    """Then no night is kept, and who is overdue is not known."""
    history = facts.history
    if isinstance(history, History) and history.not_writable is not None:
        remedy = f"ls -ld {HISTORY} {HISTORY.rpartition('/')[0]}; df -h {HISTORY.rpartition('/')[0]}"
        yield Finding(HISTORY, "error", f"{history.not_writable}; no night is recorded", (remedy,))


def history_is_damaged(facts: OursFacts) -> Findings:
    """A damaged one is moved aside at the next backup, and a new one begun."""
    history = facts.history
    if not isinstance(history, History):
        return
    damage = value_of(history.damage)
    if damage:
        evidence = f"{printable(damage)}; at the next backup it is moved aside and a new one is begun"
        yield Finding(HISTORY, "warning", evidence, (f"restore {HISTORY} from a backup, or do nothing",))
    for aside in history.moved_aside:
        evidence = "a history that could not be used, kept beside the new one"
        yield Finding(aside, "note", evidence, (f"rm {aside}*    # once you do not need it",))


def _defaults(facts: OursFacts) -> dict[str, str]:
    return parse_vzdump_config(value_of(facts.vzdump_conf) or "")


def _script(facts: OursFacts, path: str | None) -> HookScript | Broken | None:
    """None: no script is named."""
    found = facts.scripts.get(path) if path else None
    return found if isinstance(found, (HookScript, Broken)) else None


def _named(job: Job) -> str:
    return job.id if job.is_cron else f"job {job.id}"


def _remedy_of_job(job: Job, key: str) -> tuple[str, ...]:
    if job.is_cron:
        return (f"take --{key} out of that line",)
    return (shlex.join(_pvesh(job, "--delete", key)),)


def _steps_of_job(job: Job, key: str) -> tuple[Step, ...]:
    if job.is_cron:
        return ()
    old = job.options[key]
    undo = _pvesh(job, f"--{key}", old)
    return (Command(_pvesh(job, "--delete", key), undo, JOBS, key=key, section=f"vzdump: {job.id}"),)


def _pvesh(job: Job, *options: str) -> tuple[str, ...]:
    return ("pvesh", "set", f"/cluster/backup/{job.id}", *options)


GROUP: Final = Group(
    "ours",
    gather,
    missing,
    (
        Check("PVH-101", "vzdump does not call pvehook", not_called),
        Check("PVH-102", "The hook script cannot be run", hook_cannot_run),
        Check("PVH-103", "A job has a script of its own", job_has_its_own_script),
        Check("PVH-104", "Another script calls pvehook's hook", called_through_another),
        Check("PVH-105", "The chained script cannot be run", chain_is_broken),
        Check("PVH-106", "pvehook's daemon is not started", socket_does_not_listen),
        Check("PVH-107", "pvehook's daemon fails", daemon_fails),
        Check("PVH-108", "The configuration has problems", configuration_has_problems),
        Check("PVH-109", "vzdump's ionice is not 8", ionice_is_not_ours),
        Check("PVH-110", "A job has an ionice of its own", job_has_its_own_ionice),
        Check("PVH-111", "The daemon is older than the program", daemon_is_older),
        Check("PVH-112", "The history cannot be written", history_cannot_be_written),
        Check("PVH-113", "The history is damaged", history_is_damaged),
        Check("PVH-114", "Notifications are not sent", notifications_are_not_sent),
    ),
)
