"""How huge pages are kept off for good: by distribution and boot loader, exactly."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pvehook.contract.guest_facts import BOOT_FILES, BootFacts, GuestOs
from pvehook.rules.huge_page_remedy import NEEDED_TO_READ, NEEDED_TO_SET, remedy_for, why_forbidden

GRUB = "echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX transparent_hugepage=madvise\"' >>/etc/default/grub"
CMDLINE = "sed -i '1s/$/ transparent_hugepage=madvise/' /etc/kernel/cmdline"
GRUBBY = "grubby --update-kernel=ALL --args=transparent_hugepage=madvise"
PBL = "pbl --add-option transparent_hugepage=madvise --config"


def os_named(name: str) -> GuestOs:
    return GuestOs(name, name, "9", "5.14.0")


def boots(like: str, *files: str, by_systemd_boot: bool = False) -> BootFacts:
    assert set(files) <= set(BOOT_FILES)
    return BootFacts(tuple(like.split()), files, by_systemd_boot)


@pytest.mark.parametrize(
    ("boot", "loader", "commands"),
    [
        (
            boots("debian", "/etc/default/grub", "/boot/grub/grub.cfg", "/usr/sbin/update-grub"),
            "GRUB",
            (GRUB, "update-grub"),
        ),
        (
            boots("ubuntu debian", "/etc/default/grub", "/boot/grub/grub.cfg", "/usr/sbin/update-grub"),
            "GRUB",
            (GRUB, "update-grub"),
        ),
        (boots("centos rhel fedora", "/etc/default/grub", "/boot/grub2/grub.cfg"), "grubby", (GRUBBY,)),
        (boots("rocky rhel centos fedora"), "grubby", (GRUBBY,)),
        (
            boots("gentoo", "/etc/default/grub", "/boot/grub/grub.cfg"),
            "GRUB",
            (GRUB, "grub-mkconfig -o /boot/grub/grub.cfg"),
        ),
        (
            boots("gentoo", "/boot/loader/loader.conf", by_systemd_boot=True),
            "systemd-boot",
            ("sed -i '/^options/s/$/ transparent_hugepage=madvise/' /boot/loader/entries/*.conf",),
        ),
        (
            boots("opensuse-leap suse opensuse", "/etc/default/grub", "/boot/grub2/grub.cfg"),
            "GRUB (pbl)",
            (PBL,),
        ),
        (
            boots("opensuse-tumbleweed opensuse suse", "/etc/kernel/cmdline", "/usr/bin/sdbootutil"),
            "sdbootutil",
            (CMDLINE, "sdbootutil update-all-entries"),
        ),
        (
            boots("mageia", "/etc/default/grub", "/boot/grub2/grub.cfg"),
            "GRUB",
            (GRUB, "grub2-mkconfig -o /boot/grub2/grub.cfg"),
        ),
        (
            boots("arch", "/etc/kernel/cmdline", "/efi/loader/loader.conf", by_systemd_boot=True),
            "systemd-boot",
            (CMDLINE, 'kernel-install add "$(uname -r)" "/usr/lib/modules/$(uname -r)/vmlinuz"'),
        ),
        (
            boots("debian", "/etc/kernel/cmdline", "/etc/default/grub", by_systemd_boot=True),
            "systemd-boot",
            (CMDLINE, 'kernel-install add "$(uname -r)" "/boot/vmlinuz-$(uname -r)"'),
        ),
        (
            boots("arch", "/efi/loader/loader.conf"),
            "systemd-boot",
            ("sed -i '/^options/s/$/ transparent_hugepage=madvise/' /efi/loader/entries/*.conf",),
        ),
        (
            boots("debian", "/etc/kernel/proxmox-boot-uuids", "/etc/kernel/cmdline", by_systemd_boot=True),
            "proxmox-boot-tool",
            (CMDLINE, "proxmox-boot-tool refresh"),
        ),
        (
            boots("debian", "/etc/kernel/proxmox-boot-uuids", "/etc/default/grub", "/usr/sbin/update-grub"),
            "proxmox-boot-tool",
            (GRUB, "proxmox-boot-tool refresh"),
        ),
        (
            boots("alpine", "/etc/update-extlinux.conf"),
            "extlinux",
            (
                "sed -i 's/^default_kernel_opts=\"/&transparent_hugepage=madvise /' /etc/update-extlinux.conf",
                "update-extlinux",
            ),
        ),
        (boots("nixos"), "unknown boot loader", ()),
    ],
)
def test_each_boot_loader_has_its_commands(boot: BootFacts, loader: str, commands: tuple[str, ...]) -> None:
    assert remedy_for(None, boot) == (loader, commands)


@pytest.mark.parametrize(
    ("name", "last"),
    [("centos", GRUBBY), ("debian", "update-grub"), ("gentoo", "grub-mkconfig -o /boot/grub/grub.cfg"), ("sles", PBL)],
)
def test_a_guest_whose_files_are_not_read_has_its_distributions_usual_one(name: str, last: str) -> None:
    assert remedy_for(os_named(name), None).commands[-1] == last


def test_a_guest_of_which_nothing_is_known_has_no_commands() -> None:
    assert remedy_for(None, None).commands == remedy_for(os_named("haiku"), None).commands == ()


@pytest.mark.parametrize(
    ("edit", "path", "before", "after"),
    [
        (GRUB, "etc/default/grub", "GRUB_CMDLINE_LINUX='a'\n", "quoted"),
        (CMDLINE, "etc/kernel/cmdline", "root=/dev/sda1\n", "root=/dev/sda1 transparent_hugepage=madvise\n"),
    ],
)
def test_the_edits_do_what_they_say(tmp_path: Path, edit: str, path: str, before: str, after: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(before)
    subprocess.run(["/bin/sh", "-c", edit.replace("/etc/", f"{tmp_path}/etc/")], check=True)
    if after == "quoted":  # a shell reads that file
        shown = subprocess.run(
            ["/bin/sh", "-c", f'. {file}; echo "$GRUB_CMDLINE_LINUX"'], check=True, capture_output=True, text=True
        )
        assert shown.stdout == "a transparent_hugepage=madvise\n"
    else:
        assert file.read_text() == after


EL = ("guest-exec", "guest-file-close", "guest-file-open", "guest-file-read", "guest-file-write")


def test_what_red_hats_agents_may_not_and_where_that_is_changed() -> None:
    assert why_forbidden(EL, NEEDED_TO_READ, os_named("centos")) == (
        "its administrator does not allow the agent guest-file-open,guest-file-read,guest-file-close: to change that,"
        " in the guest take these out of BLACKLIST_RPC= or BLOCK_RPCS= in /etc/sysconfig/qemu-ga, or add them to"
        " --allow-rpcs= in its FILTER_RPC_ARGS=, whichever it has; then `systemctl restart qemu-guest-agent`"
    )


def test_elsewhere_it_is_the_agents_own_file() -> None:
    why = why_forbidden(["guest-file-write"], NEEDED_TO_SET, os_named("debian"))
    assert why is not None
    assert "allow the agent guest-file-write: " in why
    assert "/etc/qemu/qemu-ga.conf" in why
    assert why_forbidden(["guest-file-write"], NEEDED_TO_READ, None) is None
    assert why_forbidden(["guest-exec"], NEEDED_TO_SET, None) is None
