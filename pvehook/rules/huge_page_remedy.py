"""How a guest's huge pages are kept off for good, by its distribution and boot loader: the parameter
`transparent_hugepage=` on its kernel's command line (Documentation/admin-guide/kernel-parameters.txt).

Sources of the commands: grub-mkconfig(8) and Debian's update-grub(8); grubby(8); pbl(8) of perl-bootloader; the README
of sdbootutil; kernel-install(8); proxmox-boot-tool in pve-docs (sysboot); Alpine's update-extlinux.conf. Of what an
agent is not allowed: qemu-ga(8), and /etc/sysconfig/qemu-ga as Red Hat's and SUSE's qemu-guest-agent have it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from pvehook.contract.guest_facts import BootFacts, GuestOs

PARAMETER: Final = "transparent_hugepage=madvise"

EXPLAINED: Final = (
    "`madvise` gives huge pages only to programs that ask for them (madvise(2), MADV_HUGEPAGE), `never` to nobody; with"
    " `always` the kernel gathers memory for every program, and whoever needs memory at that moment waits for it."
)

NEEDED_TO_READ: Final = ("guest-file-open", "guest-file-read", "guest-file-close")
NEEDED_TO_SET: Final = (*NEEDED_TO_READ, "guest-file-write", "guest-file-flush")

_GRUB: Final = f"echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {PARAMETER}\"' >>/etc/default/grub"
_CMDLINE: Final = f"sed -i '1s/$/ {PARAMETER}/' /etc/kernel/cmdline"
_LOADER_CONF: Final = "/loader/loader.conf"
_RED_HAT: Final = {"rhel", "fedora", "centos", "rocky", "almalinux", "ol", "amzn"}
_SUSE: Final = {"suse", "opensuse", "opensuse-leap", "opensuse-tumbleweed", "sles", "sled"}
_SYSCONFIG: Final = "/etc/sysconfig/qemu-ga"
_RESTART: Final = "then `systemctl restart qemu-guest-agent`"


class Remedy(NamedTuple):
    boot_loader: str
    commands: tuple[str, ...]
    """To be run in the guest, as root, in this order; they count from its next boot. Empty: it is not known how."""


UNKNOWN: Final = Remedy("unknown boot loader", ())


def remedy_for(os: GuestOs | None, boot: BootFacts | None) -> Remedy:  # noqa: PLR0911  (a line for each boot loader)
    """By what the guest's agent tells. Where it may read no files, by the distribution's usual boot loader."""
    if boot is None:
        return _by_name(os.id if os is not None and os.id is not None else "")
    like, files = set(boot.like), set(boot.files)
    has_cmdline = "/etc/kernel/cmdline" in files
    if "/etc/kernel/proxmox-boot-uuids" in files:
        how = _CMDLINE if boot.by_systemd_boot and has_cmdline else _GRUB
        return Remedy("proxmox-boot-tool", (how, "proxmox-boot-tool refresh"))
    if like & _RED_HAT:
        return _GRUBBY
    if "/usr/bin/sdbootutil" in files and has_cmdline:
        return Remedy("sdbootutil", (_CMDLINE, "sdbootutil update-all-entries"))
    if boot.by_systemd_boot:
        return _systemd_boot(like, files)
    if like & _SUSE:
        return _PBL
    if "/etc/default/grub" in files:
        if "/usr/sbin/update-grub" in files:
            return _UPDATE_GRUB
        for name in ("grub", "grub2"):
            if f"/boot/{name}/grub.cfg" in files:
                return Remedy("GRUB", (_GRUB, f"{name}-mkconfig -o /boot/{name}/grub.cfg"))
    if "/etc/update-extlinux.conf" in files:
        edit = f"sed -i 's/^default_kernel_opts=\"/&{PARAMETER} /' /etc/update-extlinux.conf"
        return Remedy("extlinux", (edit, "update-extlinux"))
    if any(path.endswith(_LOADER_CONF) for path in files):
        return _systemd_boot(like, files)
    return UNKNOWN


def _systemd_boot(like: set[str], files: set[str]) -> Remedy:
    if "/etc/kernel/cmdline" in files:
        kernel = "/boot/vmlinuz-$(uname -r)" if "debian" in like else "/usr/lib/modules/$(uname -r)/vmlinuz"
        return Remedy("systemd-boot", (_CMDLINE, f'kernel-install add "$(uname -r)" "{kernel}"'))
    for path in sorted(files):
        if path.endswith(_LOADER_CONF):
            entries = path.removesuffix("loader.conf") + "entries/*.conf"
            return Remedy("systemd-boot", (f"sed -i '/^options/s/$/ {PARAMETER}/' {entries}",))
    return Remedy("systemd-boot", ())


def _by_name(name: str) -> Remedy:
    if name in _RED_HAT:
        return _GRUBBY
    if name in _SUSE:
        return _PBL
    if name in ("debian", "ubuntu"):
        return _UPDATE_GRUB
    return _GENTOO if name == "gentoo" else UNKNOWN


_GRUBBY: Final = Remedy("grubby", (f"grubby --update-kernel=ALL --args={PARAMETER}",))
_PBL: Final = Remedy("GRUB (pbl)", (f"pbl --add-option {PARAMETER} --config",))
_UPDATE_GRUB: Final = Remedy("GRUB", (_GRUB, "update-grub"))
_GENTOO: Final = Remedy("GRUB", (_GRUB, "grub-mkconfig -o /boot/grub/grub.cfg"))


def why_forbidden(blocked: Collection[str], needed: Sequence[str], os: GuestOs | None) -> str | None:
    """Why its agent may not do what needs these commands, and what to change in the guest; None: it may."""
    missing = [each for each in needed if each in blocked]
    if not missing:
        return None
    if os is not None and os.id is not None and os.id in _RED_HAT | _SUSE:
        how = (
            f"take these out of BLACKLIST_RPC= or BLOCK_RPCS= in {_SYSCONFIG}, or add them to --allow-rpcs= in its"
            " FILTER_RPC_ARGS=, whichever it has"
        )
    else:
        how = "take these out of block-rpcs=, or add them to allow-rpcs=, in /etc/qemu/qemu-ga.conf"
    names = ",".join(missing)
    return f"its administrator does not allow the agent {names}: to change that, in the guest {how}; {_RESTART}"
