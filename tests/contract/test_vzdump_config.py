"""/etc/vzdump.conf, read as vzdump reads it."""

from __future__ import annotations

import pytest

from pvehook.contract.vzdump_config import ignored_lines, options_of_job, parse_vzdump_config


def test_options_and_comments() -> None:
    text = "# script: /x\n\ntmpdir: /var/tmp\n  # mode: stop\nionice:8\nprune-backups: keep-last=3,keep-daily=7\n"
    assert parse_vzdump_config(text) == {
        "tmpdir": "/var/tmp",
        "ionice": "8",
        "prune-backups": "keep-last=3,keep-daily=7",
    }


def test_a_value_may_hold_colons() -> None:
    assert parse_vzdump_config("notes-template: {{guestname}}: {{node}}\n") == {
        "notes-template": "{{guestname}}: {{node}}"
    }


def test_of_a_key_that_comes_twice_the_last_counts() -> None:
    assert parse_vzdump_config("mode: stop\nmode: suspend\n") == {"mode": "suspend"}


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("script : /x", {}),  # key and colon must touch
        (" script: /x", {"script": "/x"}),  # and blanks may stand before it
        ("script:/x \t", {"script": "/x"}),
        ("script: /x\r", {"script": "/x"}),
        ("script: /a\u2028b: c", {"script": "/a\u2028b: c"}),
        ("tmpdir:", {"tmpdir": ""}),
    ],
)
def test_a_line_is_read_as_vzdump_reads_it(line: str, options: dict[str, str]) -> None:
    assert parse_vzdump_config(line) == options


@pytest.mark.parametrize("text", ["", "\n\n", "no colon here\n", "#\n#only: comments\n"])
def test_nothing_is_set(text: str) -> None:
    assert parse_vzdump_config(text) == {}


@pytest.mark.parametrize("line", ["script : /x", " mode: snap", "ionice: 9", "nonsense", "performance: max-workers=0"])
def test_lines_that_proxmox_ignores(line: str) -> None:
    text = f"# a comment\n\n{line}\ntmpdir: /t\n"
    assert parse_vzdump_config(text) == {"tmpdir": "/t"}
    assert ignored_lines(text) == [line.strip()]


@pytest.mark.parametrize(
    ("defaults", "job", "target"),
    [
        ({}, {}, {"storage": "local"}),
        ({"storage": "nas"}, {}, {"storage": "nas"}),
        ({"storage": "nas"}, {"dumpdir": "/d"}, {"dumpdir": "/d"}),
        ({"dumpdir": "/d"}, {"storage": "nas"}, {"storage": "nas"}),
        ({"dumpdir": "/d"}, {}, {"dumpdir": "/d"}),
        ({"dumpdir": "/d", "storage": "nas"}, {}, {"storage": "nas"}),
    ],
)
def test_storage_and_dumpdir_are_one_choice(
    defaults: dict[str, str], job: dict[str, str], target: dict[str, str]
) -> None:
    assert options_of_job(defaults, job) == target


@pytest.mark.parametrize(
    ("default", "own", "merged"),
    [
        ("max-workers=1", "pbs-entries-max=100000", "max-workers=1,pbs-entries-max=100000"),
        ("max-workers=1", "max-workers=2", "max-workers=2"),
        ("", "max-workers=2", "max-workers=2"),
        ("max-workers=1", "", "max-workers=1"),
    ],
)
def test_performance_is_merged_setting_by_setting(default: str, own: str, merged: str) -> None:
    defaults = {"performance": default} if default else {}
    assert options_of_job(defaults, {"performance": own} if own else {})["performance"] == merged
