"""A Linux guest small enough to boot in a test, with Debian's real qemu-ga in it.

Everything comes from Debian packages that are downloaded and extracted, never installed, by an apt with lists
and sources of its own. Built once for each agent version and kept outside the repository:

    ${XDG_CACHE_HOME:-~/.cache}/pvehook/
        guest-5d0c91ab3e77/     the hash is of this file and the agent's version
            vmlinux             unpacked: QEMU boots it by the PVH entry, about a second faster than vmlinuz
            initramfs           busybox, qemu-ga, its libraries, the virtio modules in the order to load them
        guest-5d0c91ab3e77.lock held while it is built, so two test runs build it once
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

AGENT_SUITES = {"7.2": "bookworm", "10.0": "bookworm-backports"}
"""The agent's version and the Debian suite that has it. Both run on the same libraries, those of bookworm."""

MIRROR = "http://deb.debian.org"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
KERNEL = "linux-image-cloud-amd64"  # depends on the package that holds the kernel of the day
AGENT = "qemu-guest-agent"
PACKAGES = ("busybox-static", "libc6", "libglib2.0-0", "libnuma1", "libpcre2-8-0", "libudev1", "liburing2")
LIBRARIES = (
    *("ld-linux-x86-64.so.2", "libc.so.6", "libm.so.6"),
    *("libglib-2.0.so.0", "libgmodule-2.0.so.0", "libnuma.so.1", "libpcre2-8.so.0"),
    *("libudev.so.1", "liburing.so.2"),
)
"""What `objdump -p qemu-ga` names as NEEDED, and what those need."""

MODULES = ("virtio_pci", "virtio_console", "virtio_scsi", "sd_mod", "loop")
"""The rest (ext4, the serial console) is built into Debian's cloud kernel. `loop` is for freezing loop mounts."""

TOOLS = ("apt-get", "apt-cache", "dpkg-deb", "lz4")
DOWNLOAD_DEADLINE_S = 300

MARKER = "pvehook-guest-is-up"
"""What the guest prints on its serial console when everything in it was started."""

INIT = rf"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin LD_LIBRARY_PATH=/lib
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read module; do insmod "/modules/$module" || echo "cannot load $module"; done </modules/order
# A guest that everybody forgot switches itself off.
(sleep 1200; poweroff -f) &

mkdir -p /dev/virtio-ports /run
for port in /sys/class/virtio-ports/*; do
    ln -s "../${{port##*/}}" "/dev/virtio-ports/$(cat "$port/name")"
done

# The kernel command line holds pvehook.disks=MOUNTPOINT,MOUNTPOINT for scsi0, scsi1. Disks appear a moment later, and
# sda may be scsi1: the kernel looks at them at the same time.
disks=$(sed -n 's/.*pvehook\.disks=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' ')
number=0
for mountpoint in $disks; do
    tries=0
    until disk=$(ls /sys/class/scsi_disk/*:0:$number:0/device/block 2>/dev/null) || [ $tries -ge 100 ]; do
        tries=$((tries + 1))
        sleep 0.05
    done
    mkdir -p "$mountpoint"
    mount -t ext4 "/dev/$disk" "$mountpoint" || echo "cannot mount scsi$number"
    number=$((number + 1))
done

qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run &
echo {MARKER}

# A line in, its output out, then a line of its own: the ASCII record separator and the exit code.
exec 3<>/dev/virtio-ports/pvehook.shell
while :; do
    if IFS= read -r line <&3; then
        (eval "$line") >&3 2>&1 3>&- </dev/null
        printf '\036%d\n' $? >&3
    else
        sleep 0.1 # nobody is connected yet
    fi
done
"""


class CannotBuild(Exception):
    """The image cannot be made on this machine: a tool, the network or a package is missing."""


class GuestImage(NamedTuple):
    """The two files that QEMU boots."""

    kernel: Path
    initramfs: Path


def guest_image(agent: str) -> GuestImage:
    """The image with that agent (a key of AGENT_SUITES), built first if the cache does not hold it."""
    recipe = Path(__file__).read_bytes() + agent.encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pvehook"
    image = cache / f"guest-{hashlib.sha256(recipe).hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with open(f"{image}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.is_dir():
            _build(agent, image)
    return GuestImage(image / "vmlinux", image / "initramfs")


def _build(agent: str, image: Path) -> None:
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise CannotBuild(f"{', '.join(missing)} not installed")
    if not os.path.exists(KEYRING):
        raise CannotBuild(f"{KEYRING} is missing (package debian-archive-keyring)")
    with tempfile.TemporaryDirectory(prefix="guest-", dir=image.parent) as scratch:
        work = Path(scratch)
        tree = _download(work, agent)
        finished = work / "finished"
        finished.mkdir()
        (finished / "vmlinux").write_bytes(_unpacked_kernel(next(tree.glob("boot/vmlinuz-*"))))
        (finished / "initramfs").write_bytes(_initramfs(tree))
        finished.rename(image)


def _download(work: Path, agent: str) -> Path:
    """Downloads and extracts all packages; returns the tree they make together."""
    for directory in ("lists/partial", "cache", "debs", "tree"):
        (work / directory).mkdir(parents=True)
    signed = f"deb [arch=amd64 signed-by={KEYRING}] {MIRROR}"
    (work / "sources.list").write_text(
        f"{signed}/debian bookworm main\n"
        f"{signed}/debian bookworm-backports main\n"
        f"{signed}/debian-security bookworm-security main\n"
    )
    (work / "status").touch()
    options = {
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State::lists": work / "lists",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "",  # its own user could not write here
        "Acquire::Languages": "none",
        "APT::Update::Error-Mode": "any",  # else a mirror out of reach is only a warning
    }
    apt = [f"-o{name}={value}" for name, value in options.items()]
    _run(["apt-get", *apt, "-qq", "update"], work)
    depends = _run(["apt-cache", *apt, "depends", KERNEL], work).decode()
    kernel = re.search(r"Depends: (linux-image-\S+)", depends)
    if kernel is None:
        raise CannotBuild(f"{KERNEL} names no kernel: {depends!r}")
    wanted = [kernel[1], *PACKAGES, f"{AGENT}/{AGENT_SUITES[agent]}"]
    _run(["apt-get", *apt, "-qq", "download", *wanted], work / "debs")
    for deb in (work / "debs").iterdir():
        _run(["dpkg-deb", "-x", str(deb), str(work / "tree")], work)
    return work / "tree"


def _run(argv: list[str], directory: Path) -> bytes:
    try:
        done = subprocess.run(
            argv, cwd=directory, capture_output=True, timeout=DOWNLOAD_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CannotBuild(f"{argv[0]} took longer than {DOWNLOAD_DEADLINE_S} s") from error
    if done.returncode != 0:
        raise CannotBuild(f"{argv[0]} failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return done.stdout


def _unpacked_kernel(vmlinuz: Path) -> bytes:
    """The ELF kernel inside `vmlinuz`, which Debian's cloud kernel packs with lz4 (CONFIG_KERNEL_LZ4)."""
    data = vmlinuz.read_bytes()
    start = data.find(b"\x02\x21\x4c\x18")  # the magic of lz4's legacy frame
    # lz4 complains of what follows the frame, but the kernel is out by then: the ELF magic is the check.
    unpacked = subprocess.run(
        ["lz4", "-dc"], input=data[start:], capture_output=True, timeout=60, check=False
    ).stdout
    if start < 0 or not unpacked.startswith(b"\x7fELF"):
        raise CannotBuild(f"{vmlinuz.name} is not packed with lz4")
    return unpacked


def _initramfs(tree: Path) -> bytes:
    def found(name: str) -> bytes:
        return next(path for path in sorted(tree.rglob(name)) if path.is_file()).read_bytes()

    archive = bytearray()
    inode = 0

    def add(name: str, mode: int, data: bytes = b"") -> None:
        """One entry of the newc format, cpio(5)."""
        nonlocal inode
        inode += 1
        path = name.encode() + b"\0"
        fields = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0]
        archive.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + path)
        archive.extend(bytes(-len(archive) % 4) + data)
        archive.extend(bytes(-len(archive) % 4))

    for directory in ("bin", "dev", "lib", "lib64", "modules", "proc", "sys", "tmp"):
        add(directory, stat.S_IFDIR | 0o755)
    add("init", stat.S_IFREG | 0o755, INIT.encode())
    add("bin/busybox", stat.S_IFREG | 0o755, found("busybox"))
    add("bin/qemu-ga", stat.S_IFREG | 0o755, found("qemu-ga"))
    for library in LIBRARIES:
        add(f"lib/{library}", stat.S_IFREG | 0o755, found(library))
    add("lib64/ld-linux-x86-64.so.2", stat.S_IFLNK | 0o777, b"/lib/ld-linux-x86-64.so.2")
    modules = {path.stem: path for path in tree.rglob("*.ko")}
    order: list[str] = []
    for module in MODULES:
        _with_dependencies(module, modules, order)
    for module in order:
        add(f"modules/{module}.ko", stat.S_IFREG | 0o644, modules[module].read_bytes())
    add("modules/order", stat.S_IFREG | 0o644, "".join(f"{module}.ko\n" for module in order).encode())
    add("TRAILER!!!", 0)
    return bytes(archive)


def _with_dependencies(module: str, modules: dict[str, Path], order: list[str]) -> None:
    """Appends `module` to `order`, what it needs before it: the `depends=` of its .modinfo section."""
    if module in order:
        return
    depends = re.search(rb"\0depends=([^\0]*)\0", modules[module].read_bytes())
    for needed in depends[1].decode().split(",") if depends and depends[1] else ():
        _with_dependencies(needed, modules, order)
    order.append(module)
