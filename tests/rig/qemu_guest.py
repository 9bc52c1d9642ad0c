"""A real QEMU with a real guest in it, laid out as Proxmox lays out a VM.

    with qemu_guest(101, disks=("/data",)) as vm:
        with open_agent(vm.qga, Deadline.after(2)) as agent: ...
        vm.run("dd if=/dev/zero of=/data/file bs=1M count=20")

    ROOT/proc -> /proc          so ROOT is a Node
    ROOT/run/qemu-server/       also reached as ROOT/var/run/qemu-server, as on a node
        101.qmp  101.qga        QEMU's listening sockets
        101.pid                 QEMU makes itself a daemon, as under Proxmox
        101.shell               a shell in the guest, for `run`
        101.events              a QMP of the test's own: what QEMU does is seen there, and vzdump's QMP stays free
    ROOT/images/                a raw disk for each mountpoint, ext4, and what else was asked for
    ROOT/101.console            the guest's serial console

Several VMs can share one tree. QEMU runs without KVM, so this works wherever the packages are: 3 to 6 seconds to the
agent's first answer. The agent runs inside the guest and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from pvehook.deadline import Deadline
from pvehook.errors import GuestError
from pvehook.guest.agent import open_agent
from pvehook.guest.sockets import Connection, connect
from tests.rig.guest_image import CannotBuild, GuestImage, guest_image

TOOLS = ("qemu-system-x86_64", "mkfs.ext4")
BOOT_DEADLINE_S = 120
START_DEADLINE_S = 60
END_DEADLINE_S = 20
DISK_BYTES = 64 * 1024 * 1024

Aio = Literal["threads", "io_uring", "native"]
Attach = Literal["drive", "blockdev"]
CdDrive = Literal["none", "empty", "loaded"]

_HOST_CANNOT = ("io_uring", "native AIO", "O_DIRECT")
"""What QEMU's message names when this machine's kernel, file system or QEMU itself lacks what `aio` needs."""


class CannotStart(Exception):
    """This machine has no way to run the guest. The message says what is missing."""


class GuestFailed(Exception):
    """The guest did not do what it must do for a test to be possible."""


class QemuGuest(NamedTuple):
    """One running VM."""

    vmid: int
    pid: int
    root: str
    qmp: str
    qga: str
    events: str
    console: Path
    shell: Connection

    def run(self, command: str, timeout_s: float = 60) -> str:
        """Runs a shell line in the guest and returns what it printed; GuestFailed if it exits non-zero."""
        deadline = Deadline.after(timeout_s)
        self.shell.allow()
        self.shell.send(command.encode() + b"\n", deadline)
        printed = b""
        while True:
            line = self.shell.read_line(deadline)
            before, separator, code = line.partition(b"\x1e")
            printed += before
            if separator:
                break
            printed += b"\n"
        if int(code):
            raise GuestFailed(f"{command!r} exited {int(code)}: {printed.decode(errors='replace')}")
        return printed.decode(errors="replace")


@contextlib.contextmanager
def qemu_guest(
    vmid: int = 101,
    *,
    memory_mb: int = 192,
    agent: str = "7.2",
    disks: Sequence[str] = ("/data",),
    launcher: Sequence[str] = (),
    wait_for_agent: bool = True,
    aio: Aio = "threads",
    attach: Attach = "drive",
    spare_disk: bool = False,
    cd_drive: CdDrive = "none",
    kernel_options: str = "",
    devices: Sequence[str] = (),
    tree: str | None = None,
) -> Iterator[QemuGuest]:
    """Boots a VM and ends it, by its pid, when the block is left.

    `disks` are the mountpoints of its disks: scsi0, scsi1, ... `devices` are block devices of this machine that are its
    disks instead of files; what is on them is lost. `launcher` is put before QEMU's command line, such as
    `("nice", "-n10")`: QEMU inherits the priority of what starts it. Without `wait_for_agent` QEMU runs, but the guest
    may still be booting.

    `aio` and `attach` are how the disks are opened: Proxmox's own choice is io_uring, and `-blockdev` since version 9.
    `spare_disk` adds virtio0, which the guest leaves alone, `cd_drive` ide2. `kernel_options` go to the guest's kernel,
    such as `psi=0`. `tree` is ROOT, an existing directory that other VMs may have too; else it has one of its own.
    Raises CannotStart where the tools are missing, or this machine cannot open a disk that way.
    """
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise CannotStart(f"{', '.join(missing)} not installed")
    try:
        image = guest_image(agent)
    except CannotBuild as error:
        raise CannotStart(f"no guest image: {error}") from error

    # Not pytest's directory: a path in it can be longer than the 108 bytes that QEMU takes for a socket.
    with contextlib.ExitStack() as cleanup:
        root = tree or cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vm-"))
        lay_out(Path(root))
        sockets = os.path.join(root, "var/run/qemu-server")
        storage = _disks(devices or _images(Path(root), vmid, len(disks)), aio, attach)
        storage += _spare_disk(Path(root), vmid, attach) if spare_disk else []
        storage += _cd_drive(Path(root), loaded=cd_drive == "loaded") if cd_drive != "none" else []
        options = f"pvehook.disks={','.join(disks)} {kernel_options}"
        argv = [*launcher, *_command_line(vmid, Path(root), image, memory_mb, storage, options)]
        # QEMU returns when its sockets listen and its pid file is written.
        started = subprocess.run(argv, cwd=root, capture_output=True, timeout=START_DEADLINE_S, check=False)
        if started.returncode != 0:
            printed = started.stderr.decode(errors="replace")
            if aio != "threads" and any(lacking in printed for lacking in _HOST_CANNOT):
                raise CannotStart(f"this machine has no aio={aio}: {printed}")
            raise GuestFailed(f"QEMU does not start: {printed}")
        pid = _pid_of(os.path.join(sockets, f"{vmid}.pid"))
        process = os.pidfd_open(pid)
        cleanup.callback(_end, process, pid)
        guest = QemuGuest(
            vmid=vmid,
            pid=pid,
            root=root,
            qmp=os.path.join(sockets, f"{vmid}.qmp"),
            qga=os.path.join(sockets, f"{vmid}.qga"),
            events=os.path.join(sockets, f"{vmid}.events"),
            console=Path(root, f"{vmid}.console"),
            shell=cleanup.enter_context(connect(os.path.join(sockets, f"{vmid}.shell"))),
        )
        if wait_for_agent:
            _wait_for_agent(guest, process)
        yield guest


def lay_out(root: Path) -> None:
    """Makes the tree, unless it is there."""
    for directory in ("run/qemu-server", "var", "images"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    for link, to in (("var/run", "../run"), ("proc", "/proc")):
        with contextlib.suppress(FileExistsError):
            (root / link).symlink_to(to)


def _pid_of(pid_file: str) -> int:
    """QEMU's pid. One that was launched into another PID namespace has written down the one that it has there."""
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if pid_file in each.cmdline():
                return each.pid
    raise GuestFailed(f"no process names {pid_file}")


def _command_line(
    vmid: int, root: Path, image: GuestImage, memory_mb: int, storage: list[str], options: str
) -> list[str]:
    run = root / "var/run/qemu-server"
    # Proxmox's QEMU has an option `-id VMID`, by which everybody tells VMs apart, and stock QEMU refuses it.
    # Here `-id` is the argument of -L (one more directory to look for firmware in, which does not exist), and
    # the number is what stock QEMU takes for a disk image: a small file of that name, seen as ide0-hd0.
    with open(root / str(vmid), "wb") as disk:
        disk.truncate(512)
    argv = ["qemu-system-x86_64", "-L", "-id", str(vmid)]
    argv += ["-name", f"guest-{vmid},debug-threads=on"]
    argv += ["-machine", "pc,accel=tcg", "-cpu", "max", "-smp", "1", "-m", str(memory_mb)]
    argv += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-daemonize", "-pidfile", str(run / f"{vmid}.pid")]
    for name in ("qmp", "events"):
        argv += ["-chardev", f"socket,id={name},path={run}/{vmid}.{name},server=on,wait=off"]
        argv += ["-mon", f"chardev={name},mode=control"]
    argv += ["-chardev", f"file,id=console,path={root}/{vmid}.console", "-serial", "chardev:console"]
    argv += ["-device", "virtio-serial-pci,id=serial0"]
    for name, port in (("qga", "org.qemu.guest_agent.0"), ("shell", "pvehook.shell")):
        argv += ["-chardev", f"socket,id={name},path={run}/{vmid}.{name},server=on,wait=off"]
        argv += ["-device", f"virtserialport,bus=serial0.0,chardev={name},name={port}"]
    argv += ["-object", "iothread,id=iothread-scsi"]
    argv += ["-device", "virtio-scsi-pci,id=scsihw0,iothread=iothread-scsi"]
    argv += storage
    argv += ["-kernel", str(image.kernel), "-initrd", str(image.initramfs)]
    argv += ["-append", f"console=ttyS0 quiet mitigations=off {options}"]
    return argv


def _images(root: Path, vmid: int, count: int) -> list[str]:
    return [str(_image(root / f"images/vm-{vmid}-disk-{number}.raw", DISK_BYTES)) for number in range(count)]


def _disks(paths: Sequence[str], aio: Aio, attach: Attach) -> list[str]:
    argv = []
    for number, disk in enumerate(paths):
        subprocess.run(["mkfs.ext4", "-q", "-F", disk], timeout=START_DEADLINE_S, check=True)
        argv += _opened(disk, f"drive-scsi{number}", aio, attach)
        argv += ["-device", f"scsi-hd,bus=scsihw0.0,scsi-id={number},drive=drive-scsi{number},id=scsi{number}"]
    return argv


def _spare_disk(root: Path, vmid: int, attach: Attach) -> list[str]:
    disk = _image(root / f"images/vm-{vmid}-spare.raw", 1024 * 1024)
    argv = _opened(disk, "drive-virtio0", "threads", attach)
    return [*argv, "-device", "virtio-blk-pci,drive=drive-virtio0,id=virtio0"]


def _cd_drive(root: Path, *, loaded: bool) -> list[str]:
    medium = f"file={_image(root / 'images/medium.iso', 64 * 1024)},format=raw," if loaded else ""
    argv = ["-drive", f"{medium}if=none,id=drive-ide2,media=cdrom"]
    return [*argv, "-device", "ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2"]


def _image(path: Path, size_bytes: int) -> Path:
    with open(path, "wb") as file:
        file.truncate(size_bytes)
    return path


def _opened(disk: str | Path, name: str, aio: Aio, attach: Attach) -> list[str]:
    """The disk as Proxmox 8 opens it, or as Proxmox 9 does: with a throttle node on top, which bears the name."""
    if attach == "drive":
        return ["-drive", f"file={disk},if=none,id={name},format=raw,cache=none,aio={aio}"]
    direct = {"direct": True, "no-flush": False}
    file = {"driver": "file", "filename": str(disk), "aio": aio, "cache": direct, "node-name": f"file-{name}"}
    raw = {"driver": "raw", "file": file, "cache": direct, "node-name": f"format-{name}"}
    top = {"driver": "throttle", "throttle-group": f"throttle-{name}", "file": raw, "node-name": name}
    return ["-object", f"throttle-group,id=throttle-{name}", "-blockdev", json.dumps(top)]


def _wait_for_agent(guest: QemuGuest, process: int) -> None:
    until_s = time.monotonic() + BOOT_DEADLINE_S
    while True:
        try:
            deadline = Deadline.after(5)
            with open_agent(guest.qga, deadline) as agent:
                agent.ping(deadline)
            return
        except GuestError as error:
            ended = select.select([process], [], [], 0)[0]
            if ended or time.monotonic() > until_s:
                console = guest.console.read_text(errors="replace")[-2000:]
                why = "QEMU ended" if ended else f"no agent within {BOOT_DEADLINE_S} s ({error})"
                raise GuestFailed(f"{why}; the guest's console:\n{console}") from error


def _end(process: int, pid: int) -> None:
    """Ends exactly this process, whatever has become of its number, and waits until it is gone."""
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        if not select.select([process], [], [], END_DEADLINE_S)[0]:
            raise GuestFailed(f"QEMU (pid {pid}) is still there {END_DEADLINE_S} s after SIGKILL")
    finally:
        os.close(process)


def thread_names(pid: int) -> dict[int, str]:
    """The name of each thread of `pid`, by thread id."""
    names = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        names[int(tid)] = re.sub(r"\n$", "", Path(f"/proc/{pid}/task/{tid}/comm").read_text())
    return names
