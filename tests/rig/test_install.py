"""install.sh against plain directory trees (--root): what is installed where, what comes back, what is printed.

What needs a running systemd is in test_debian_node.py.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.rig.tree_entries import Entry, entries

pytestmark = pytest.mark.long

REPO = Path(__file__).resolve().parents[2]
HOOK = "/usr/local/lib/pvehook/hooks/vzdump-hook"
FROZEN_BY_US = f"script: {HOOK}\nionice: 8\n"
PVE_DEFAULT = "# vzdump default settings\n\n#tmpdir: DIR\n#dumpdir: DIR\n#ionice: PRI\n#script: FILENAME\n"


class Said(NamedTuple):
    code: int
    text: str


class Touched(NamedTuple):
    entry: Entry
    inode: int
    changed_ns: int


def install(root: Path, *arguments: str, source: Path | None = None) -> Said:
    done = subprocess.run(
        [str((source or small_copy()) / "install.sh"), "--root", str(root), *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    return Said(done.returncode, done.stdout)


def touched(top: Path) -> dict[str, Touched]:
    """With inode and time of change, by which a file is found that was written again with the same bytes."""
    return {
        name: Touched(entry, (top / name).lstat().st_ino, (top / name).lstat().st_mtime_ns)
        for name, entry in entries(top).items()
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node as the installer finds it: Debian 13, Proxmox's own vzdump.conf, no pvehook."""
    top = tmp_path / "node"
    for directory in ("etc/systemd/system", "etc/pve", "usr/local/bin", "usr/local/lib", "var/lib", "run"):
        (top / directory).mkdir(parents=True)
    (top / "etc/os-release").write_text('ID=debian\nVERSION_ID="13"\n')
    (top / "etc/vzdump.conf").write_text(PVE_DEFAULT)
    return top


@functools.cache
def small_copy() -> Path:
    """What install.sh installs from, with hardly a module: few tests need the program, and compiling it costs."""
    copy = Path(_keep.enter_context(tempfile.TemporaryDirectory(prefix="pvehook-source-")))
    files = {
        ".": ("__init__", "errors"),
        "contract": ("__init__", "guest_config", "section_config", "text"),
        "host": ("__init__", "backup_jobs", "node", "timely_files"),
    }
    modules = [f"pvehook/{room}/{name}.py" for room, names in files.items() for name in names]
    for name in ("install.sh", "pyproject.toml", "README.md", "docs/limits.md", *modules):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, copy / name)
    for name in ("hooks", "scripts"):
        shutil.copytree(REPO / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


_keep = contextlib.ExitStack()
atexit.register(_keep.close)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The same, to be changed like a newer version."""
    return Path(shutil.copytree(small_copy(), tmp_path / "source"))


def test_check_says_what_it_would_do_and_changes_nothing(root: Path) -> None:
    before = touched(root)
    done = install(root, "--check")
    assert done.code == 1
    assert f"would set script: {HOOK} and ionice: 8 in /etc/vzdump.conf" in done.text
    assert touched(root) == before


def test_everything_stands_where_proxmox_and_systemd_look_for_it(root: Path) -> None:
    done = install(root, source=REPO)
    assert done.code == 0, done.text
    assert (root / "etc/vzdump.conf").read_text() == PVE_DEFAULT + FROZEN_BY_US
    assert stat.S_IMODE((root / HOOK[1:]).stat().st_mode) == 0o755  # vzdump asks -f and -x
    guest_hook = root / "usr/local/lib/pvehook/hooks/guest-hook"
    assert guest_hook.read_bytes() == (REPO / "hooks/guest-hook").read_bytes()
    assert stat.S_IMODE(guest_hook.stat().st_mode) == 0o755
    assert os.readlink(root / "usr/local/bin/pvehook") == "../lib/pvehook/bin/pvehook"
    wants = root / "etc/systemd/system/sockets.target.wants"
    for socket in ("pvehook.socket", "pvehook-notify.socket"):
        assert (root / os.readlink(wants / socket)[1:]).is_file()
    service = (root / "usr/local/lib/systemd/system/pvehook-notify@.service").read_text()
    helper = root / service.split("ExecStart=/")[1].splitlines()[0]
    assert stat.S_IMODE(helper.stat().st_mode) == 0o755
    for template in (REPO / "hooks/templates").iterdir():  # where Proxmox looks: proxmox-notify, src/context/pve.rs
        installed = root / "usr/share/pve-manager/templates/default" / template.name
        assert installed.read_bytes() == template.read_bytes()
        assert stat.S_IMODE(installed.stat().st_mode) == 0o644
    unit = os.readlink(wants / "pvehook.socket")
    text = (root / unit[1:]).read_text()
    documentation = text.split("Documentation=file://")[1].splitlines()[0]
    readme = root / documentation[1:]
    links = re.findall(r"\]\((docs/[^)#]+)", readme.read_text())
    assert links
    assert [link for link in links if not (readme.parent / link).is_file()] == []
    modes = {entry.mode & 0o7777 for entry in entries(root / "usr/local/lib/pvehook").values()}
    assert modes == {0o644, 0o755}


def test_proxmoxs_own_templates_stay_when_ours_go(root: Path) -> None:
    theirs = root / "usr/share/pve-manager/templates/default/vzdump-subject.txt.hbs"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    assert install(root).code == 0
    assert len(list(theirs.parent.iterdir())) == 4
    assert install(root, "--uninstall").code == 0
    assert list(theirs.parent.iterdir()) == [theirs]


def test_a_changed_template_is_installed_again(root: Path) -> None:
    assert install(root).code == 0
    template = root / "usr/share/pve-manager/templates/default/pvehook-subject.txt.hbs"
    template.write_text("damaged")
    assert "install /usr/share/pve-manager/templates/default/pvehook-subject.txt.hbs" in install(root).text
    assert template.read_bytes() == (REPO / "hooks/templates" / template.name).read_bytes()


def test_the_last_lines_say_how_to_use_the_guests_hookscript(root: Path) -> None:
    """The command is carried out as it stands there, on a node that has no guests."""
    run = install(root, source=REPO).text.splitlines()[-1].removeprefix("pvehook: ").split()
    assert run == ["pvehook", "guests", "hookscript", "enable", "--all"]
    program = root / "usr/local/lib/pvehook/bin/pvehook"
    done = subprocess.run([sys.executable, program, *run[1:], "--root", str(root)], check=False, timeout=20)
    assert done.returncode == 0


@pytest.mark.parametrize("with_vms", [False, True])
def test_an_installation_that_goes_without_a_hitch_reports_no_error(root: Path, with_vms: bool) -> None:
    if with_vms:
        (root / "etc/pve/qemu-server").mkdir()
        (root / "etc/pve/qemu-server/101.conf").write_text("name: web\n")
    done = [install(root, *arguments) for arguments in ([], ["--uninstall"])]
    assert [each.code for each in done] == [0, 0]
    assert "error" not in done[0].text + done[1].text


def test_a_vm_that_still_names_the_snippet_is_named_when_pvehook_goes(root: Path) -> None:
    install(root)
    (root / "etc/pve/qemu-server").mkdir()
    scripts = (("101", "pvehook-guest-hook"), ("102", "another"), ("103", "pvehook-guest-hook.own.pl"))
    for vmid, script in scripts:
        (root / f"etc/pve/qemu-server/{vmid}.conf").write_text(f"name: web\nhookscript: local:snippets/{script}\n")
    snapshot = "name: web\n[old]\nhookscript: local:snippets/pvehook-guest-hook\n"
    (root / "etc/pve/qemu-server/104.conf").write_text(snapshot)
    snippet = root / "var/lib/vz/snippets/pvehook-guest-hook"
    snippet.parent.mkdir(parents=True)
    shutil.copy(root / "usr/local/lib/pvehook/hooks/guest-hook", snippet)
    done = install(root, "--uninstall")
    assert done.code == 0
    assert "note: VM 101 still runs pvehook-guest-hook" in done.text
    assert "qm set 101 --delete hookscript" in done.text
    assert "VM 103 still runs pvehook-guest-hook.own.pl, " in done.text
    assert "qm set 103 --hookscript local:snippets/own.pl" in done.text
    assert "VM 102" not in done.text
    assert "VM 104" not in done.text
    assert snippet.exists()
    assert not (root / "usr/local/lib/pvehook").exists()


def test_the_installed_bytecode_is_the_one_of_the_installed_files(root: Path) -> None:
    install(root, source=REPO)
    sources = list((root / "usr/local/lib/pvehook/pvehook").rglob("*.py"))
    assert sources
    # The hash is salted with the magic number of the interpreter that compiled: install.sh's python3 computes it.
    each = "importlib.util.source_hash(open(p, 'rb').read()).hex() for p in sys.argv[1:]"
    command = ["python3", "-I", "-c", f"import importlib.util, sys; print(*({each}))", *map(str, sources)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    hashes = dict(zip(sources, map(bytes.fromhex, done.stdout.split()), strict=True))
    for path in sources:
        # PEP 552: bit 0 of the flags means "by hash", bytes 8 to 16 are the hash of the source.
        compiled = max(path.parent.glob(f"__pycache__/{path.stem}.*.pyc")).read_bytes()
        assert compiled[4] & 1
        assert compiled[8:16] == hashes[path]


@pytest.mark.parametrize("conf", [None, "", PVE_DEFAULT, "bwlimit: 9\n# end"])
def test_max_workers_is_set_on_request_and_goes_with_pvehook(root: Path, conf: str | None) -> None:
    file = root / "etc/vzdump.conf"
    file.unlink(missing_ok=True)
    if conf is not None:
        file.write_text(conf)
    assert "performance" not in install(root).text.replace("--max-workers 1", "")
    done = install(root, "--max-workers", "1")
    assert "set performance: max-workers=1" in done.text
    assert "instead of Proxmox's 16" in done.text
    assert "performance: max-workers=1\n" in file.read_text()
    assert "nothing to change" in install(root, "--max-workers=1").text
    assert "nothing to change" in install(root).text
    install(root, "--uninstall")
    assert (file.read_text() if file.exists() else None) == conf


def test_a_performance_that_is_there_stays(root: Path) -> None:
    file = root / "etc/vzdump.conf"
    file.write_text("performance: max-workers=4,pbs-entries-max=1000\n")
    done = install(root, "--max-workers", "1")
    assert done.code == 0
    assert "already has performance: max-workers=4,pbs-entries-max=1000, which stays" in done.text
    assert "performance: max-workers=4,pbs-entries-max=1000\n" in file.read_text()


def test_a_performance_that_came_later_survives_the_uninstallation(root: Path) -> None:
    file = root / "etc/vzdump.conf"
    install(root)
    with file.open("a") as more:
        more.write("performance: max-workers=2\n")
    install(root, "--uninstall")
    assert "performance: max-workers=2\n" in file.read_text()


@pytest.mark.parametrize("number", ["0", "257", "x", "-1", ""])
def test_only_a_number_of_workers_is_taken(root: Path, number: str) -> None:
    done = install(root, "--max-workers", number)
    assert done.code != 0
    assert not (root / "usr/local/lib/pvehook").exists()


def test_a_second_run_changes_nothing(root: Path) -> None:
    (root / "etc/vzdump.conf").write_text("script: /usr/local/bin/theirs\n")
    install(root)
    before = touched(root)
    again = install(root)
    assert again.code == 0
    assert "nothing to change" in again.text
    assert touched(root) == before
    assert install(root, "--check").code == 0


@pytest.mark.parametrize(
    "vzdump_conf",
    [
        None,
        "",
        PVE_DEFAULT,
        "script: /usr/local/bin/theirs\nionice: 5\n# the end\n",
        "# theirs\n  script:   /usr/local/bin/theirs   \nbwlimit: 1000",
        "script: /first\nscript: /usr/local/bin/theirs\nionice: 8\nionice: 3\n",
        "script: /usr/local/bin/it's theirs\r\nionice: 7\r\n",
        "script: C:\\theirs&them\n",
        FROZEN_BY_US,
        "notes-template: {{guestname}}\u00e4\nionice:8\n",
    ],
)
def test_uninstalling_leaves_etc_byte_for_byte_as_it_was(root: Path, vzdump_conf: str | None) -> None:
    conf = root / "etc/vzdump.conf"
    conf.unlink()
    if vzdump_conf is not None:
        conf.write_bytes(vzdump_conf.encode())
        conf.chmod(0o640)
    before = entries(root / "etc")
    installed = install(root)
    assert installed.code == 0, installed.text
    assert HOOK in conf.read_text()
    removed = install(root, "--uninstall")
    assert removed.code == 0, removed.text
    if vzdump_conf == FROZEN_BY_US:  # set by hand before: a script: without a program would fail every backup
        before["vzdump.conf"] = before["vzdump.conf"]._replace(content=b"ionice: 8\n")
    assert entries(root / "etc") == before
    assert not list((root / "usr/local").rglob("*pvehook*"))
    assert not (root / "var/lib/pvehook").exists()


def test_the_last_script_counts_and_the_other_lines_stay(root: Path) -> None:
    (root / "etc/vzdump.conf").write_text("script: /first\nbwlimit: 9\nscript: /theirs\n# end\n")
    install(root)
    assert (root / "etc/vzdump.conf").read_text() == (
        f"script: /first\nbwlimit: 9\nscript: {HOOK}\n# end\nionice: 8\n"
    )
    assert (root / "etc/pvehook.yaml").read_text() == "chain: /theirs\n"


def test_a_script_is_chained_in_the_configuration_that_is_there(root: Path) -> None:
    (root / "etc/vzdump.conf").write_text("script: /their hook: old\n")
    (root / "etc/pvehook.yaml").write_text("# ours\nwindow:\n  open: ['01:00-02:00']\nchain: null # none\n")
    install(root)
    assert (root / "etc/pvehook.yaml").read_text() == (
        "# ours\nwindow:\n  open: ['01:00-02:00']\nchain: '/their hook: old'\n"
    )


@pytest.mark.parametrize("written", ["chain: /theirs\n", "chain: '/theirs' # so\n", 'chain: "/theirs"\n'])
@pytest.mark.parametrize("file", ["etc/pvehook.yaml", "etc/pve/pvehook.yaml"])
def test_a_script_that_is_chained_already_is_not_chained_twice(root: Path, file: str, written: str) -> None:
    (root / "etc/vzdump.conf").write_text("script: /theirs\n")
    (root / file).write_text(written)
    assert install(root).code == 0
    assert (root / file).read_text() == written
    assert (root / "etc/pvehook.yaml").exists() == (file == "etc/pvehook.yaml")


@pytest.mark.parametrize("file", ["etc/pvehook.yaml", "etc/pve/pvehook.yaml"])
def test_two_different_scripts_to_chain_stop_the_installation_before_it_began(root: Path, file: str) -> None:
    (root / "etc/vzdump.conf").write_text("script: /theirs\n")
    (root / file).write_text("chain: /another\n")
    before = touched(root)
    done = install(root)
    assert done.code == 2
    assert f"/etc/vzdump.conf runs /theirs, but /{file} already chains /another" in done.text
    assert touched(root) == before


def test_a_wrapper_around_the_hook_is_not_chained_to_it(root: Path) -> None:
    """vzdump would run the hook, the hook the wrapper, the wrapper the hook."""
    install(root)
    (root / "wrapper").write_text(f'#!/bin/sh\n"{HOOK}" "$@" || true\n')
    (root / "wrapper").chmod(0o755)
    (root / "etc/vzdump.conf").write_text("script: /wrapper\n")
    done = install(root)
    assert done.code != 0
    assert f"/wrapper (script: in /etc/vzdump.conf) calls {HOOK} itself" in done.text
    assert (root / "etc/vzdump.conf").read_text() == "script: /wrapper\n"
    assert not (root / "etc/pvehook.yaml").exists()


def test_a_link_to_the_hook_is_the_hook(root: Path) -> None:
    install(root)
    (root / "link").symlink_to(f"{root}{HOOK}")
    (root / "etc/vzdump.conf").write_text("script: /link\n")
    assert install(root).code == 0
    assert not (root / "etc/pvehook.yaml").exists()


def test_what_the_admin_edits_after_the_installation_survives_uninstalling(root: Path) -> None:
    conf = root / "etc/vzdump.conf"
    conf.write_text("script: /theirs\nionice: 5\n")
    install(root)
    conf.write_text(f"# new\n{conf.read_text()}bwlimit: 5000\n")
    done = install(root, "--uninstall")
    assert "the edits stay" in done.text
    assert conf.read_text() == "# new\nscript: /theirs\nionice: 5\nbwlimit: 5000\n"


def test_a_file_of_ours_goes_even_if_it_was_edited_but_says_nothing_else(root: Path) -> None:
    conf = root / "etc/vzdump.conf"
    conf.unlink()
    install(root)
    conf.write_text("".join(reversed(conf.read_text().splitlines(keepends=True))))
    install(root, "--uninstall")
    assert not conf.exists()


def test_a_script_that_the_admin_put_in_place_of_ours_stays(root: Path) -> None:
    conf = root / "etc/vzdump.conf"
    conf.write_text("script: /theirs\n")
    install(root)
    conf.write_text("script: /newer\nionice: 2\n")
    install(root, "--uninstall")
    assert conf.read_text() == "script: /newer\nionice: 2\n"


def test_installing_again_over_an_edit_still_knows_what_was_there_first(root: Path) -> None:
    conf = root / "etc/vzdump.conf"
    conf.write_text("ionice: 5\n")
    install(root)
    conf.write_text(conf.read_text().replace("ionice: 8", "ionice: 6") + "bwlimit: 1\n")
    assert "(now " in install(root).text
    assert conf.read_text() == f"ionice: 8\nscript: {HOOK}\nbwlimit: 1\n"
    install(root, "--uninstall")
    assert conf.read_text() == "ionice: 6\nbwlimit: 1\n"


def test_without_a_record_no_job_is_left_with_a_script_that_is_gone(root: Path) -> None:
    install(root)
    shutil.rmtree(root / "var/lib/pvehook")
    done = install(root, "--uninstall")
    assert "there is no record of what was there before" in done.text
    assert HOOK not in (root / "etc/vzdump.conf").read_text()


OTHER_TOOL = "\n# other tool\nscript: /usr/local/bin/gpu.sh\nmode: stop\nionice: 7\n"


@pytest.mark.parametrize("before", [PVE_DEFAULT, "", "script: /theirs\nbwlimit: 9\n", "ionice: 5\n# end\n"])
@pytest.mark.parametrize("block", [OTHER_TOOL, "ionice: 8\n", f"script: {HOOK}\n# a copy\n"])
def test_our_lines_go_wherever_another_tool_has_left_them(root: Path, before: str, block: str) -> None:
    """A program that is gone fails every backup, now or when the other tool's lines go."""
    conf = root / "etc/vzdump.conf"
    conf.write_text(before)
    install(root)
    with conf.open("a") as file:
        file.write(block)
    done = install(root, "--uninstall")
    assert done.code == 0, done.text
    assert conf.read_text() == before + block.replace(f"script: {HOOK}\n", "")


def test_a_script_of_ours_without_a_record_goes_though_another_counts(root: Path) -> None:
    conf = root / "etc/vzdump.conf"
    conf.write_text(f"script: {HOOK}\nscript: /usr/local/bin/gpu.sh\n# end")
    assert "no record" in install(root, "--uninstall").text
    assert conf.read_text() == "script: /usr/local/bin/gpu.sh\n# end\n"
    assert "nothing to change" in install(root, "--uninstall").text


@pytest.mark.parametrize("guests", [[], ["101"]])
def test_uninstalling_reports_no_error_whether_or_not_there_are_vms(root: Path, guests: list[str]) -> None:
    install(root)
    for vmid in guests:
        (root / "etc/pve/qemu-server").mkdir(exist_ok=True)
        (root / f"etc/pve/qemu-server/{vmid}.conf").write_text("name: web\n")
    done = install(root, "--uninstall")
    assert done.code == 0
    assert "error" not in done.text


@pytest.mark.parametrize("path", ["usr/local", "etc/systemd", "var/lib", "etc/pve", "run"])
@pytest.mark.parametrize("action", [(), ("--uninstall",)])
def test_a_link_that_leads_out_of_the_tree_is_not_followed(
    root: Path, tmp_path: Path, path: str, action: tuple[str, ...]
) -> None:
    outside = tmp_path / "builder"
    shutil.move(root / path, outside)
    (root / path).symlink_to(outside)
    before = touched(tmp_path)
    done = install(root, *action)
    assert done.code == 2
    assert f"leads out of --root to {outside}" in done.text
    assert touched(tmp_path) == before


def test_a_link_within_the_tree_is_followed(root: Path) -> None:
    shutil.move(root / "usr/local", root / "var/usrlocal")
    (root / "usr/local").symlink_to("../var/usrlocal")
    assert install(root).code == 0
    assert (root / "var/usrlocal/lib/pvehook/hooks/vzdump-hook").is_file()


def test_a_configuration_of_ours_goes_and_one_that_was_edited_stays(root: Path) -> None:
    (root / "etc/vzdump.conf").write_text("script: /theirs\n")
    yaml = root / "etc/pvehook.yaml"
    install(root)
    yaml.write_text("io_priority: {mode: off}\n" + yaml.read_text())
    done = install(root, "--uninstall")
    assert yaml.read_text() == "io_priority: {mode: off}\n"
    assert "kept: /etc/pvehook.yaml" in done.text


def test_purge_removes_configuration_and_history(root: Path) -> None:
    before = entries(root / "etc")
    install(root)
    (root / "etc/pvehook.yaml").write_text("chain: null\n")
    for directory in ("var/lib/pvehook", "run/pvehook/jobs"):
        (root / directory).mkdir(parents=True, exist_ok=True)
        (root / directory / "history").write_text("x")
    assert install(root, "--uninstall", "--purge").code == 0
    assert entries(root / "etc") == before
    assert not (root / "var/lib/pvehook").exists()
    assert not (root / "run/pvehook").exists()


@pytest.mark.parametrize("installs_again", [True, False])
def test_what_a_run_that_was_killed_left_half_written_goes(root: Path, installs_again: bool) -> None:
    before = entries(root)
    install(root)
    for half in ("etc/vzdump.conf.pvehook-new", "usr/local/lib/pvehook.new/half", "usr/local/lib/pvehook.old/half"):
        (root / half).parent.mkdir(exist_ok=True)
        (root / half).write_text("half a f")
    if installs_again:
        install(root)
    assert install(root, "--uninstall").code == 0
    assert entries(root) == before


def test_a_file_is_on_the_disk_before_it_takes_the_old_ones_place(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a node that loses its power has an empty vzdump.conf."""
    log = tmp_path / "log"
    for command in ("sync", "mv"):
        fake = tmp_path / "bin" / command
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(f'#!/bin/sh\necho {command} "$@" >>{log}\nexec {shutil.which(command)} "$@"\n')
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    install(root)
    done = [line.replace(" -T", "").split()[:2] for line in log.read_text().splitlines() if "pvehook-new" in line]
    assert [command for command, _ in done] == ["sync", "mv"] * (len(done) // 2)
    assert [path for _, path in done[::2]] == [path for _, path in done[1::2]]
    assert ["mv", f"{root}/etc/vzdump.conf.pvehook-new"] in done


def test_history_outlives_a_plain_uninstall(root: Path) -> None:
    install(root)
    (root / "var/lib/pvehook/history").write_text("x")
    install(root, "--uninstall")
    assert [path.name for path in (root / "var/lib/pvehook").iterdir()] == ["history"]


def test_purge_puts_back_a_configuration_that_was_there_before(root: Path) -> None:
    yaml = root / "etc/pvehook.yaml"
    yaml.write_text("# older\n")
    install(root)
    yaml.write_text("# newer\n")
    install(root, "--uninstall", "--purge")
    assert yaml.read_text() == "# older\n"


def test_jobs_whose_own_settings_win_are_listed_with_the_remedy(root: Path) -> None:
    (root / "etc/pve/jobs.cfg").write_text(
        "vzdump: nightly\n\tschedule 02:00\n\tscript /job/hook one\n\tionice 8\n\n"
        f"vzdump: weekly\n\tionice 3\n\tscript {HOOK}\n\n"
        "realm-sync: other\n\tscript /not/ours\n"
    )
    notes = [line for line in install(root).text.splitlines() if "overrides" in line]
    assert [line.split(", which")[0] for line in notes] == [
        "pvehook: note: job nightly has its own script /job/hook one",
        "pvehook: note: job weekly has its own ionice 3",
    ]
    assert notes[0].endswith("pvesh set /cluster/backup/nightly --delete script")


@pytest.mark.parametrize(
    ("path", "user"),
    [
        ("etc/pve/vzdump.cron", "root "),
        ("etc/cron.d/x", "root "),
        ("etc/crontab", "root "),
        ("var/spool/cron/crontabs/root", ""),
    ],
)
def test_lines_of_cron_whose_own_settings_win_are_listed_too(root: Path, path: str, user: str) -> None:
    """shared/cases F02: such a run calls the other script, and never the hook."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(
        f"PATH=/bin\n30 2 * * 6 {user}vzdump 102 --quiet 1 --script /root/own.sh --ionice 7\n"
        f"0 3 * * * {user}/usr/bin/vzdump --all --script {HOOK}\n#0 4 * * * {user}vzdump 1 --script /off\n"
    )
    notes = [line for line in install(root).text.splitlines() if "overrides" in line]
    assert notes == [
        f"pvehook: note: /{path}:2 has its own {setting}, which overrides /etc/vzdump.conf; "
        f"to remove it: take --{setting.partition(' ')[0]} out of that line"
        for setting in ("script /root/own.sh", "ionice 7")
    ]


@pytest.mark.parametrize(
    "jobs_cfg",
    [
        "vzdump: nightly\n\tvmid 101\n\n\tscript /after/an/empty/line\n",
        f"vzdump: nightly\n\tscript {HOOK}\n\tscript /second\n",
        "\tscript /before/any/job\n",
        "vzdump: nightly\n\t# script /comment\n",
    ],
)
def test_what_proxmox_ignores_in_jobs_is_not_listed(root: Path, jobs_cfg: str) -> None:
    (root / "etc/pve/jobs.cfg").write_text(jobs_cfg)
    assert "note: job" not in install(root).text


def test_what_proxmox_reads_in_jobs_is_listed(root: Path) -> None:
    (root / "etc/pve/jobs.cfg").write_bytes(b"vzdump: nightly\n\tcomment \xff\n  \n\tscript /after/blanks\n")
    assert "note: job nightly has its own script /after/blanks" in install(root).text


def test_a_new_version_replaces_the_old_one_whole(root: Path, source: Path) -> None:
    (source / "pvehook/gone_later.py").write_text("")
    install(root, source=source)
    (source / "pvehook/gone_later.py").unlink()
    (source / "pvehook/new.py").write_text("NEW = True\n")
    done = install(root, source=source)
    assert "install the program" in done.text
    program = root / "usr/local/lib/pvehook"
    assert (program / "pvehook/new.py").is_file()
    assert not list(program.rglob("gone_later*"))
    assert [path.name for path in program.parent.iterdir() if "pvehook" in path.name] == ["pvehook"]


def test_a_damaged_installation_is_repaired(root: Path) -> None:
    install(root)
    program = root / "usr/local/lib/pvehook"
    whole = touched(program)
    next((program / "pvehook").rglob("*.pyc")).unlink()  # as after an upgrade to a Debian with a newer Python
    (root / HOOK[1:]).chmod(0o644)
    assert install(root, "--check").code == 1
    install(root)
    assert {name: now.entry.mode for name, now in touched(program).items()} == {
        name: before.entry.mode for name, before in whole.items()
    }


def test_a_running_backup_finds_the_hook_at_every_moment_of_an_upgrade(root: Path, source: Path) -> None:
    install(root, source=source)
    hook = root / HOOK[1:]
    over = threading.Event()
    samples: list[bool] = []

    def sample() -> None:
        while not over.is_set():
            samples.append(os.access(hook, os.X_OK) and os.path.isfile(hook))

    sampler = threading.Thread(target=sample)
    sampler.start()
    for version in range(3):
        (source / "pvehook/new.py").write_text(f"VERSION = {version}\n")
        install(root, source=source)
    over.set()
    sampler.join()
    assert samples
    assert all(samples)
    assert (root / "usr/local/lib/pvehook/pvehook/new.py").read_text() == "VERSION = 2\n"


@pytest.mark.parametrize("release", ["ID=debian\nVERSION_ID=11\n", "ID=ubuntu\nVERSION_ID=24.04\n"])
def test_another_system_is_refused_unless_forced(root: Path, release: str) -> None:
    (root / "etc/os-release").write_text(release)
    before = touched(root)
    done = install(root)
    assert done.code == 2
    assert "Debian 12 or 13 was expected" in done.text
    assert touched(root) == before
    assert install(root, "--force").code == 0


@pytest.mark.parametrize(
    ("in_the_way", "target"), [("usr/local/bin/pvehook", "/opt/other"), ("etc/vzdump.conf", "/srv/other")]
)
def test_what_is_in_the_way_is_named_and_left_alone(root: Path, in_the_way: str, target: str) -> None:
    (root / in_the_way).unlink(missing_ok=True)
    (root / in_the_way).symlink_to(target)
    done = install(root)
    assert done.code == 2
    assert in_the_way in done.text
    assert os.readlink(root / in_the_way) == target
    assert not (root / "usr/local/lib/pvehook").exists()


def test_the_installed_command_runs_the_installed_program(root: Path) -> None:
    install(root, source=REPO)
    command = root / "usr/local/bin/pvehook"
    done = subprocess.run(
        [sys.executable, "-I", str(command), "--help"],
        capture_output=True, text=True, timeout=60, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pvehook" in done.stdout


def test_unknown_arguments_are_errors(root: Path) -> None:
    assert install(root, "--uninstal").code == 2
    assert install(root, "--purge").code == 2


def test_help_is_one_screen() -> None:
    text = subprocess.check_output([str(REPO / "install.sh"), "--help"], text=True, timeout=20)
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 110
    for option in ("--check", "--uninstall", "--purge", "--force", "--root", "--demo", "--test"):
        assert option in text


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck (./install.sh --test)")
def test_shellcheck_finds_nothing() -> None:
    names = ("install.sh", ".ci/run", "scripts/demo", "scripts/test", "hooks/systemd/restart-pause")
    ours = [REPO / name for name in names]
    bash = [str(script) for script in (*ours, *(REPO / "scripts").glob("*.sh"))]
    done = subprocess.run(["shellcheck", *bash], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
