"""`pvehook guests`: whose huge pages are `always`, why that is not known, how it is kept off; and the hookscripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pvehook.contract.guest_facts import BootFacts, GuestFacts, GuestOs
from pvehook.contract.huge_pages import DEFRAG, ENABLED, HugePages
from pvehook.doctor import fixes, guest_insides
from pvehook.host.node import Node
from pvehook.records.guest_facts import keep_guest_facts
from tests.cli.test_cli import Command, Done, pvehook, root
from tests.guest_files import SimulatedGuest
from tests.node_under_test import REPO

__all__ = ["pvehook", "root"]  # fixtures

ALWAYS, NEVER = "[always] madvise never\n", "always madvise [never]\n"
DEFRAG_TEXT = "always defer defer+madvise [madvise] never\n"
DEBIAN = {
    "/etc/os-release": "ID=debian\n",
    "/etc/default/grub": "",
    "/usr/sbin/update-grub": "",
    ENABLED: ALWAYS,
    DEFRAG: DEFRAG_TEXT,
}
EL = ("guest-exec", "guest-file-close", "guest-file-flush", "guest-file-open", "guest-file-read", "guest-file-write")


def configured(root: Path, vmid: int, text: str, kind: str = "qemu-server") -> None:
    path = root / f"etc/pve/{kind}/{vmid}.conf"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


@pytest.fixture
def guests(root: Path) -> Iterator[dict[int, SimulatedGuest]]:
    """101: Debian with `always`; 102: blocked as EL blocks it; 103: `never`; 104: off; 110: a container."""
    sockets = root / "var/run/qemu-server"
    sockets.mkdir(parents=True)
    for vmid, name in ((101, "web"), (102, "db"), (103, "mail"), (104, "old")):
        configured(root, vmid, f"agent: 1\nname: {name}\n")
    configured(root, 110, "hostname: ct\n", "lxc")
    for path, text in ((ENABLED, "always [madvise] never\n"), (DEFRAG, DEFRAG_TEXT)):
        (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (root / path.lstrip("/")).write_text(text)
    with (
        SimulatedGuest(str(sockets), 101) as web,
        SimulatedGuest(str(sockets), 102, os_id="centos", agent_version="10.0.2", blocked=EL) as db,
        SimulatedGuest(str(sockets), 103) as mail,
    ):
        web.files.contents |= DEBIAN
        mail.files.contents |= DEBIAN | {ENABLED: NEVER}
        yield {101: web, 102: db, 103: mail}


def thp(pvehook: Command, *words: str) -> Done:
    return pvehook("guests", "thp", *words)


@pytest.mark.usefixtures("guests")
def test_each_guest_says_what_is_in_force_or_why_that_is_not_known(pvehook: Command, root: Path) -> None:
    boot = BootFacts(("gentoo",), ("/etc/default/grub", "/boot/grub/grub.cfg"), by_systemd_boot=False)
    system = GuestOs("gentoo", "Gentoo Linux", None, "6.6.30")
    kept = GuestFacts(1795312800.0, "9.2.0", (), system, HugePages("always", "madvise"), boot)
    keep_guest_facts(Node(str(root)), 104, kept)
    done = thp(pvehook)
    assert done.code == 1
    assert done.out == (
        "VM 101 web, debian: always (defrag: madvise)\n"
        "  off from its next boot on, in the guest:\n"
        "    echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX transparent_hugepage=madvise\"' >>/etc/default/grub\n"
        "    update-grub\n"
        "  off until then: pvehook guests thp --apply-now 101\n"
        "VM 102 db, centos: its administrator does not allow the agent\n"
        "  guest-file-open,guest-file-read,guest-file-close: to change that, in the guest\n"
        "  take these out of BLACKLIST_RPC= or BLOCK_RPCS= in /etc/sysconfig/qemu-ga, or\n"
        "  add them to --allow-rpcs= in its FILTER_RPC_ARGS=, whichever it has; then\n"
        "  `systemctl restart qemu-guest-agent`\n"
        "  if it is `always`: off from its next boot on, in the guest:\n"
        "    grubby --update-kernel=ALL --args=transparent_hugepage=madvise\n"
        "VM 103 mail, debian: never (defrag: madvise)\n"
        "VM 104 old, Gentoo Linux: it is off; at its last start, 2026-11-22 03:00: always\n"
        "  off from its next boot on, in the guest:\n"
        "    echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX transparent_hugepage=madvise\"' >>/etc/default/grub\n"
        "    grub-mkconfig -o /boot/grub/grub.cfg\n"
        "CT 110 ct: madvise (defrag: madvise); the node's\n"
        "\n"
        "`madvise` gives huge pages only to programs that ask for them (madvise(2),\n"
        "MADV_HUGEPAGE), `never` to nobody; with `always` the kernel gathers memory for\n"
        "every program, and whoever needs memory at that moment waits for it.\n"
    )


def test_it_only_reads(pvehook: Command, guests: dict[int, SimulatedGuest]) -> None:
    thp(pvehook)
    for guest in guests.values():
        assert not guest.files.open_paths
        assert not guest.executed
    assert guests[101].files.contents == guests[101].files.contents | DEBIAN


@pytest.mark.usefixtures("guests")
def test_only_the_guests_that_are_asked_for(pvehook: Command) -> None:
    done = thp(pvehook, "--vmid", "103")
    assert (done.code, done.out) == (0, "VM 103 mail, debian: never (defrag: madvise)\n")
    assert thp(pvehook, "--vmid", "199") == Done(2, "", "pvehook: there is no guest 199 on this node\n")


@pytest.mark.usefixtures("guests")
def test_for_programs(pvehook: Command) -> None:
    done = thp(pvehook, "--json")
    by_vmid = {each["vmid"]: each for each in json.loads(done.out)}
    assert {vmid: each["enabled"] for vmid, each in by_vmid.items()} == {
        101: "always", 102: None, 103: "never", 104: None, 110: "madvise",
    }  # fmt: skip
    assert by_vmid[101]["remedy"][-1] == "update-grub"
    assert by_vmid[101]["system"]["kernel"] == "6.1.0-40-amd64"
    assert by_vmid[102]["blocked"] == list(EL)
    assert by_vmid[103]["remedy"] is by_vmid[103]["why"] is None
    assert by_vmid[104]["why"] == "it is off"
    assert by_vmid[104]["at_last_start"] is None


def test_an_agent_that_is_silent_and_one_that_is_off_cost_no_other_guest(
    pvehook: Command, root: Path, guests: dict[int, SimulatedGuest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_insides, "SILENT_S", 0.5)
    configured(root, 103, "name: mail\n")
    guests[102].stick("agent")
    by_vmid = {each["vmid"]: each for each in json.loads(thp(pvehook, "--json").out)}
    guests[102].unstick("agent")
    assert by_vmid[101]["enabled"] == "always"
    assert by_vmid[102]["why"].startswith("not known: its agent does not answer: none runs in the guest")
    assert by_vmid[103]["why"] == "its agent is off: install it in the guest, then `qm set 103 --agent 1`"


def test_the_agent_of_a_guest_that_proxmox_has_locked_is_left_alone(
    pvehook: Command, root: Path, guests: dict[int, SimulatedGuest]
) -> None:
    configured(root, 101, "agent: 1\nname: web\nlock: backup\n")
    done = thp(pvehook, "--vmid", "101")
    assert done.out == (
        "VM 101 web: not known: Proxmox has locked it (backup), and its agent is left\n  alone meanwhile\n"
    )
    assert thp(pvehook, "--apply-now", "101", "--yes").code == 1
    assert not [each for each in guests[101].heard if each.channel == "qga"]


def test_to_apply_it_is_dry_first(pvehook: Command, guests: dict[int, SimulatedGuest]) -> None:
    done = thp(pvehook, "--apply-now", "101")
    assert done == Done(
        0,
        f"VM 101 web: would write `never` to {ENABLED}, where `always` is in force\n"
        "nothing was changed; with --yes it is done\n",
        "",
    )
    assert guests[101].files.contents[ENABLED] == ALWAYS


@pytest.mark.parametrize(("words", "choice"), [((), "never"), (("--to", "madvise"), "madvise")])
def test_what_was_applied_is_read_back_and_only_where_it_was_asked_for(
    pvehook: Command, guests: dict[int, SimulatedGuest], words: tuple[str, ...], choice: str
) -> None:
    guests[103].files.contents[ENABLED] = ALWAYS
    done = thp(pvehook, "--apply-now", "101", "--yes", *words)
    said = f"VM 101 web: `{choice}` is in force (read back) until its next boot; it was `always`\n"
    assert done == Done(0, said, "")
    assert f"[{choice}]" in str(guests[101].files.contents[ENABLED])
    assert guests[103].files.contents[ENABLED] == ALWAYS
    assert thp(pvehook, "--apply-now", "101", "--yes", *words).out == f"VM 101 web: `{choice}` is in force already\n"


def test_where_it_is_forbidden_it_says_where_and_what_to_change(
    pvehook: Command, guests: dict[int, SimulatedGuest]
) -> None:
    done = thp(pvehook, "--apply-now", "101", "102", "104", "110", "--yes")
    assert done.code == 1
    assert done.out.startswith("VM 101 web: `never` is in force")
    assert done.err == (
        "VM 102 db: not changed: its administrator does not allow the agent guest-file-open,guest-file-read,"
        "guest-file-close: to change that, in the guest take these out of BLACKLIST_RPC= or BLOCK_RPCS= in"
        " /etc/sysconfig/qemu-ga, or add them to --allow-rpcs= in its FILTER_RPC_ARGS=, whichever it has; then"
        " `systemctl restart qemu-guest-agent`\n"
        "VM 104 old: not changed: it is off\n"
        "CT 110 ct: not changed: a container shares the node's kernel\n"
    )
    assert guests[102].executed == ()


def test_a_guest_that_may_be_read_but_not_written(pvehook: Command, guests: dict[int, SimulatedGuest]) -> None:
    guests[101].files.read_only.add(ENABLED)
    done = thp(pvehook, "--apply-now", "101", "--yes", "--json")
    (result,) = json.loads(done.out)
    assert (done.code, result["done"]) == (1, False)
    assert "Permission denied" in result["text"]
    assert guests[101].files.contents[ENABLED] == ALWAYS


# hookscript


@pytest.fixture
def qm(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was run. 101 and 102 are VMs, 110 is a container."""
    ran: list[str] = []

    def run(command: Sequence[str]) -> None:
        ran.append(" ".join(command))
        configured(root, int(command[2]), f"hookscript: {command[4]}\n" if command[3] == "--hookscript" else "")

    def run_on(node: Node) -> Callable[[Sequence[str]], None]:
        return run

    monkeypatch.setattr(fixes, "run_on", run_on)
    for vmid, kind in ((101, "qemu-server"), (102, "qemu-server"), (110, "lxc")):
        configured(root, vmid, "", kind)
    hook = root / "usr/local/lib/pvehook/hooks/guest-hook"
    hook.parent.mkdir(parents=True)
    hook.write_text((REPO / "hooks/guest-hook").read_text())
    (root / "var/lib/vz").mkdir(parents=True)
    return ran


def test_all_vms_get_the_hookscript_and_lose_it_again(pvehook: Command, qm: list[str]) -> None:
    done = pvehook("guests", "hookscript", "enable", "--all")
    volume = "local:snippets/pvehook-guest-hook"
    lines = [f"VM {vmid}: has pvehook's hookscript: {volume}" for vmid in (101, 102)]
    lines.append("CT 110: left out: a container is never frozen, and has no agent")
    assert done == Done(0, "\n".join(lines) + "\n", "")
    assert qm == [f"qm set {vmid} --hookscript {volume}" for vmid in (101, 102)]
    as_json = pvehook("guests", "hookscript", "disable", "101", "--json")
    assert json.loads(as_json.out) == [{"vmid": 101, "done": True, "text": "VM 101: has none any more"}]
    assert qm[2:] == ["qm set 101 --delete hookscript"]


@pytest.mark.usefixtures("qm")
@pytest.mark.parametrize("words", [(), ("101", "--all")])
def test_whose_hookscript_must_be_said(pvehook: Command, words: tuple[str, ...]) -> None:
    assert pvehook("guests", "hookscript", "enable", *words).code == 2


@pytest.mark.usefixtures("qm")
def test_one_that_was_not_changed_is_an_exit_code(pvehook: Command) -> None:
    done = pvehook("guests", "hookscript", "enable", "101", "--storage", "gone")
    assert done == Done(1, "", "VM 101: not changed: storage gone does not exist\n")
