"""One hook call: what the hook sends to the daemon and what it gets back.

The request is one JSON line:

    {"v":1,"argv":["pre-stop","snapshot","101"],"env":{"STOREID":"local","VMTYPE":"qemu"},"worker":4711,"until":8812.345}

`until` is the moment on CLOCK_MONOTONIC at which the hook stops waiting for the answer. `"chain_ran":true` comes with
the second call of a phase whose first was answered with `first`.

The guests' hookscript sends another line, and waits for no reply:

    {"v":1,"started":101}

The reply is text, because the hook must not pay for a JSON parser:

    taken-up                     at once: somebody is there, and the hook waits until `until`
    wait SECONDS                 sometimes: both sides add these seconds to `until`
    exit CODE chain /path        or `exit CODE`, then the lines that vzdump shows, until the end of the stream;
    exit 0 first /path           the hook runs this script, and calls again if that ends well;
    not-served                   and a reason: the hook goes on as without a daemon
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from typing import NamedTuple

REQUEST_LIMIT_BYTES = 64 * 1024  # a request is some 500 bytes; a path has at most 4096


class HookCall(NamedTuple):
    """A phase as vzdump announced it. Absent variables are None (facts/vzdump.md says when which is absent)."""

    phase: str
    mode: str | None
    vmid: int | None
    worker_pid: int
    """vzdump's worker as the hook found it. Check it against the kernel before you trust it."""
    vmtype: str | None
    hostname: str | None
    storeid: str | None
    dumpdir: str | None
    target: str | None
    until_s: float | None = None
    """When the hook stops waiting, on CLOCK_MONOTONIC; None where the call did not say."""
    chain_ran: bool = False
    """The second call of a phase: its chained script has ended well."""


class Reply(NamedTuple):
    """What the hook prints and how it exits."""

    lines: tuple[str, ...] = ()
    exit_code: int = 0
    chain: str | None = None
    """The script that vzdump.conf named before pvehook; run only when exit_code is 0."""
    chain_first: bool = False
    """The phase was not begun: the hook runs `chain` and calls again."""
    not_served: str = ""
    """Why this call cannot be decided: the hook then goes on without the daemon, which asks the window."""


class BadCall(ValueError):
    """Not a valid request. Its text is safe to show."""


def parse_call(line: bytes) -> HookCall:
    """Parses one request line. Raises BadCall."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise BadCall("not a line of JSON") from None
    if not isinstance(request, dict) or request.get("v") != 1:
        raise BadCall("not a request of version 1")
    argv, env, worker_pid = request.get("argv"), request.get("env"), request.get("worker")
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        raise BadCall("argv is not a list of texts")
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise BadCall("env is not a table of texts")
    if type(worker_pid) is not int:  # a bool is an int too
        raise BadCall("worker is not a process id")
    if worker_pid <= 1:
        raise BadCall("its worker has ended")
    until = request.get("until")
    # An integer beyond every float is no moment either.
    if until is not None and (type(until) not in (int, float) or not abs(until) < sys.float_info.max):
        raise BadCall("until is not a moment in seconds")
    call = call_from(argv, env, worker_pid, None if until is None else float(until))
    return call._replace(chain_ran=request.get("chain_ran") is True)


def call_from(argv: list[str], env: dict[str, str], worker_pid: int, until_s: float | None = None) -> HookCall:
    """Parses a hook's arguments and environment. Raises BadCall."""
    if not argv:
        raise BadCall("called without a phase; vzdump calls it as SCRIPT PHASE [MODE VMID]")
    vmid = None
    if len(argv) >= 3:
        if not (argv[2].isascii() and argv[2].isdigit() and len(argv[2]) <= 9):
            raise BadCall(f"{argv[2]!r} is not a guest's number")
        vmid = int(argv[2])
    return HookCall(
        phase=argv[0],
        mode=argv[1] if len(argv) >= 2 else None,
        vmid=vmid,
        worker_pid=worker_pid,
        vmtype=env.get("VMTYPE"),
        hostname=env.get("HOSTNAME"),
        storeid=env.get("STOREID"),
        dumpdir=env.get("DUMPDIR"),
        target=env.get("TARGET"),
        until_s=until_s,
    )


def encode_started(vmid: int) -> bytes:
    """Proxmox has started this VM."""
    return json.dumps({"v": 1, "started": vmid}).encode("ascii") + b"\n"


def parse_started(line: bytes) -> int | None:
    """The VM that was started; None: the line says nothing of the kind."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return None
    vmid = request.get("started") if isinstance(request, dict) and request.get("v") == 1 else None
    return vmid if type(vmid) is int and 0 < vmid < 10**9 else None


TAKEN_UP = b"taken-up\n"
"""Sent as soon as a call is understood: the hook waits only a moment for this."""


def encode_patience(seconds: float) -> bytes:
    """Goes before a reply that takes longer than the phase's deadline: `wait SECONDS`."""
    return f"wait {math.ceil(seconds)}\n".encode("ascii")


def encode_reply(reply: Reply) -> bytes:
    """The reply as the hook reads it."""
    if reply.not_served:
        return b"not-served\n" + encode_lines([reply.not_served])
    head = f"exit {reply.exit_code}"
    if reply.chain is not None and reply.exit_code == 0:
        head += f" {'first' if reply.chain_first else 'chain'} {reply.chain}"
    return encode_lines([head, *reply.lines])


def encode_lines(lines: Iterable[str]) -> bytes:
    """Lines for vzdump's log. A line feed inside a line would forge another line: it becomes a space."""
    text = "".join(line.replace("\n", " ").replace("\r", " ") + "\n" for line in lines)
    return text.encode("utf-8", "replace")
