"""`pvehook guest 101 freeze-check`: what an administrator and a script learn about a guest, without freezing it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from pvehook.cli import main
from pvehook.contract.guest_facts import Filesystem
from tests.guest.hostile import NASTY
from tests.guest_files import SimulatedGuest

CONFIG = "agent: 1\nname: web\ntags: db;big\n"
FROZEN, NOT_FROZEN, ERROR = 0, 1, 2


class Done(NamedTuple):
    code: int
    out: str
    err: str


Check = Callable[..., Done]


@pytest.fixture
def root() -> Iterator[Path]:
    # Short: a unix socket's path has 108 bytes, and pytest's own directories take most of them.
    tree = Path(tempfile.mkdtemp(prefix="pvehook-"))
    for part in ("etc/pve/qemu-server", "var/run/qemu-server"):
        (tree / part).mkdir(parents=True)
    (tree / "etc/pve/qemu-server/101.conf").write_text(CONFIG)
    yield tree
    shutil.rmtree(tree)


@pytest.fixture
def check(root: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    def run(*words: str) -> Done:
        code = main(["guest", "101", "freeze-check", "--root", str(root), *words])
        return Done(code, *capsys.readouterr())

    return run


@contextmanager
def running_vm(root: Path, **options: object) -> Iterator[SimulatedGuest]:
    with SimulatedGuest(str(root / "var/run/qemu-server"), 101, **options) as guest:  # type: ignore[arg-type]
        yield guest
        assert not guest.is_frozen
        assert guest.frozen_intervals == ()


def test_a_safe_guest(root: Path, check: Check) -> None:
    with running_vm(root):
        assert check() == Done(
            FROZEN,
            "VM 101 (web) would be FROZEN for the start of its backup\n"
            "  because safe: agent 7.2.22 answers, and nothing speaks against /home (sda2, ext4), / (sda1, ext4)\n"
            "facts\n"
            "  VM            running\n"
            "  migrating     no\n"
            "  agent option  on\n"
            "  agent         version 7.2.22\n"
            "  system        debian\n"
            "  status        thawed\n"
            "  filesystems   /home (sda2, ext4), / (sda1, ext4)\n"
            "  history       no freeze yet\n",
            "",
        )


def test_the_same_for_scripts(root: Path, check: Check) -> None:
    with running_vm(root):
        done = check("--json")
    assert (done.code, done.err, done.out.count("\n")) == (FROZEN, "", 1)
    shown = json.loads(done.out)
    assert {key: shown[key] for key in ("vmid", "name", "verdict", "mountpoints", "alert")} == {
        "vmid": 101, "name": "web", "verdict": "freeze", "mountpoints": None, "alert": None,
    }  # fmt: skip
    assert shown["reasons"] != []
    assert shown["facts"]["VM"] == "running"


def test_every_reason_against_it_is_named(root: Path, check: Check) -> None:
    (root / "etc/pvehook.yaml").write_text("freeze: {rules: [{tags: [db], mode: never}]}\n")
    with running_vm(root, blocked=("guest-fsfreeze-thaw",)) as guest:
        guest.migrating = True
        done = check()
    assert done.code == NOT_FROZEN
    first, *rest = done.out.splitlines()
    assert first == "VM 101 (web) would NOT be frozen, and Proxmox would be kept from freezing it"
    reasons = [line.split(":")[0].strip() for line in rest[: rest.index("facts")]]
    assert reasons == ["because never", "because migrating", "because commands"]


def test_a_list_of_mountpoints_is_shown(root: Path, check: Check) -> None:
    filesystems = (Filesystem("loop0", "/mnt", "ext4"), Filesystem("sda1", "/", "ext4"))
    with running_vm(root, filesystems=filesystems):
        done = check()
        shown = json.loads(check("--json").out)
    assert done.code == FROZEN
    assert "  to be frozen: /mnt, /\n" in done.out
    assert shown["mountpoints"] == ["/mnt", "/"]


def test_where_proxmox_does_not_freeze_the_agent_is_not_asked(root: Path, check: Check) -> None:
    (root / "etc/pve/qemu-server/101.conf").write_text("name: web\n")
    with running_vm(root) as guest:
        done = check()
        assert [each for each in guest.heard if each.channel == "qga"] == []
    assert done.code == NOT_FROZEN
    assert done.out.startswith(
        "VM 101 (web) would be left as Proxmox does it, without pvehook\n"
        "  because agent-off: the option `agent` of the VM is off\n"
    )
    assert "  agent         not asked\n" in done.out


def test_an_agent_that_hangs_is_said_once(root: Path, check: Check) -> None:
    (root / "etc/pvehook.yaml").write_text("freeze: {facts_within: 1s}\n")
    with running_vm(root) as guest:
        guest.stick("agent")
        done = check()
        guest.unstick("agent")
    assert done.code == NOT_FROZEN
    assert done.out.count("does not answer within 1 s") == 1
    assert "  agent         does not answer\n" in done.out


def test_a_vm_that_does_not_run(root: Path, check: Check) -> None:
    assert check() == Done(NOT_FROZEN, "VM 101 (web) does not run: nothing of it would be frozen\n", "")
    shown = json.loads(check("--json").out)
    assert (shown["verdict"], shown["facts"]["VM"]) == ("none", "does not run")


def test_a_vm_that_there_is_not(root: Path, check: Check) -> None:
    (root / "etc/pve/qemu-server/101.conf").unlink()
    done = check()
    assert (done.code, done.out) == (ERROR, "")
    assert done.err == "pvehook: there is no VM 101 on this node (containers are never frozen)\n"


def test_a_history_that_vetoes_can_be_forgotten(root: Path, check: Check) -> None:
    history = root / "var/lib/pvehook/freezes/101.json"
    history.parent.mkdir(parents=True)
    history.write_text(json.dumps([{"at_s": time.time() - 60, "frozen_ms": 30000, "outcome": "hung"}]))
    with running_vm(root):
        vetoed = check()
        assert vetoed.code == NOT_FROZEN
        assert "  because hung: the last freeze hung (30000 ms, " in vetoed.out
        assert "  history       hung 30000 ms\n" in vetoed.out
        forgotten = check("--forget")
        assert (forgotten.code, forgotten.err) == (FROZEN, "history: forgotten\n")
        assert not history.exists()
        assert check("--forget").err == "history: there was none\n"


def test_what_the_guest_calls_things_moves_no_cursor(root: Path, check: Check) -> None:
    names = tuple(Filesystem(f"loop{number}{NASTY}", f"/{number}{NASTY}", NASTY) for number in range(3))
    with running_vm(root, filesystems=names, os_id=NASTY, agent_version=NASTY) as guest:
        done = check()
        shown = check("--json")
        guest.refused["guest-info"] = NASTY
        refused = check()
    for text in (done.out, shown.out, refused.out):
        assert [line for line in text.splitlines() if not line.isprintable()] == []
    assert "a\\nb\\r\\x1b[2J\\u202e\\u2028\\x00\\ud800\\U000e0001" in done.out
    assert json.loads(shown.out)["facts"]["system"]
    assert refused.code == NOT_FROZEN
    assert "refused: GenericError: a\\nb\\r\\x1b[2J" in refused.out
