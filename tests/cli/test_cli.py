"""The `pvehook` command as an administrator and as a script meet it: exit codes, words, JSON, files."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pvehook.cli import main
from pvehook.host.node import HOOK
from pvehook.records.history_writing import append_attempts
from pvehook.rehearsal.journal_receiver import JournalReceiver
from pvehook.settings import DEFAULT, from_json
from tests.night.nights import turn
from tests.records.backups import NOW_S

NIGHT = 'window: {open: ["02:00-05:00"], timezone: Europe/Warsaw}\n'
IN_WINDOW, AFTER_WINDOW = "2026-11-22T03:00", "2026-11-22T05:00"


class Done(NamedTuple):
    """One finished command."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def root() -> Iterator[Path]:
    # Short: a unix socket's path has 108 bytes, and pytest's own directories take most of them.
    tree = Path(tempfile.mkdtemp(prefix="pvehook-"))
    (tree / "etc/pve").mkdir(parents=True)
    (tree / "etc/localtime").symlink_to("/usr/share/zoneinfo/Europe/Warsaw")
    (tree / "etc/pvehook.yaml").write_text(NIGHT)
    yield tree
    shutil.rmtree(tree)


@pytest.fixture
def journal(root: Path) -> Iterator[JournalReceiver]:
    with JournalReceiver(str(root / "run/systemd/journal/socket")) as receiver:
        yield receiver


@pytest.fixture
def pvehook(root: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str) -> Done:
        number_of_words = 2 if words[0] in ("config", "guests") else 1
        argv = [*words[:number_of_words], "--root", str(root), *words[number_of_words:]]
        try:
            code = main(argv)
        except SystemExit as left:  # argparse leaves so
            code = int(left.code or 0)
        return Done(code, *capsys.readouterr())

    return run


def event(journal: JournalReceiver, name: str) -> dict[str, str]:
    return journal.wait_for(lambda fields: fields["PVEHOOK_EVENT"] == name, name)


# window


def test_window_says_open_or_closed_and_why(pvehook: Command) -> None:
    assert pvehook("window", "--at", IN_WINDOW) == Done(
        0, "open at 2026-11-22 03:00:00 CET: inside 02:00-05:00; closes 2026-11-22 05:00:00 CET\n", ""
    )
    assert pvehook("window", "--at", AFTER_WINDOW) == Done(
        1, "closed at 2026-11-22 05:00:00 CET: outside 02:00-05:00; opens 2026-11-23 02:00:00 CET\n", ""
    )


def test_window_for_scripts(pvehook: Command) -> None:
    closed = pvehook("window", "--json", "--at", AFTER_WINDOW)
    assert json.loads(closed.out) == {
        "open": False,
        "reason": "outside 02:00-05:00",
        "closes_at": None,
        "opens_at": "2026-11-23T02:00:00+01:00",
    }
    is_open = pvehook("window", "--json", "--at", IN_WINDOW)
    assert json.loads(is_open.out) == {
        "open": True,
        "reason": "inside 02:00-05:00",
        "closes_at": "2026-11-22T05:00:00+01:00",
        "opens_at": None,
    }
    assert (is_open.code, closed.code) == (0, 1)


@pytest.mark.parametrize(
    ("when", "code"),
    [
        ("2026-11-22T02:30:00+00:00", 0),  # 03:30 in Warsaw
        ("2026-11-22T04:30:00Z", 1),
        ("2026-03-29T02:30", 0),  # does not exist; the clock shows 03:30 then
        ("2026-10-25 02:59:59", 0),
        ("2026-11-22", 1),  # midnight
    ],
)
def test_window_takes_a_time_with_and_without_an_offset(pvehook: Command, when: str, code: int) -> None:
    assert pvehook("window", "--at", when).code == code


@pytest.mark.parametrize("when", ["", "soon", "25:00", "2026-02-30T01:00", "9999-12-31T23:59", "0001-01-01T00:00"])
def test_a_time_that_is_none_is_an_error_and_not_closed(pvehook: Command, when: str) -> None:
    done = pvehook("window", "--at", when)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("pvehook: ")


def test_window_that_never_opens_or_never_closes(pvehook: Command, root: Path) -> None:
    (root / "etc/pvehook.yaml").write_text("window: {open: []}\n")
    assert "never opens, as configured" in pvehook("window").out
    (root / "etc/pvehook.yaml").write_text('window: {open: ["00:00-24:00"]}\n')
    done = pvehook("window")
    assert done.code == 0
    assert "does not close" in done.out


def test_window_names_the_exceptions_that_count_now(pvehook: Command, journal: JournalReceiver) -> None:
    pvehook("allow", "--vmid", "101", "--for", "1h", "--reason", "restore test")
    assert "guests 101" in pvehook("window").out
    as_json = pvehook("window", "--json")
    assert set(json.loads(as_json.out)) == {"open", "reason", "closes_at", "opens_at"}
    assert "guests 101" in as_json.err
    assert "guests 101" not in pvehook("window", "--at", AFTER_WINDOW).out


# --config


@pytest.mark.parametrize("words", [("window", "--at", IN_WINDOW), ("config", "check"), ("config", "show")])
def test_another_file_is_used_instead_of_the_nodes(pvehook: Command, root: Path, words: tuple[str, ...]) -> None:
    good, bad = root / "good.yaml", root / "bad.yaml"
    good.write_text('window: {open: ["12:00-13:00"]}\n')
    bad.write_text("windows: {}\n")
    assert pvehook(*words, "--config", str(good)).code == (1 if words[0] == "window" else 0)
    wrong = pvehook(*words, "--config", str(bad))
    assert wrong.code == (1 if words[-1] == "check" else 2)
    assert f"{bad}:1: windows: " in wrong.out + wrong.err
    absent = pvehook(*words, "--config", str(root / "absent.yaml"))
    assert absent.code == 2
    assert "absent.yaml does not exist" in absent.err


@pytest.mark.parametrize(
    "words", [("serve",), ("window",), ("allow",), ("config", "check"), ("config", "show"), ("rehearse",)]
)
def test_every_command_takes_another_file(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*words, "--help"])
    assert left.value.code == 0
    assert "--config FILE" in capsys.readouterr().out


@pytest.mark.parametrize("words", [(), ("config",), ("windows",), ("window", "--when", "now")])
def test_a_command_line_that_is_none_is_an_error(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "usage: pvehook" in capsys.readouterr().err


# allow


def test_an_exception_is_a_file_an_event_and_a_line(pvehook: Command, root: Path, journal: JournalReceiver) -> None:
    before = time.time()
    done = pvehook("allow", "--vmid", "102", "--vmid", "101", "--vmid", "101", "--for", "2h", "--reason", "a test")
    assert done.code == 0
    (file,) = (root / "run/pvehook/allow").iterdir()
    written = json.loads(file.read_text())
    assert written["vmids"] == [101, 102]
    assert written["reason"] == "a test"
    assert before + 7200 <= written["until_s"] <= time.time() + 7200
    made = event(journal, "allowance-made")
    assert made["PRIORITY"] == "4"
    assert made["PVEHOOK_VMIDS"] == "101,102"
    assert made["PVEHOOK_REASON"] == "a test"
    assert made["PVEHOOK_WHO"] == written["who"] != ""
    assert datetime.fromisoformat(made["PVEHOOK_UNTIL"]).timestamp() == int(written["until_s"])
    assert f"pvehook allow --revoke {file.stem}" in done.out
    assert "guests 101, 102 until" in done.out


def test_behind_sudo_the_person_is_named(
    pvehook: Command, journal: JournalReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "anna")
    pvehook("allow", "--for", "1h", "--reason", "r")
    made = event(journal, "allowance-made")
    assert made["PVEHOOK_WHO"] == "anna"
    assert made["PVEHOOK_VMIDS"] == "all"
    assert "by anna: r" in pvehook("allow", "--list").out


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--for", "2h"),
        ("--reason", "r"),
        ("--for", "2h", "--reason", "  "),
        ("--for", "169h", "--reason", "r"),
        ("--for", "2", "--reason", "r"),
        ("--for", "0h", "--reason", "r"),
        ("--for", "2w", "--reason", "r"),
        ("--for", "-2h", "--reason", "r"),
        ("--for", "1.5h", "--reason", "r"),
        ("--for", "\u0662h", "--reason", "r"),  # 2 in Arabic digits
        ("--for", "9" * 400 + "h", "--reason", "r"),
        ("--vmid", "web", "--for", "2h", "--reason", "r"),
        ("--vmid", "99", "--for", "2h", "--reason", "r"),
        ("--vmid", "1000000000", "--for", "2h", "--reason", "r"),
    ],
)
def test_an_exception_without_its_end_or_reason_is_not_made(
    pvehook: Command, root: Path, journal: JournalReceiver, words: tuple[str, ...]
) -> None:
    done = pvehook("allow", *words)
    assert done.code == 2
    assert done.err != ""
    assert done.out == ""
    assert not (root / "run/pvehook/allow").exists()
    assert journal.events == []


def test_a_week_is_the_longest(pvehook: Command, journal: JournalReceiver) -> None:
    assert pvehook("allow", "--for", "7d", "--reason", "r").code == 0
    assert "guest until" in pvehook("allow", "--list").out


def test_exceptions_are_listed_and_ended(pvehook: Command, root: Path, journal: JournalReceiver) -> None:
    assert pvehook("allow", "--list") == Done(0, "no exceptions; the window alone decides\n", "")
    for vmid in ("101", "102", "103"):
        pvehook("allow", "--vmid", vmid, "--for", "1h", "--reason", f"for {vmid}")
    lines = {line.split("guests ")[1][:3]: line for line in pvehook("allow", "--list").out.splitlines()}
    assert sorted(lines) == ["101", "102", "103"]
    first = lines["101"].split(":")[0]
    assert pvehook("allow", "--revoke", first) == Done(0, f"exception {first} has ended\n", "")
    assert event(journal, "allowance-revoked")["PVEHOOK_ALLOWANCE"] == first
    again = pvehook("allow", "--revoke", first)
    assert again.code == 2
    assert lines["102"].split(":")[0] in again.err  # which there are
    assert pvehook("allow", "--revoke", "all").code == 0
    assert list((root / "run/pvehook/allow").iterdir()) == []
    assert pvehook("allow", "--revoke", "all").code == 0  # there is nothing left, which is what was wanted


def test_an_exception_that_has_run_out_is_gone_by_itself(pvehook: Command, root: Path) -> None:
    directory = root / "run/pvehook/allow"
    directory.mkdir(parents=True)
    past = {"vmids": [], "until_s": time.time() - 1, "reason": "r", "who": "w"}
    (directory / "aaaaaa.json").write_text(json.dumps(past))
    assert pvehook("allow", "--list").out == "no exceptions; the window alone decides\n"
    assert list(directory.iterdir()) == []


def test_a_name_that_is_a_path_ends_nothing(pvehook: Command, root: Path, journal: JournalReceiver) -> None:
    victim = root / "run/victim.json"
    victim.write_text("{}")
    assert pvehook("allow", "--revoke", "../victim").code == 2
    assert victim.exists()


def test_a_reason_stays_one_line_on_a_terminal(pvehook: Command, journal: JournalReceiver) -> None:
    pvehook("allow", "--for", "1h", "--reason", "one\ntwo\x1b[2J\udcff")
    (line,) = pvehook("allow", "--list").out.splitlines()
    assert line.isprintable()
    assert "one\\ntwo" in line


def test_an_exception_that_cannot_be_written_is_an_error(pvehook: Command, root: Path) -> None:
    (root / "run").mkdir()
    (root / "run/pvehook").write_text("in the way")
    done = pvehook("allow", "--for", "1h", "--reason", "r")
    assert done.code == 2
    assert "could not be written" in done.err


# config


def test_a_good_configuration_is_remembered_as_such(pvehook: Command, root: Path) -> None:
    (root / "etc/pve/pvehook.yaml").write_text("io_priority: {mode: off}\n")
    assert pvehook("config", "check") == Done(0, "the configuration can be used\n", "")
    remembered = from_json((root / "var/lib/pvehook/config.json").read_text())
    assert remembered.window.timezone == "Europe/Warsaw"
    assert remembered.io_priority.mode == "off"


def test_every_problem_is_printed_with_file_and_line_and_nothing_is_remembered(pvehook: Command, root: Path) -> None:
    (root / "etc/pve/pvehook.yaml").write_text("window:\n  opens: []\n")
    (root / "etc/pvehook.yaml").write_text("\nchain: relative\n")
    done = pvehook("config", "check")
    assert done.code == 1
    first, second, count, in_force = done.out.splitlines()
    assert first.startswith("/etc/pve/pvehook.yaml:2: window.opens: ")
    assert "did you mean open?" in first
    assert second.startswith("/etc/pvehook.yaml:2: chain: ")
    assert count == "2 problems"
    assert in_force.startswith("in force until that is fixed: built-in defaults; backups may run 02:00-05:00 (")
    assert not (root / "var/lib/pvehook").exists()


@pytest.mark.parametrize("how", ["link", "wrapper", "neither"])
def test_a_chain_that_leads_back_to_the_hook_is_a_problem(pvehook: Command, root: Path, how: str) -> None:
    hook = root / HOOK.lstrip("/")
    hook.parent.mkdir(parents=True)
    hook.write_text("#!/usr/bin/python3 -IS\n")
    if how == "link":
        (root / "mine").symlink_to(hook)
    else:
        (root / "mine").write_text(f'#!/bin/sh\n"{HOOK if how == "wrapper" else "/another"}" "$@"\n')
    (root / "etc/pvehook.yaml").write_text("chain: /mine\n")
    done = pvehook("config", "check")
    assert done.code == (0 if how == "neither" else 1)
    assert ("chain: /mine calls pvehook's own hook" in done.out) is (how != "neither")


def test_with_a_mistake_the_check_says_what_is_in_force(pvehook: Command, root: Path) -> None:
    """Nothing was ever good, so the valid values count: a zone that this node does not have leaves the spans."""
    (root / "etc/localtime").unlink(missing_ok=True)
    (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/Europe/Warsaw")
    wrong = 'window:\n  open: ["22:00-06:00", "sat 25:00-26:00"]\n  timezone: US/Nowhere\n'
    (root / "etc/pvehook.yaml").write_text(wrong)
    done = pvehook("config", "check")
    assert done.code == 1
    span, zone, _, in_force = done.out.splitlines()
    assert span.startswith("/etc/pvehook.yaml:2: window.open[1]: ")
    assert zone.startswith("/etc/pvehook.yaml:3: window.timezone: ")
    assert "tzdata-legacy" in zone
    expected = "the files' valid values; backups may run 22:00-06:00 (Europe/Warsaw)"
    assert in_force == f"in force until that is fixed: {expected}"
    assert not (root / "var/lib/pvehook").exists()  # it is not the last good one

    (root / "etc/pvehook.yaml").write_text('window: {open: ["01:00-02:00"], timezone: UTC}\n')
    assert pvehook("config", "check").code == 0
    (root / "etc/pvehook.yaml").write_text(wrong)
    in_force = pvehook("config", "check").out.splitlines()[-1]
    expected = "last good configuration; backups may run 01:00-02:00 (UTC)"
    assert in_force == f"in force until that is fixed: {expected}"


def test_a_file_that_is_only_tried_out_is_not_remembered(pvehook: Command, root: Path) -> None:
    (root / "other.yaml").write_text("io_priority: {mode: off}\n")
    assert pvehook("config", "check", "--config", str(root / "other.yaml")).code == 0
    assert not (root / "var/lib/pvehook").exists()


def test_who_may_not_remember_may_still_check(pvehook: Command, root: Path) -> None:
    (root / "var").write_text("in the way")
    assert pvehook("config", "check").code == 0


def test_every_key_is_shown_with_where_it_comes_from(pvehook: Command, root: Path) -> None:
    (root / "etc/pve/pvehook.yaml").write_text("io_priority:\n  check_every: 5s\n")
    done = pvehook("config", "show")
    assert (done.code, done.err) == (0, "")
    lines = {line.split(":")[0]: line.split() for line in done.out.splitlines()}
    assert lines["io_priority.check_every"][1:] == ["5s", "#", "/etc/pve/pvehook.yaml:2"]
    assert lines["window.timezone"][1:] == ["Europe/Warsaw", "#", "/etc/pvehook.yaml:1"]
    assert lines["window.next_guest"][1:] == ["refuse", "#", "default"]


@pytest.mark.parametrize("content", [b"window: [", b"chain: \xff\n"], ids=["no YAML", "no UTF-8"])
def test_while_a_file_is_wrong_what_acts_is_shown_and_the_reason_said(
    pvehook: Command, root: Path, content: bytes
) -> None:
    (root / "etc/pvehook.yaml").write_text("window: {next_guest: allow}\n")
    pvehook("config", "check")
    (root / "etc/pvehook.yaml").write_bytes(content)
    done = pvehook("config", "show")
    assert done.code == 0
    assert "etc/pvehook.yaml" in done.err
    assert "in force: last good configuration" in done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("window.next_guest:")]
    assert line.split()[1:] == ["allow", "#", "last", "good", "configuration"]


def test_without_a_last_good_one_the_defaults_act(pvehook: Command, root: Path) -> None:
    (root / "etc/pvehook.yaml").write_text("windows: {}\n")
    done = pvehook("window", "--json", "--at", "2026-11-22T03:00")
    assert json.loads(done.out)["reason"] == "inside " + DEFAULT.window.open[0]
    assert "built-in defaults" in done.err
    assert "/etc/pvehook.yaml:1" in done.err


# rehearse


@pytest.fixture
def node_with_guests(root: Path) -> Path:
    files = {
        "etc/vzdump.conf": "script: /usr/local/lib/pvehook/hooks/vzdump-hook\nionice: 8\n",
        "etc/pve/storage.cfg": (
            "dir: local\n\tpath /var/lib/vz\n\tcontent backup\n\nnfs: nas\n\tpath /mnt/pve/nas\n\tcontent backup\n\n"
            "lvmthin: thin\n\tvgname pve\n\tthinpool data\n"
        ),
        "etc/pve/jobs.cfg": (
            "vzdump: nightly\n\tschedule 02:30\n\tvmid 101,102,110\n\tstorage nas\n\tmode snapshot\n\n"
            "vzdump: off\n\tschedule 02:30\n\tall 1\n\tenabled 0\n\n"
            "vzdump: elsewhere\n\tall 1\n\tnode another-node-than-this\n"
        ),
        "etc/pve/qemu-server/101.conf": "name: web\nscsi0: local:101/vm-101-disk-0.raw,size=8G\n",
        "etc/pve/qemu-server/102.conf": "name: db\nscsi0: local:102/vm-102-disk-0.raw,size=8G\n",
        "etc/pve/qemu-server/103.conf": "name: spare\n",
        "etc/pve/lxc/110.conf": "hostname: mail\nrootfs: thin:vm-110-disk-0,size=8G\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for script in (HOOK, "/opt/own"):  # Proxmox fails a job whose script is not there
        (root / script[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / script[1:]).write_text("#!/bin/sh\n")
        (root / script[1:]).chmod(0o755)
    for scope in ("qemu.slice/101.scope", "lxc/110"):
        (root / "sys/fs/cgroup" / scope).mkdir(parents=True)
    return root


def outlook(done: Done) -> dict[int, dict[str, Any]]:
    return {each["vmid"]: each for each in json.loads(done.out)}


@pytest.mark.usefixtures("node_with_guests")
def test_a_night_is_told_guest_by_guest(pvehook: Command) -> None:
    done = pvehook("rehearse", "--at", IN_WINDOW)
    assert (done.code, done.err) == (0, "")
    assert "job nightly, judged at Sun 2026-11-22 03:00 CET (as asked)" in done.out
    assert "VM 101 web (running, mode snapshot): would be backed up" in done.out
    assert "VM 102 db (off, mode stop): would be backed up" in done.out
    assert "CT 110 mail (running, mode snapshot): would be backed up" in done.out
    assert "in no job: 103" in done.out
    assert "job off" not in done.out
    assert "job elsewhere" not in done.out
    assert "pvehook will NOT run" not in done.out


EVIL = "a\x1b[2J\x9b1A\u202e\u2028b"


def test_what_others_named_moves_no_cursor_in_a_rehearsal(pvehook: Command, node_with_guests: Path) -> None:
    jobs = (
        f"vzdump: n{EVIL}\n\tschedule 02:30{EVIL}\n\tvmid 101,110\n\tstorage {EVIL}\n\tscript /{EVIL}\n\tmode {EVIL}\n"
    )
    jobs += f"\nvzdump: other\n\tschedule 02:30\n\tvmid 101,102\n\tpool {EVIL}\n\tcomment {EVIL}\n\tnode {EVIL}\n"
    jobs += f"\nvzdump: third\n\tschedule 02:30\n\tvmid 102,110\n\tstorage nas\n\tperformance max-workers={EVIL}\n"
    files = {
        "etc/pve/jobs.cfg": jobs,
        "etc/pve/qemu-server/101.conf": f"name: {EVIL}\ntags: {EVIL}\nlock: {EVIL}\nscsi0: {EVIL}:101/disk,size=8G\n",
        "etc/pve/qemu-server/102.conf": f"name: {EVIL}\nscsi0: local:{EVIL},size=8G\n",
        "etc/pve/lxc/110.conf": f"hostname: {EVIL}\nrootfs: thin:{EVIL},size=8G\nmp0: {EVIL}:x,mp=/{EVIL}\n",
        "etc/vzdump.conf": f"script: /{EVIL}\nionice: {EVIL}\nstorage: {EVIL}\ntmpdir: /{EVIL}\n",
        "etc/pvehook.yaml": NIGHT + 'chain: "/a\\e[2J"\n"windows\\e[2J": 1\n',
    }
    for name, text in files.items():
        (node_with_guests / name).write_text(text, encoding="utf-8")
    for words in ((), ("--at", IN_WINDOW), ("--vmid", "102"), ("--json",), ("--at", f"{IN_WINDOW}\x1b[2J")):
        done = pvehook("rehearse", *words)
        assert [line for line in (done.out + done.err).split("\n") if not line.isprintable()] == [], words
    assert "a\\x1b[2J" in pvehook("rehearse").out


@pytest.mark.usefixtures("node_with_guests")
def test_a_night_for_scripts(pvehook: Command) -> None:
    shown = outlook(pvehook("rehearse", "--at", IN_WINDOW, "--json"))
    assert sorted(shown) == [101, 102, 110]
    assert shown[101] | {"idle_effect": ..., "notes": ..., "expected": ...} == {
        "job": "nightly",
        "at": "2026-11-22T03:00:00+01:00",
        "at_from": "as asked",
        "vmid": 101,
        "name": "web",
        "type": "qemu",
        "running": True,
        "mode": "snapshot",
        "would": "be-backed-up",
        "pve_refuses": None,
        "pvehook_runs": True,
        "at_is_guess": False,
        "target_free_bytes": None,
        "allowed": True,
        "reason": "window-open",
        "lines": [],
        "idle_effect": ...,
        "notes": ...,
        "expected": ...,
    }
    assert shown[101]["notes"] == []
    assert any("pvehook restores it" in note for note in shown[102]["notes"])


def test_a_refused_guest_is_exit_code_1_and_the_exempt_one_is_told(pvehook: Command, node_with_guests: Path) -> None:
    (node_with_guests / "etc/pvehook.yaml").write_text(
        'window: {open: ["02:00-05:00"], timezone: Europe/Warsaw, exempt: {guests: [110]}}\n'
    )
    done = pvehook("rehearse", "--at", AFTER_WINDOW)
    assert done.code == 1
    assert "VM 101 web (running, mode snapshot): the window would REFUSE it" in done.out
    assert "CT 110 mail (running, mode snapshot): would be backed up" in done.out
    shown = outlook(pvehook("rehearse", "--at", AFTER_WINDOW, "--json"))
    assert {vmid: each["reason"] for vmid, each in shown.items()} == {
        101: "window-closed",
        102: "window-closed",
        110: "guest-exempt",
    }
    assert pvehook("rehearse", "--at", AFTER_WINDOW, "--vmid", "110").code == 0


@pytest.mark.usefixtures("node_with_guests")
def test_only_some_guests(pvehook: Command) -> None:
    done = pvehook("rehearse", "--at", IN_WINDOW, "--vmid", "101", "--vmid", "110", "--json")
    assert sorted(outlook(done)) == [101, 110]
    in_no_job = pvehook("rehearse", "--at", IN_WINDOW, "--vmid", "103")
    assert in_no_job.code == 2
    assert "in no job: 103" in in_no_job.out
    unknown = pvehook("rehearse", "--at", IN_WINDOW, "--vmid", "999")
    assert unknown == Done(2, "", "pvehook: guest 999 is not on this node\n")


def test_without_jobs_there_is_nothing_to_say(pvehook: Command) -> None:
    done = pvehook("rehearse", "--at", IN_WINDOW)
    assert done.code == 2
    assert "no enabled backup job" in done.out


@pytest.mark.parametrize(
    ("vzdump_conf", "note"),
    [
        ("ionice: 8\n", "/etc/vzdump.conf has no script; run install.sh"),
        ("script: /opt/own\n", "/etc/vzdump.conf has script: /opt/own; run install.sh"),
        (None, "/etc/vzdump.conf has no script; run install.sh"),
    ],
)
def test_a_node_that_does_not_call_pvehook_is_told_so(
    pvehook: Command, node_with_guests: Path, vzdump_conf: str | None, note: str
) -> None:
    if vzdump_conf is None:
        os.unlink(node_with_guests / "etc/vzdump.conf")
    else:
        (node_with_guests / "etc/vzdump.conf").write_text(vzdump_conf)
    assert note in outlook(pvehook("rehearse", "--at", IN_WINDOW, "--json"))[101]["notes"]


def test_a_jobs_own_script_wins_and_is_named(pvehook: Command, node_with_guests: Path) -> None:
    jobs = node_with_guests / "etc/pve/jobs.cfg"
    jobs.write_text(jobs.read_text().replace("\tstorage nas\n", "\tstorage nas\n\tscript /opt/own\n"))
    shown = outlook(pvehook("rehearse", "--at", IN_WINDOW, "--json"))[101]
    assert shown["pvehook_runs"] is False
    assert any("job nightly has a script of its own: /opt/own" in note for note in shown["notes"])
    assert "would be backed up WITHOUT pvehook" in pvehook("rehearse", "--at", IN_WINDOW).out


def test_a_rehearsal_of_another_time_ends_no_exception(pvehook: Command, node_with_guests: Path) -> None:
    assert pvehook("allow", "--vmid", "110", "--for", "2h", "--reason", "restore test").code == 0
    pvehook("rehearse", "--at", "2099-11-23T12:00")
    assert "guests 110 until" in pvehook("allow", "--list").out


def test_an_hour_that_does_not_exist_is_said(pvehook: Command, root: Path) -> None:
    (root / "etc/pvehook.yaml").write_text("window: {timezone: Europe/Warsaw}\n")
    done = pvehook("window", "--at", "2026-03-29T02:30")
    assert "02:30 does not exist on that day" in done.err
    assert "2026-03-29 03:30:00 CEST" in done.err


def test_a_job_of_this_very_node_counts(pvehook: Command, node_with_guests: Path) -> None:
    jobs = node_with_guests / "etc/pve/jobs.cfg"
    jobs.write_text(f"vzdump: here\n\tall 1\n\texclude 101\n\tnode {socket.gethostname().partition('.')[0]}\n")
    assert sorted(outlook(pvehook("rehearse", "--at", IN_WINDOW, "--json"))) == [102, 103, 110]


def test_a_node_that_cannot_be_read_is_an_error_and_no_refusal(pvehook: Command, root: Path) -> None:
    (root / "etc/pve/qemu-server").write_text("in the way")
    done = pvehook("rehearse", "--at", IN_WINDOW)
    assert done.code == 2
    assert done.err.startswith("pvehook: ")


def test_without_a_time_the_next_opening_is_taken(pvehook: Command, node_with_guests: Path) -> None:
    shown = outlook(pvehook("rehearse", "--json"))
    assert all(each["allowed"] for each in shown.values())
    assert "so when the window is open" in shown[101]["at_from"]


# night


def test_night_of_a_node_without_a_history(pvehook: Command, root: Path) -> None:
    done = pvehook("night")
    assert done.code == 0
    assert "there is no history yet" in done.out
    assert json.loads(pvehook("night", "--json").out) == {"format": 1, "night": None}
    assert pvehook("night", "--date", "yesterday").code == 2


def test_night_of_a_history(pvehook: Command, root: Path) -> None:
    append_attempts(str(root / "var/lib/pvehook/history.db"), [turn(101)], now_s=NOW_S)
    assert "night of Mon 2026-11-23 to Tue 2026-11-24, node pve1" in pvehook("night", "--date", "2026-11-24").out
    assert pvehook("night", "--last", "--date", "2026-11-24").code == 2  # one or the other


def test_night_reads_what_the_jobs_of_the_node_promise(pvehook: Command, root: Path) -> None:
    now_s = time.time()
    history = str(root / "var/lib/pvehook/history.db")
    tried = turn(101, started_s=now_s - 3 * 86400, ended_s=now_s - 3 * 86400, result="failed", reason="disk full")
    turns = [each._replace(node=os.uname().nodename) for each in (tried, turn(102, started_s=now_s - 60))]
    append_attempts(history, turns, now_s=now_s)
    assert "is not known: /etc/pve has no guest of this node." in " ".join(pvehook("night").out.split())
    (root / "etc/pve/qemu-server").mkdir()
    for vmid, name in ((101, "web"), (102, "db"), (900, "router")):
        (root / f"etc/pve/qemu-server/{vmid}.conf").write_text(f"name: {name}\n")
    (root / "etc/pve/jobs.cfg").write_text("vzdump: nightly\n\tschedule 03:30\n\tvmid 101,102\n\tstorage nas\n")
    out = pvehook("night").out
    assert "VM 101 web: no good backup on record\n  failed once: disk full" in out
    assert "vzdump 101 --storage nas" in out
    assert "in no job" in next(line for line in out.splitlines() if line.startswith("VM 900 router"))
    (late,) = json.loads(pvehook("night", "--json").out)["overdue"]
    assert (late["vmid"], late["ways_out"][0].split(":")[0]) == (101, "to back it up now")


def test_night_of_another_nodes_history_is_not_held_against_the_jobs_of_this_one(pvehook: Command, root: Path) -> None:
    history = str(root / "other.db")
    append_attempts(history, [turn(101)], now_s=NOW_S)
    out = " ".join(pvehook("night", "--history", history).out.split())
    assert f"the history is of node pve1, the jobs are of {os.uname().nodename.partition('.')[0]}" in out
