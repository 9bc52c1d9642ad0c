"""A process that plays one VM's QEMU: daemonized, several threads, a pid file, QEMU's arguments.

It does nothing. What matters is what the kernel knows of it: its parent, its threads, their I/O priority and niceness.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading

from pvehook.host.node import Node
from pvehook.rehearsal import PROGRAM
from pvehook.rehearsal.vzdump.proc_title import set_title

_LIFETIME_S = 600
"""A fake VM that nobody ended ends itself."""

_WITHIN_S = 10.0
"""Its start, and its end after SIGTERM."""


def _pid_file(node: Node, vmid: int) -> str:
    return node.path(f"/var/run/qemu-server/{vmid}.pid")


def start(node: Node, vmid: int, name: str = "") -> int:
    """Start it as `kvm -daemonize` is started; returns the pid that its pid file then holds.

    It inherits what a child inherits, the I/O priority and niceness of the caller's thread included.
    Raises RuntimeError when it did not come up.
    """
    os.makedirs(os.path.dirname(_pid_file(node, vmid)), exist_ok=True)
    code = f"import sys; sys.path.insert(0, {PROGRAM!r}); from pvehook.rehearsal.vm.fake_vm_process import main; main()"
    started = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *_arguments(node, vmid, name)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_WITHIN_S,
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
    path = _pid_file(node, vmid)
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
    with contextlib.suppress(ProcessLookupError), open(os.pidfd_open(pid)) as pidfd:
        signal.pidfd_send_signal(pidfd.fileno(), signal.SIGTERM)
        if not select.select([pidfd], [], [], _WITHIN_S)[0]:
            raise TimeoutError(f"fake VM {vmid}, pid {pid}, still runs {_WITHIN_S:g} s after SIGTERM")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_pid_file(node, vmid))


def main() -> None:
    """The process itself, called with QEMU's arguments; prints its pid once its threads run."""
    arguments = sys.argv[1:]
    if os.fork():  # as qemu -daemonize: the first parent waits for the answer on stdout, then leaves
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.alarm(_LIFETIME_S)
    set_title(arguments, "kvm")
    gate = threading.Event()
    for number in range(3):
        threading.Thread(target=gate.wait, name=f"CPU {number}/KVM", daemon=True).start()
    os.chdir("/")
    with open(arguments[arguments.index("-pidfile") + 1], "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    print(os.getpid(), flush=True)  # if nobody waits for it any more, this fails and ends the process
    with open(os.devnull, "r+b") as null:
        for descriptor in (0, 1, 2):
            os.dup2(null.fileno(), descriptor)
    gate.wait()


def _arguments(node: Node, vmid: int, name: str) -> list[str]:
    """The part of a VM's command line that identifies it (`qm showcmd`)."""
    qmp = node.path(f"/var/run/qemu-server/{vmid}.qmp")
    return [
        *("/usr/bin/kvm", "-id", str(vmid), "-name", f"{name or f'vm{vmid}'},debug-threads=on", "-no-shutdown"),
        *("-chardev", f"socket,id=qmp,path={qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *("-pidfile", _pid_file(node, vmid), "-daemonize"),
    ]
