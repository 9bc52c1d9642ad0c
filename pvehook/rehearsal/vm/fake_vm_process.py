"""A process that plays one VM's QEMU: daemonized, several threads, a pid file, QEMU's arguments.

It does nothing. What matters is what the kernel knows of it: its parent, its threads, their I/O priority and niceness.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading

from pvehook.host.node import Node
from pvehook.rehearsal import PROGRAM
from pvehook.rehearsal.vzdump.proc_title import padding, set_title

LIFETIME_S = 600
"""A fake VM that nobody ended ends itself."""

_START_S = 10.0
_STOP_S = 10.0


def pid_file(node: Node, vmid: int) -> str:
    return node.path(f"/var/run/qemu-server/{vmid}.pid")


def start(node: Node, vmid: int, name: str = "") -> int:
    """Start it as `kvm -daemonize` is started; returns the pid that its pid file then holds.

    It inherits what a child inherits, the I/O priority and niceness of the caller's thread included.
    Raises RuntimeError when it did not come up.
    """
    os.makedirs(os.path.dirname(pid_file(node, vmid)), exist_ok=True)
    arguments = _arguments(node, vmid, name)
    code = f"import sys; sys.path.insert(0, {PROGRAM!r}); from pvehook.rehearsal.vm.fake_vm_process import main; main()"
    command = [sys.executable, "-I", "-S", "-c", code]
    filled = padding(command, arguments)
    started = subprocess.run(
        [*command, filled] if filled else command,
        input=json.dumps({"pid_file": pid_file(node, vmid), "arguments": arguments}),
        capture_output=True,
        text=True,
        timeout=_START_S,
        check=False,
    )
    if started.returncode != 0 or not started.stdout:
        raise RuntimeError(f"the fake VM {vmid} did not start: {started.stderr.strip()}")
    return int(started.stdout)


def running_pid(node: Node, vmid: int) -> int | None:
    """The pid of this tree's fake VM `vmid`, or None.

    A pid file alone proves nothing, since pids are reused: the process must name this pid file. And it must be Python,
    so that a real VM of the same number is never taken for a fake one, whatever the tree.
    """
    path = pid_file(node, vmid)
    try:
        with open(path, encoding="ascii") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            arguments = cmdline.read().split(b"\0")
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except (OSError, ValueError):
        return None
    is_it = arguments[0] == b"/usr/bin/kvm" and os.fsencode(path) in arguments and program.startswith("python")
    return pid if is_it else None


def stop(node: Node, vmid: int) -> None:
    """End the fake VM, if it runs, and wait until it is gone. Raises TimeoutError."""
    pid = running_pid(node, vmid)
    if pid is None:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not select.select([pidfd], [], [], _STOP_S)[0]:
            raise TimeoutError(f"fake VM {vmid}, pid {pid}, still runs {_STOP_S:g} s after SIGTERM")
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(pid_file(node, vmid))


def main() -> None:
    """The process itself; reads its arguments from stdin, prints its pid once its threads run."""
    given = json.load(sys.stdin)
    if os.fork():  # as qemu -daemonize: the first parent waits for the answer on stdout, then leaves
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.alarm(LIFETIME_S)
    set_title(given["arguments"], "kvm")
    gate = threading.Event()
    for number in range(3):
        threading.Thread(target=gate.wait, name=f"CPU {number}/KVM", daemon=True).start()
    os.chdir("/")
    with open(given["pid_file"], "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    print(os.getpid(), flush=True)  # if nobody waits for it any more, this fails and ends the process
    with open(os.devnull, "r+b") as null:
        for descriptor in (0, 1, 2):
            os.dup2(null.fileno(), descriptor)
    gate.wait()


def _arguments(node: Node, vmid: int, name: str) -> list[str]:
    """The part of a VM's command line that identifies it (`qm showcmd`)."""
    return [
        "/usr/bin/kvm",
        "-id",
        str(vmid),
        "-name",
        f"{name or f'vm{vmid}'},debug-threads=on",
        "-no-shutdown",
        "-chardev",
        f"socket,id=qmp,path={node.path(f'/var/run/qemu-server/{vmid}.qmp')},server=on,wait=off",
        "-mon",
        "chardev=qmp,mode=control",
        "-pidfile",
        pid_file(node, vmid),
        "-daemonize",
    ]
