"""What Proxmox keeps of its tasks: the list of those that ended, and what vzdump's own log tells of each guest.

    INFO: starting new backup job: vzdump 101 102 --storage local --mode snapshot
    INFO: Starting Backup of VM 101 (qemu)
    INFO: Backup started at 2026-11-28 02:00:05
    INFO: backup mode: snapshot
    INFO: VM Name: db                                               `CT Name: ` of a container
    INFO: transferred 32.00 GiB in 312 seconds (105.0 MiB/s)        a VM; of a container tar's `Total bytes written: `
    INFO: Finished Backup of VM 101 (00:05:13)
    INFO: Backup finished at 2026-11-28 02:05:18
    ERROR: Backup of VM 102 failed - unable to find VM '102'        not every failed one has begun
    INFO: Failed at 2026-11-28 02:05:18
    TASK ERROR: job errors                                          or `TASK OK`, or `TASK WARNINGS: 2`

A warning fails no guest: PVE 9 warns of every VM whose EFI disk lacks the certificates of 2023, and has backed it up.
Times are the node's local time without a zone. Containers sent to a Proxmox Backup Server, and providers, do not tell
what was read. Sources: `exec_backup` and `exec_backup_task` in PVE/VZDump.pm of pve-manager, `debugmsg` in
PVE/VZDump/Plugin.pm of pve-guest-common (a message of several lines has the prefix on each), PVE/VZDump/QemuServer.pm
of qemu-server, LXC.pm of pve-container, `active_workers` and `tee_worker` in PVE/RESTEnvironment.pm, `read_status` in
PVE/UPID.pm and `read_active_workers` in PVE/INotify.pm of pve-common, read in the versions of PVE 8 and 9.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, NamedTuple

from pvehook.contract.text import printable
from pvehook.contract.upid import Upid, parse_upid

LoggedResult = Literal["ok", "failed", "refused", "cancelled", "unknown"]

_NAME_LIMIT: Final = 64
_ERROR_LIMIT: Final = 300
_LINE_LIMIT_BYTES: Final = 4000
_MOST_GUESTS: Final = 2000

_TIME = r"\d{4}-\d\d-\d\d\ \d\d:\d\d:\d\d"
_VMID = r"[1-9]\d{2,8}"
_LINE: Final = re.compile(
    rf"""INFO:\ (?:
        (?P<run>starting\ new\ backup\ job:\ vzdump(?P<vmids>(?:\ {_VMID})*)(?:\ --.*)?)
      | (?P<elsewhere>skip\ external\ VMs:\ (?P<skipped>[\d,\ ]+))
      | (?P<guest>Starting\ Backup\ of\ VM\ (?P<vmid>{_VMID})\ \((?P<vmtype>qemu|lxc)\))
      | Backup\ started\ at\ (?P<began>{_TIME})
      | backup\ mode:\ (?P<mode>\w{{1,16}})
      | (?:VM|CT)\ Name:\ (?P<name>.+)
      | (?P<transferred>transferred\ (?P<amount>\d{{1,9}}(?:\.\d{{1,9}})?)\ (?P<unit>B|KiB|MiB|GiB|TiB|PiB)\ in\ .*)
      | Total\ bytes\ written:\ (?P<written>\d{{1,18}})\b.*
      | (?P<refusal>pvehook:\ (?:this\ run|guest\ (?P<refused>{_VMID}))\ is\ refused:\ (?P<why>.*))
      | (?P<finished>Finished\ Backup\ of\ VM\ (?P<done>{_VMID})\ \((?P<h>\d{{2,5}}):(?P<m>\d\d):(?P<s>\d\d)\))
      | (?:Backup\ finished|Failed)\ at\ (?P<ended>{_TIME})
    )
    | (?P<failure>ERROR:\ Backup\ of\ VM\ (?P<failed>{_VMID})\ failed\ -\ (?P<error>.*))
    | ERROR:\ (?P<more>.*)
    | TASK\ (?P<status>OK|WARNINGS:\ \d+|ERROR:\ .*)""",
    re.VERBOSE | re.ASCII,
)
"""`lastgroup` is the outer name of what matched."""
_OF_USE: Final = re.compile(
    rb"^(?:INFO: (?:starting new|skip external|[SF]|Backup |backup mode|[VC][MT] Name|transferred|Total|pvehook: [tg])"
    rb"|ERROR: |TASK ).*",
    re.MULTILINE,
)
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LISTED: Final = re.compile(r"(UPID:\S+)(?: [01])?(?: ([0-9A-Fa-f]{8})(?: .*)?)?")
_INTERRUPTED: Final = ("interrupted by signal", "received interrupt")
JOB_ERRORS: Final = "ERROR: job errors"
"""A run that came to its end, and some of its guests failed."""


class ListedTask(NamedTuple):
    upid: Upid
    ended_s: int | None
    """When Proxmox saw that it had ended, in seconds since the epoch; None: it had not."""


class LoggedGuest(NamedTuple):
    """One guest's turn. Wall-clock times are the node's own, without a zone."""

    vmid: int
    vmtype: str | None
    name: str | None
    mode: str | None
    began: datetime | None
    """None: it failed before its backup began."""
    ended: datetime | None
    took_s: int | None
    """As vzdump tells it, of one that is `ok`."""
    result: LoggedResult
    error: str
    """Why there is no good backup, in vzdump's words; empty where it tells none."""
    read_bytes: float | None


class TaskLog(NamedTuple):
    guests: tuple[LoggedGuest, ...]
    """In their order."""
    without_turn: tuple[int, ...]
    """Guests that the run was started for by number and never came to, because it broke off."""
    result: LoggedResult
    """Of the run itself; `unknown`: the log has no end."""
    error: str


def parse_task_list(text: str) -> list[ListedTask]:
    """Proxmox's list of tasks, `index` (`UPID ENDED STATUS`) or `active` (`UPID 0|1 [ENDED [STATUS]]`); ENDED is a
    hexadecimal number of seconds. Lines of another kind are skipped."""
    tasks = []
    for line in text.split("\n"):
        match = _LISTED.fullmatch(line[:_LINE_LIMIT_BYTES])
        upid = parse_upid(match[1]) if match else None
        if match and upid and upid.text == match[1]:
            tasks.append(ListedTask(upid, int(match[2], 16) if match[2] else None))
    return tasks


def parse_task_log(data: bytes) -> TaskLog:
    """A vzdump task's log, or its beginning. Never raises: what is damaged or cut off is told as `unknown`."""
    log = _Log()
    for line in _lines(data):
        match = _LINE.fullmatch(line)
        kind = match.lastgroup if match else None
        if kind != "more":
            log.failing = None
        if match and kind and len(log.turns) < _MOST_GUESTS:
            _TOLD[kind](log, match)
            if kind == "failure":
                log.failing = log.turns[-1]
    refusal = log.refusal if log.result == "failed" else None
    seen = {turn.vmid for turn in log.turns} | log.elsewhere
    broke_off = log.result in ("failed", "cancelled") and log.error
    return TaskLog(
        tuple(turn.told() for turn in log.turns),
        tuple(vmid for vmid in log.vmids if vmid not in seen) if broke_off else (),
        "refused" if refusal else log.result,
        refusal or log.error,
    )


@dataclass
class _Turn:
    vmid: int
    vmtype: str | None = None
    name: str | None = None
    mode: str | None = None
    began: datetime | None = None
    ended: datetime | None = None
    took_s: int | None = None
    result: LoggedResult = "unknown"
    error: str = ""
    refusal: str = ""
    read_bytes: float | None = None

    def told(self) -> LoggedGuest:
        refused = self.result == "failed" and self.refusal
        return LoggedGuest(
            self.vmid,
            self.vmtype,
            self.name,
            self.mode,
            self.began,
            self.ended,
            self.took_s,
            "refused" if refused else self.result,
            refused or self.error,
            self.read_bytes if self.result == "ok" else None,
        )


@dataclass
class _Log:
    vmids: tuple[int, ...] = ()
    elsewhere: set[int] = field(default_factory=set)
    turns: list[_Turn] = field(default_factory=list)
    failing: _Turn | None = None
    """Its error goes on in the next line."""
    refusal: str = ""
    result: LoggedResult = "unknown"
    error: str = ""

    def open_turn(self) -> _Turn | None:
        return self.turns[-1] if self.turns and self.turns[-1].result == "unknown" else None


def _lines(data: bytes) -> Iterator[str]:
    """Those that can be of use: most tell of a backup's progress."""
    for found in _OF_USE.finditer(data):
        yield found[0][:_LINE_LIMIT_BYTES].decode("utf-8", "replace").rstrip("\r")


def _run(log: _Log, match: re.Match[str]) -> None:
    log.vmids = tuple(dict.fromkeys(map(int, match["vmids"].split())))


def _elsewhere(log: _Log, match: re.Match[str]) -> None:
    log.elsewhere |= {int(vmid) for vmid in re.findall(r"\d{3,9}", match["skipped"])}


def _guest(log: _Log, match: re.Match[str]) -> None:
    log.turns.append(_Turn(int(match["vmid"]), match["vmtype"]))


def _finished(log: _Log, match: re.Match[str]) -> None:
    if (turn := log.open_turn()) and turn.vmid == int(match["done"]):
        turn.result = "ok"
        turn.took_s = int(match["h"]) * 3600 + int(match["m"]) * 60 + int(match["s"])


def _failure(log: _Log, match: re.Match[str]) -> None:
    turn = log.open_turn()
    if turn is None or turn.vmid != int(match["failed"]):
        log.turns.append(turn := _Turn(int(match["failed"])))
    turn.error = printable(match["error"].strip(), _ERROR_LIMIT)
    turn.result = _result(turn.error)


def _more(log: _Log, match: re.Match[str]) -> None:
    if log.failing is not None and match["more"].strip():
        log.failing.error = printable(f"{log.failing.error}; {match['more'].strip()}", _ERROR_LIMIT)


def _refusal(log: _Log, match: re.Match[str]) -> None:
    why = printable(match["why"].partition("; it opens next")[0].strip(), _ERROR_LIMIT)
    turn = log.open_turn()
    if match["refused"] is None:
        log.refusal = why
    elif turn is not None and turn.vmid == int(match["refused"]):
        turn.refusal = why


def _ended(log: _Log, match: re.Match[str]) -> None:
    if log.turns and log.turns[-1].result != "unknown":
        log.turns[-1].ended = _time(match["ended"])


def _status(log: _Log, match: re.Match[str]) -> None:
    status = match["status"]
    if status == JOB_ERRORS or not status.startswith("ERROR: "):
        log.result = "ok"
        return
    log.error = printable(status.removeprefix("ERROR: ").strip(), _ERROR_LIMIT)
    log.result = _result(log.error)


def _of_turn(take: Callable[[_Turn, re.Match[str]], None]) -> Callable[[_Log, re.Match[str]], None]:
    def told(log: _Log, match: re.Match[str]) -> None:
        if (turn := log.open_turn()) is not None:
            take(turn, match)

    return told


def _began(turn: _Turn, match: re.Match[str]) -> None:
    turn.began = _time(match["began"])


def _mode(turn: _Turn, match: re.Match[str]) -> None:
    turn.mode = match["mode"]


def _name(turn: _Turn, match: re.Match[str]) -> None:
    turn.name = printable(match["name"].strip(), _NAME_LIMIT)


def _transferred(turn: _Turn, match: re.Match[str]) -> None:
    turn.read_bytes = float(match["amount"]) * 1024 ** _UNITS.index(match["unit"])


def _written(turn: _Turn, match: re.Match[str]) -> None:
    turn.read_bytes = float(match["written"])


_TOLD: Final[dict[str, Callable[[_Log, re.Match[str]], None]]] = {
    "run": _run,
    "elsewhere": _elsewhere,
    "guest": _guest,
    "began": _of_turn(_began),
    "mode": _of_turn(_mode),
    "name": _of_turn(_name),
    "transferred": _of_turn(_transferred),
    "written": _of_turn(_written),
    "refusal": _refusal,
    "finished": _finished,
    "ended": _ended,
    "failure": _failure,
    "more": _more,
    "status": _status,
}


def _result(error: str) -> LoggedResult:
    return "cancelled" if any(words in error for words in _INTERRUPTED) else "failed"


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # there is no such day
        return None
