"""`pvehook doctor --fix ID` and `--unfix ID`: what a finding's steps do to the node, and back.

A record is written before each step, so that whoever comes after a crash knows what was there before:

    /var/lib/pvehook/fixes/PVH-103.1764412345678901234.json
        {"check": "PVH-103", "subject": "job nightly", "vmid": null, "at_s": 1764412345.7, "steps": [
          {"path": "/etc/pve/jobs.cfg", "key": "script", "section": "vzdump: nightly",
           "before": "\\tscript /root/own.sh", "after": "", "undo": ["pvesh", "set", ...]}]}

A finding is fixed as a whole: when one of its steps fails, those before it are taken back. A step is taken back only if
what it changed still reads as it left it; else somebody has changed it since, and it is left alone.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeAlias

from pvehook.contract.guest_config import options_after_restart
from pvehook.contract.text import printable
from pvehook.doctor.checks import Found
from pvehook.doctor.finding import Step, Write
from pvehook.errors import NodeError
from pvehook.host.node import Node
from pvehook.host.regular_file import DAMAGED, files_in, read_regular_file, remove_file, replace_file
from pvehook.host.timely_files import TimelyReader

READ_S: Final = 5.0
COMMAND_S: Final = 60.0
"""pvesh and qm wait for locks of Proxmox, 10 s each."""
RECORD_LIMIT_BYTES: Final = 8 << 20
LINES_SHOWN: Final = 20
_GUESTS: Final = ("/etc/pve/qemu-server/", "/etc/pve/lxc/")

Run: TypeAlias = Callable[[Sequence[str]], None]
"""Runs a command of the node. Raises NodeError with what it said where it fails."""


class Changed(NamedTuple):
    """One step that was done."""

    path: str
    key: str
    section: str
    """These three as in finding.Command; a file that was written is compared as a whole."""
    before: str | None
    """None: there was no such file."""
    after: str | None
    undo: tuple[str, ...]
    """The command that takes it back; empty: the file is written as it was."""
    is_known: bool = True
    """False between the record and the step's end: `after` is not known yet."""


class Record(NamedTuple):
    """One finding that was fixed."""

    check: str
    subject: str
    vmid: int | None
    at_s: float
    """Seconds since the epoch."""
    steps: tuple[Changed, ...]


class Report(NamedTuple):
    is_done: bool
    lines: tuple[str, ...]


def directory_of(node: Node) -> str:
    return os.path.join(node.state_dir, "fixes")


def fix(node: Node, found: Found, run: Run, now_s: float) -> Report:
    """Does all steps of one finding, or none."""
    check, finding = found
    title = f"{check.id} {finding.subject}"
    path = os.path.join(directory_of(node), f"{check.id}.{int(now_s * 1e9):019d}.json")
    while os.path.exists(path):  # another finding of the same moment
        now_s += 1e-6
        path = os.path.join(directory_of(node), f"{check.id}.{int(now_s * 1e9):019d}.json")
    record = Record(check.id, finding.subject, finding.vmid, now_s, ())
    try:
        for step in finding.steps:
            record = _do(node, step, run, record, path)
    except (NodeError, OSError, ValueError) as error:
        lines = [f"{title}: NOT FIXED: {error}"]
        try:
            for each in reversed(record.steps):
                lines.append(f"  taken back: {_take_back(node, each, run)}")
            remove_file(path)
        except (NodeError, OSError, ValueError) as again:
            lines.append(f"  NOT TAKEN BACK: {again}; what was there before is in {_spelled(node, path)}")
        return Report(False, tuple(lines))
    if all(each.before == each.after for each in record.steps):
        remove_file(path)
        return Report(True, (f"{title}: it is as it should be already",))
    limit = f" --vmid {finding.vmid}" if finding.vmid is not None else ""
    lines = [f"{title}: fixed"]
    for step, changed in zip(finding.steps, record.steps, strict=True):
        lines += [f"  ran: {shlex.join(step.do)}"] if not isinstance(step, Write) else []
        lines += _difference(changed)
    return Report(True, (*lines, f"  to take it back: pvehook doctor --unfix {check.id}{limit}"))


def unfix(node: Node, check_id: str, vmids: tuple[int, ...], run: Run) -> list[Report]:
    """Takes back all fixes of this check, or those for these guests; the newest first."""
    reports = []
    for path in reversed(files_in(directory_of(node), ".json")):
        if not os.path.basename(path).startswith(f"{check_id}."):
            continue
        try:
            record = _read(path)
        except DAMAGED as error:
            reports.append(Report(False, (f"{_spelled(node, path)}: cannot be read: {error}",)))
            continue
        if not vmids or record.vmid in vmids:
            reports.append(_unfix(node, record, path, run))
    return reports


def _unfix(node: Node, record: Record, path: str, run: Run) -> Report:
    title, when = f"{record.check} {record.subject}", datetime.fromtimestamp(record.at_s, UTC).astimezone()
    try:
        done = [_take_back(node, each, run) for each in reversed(record.steps)]
    except (NodeError, OSError, ValueError) as error:
        by_hand = [f"  by hand: {shlex.join(each.undo)}" for each in record.steps if each.undo]
        known = f"  as it was before {when:%Y-%m-%d %H:%M}: {_spelled(node, path)}"
        return Report(False, (f"{title}: NOT TAKEN BACK: {error}", *by_hand, known))
    remove_file(path)
    return Report(True, (f"{title}: taken back", *(f"  {each}" for each in done)))


def run_on(node: Node) -> Run:
    """Runs a node's commands on the node itself; a directory tree has none of its own."""

    def run(command: Sequence[str]) -> None:
        shown = shlex.join(command)
        if not node.is_real:
            raise NodeError(f"`{shown}` would change this machine, and not {node.root}")
        try:
            done = subprocess.run(command, capture_output=True, timeout=COMMAND_S, check=False)  # noqa: S603  (ours)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NodeError(f"`{shown}`: {error}") from error
        if done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise NodeError(f"`{shown}` ended with {done.returncode}: {printable(said, 400)}")

    return run


# One step


def _do(node: Node, step: Step, run: Run, record: Record, path: str) -> Record:
    """The record with this step. Raises NodeError, OSError and ValueError; then the step was not done."""
    if isinstance(step, Write):
        before = _state(node, step.path)
        if before != step.old:
            raise NodeError(f"{step.path} was changed after it was checked; run this again")
        changed = Changed(step.path, "", "", before, step.new, ())
        _save(path, record._replace(steps=(*record.steps, changed)))
        _write(node, step.path, step.new)
    else:
        before = _state(node, step.path, step.key, step.section)
        changed = Changed(step.path, step.key, step.section, before, None, step.undo, is_known=False)
        _save(path, record._replace(steps=(*record.steps, changed)))
        run(step.do)
        after = _state(node, step.path, step.key, step.section)
        if after == before:
            raise NodeError(f"`{shlex.join(step.do)}` has changed nothing in {step.path}")
        changed = changed._replace(after=after, is_known=True)
        _save(path, record._replace(steps=(*record.steps, changed)))
    return record._replace(steps=(*record.steps, changed))


def _take_back(node: Node, changed: Changed, run: Run) -> str:
    """What was done. Raises NodeError where somebody has changed it since."""
    now = _state(node, changed.path, changed.key, changed.section)
    what = f"{changed.key} in {changed.path}" if changed.key else changed.path
    if now == changed.before:
        return f"{what} is as it was before already"
    if not changed.is_known:
        raise NodeError(f"pvehook was stopped while it changed {what}, so whether that is ours is not known")
    if now != changed.after:
        raise NodeError(f"{what} was changed since")
    if changed.undo:
        run(changed.undo)
        return f"ran: {shlex.join(changed.undo)}"
    if changed.before is None:
        os.unlink(node.path(changed.path))
        return f"removed {changed.path}"
    _write(node, changed.path, changed.before)
    return f"wrote {changed.path} as it was before"


def _state(node: Node, path: str, key: str = "", section: str = "") -> str | None:
    """What a step has changed, or is to change. Raises NodeError."""
    real = node.path(path)
    if os.path.islink(real):
        if not key and not section:
            return os.readlink(real)
        raise NodeError(f"{path} is a symbolic link")
    text = TimelyReader().text(real, READ_S)
    if text is not None and key and path.startswith(_GUESTS):
        # Of a guest that runs, Proxmox keeps most changes in a section of their own until it is started anew.
        value = options_after_restart(text).get(key)
        return "" if value is None else f"{key}: {value}"
    return text if text is None else "\n".join(_lines_of(text, key, section))


def _lines_of(text: str, key: str, section: str) -> Iterator[str]:
    """The lines of this key, or all: in the whole file, or in one section of a file such as jobs.cfg."""
    inside = not section
    for line in text.split("\n"):
        if not key:
            yield line
        elif section and (not line or line == section):
            inside = line == section
        elif inside and re.match(rf"\s+{re.escape(key)}(\s|$)" if section else rf"{re.escape(key)}:", line):
            yield line


def _write(node: Node, path: str, text: str) -> None:
    """In one step, with the mode it had. /etc/pve gives its files their modes itself. Raises OSError and ValueError."""
    real = node.path(path)
    if os.path.islink(real):
        raise NodeError(f"{path} is a symbolic link; pvehook changes plain files only")
    mode = stat.S_IMODE(os.stat(real).st_mode) if os.path.exists(real) else 0o644
    replace_file(real, text, None if path.startswith("/etc/pve/") else mode)


def _difference(changed: Changed) -> Iterator[str]:
    """The lines that went and came, for an administrator to see what the old value was."""
    yield f"  {changed.path}{f' ({changed.section})' if changed.section else ''}"
    before, after = ((text or "").splitlines() for text in (changed.before, changed.after))
    differing = [line for line in list(difflib.unified_diff(before, after, n=0))[2:] if not line.startswith("@@")]
    for line in differing[:LINES_SHOWN]:
        yield f"    {line[0]} {printable(line[1:].strip())}"
    if len(differing) > LINES_SHOWN:
        yield f"    and {len(differing) - LINES_SHOWN} more lines"


# Records


def _save(path: str, record: Record) -> None:
    body = {**record._asdict(), "steps": [each._asdict() for each in record.steps]}
    replace_file(path, json.dumps(body, indent=1) + "\n", 0o600)


def _read(path: str) -> Record:
    """Raises what is in DAMAGED."""
    body: dict[str, Any] = json.loads(read_regular_file(path, RECORD_LIMIT_BYTES))
    steps = tuple(Changed(**{**each, "undo": tuple(each["undo"])}) for each in body.pop("steps"))
    return Record(**body, steps=steps)


def _spelled(node: Node, path: str) -> str:
    """As the node spells it."""
    return path if node.is_real else path.removeprefix(node.root)
