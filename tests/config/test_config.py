"""What an administrator sees: a mistake is named with its line and what was expected, and nothing else changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pvehook.config import Loaded, Parsed, describe, merge, nodes, parse
from pvehook.settings import (
    DEFAULT,
    AlsoProcess,
    Config,
    Exempt,
    FreezeConfig,
    FreezeRule,
    GovernorConfig,
    GovernorRule,
    IoPriorityConfig,
    MetricsConfig,
    PacerConfig,
    WindowConfig,
    from_json,
    hints_of,
    to_json,
)

EXAMPLE = Path(__file__).parents[2] / "hooks" / "pvehook.example.yaml"
CLUSTER = "/etc/pve/pvehook.yaml"
NODE = "/etc/pvehook.yaml"
KEYS = {
    "window.open",
    "window.timezone",
    "window.next_guest",
    "window.running_guest",
    "window.enforce",
    "window.overdue_after",
    "window.when_short",
    "window.overdue",
    "window.exempt.guests",
    "window.exempt.jobs",
    "window.exempt.storages",
    "io_priority.mode",
    "io_priority.check_every",
    "io_priority.also",
    "io_priority.compressor_nice",
    "freeze.mode",
    "freeze.windows",
    "freeze.reply_within",
    "freeze.frozen_at_most",
    "freeze.windows_frozen_at_most",
    "freeze.wait_for_pve",
    "freeze.veto_hold_at_most",
    "freeze.facts_within",
    "freeze.pre_flush",
    "freeze.pre_flush_within",
    "freeze.slow_after",
    "freeze.slow_freezes",
    "freeze.rules",
    "metrics.mode",
    "metrics.sample_every",
    "metrics.guest_kernel_log",
    "metrics.keep_days",
    "metrics.textfile",
    "governor.mode",
    "governor.latency_floor",
    "governor.latency_factor",
    "governor.stretch_at_most",
    "governor.rules",
    "pacer.mode",
    "pacer.step_mib",
    "notify",
    "chain",
}
LOADERS = [yaml.SafeLoader] + ([yaml.CSafeLoader] if hasattr(yaml, "CSafeLoader") else [])


@pytest.fixture(params=LOADERS, ids=lambda loader: loader.__name__)
def _with_each_loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian has both; what an administrator reads may differ in words, never in the line."""
    monkeypatch.setattr(nodes, "_LOADER", request.param)


def config_of(text: str) -> Config:
    """The configuration of a node's file that must be good."""
    loaded = merge(None, parse(text, NODE))
    assert loaded.problems == ()
    assert loaded.config is not None
    return loaded.config


def messages(text: str) -> list[str]:
    loaded = merge(None, parse(text, NODE))
    assert (loaded.config is None) == bool(loaded.problems)
    return [str(problem) for problem in loaded.problems]


# --- what is good


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~", "{}", "window:\n", "window: {exempt: }", "\ufeff"])
@pytest.mark.usefixtures("_with_each_loader")
def test_a_file_that_sets_nothing_leaves_the_defaults(text: str) -> None:
    assert config_of(text) == DEFAULT


GOOD: list[tuple[str, Config]] = [
    ("window: {open: []}", Config(WindowConfig(open=()))),
    ("window:\n  open:\n  - 02:00-05:00\n", Config(WindowConfig(open=("02:00-05:00",)))),
    (
        'window: {open: ["sat,sun 22:00-06:00", mon..fri 01:30-04:00]}',
        Config(WindowConfig(open=("sat,sun 22:00-06:00", "mon..fri 01:30-04:00"))),
    ),
    ("window: {timezone: Europe/Warsaw}", Config(WindowConfig(timezone="Europe/Warsaw"))),
    ("window: {timezone: }", DEFAULT),
    (
        "window: {next_guest: allow, running_guest: cancel, enforce: cancel, overdue_after: 3, "
        "when_short: in-order, overdue: allow}",
        Config(
            WindowConfig(
                next_guest="allow",
                running_guest="cancel",
                enforce="cancel",
                overdue_after=3,
                when_short="in-order",
                overdue="allow",
            )
        ),
    ),
    ("window: {exempt: {guests: [100, 999999999]}}", Config(WindowConfig(exempt=Exempt(guests=(100, 999999999))))),
    # YAML 1.1 reads these as booleans and as a number; as ids they are texts like any other.
    (
        "window: {exempt: {jobs: [no], storages: [on, 0123]}}",
        Config(WindowConfig(exempt=Exempt(jobs=("no",), storages=("on", "0123")))),
    ),
    ("io_priority: {mode: off}", Config(io_priority=IoPriorityConfig(mode="off"))),
    ('io_priority: {mode: "off"}', Config(io_priority=IoPriorityConfig(mode="off"))),
    ("io_priority: {check_every: 500ms}", Config(io_priority=IoPriorityConfig(check_every_s=0.5))),
    ("io_priority: {check_every: 1m}", Config(io_priority=IoPriorityConfig(check_every_s=60.0))),
    ('io_priority: {check_every: "1500ms"}', Config(io_priority=IoPriorityConfig(check_every_s=1.5))),
    ("io_priority: {also: []}", Config(io_priority=IoPriorityConfig(also=()))),
    (
        'io_priority:\n  also:\n  - command: rclone\n    mentions: ""\n',
        Config(io_priority=IoPriorityConfig(also=(AlsoProcess("rclone", ""),))),
    ),
    ("io_priority: {compressor_nice: 19}", Config(io_priority=IoPriorityConfig(compressor_nice=19))),
    (
        "freeze: {mode: never, windows: never, pre_flush: yes, slow_freezes: 1}",
        Config(freeze=FreezeConfig(mode="never", windows="never", pre_flush=True, slow_freezes=1)),
    ),
    ("freeze: {mode: off, pre_flush: off}", Config(freeze=FreezeConfig(mode="off"))),
    (
        "metrics: {mode: off, sample_every: 1s, guest_kernel_log: no, keep_days: 30, textfile: /srv/pvehook.prom}",
        Config(metrics=MetricsConfig("off", 1.0, guest_kernel_log=False, keep_days=30, textfile="/srv/pvehook.prom")),
    ),
    ("metrics: {textfile: null}", DEFAULT),
    (
        "governor: {mode: observe, latency_floor: 25ms, latency_factor: 5, stretch_at_most: 1.5}",
        Config(governor=GovernorConfig("observe", 0.025, 5.0, 1.5)),
    ),
    (
        "governor: {rules: [{names: [test-*], spare: own-backup}, {guests: [101], mode: observe, spare: never}]}",
        Config(
            governor=GovernorConfig(
                rules=(
                    GovernorRule(names=("test-*",), spare="own-backup"),
                    GovernorRule(guests=(101,), mode="observe", spare="never"),
                )
            )
        ),
    ),
    (
        "governor: {rules: [{tags: [batch], mode: off}]}",
        Config(governor=GovernorConfig(rules=(GovernorRule(tags=("batch",), mode="off"),))),
    ),
    ("pacer: {mode: on, step_mib: 8}", Config(pacer=PacerConfig("on", 8))),
    ("notify: off", Config(notify="off")),
    (
        "freeze: {reply_within: 2500ms, frozen_at_most: 1m, windows_frozen_at_most: 9s, pre_flush_within: 10m}",
        Config(
            freeze=FreezeConfig(
                reply_within_s=2.5, frozen_at_most_s=60.0, windows_frozen_at_most_s=9.0, pre_flush_within_s=600.0
            )
        ),
    ),
    (
        "freeze: {wait_for_pve: 5m, veto_hold_at_most: 4s, facts_within: 100ms, slow_after: 60s}",
        Config(
            freeze=FreezeConfig(wait_for_pve_s=300.0, veto_hold_at_most_s=4.0, facts_within_s=0.1, slow_after_s=60.0)
        ),
    ),
    (
        "freeze:\n  rules:\n  - guests: [101]\n    mode: mountpoints\n    mountpoints: [/, /srv/a b]\n"
        "    except: [/backup]\n"
        "  - {tags: [db], names: ['cpanel-*'], mode: never}\n  - {names: ['win?'], except: ['D:\\']}\n",
        Config(
            freeze=FreezeConfig(
                rules=(
                    FreezeRule((101,), mode="mountpoints", mountpoints=("/", "/srv/a b"), leave_out=("/backup",)),
                    FreezeRule(tags=("db",), names=("cpanel-*",), mode="never"),
                    FreezeRule(names=("win?",), leave_out=("D:\\",)),
                )
            )
        ),
    ),
    ("chain: /root/hook.pl", Config(chain="/root/hook.pl")),
    ("chain: '/srv/my hook: old'", Config(chain="/srv/my hook: old")),
    ("chain: /usr/local/lib/pvehook-old/hook", Config(chain="/usr/local/lib/pvehook-old/hook")),
    ("chain: null\r\nwindow: {open: []}\r\n", Config(WindowConfig(open=()))),
]


@pytest.mark.parametrize(("text", "expected"), GOOD)
@pytest.mark.usefixtures("_with_each_loader")
def test_a_good_file_means_what_it_says(text: str, expected: Config) -> None:
    assert config_of(text) == expected


# --- what is bad: the text, the line, the key, what was found, a part of what was expected, the nearest

IN_WINDOW = "one of open, timezone, next_guest, running_guest, enforce, overdue_after, when_short, overdue, exempt"
UNITS = "a whole number with its unit (ms, s, m, h), from 500ms to 60s"
VMID = "a whole number from 100 to 999999999"
UNKNOWN = "an unknown key"

SECTIONS = "window, io_priority, freeze, metrics, governor, pacer, notify, chain"
BAD: list[tuple[str, int, str, str, str, str]] = [
    ("\nwindwo:\n", 2, "windwo", UNKNOWN, f"one of {SECTIONS}", "window"),
    ("window:\n  Open: []\n", 2, "window.Open", UNKNOWN, IN_WINDOW, "open"),
    ("window:\n  next-guest: allow\n", 2, "window.next-guest", UNKNOWN, IN_WINDOW, "next_guest"),
    ("window:\n  exempt:\n    vm: []\n", 3, "window.exempt.vm", UNKNOWN, "one of guests, jobs, storages", ""),
    ("mode: off\n", 1, "mode", UNKNOWN, f"one of {SECTIONS}", "io_priority.mode"),
    ("<<: {chain: null}\n", 1, "<<", UNKNOWN, "one of window", ""),
    ("? [window]\n: 1\n", 1, "", "a list", f"one of the keys {SECTIONS}", ""),
    ("chain: /a\nwindow:\nchain: /a\n", 3, "chain", "the same key again", "once (it stands in line 1 already)", ""),
    ("window: {open: [],\n open: []}\n", 2, "window.open", "the same key again", "line 1", ""),
    ("- window\n", 1, "", "a list", f"a mapping with the keys {SECTIONS}", ""),
    ("window: 02:00-05:00\n", 1, "window", "02:00-05:00", "a mapping with the keys open", ""),
    ("window:\n  exempt: [101]\n", 2, "window.exempt", "a list", "a mapping with the keys guests", ""),
    ("window:\n  open:\n", 2, "window.open", "nothing", "[] for never", ""),
    ("window:\n  open: 02:00-05:00\n", 2, "window.open", "02:00-05:00", "a list", '["02:00-05:00"]'),
    ("window:\n  open: 22:00\n", 2, "window.open", "22:00", "a list", ""),
    ("window:\n  open:\n  - 02:00-05:00\n  - 22:00\n", 4, "window.open[1]", "22:00", "start and end", ""),
    ("window: {open: [sat,sun 22:00-06:00]}", 1, "window.open[0]", "sat", "in quotes if it has a comma", ""),
    ("window: {open: [munday 02:00-05:00]}", 1, "window.open[0]", "munday 02:00-05:00", "'munday' is no day", ""),
    ("window: {open: [2]}", 1, "window.open[0]", "2", "a span of time", ""),
    ("window: {open: [[02:00-05:00]]}", 1, "window.open[0]", "a list", "a span of time", ""),
    ("window: {open: ['']}", 1, "window.open[0]", '""', "a span of time", ""),
    ("window: {timezone: Europe/Warsav}", 1, "window.timezone", "Europe/Warsav", "a time zone", "Europe/Warsaw"),
    ("window: {timezone: Warsaw}", 1, "window.timezone", "Warsaw", "a time zone", "Europe/Warsaw"),
    ("window: {timezone: europe/warsaw}", 1, "window.timezone", "europe/warsaw", "a time zone", "Europe/Warsaw"),
    ("window: {timezone: Europe}", 1, "window.timezone", "Europe", "a time zone", ""),
    ("window: {timezone: right/UTC}", 1, "window.timezone", "right/UTC", "a time zone", ""),
    ("window: {timezone: ../../../etc/passwd}", 1, "window.timezone", "../../../etc/passwd", "a time zone", ""),
    ("window: {timezone: [UTC]}", 1, "window.timezone", "a list", "a time zone", ""),
    ("window: {next_guest: Refuse}", 1, "window.next_guest", "Refuse", "refuse or allow", "refuse"),
    ("window: {next_guest: no}", 1, "window.next_guest", "no", "refuse or allow", ""),
    ("window: {running_guest: }", 1, "window.running_guest", "nothing", "finish or cancel", ""),
    ("window: {when_short: never}", 1, "window.when_short", "never", "rotate or in-order", ""),
    ("window: {overdue_after: 0}", 1, "window.overdue_after", "0", "a whole number from 1 to 30", ""),
    ("window: {enforce: kill}", 1, "window.enforce", "kill", "exit or cancel", ""),
    ("window: {exempt: {guests: 101}}", 1, "window.exempt.guests", "101", "a list", "[101]"),
    ("window: {exempt: {guests: [99]}}", 1, "window.exempt.guests[0]", "99", VMID, ""),
    ("window: {exempt: {guests: [1000000000]}}", 1, "window.exempt.guests[0]", "1000000000", VMID, ""),
    ('window: {exempt: {guests: ["101"]}}', 1, "window.exempt.guests[0]", '"101"', "without quotes", ""),
    ("window: {exempt: {guests: [0101]}}", 1, "window.exempt.guests[0]", "0101", VMID, ""),
    ("window: {exempt: {guests: [1_01]}}", 1, "window.exempt.guests[0]", "1_01", VMID, ""),
    ("window: {exempt: {guests: [101.0]}}", 1, "window.exempt.guests[0]", "101.0", VMID, ""),
    ("window: {exempt: {guests: [true]}}", 1, "window.exempt.guests[0]", "true", VMID, ""),
    ("window: {exempt: {guests: [null]}}", 1, "window.exempt.guests[0]", "nothing", VMID, ""),
    ("window: {exempt: {guests: [١٠١]}}", 1, "window.exempt.guests[0]", "١٠١", VMID, ""),
    ("window: {exempt: {jobs: nightly}}", 1, "window.exempt.jobs", "nightly", "a list of job ids", '["nightly"]'),
    ("window: {exempt: {jobs: ['']}}", 1, "window.exempt.jobs[0]", '""', "the id of a job", ""),
    ('window: {exempt: {jobs: ["a\\e[2J"]}}', 1, "window.exempt.jobs[0]", '"a\\x1b[2J"', "the id of a job", ""),
    ("window: {exempt: {storages: ['a, b']}}", 1, "window.exempt.storages[0]", '"a, b"', "the id of a storage", ""),
    ("io_priority: {mode: idel}", 1, "io_priority.mode", "idel", "idle or off", "idle"),
    ("io_priority: {mode: false}", 1, "io_priority.mode", "false", "idle or off", ""),
    ("io_priority:\n  check_every: 2\n", 2, "io_priority.check_every", "2", UNITS, "2s"),
    ("io_priority: {check_every: 2 s}", 1, "io_priority.check_every", "2 s", UNITS, ""),
    ("io_priority: {check_every: 2sec}", 1, "io_priority.check_every", "2sec", UNITS, ""),
    ("io_priority: {check_every: 2S}", 1, "io_priority.check_every", "2S", UNITS, ""),
    ("io_priority: {check_every: 1.5s}", 1, "io_priority.check_every", "1.5s", UNITS, ""),
    ("io_priority: {check_every: 499ms}", 1, "io_priority.check_every", "499ms", UNITS, ""),
    ("io_priority: {check_every: 61s}", 1, "io_priority.check_every", "61s", UNITS, ""),
    ("io_priority: {check_every: 2h}", 1, "io_priority.check_every", "2h", UNITS, ""),
    ("io_priority: {check_every: -2s}", 1, "io_priority.check_every", "-2s", UNITS, ""),
    ("io_priority: {check_every: 1:30}", 1, "io_priority.check_every", "1:30", UNITS, ""),
    ("io_priority: {check_every: [2s]}", 1, "io_priority.check_every", "a list", UNITS, ""),
    ("io_priority: {also: rsync}", 1, "io_priority.also", "rsync", "a list of entries with command and mentions", ""),
    ("io_priority: {also: [rsync]}", 1, "io_priority.also[0]", "rsync", "the keys command, mentions", ""),
    ("io_priority: {also: [{command: rsync}]}", 1, "io_priority.also[0].mentions", "nothing", "dump-directory", ""),
    ("io_priority: {also: [{mentions: ''}]}", 1, "io_priority.also[0].command", "nothing", "the name of a program", ""),
    (
        "io_priority:\n  also:\n  - command: /usr/bin/rsync\n    mentions: x\n",
        3,
        "io_priority.also[0].command",
        "/usr/bin/rsync",
        "without its path",
        "",
    ),
    (
        "io_priority:\n  also:\n  - command: rsync\n    mentions: x\n    mention: y\n",
        5,
        "io_priority.also[0].mention",
        UNKNOWN,
        "one of command, mentions",
        "mentions",
    ),
    ("io_priority: {compressor_nice: 20}", 1, "io_priority.compressor_nice", "20", "from 0 to 19", ""),
    ("io_priority: {compressor_nice: -1}", 1, "io_priority.compressor_nice", "-1", "from 0 to 19", ""),
    ("freeze: {mode: mountpoints}", 1, "freeze.mode", "mountpoints", "auto or never or off", ""),
    ("freeze: {windows: off}", 1, "freeze.windows", "off", "auto or never", ""),
    ("freeze: {reply_within: 3s}", 1, "freeze.reply_within", "3s", "from 200ms to 2500ms", ""),
    ("freeze: {frozen_at_most: 2s}", 1, "freeze.frozen_at_most", "2s", "from 3s to 60s", ""),
    ("freeze: {windows_frozen_at_most: 10s}", 1, "freeze.windows_frozen_at_most", "10s", "from 3s to 9s", ""),
    ("freeze: {veto_hold_at_most: 3s}", 1, "freeze.veto_hold_at_most", "3s", "from 4s to 30s", ""),
    ("freeze: {pre_flush: 1}", 1, "freeze.pre_flush", "1", "yes or no, without quotes", ""),
    ('freeze: {pre_flush: "yes"}', 1, "freeze.pre_flush", '"yes"', "yes or no, without quotes", "yes"),
    ("freeze: {pre_flush: 60s}", 1, "freeze.pre_flush", "60s", "yes or no, without quotes", ""),
    ("freeze: {slow_freezes: 0}", 1, "freeze.slow_freezes", "0", "from 1 to 100", ""),
    ("freeze: {rules: {guests: [101]}}", 1, "freeze.rules", "a mapping", "a list of rules", ""),
    ("freeze: {rules: [101]}", 1, "freeze.rules[0]", "101", "a mapping with the keys guests, tags, names", ""),
    ("freeze: {rules: [{mode: never}]}", 1, "freeze.rules[0]", "no guest at all", "at least one of guests, tags", ""),
    ("freeze: {rules: [{guests: []}]}", 1, "freeze.rules[0]", "no guest at all", "at least one of guests, tags", ""),
    (
        "freeze: {rules: [{guests: [101], excpet: []}]}",
        1,
        "freeze.rules[0].excpet",
        UNKNOWN,
        "one of guests, tags, names, mode, mountpoints, except",
        "except",
    ),
    ("freeze: {rules: [{tags: ['a;b']}]}", 1, "freeze.rules[0].tags[0]", '"a;b"', "a tag", ""),
    ("freeze: {rules: [{names: ['']}]}", 1, "freeze.rules[0].names[0]", '""', "a name, or a pattern", ""),
    (
        "freeze: {rules: [{names: [a], mode: mountpoints}]}",
        1,
        "freeze.rules[0].mountpoints",
        "nothing",
        "what to freeze, since the mode is mountpoints",
        "",
    ),
    (
        "freeze: {rules: [{names: [a], mountpoints: [/]}]}",
        1,
        "freeze.rules[0].mode",
        "auto",
        "mountpoints, since the rule has a list of them",
        "",
    ),
    (
        "freeze: {rules: [{names: [a], mode: never, except: [/a]}]}",
        1,
        "freeze.rules[0].except",
        "a list",
        "no exception from never",
        "",
    ),
    ("freeze: {rules: [{names: [a], except: [/a/]}]}", 1, "freeze.rules[0].except[0]", "/a/", "without a slash", ""),
    ("freeze: {rules: [{names: [a], except: [home]}]}", 1, "freeze.rules[0].except[0]", "home", "such as /home", ""),
    ("metrics: {textfile: a.prom}", 1, "metrics.textfile", "a.prom", "ends in .prom, or null", ""),
    ("metrics: {textfile: /srv/a}", 1, "metrics.textfile", "/srv/a", "ends in .prom, or null", ""),
    ("metrics: {keep_days: 0}", 1, "metrics.keep_days", "0", "from 1 to 3650", ""),
    ("governor: {latency_factor: 1}", 1, "governor.latency_factor", "1", "a number from 1.5 to 20", ""),
    ('governor: {stretch_at_most: "2"}', 1, "governor.stretch_at_most", '"2"', "without quotes", ""),
    ("governor: {stretch_at_most: 1e1}", 1, "governor.stretch_at_most", "1e1", "a number from 1.1 to 20", ""),
    ("governor: {rules: [{mode: off}]}", 1, "governor.rules[0]", "no guest at all", "guests, tags, names", ""),
    ("governor: {rules: [{tags: [a]}]}", 1, "governor.rules[0]", "neither mode nor spare", "mode, spare or both", ""),
    ("governor: {rules: [{spare: never}]}", 1, "governor.rules[0]", "no guest at all", "guests, tags, names", ""),
    (
        "governor: {rules: [{tags: [a], spare: own}]}",
        1,
        "governor.rules[0].spare",
        "own",
        "always or own-backup or never",
        "",
    ),
    ("governor: {rules: [{tags: [a], mode: no}]}", 1, "governor.rules[0].mode", "no", "on or observe or off", ""),
    ("pacer: {step_mib: 65}", 1, "pacer.step_mib", "65", "from 1 to 64", ""),
    ("notify: of", 1, "notify", "of", "on or off", "off"),
    ("notify: {mode: off}", 1, "notify", "a mapping", "on or off", ""),
    ("chain: hook.sh", 1, "chain", "hook.sh", "the absolute path of a script, or null", ""),
    ('chain: ""', 1, "chain", '""', "the absolute path of a script, or null", ""),
    ('chain: "/a\\e[2J"', 1, "chain", '"/a\\x1b[2J"', "the absolute path of a script, or null", ""),
    ("chain: {a: 1}", 1, "chain", "a mapping", "the absolute path of a script, or null", ""),
    (
        "chain: /usr/local/lib/./pvehook/hooks/vzdump-hook",
        1,
        "chain",
        "/usr/local/lib/./pvehook/hooks/vzdump-hook",
        "a script of your own",
        "",
    ),
]


@pytest.mark.parametrize(("text", "line", "key", "found", "expected", "nearest"), BAD)
@pytest.mark.usefixtures("_with_each_loader")
def test_a_mistake_is_named(text: str, line: int, key: str, found: str, expected: str, nearest: str) -> None:
    parsed = parse(text, NODE)
    [problem] = parsed.errors
    assert (problem.file, problem.line, problem.key, problem.found) == (NODE, line, key, found)
    assert expected in problem.expected
    # For a zone up to three names are offered: the first has to be the right one, if there is one.
    assert problem.nearest[:1] == ((nearest,) if nearest else ()) or (not nearest and key == "window.timezone")
    assert merge(None, parsed).config is None
    # A key that came twice keeps its first value, for the sake of the messages about the rest; a window its good spans.
    assert found == "the same key again" or not any(
        key.startswith(good) and (good != "window.open" or found in leaf.value)
        for good, leaf in parsed.values.items()
    )


def test_a_problem_reads_as_one_line() -> None:
    assert messages("io_priority:\n  mode: Idle\n") == [
        "/etc/pvehook.yaml:2: io_priority.mode: found Idle, expected idle or off; did you mean idle?"
    ]
    assert messages("- x\n") == [
        f"/etc/pvehook.yaml:1: found a list, expected a mapping with the keys {SECTIONS}"
    ]


def test_all_mistakes_are_told_at_once() -> None:
    cluster = parse("window:\n  opne: []\n  timezone: Nowhere\nchain: x\n", CLUSTER)
    node = parse("io_priority:\n  mode: of\n  check_every: 2\n", NODE)
    loaded = merge(cluster, node)
    assert loaded.config is None
    assert [(problem.file, problem.line) for problem in loaded.problems] == [
        (CLUSTER, 2),
        (CLUSTER, 3),
        (CLUSTER, 4),
        (NODE, 2),
        (NODE, 3),
    ]


# --- what is no configuration at all

LAUGHS = "a: &a [x,x,x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

HOSTILE: list[tuple[str, int, str]] = [
    (LAUGHS, 1, "anchor"),
    ("chain: *x\n", 1, "anchor or alias"),
    ("window: &w {open: [*w]}\n", 1, "anchor"),
    ("\nchain: !!python/object/apply:os.system [id]\n", 2, "a tag"),
    ("chain: !secret x\n", 1, "a tag"),
    # A newer libyaml has a limit of its own, which such a text reaches before ours is asked.
    ("[" * 100_000, 1, "nesting"),
    ("- " * 100_000, 1, "nesting"),
    ("? " * 100_000, 1, "nesting"),
    ("{a: " * 21, 1, "nesting over 20 levels"),
    ("x" * (1 << 20), 1, "1048576 bytes, expected at most 262144"),
    ("#" * ((256 << 10) + 1), 1, "262145 bytes"),
    ("# " + "€" * (100 << 10), 1, "307202 bytes"),
    ("a: 1\n\x00", 2, "U+0000"),
    ("chain: null\n# \x1b[2J\n", 2, "U+001B"),
    ("chain: /a # \u2028chain: /b\n", 1, "U+2028"),
    ("\nchain: \udcff\n", 2, "U+DCFF"),
    ("window:\n\topen: []\n", 2, "YAML indented by spaces"),
    ("window: {open: [02:00-05:00}\n", 1, "broken YAML"),
    ("chain: /a\nwindow: [\n", 2, "broken YAML"),
    ("chain: 'a\n\n\n", 3, "from line 1"),
    ("chain: a: b\n", 1, "broken YAML"),
    ("chain: null\n---\nchain: null\n", 2, "another document"),
    ("%YAML 2.0\n---\n", 1, "broken YAML"),
    ("%YAML 1." + "9" * 5000 + "\n---\n", 1, "broken YAML"),
    ('chain: "\\UFFFFFFFF"\n', 1, "broken YAML"),
    ("window: {exempt: {guests: [" + "101," * 20_000 + "]}}", 1, "more than 10000 keys and values"),
]


@pytest.mark.parametrize(("text", "line", "part"), HOSTILE, ids=lambda value: repr(value)[:30])
@pytest.mark.usefixtures("_with_each_loader")
def test_a_hostile_file_gives_one_clear_error(text: str, line: int, part: str) -> None:
    parsed = parse(text, NODE)
    assert parsed.values == {}
    [problem] = parsed.errors
    assert str(problem).startswith(f"{NODE}:{line}: found ")
    assert part in str(problem)
    assert len(str(problem)) < 400
    assert str(problem).isprintable()


def test_within_the_limits_a_file_is_good() -> None:
    assert config_of("#" * (256 << 10)) == DEFAULT
    guests = list(range(100, 5000))
    assert config_of(f"window: {{exempt: {{guests: {guests}}}}}").window.exempt.guests == tuple(guests)


def test_countless_mistakes_end_after_fifty() -> None:
    errors = parse("window: {exempt: {guests: [" + "1," * 5000 + "]}}", NODE).errors
    assert len(errors) == 51
    assert str(errors[-1]) == f"{NODE}:1: found 50 problems, expected fewer; the rest was not checked"


@pytest.mark.parametrize("text", ["chain: {}", "window: {{open: [{}]}}", "window: {{open: ['a {}']}}", "'{}': 1"])
def test_a_long_value_is_shortened_in_its_message(text: str) -> None:
    [message] = messages(text.format("x" * 900))
    assert len(message) < 250


PIECES = [*"abz019 :-#'\"[]{},&*!|>%@`?~\\/.<=\n\t\r\x00\x85\ud800€", "window:", "\n  open:", "also: ", "%YAML 1"]
YAMLISH = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


@given(text=st.one_of(YAMLISH, st.text(max_size=60)), loader=st.sampled_from(LOADERS))
@settings(derandomize=True, max_examples=400, deadline=None)
def test_no_text_makes_the_checker_fail(text: str, loader: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes, "_LOADER", loader)
        parsed = parse(text, NODE)
    assert all(str(problem).isprintable() for problem in parsed.errors)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1
    assert all(1 <= problem.line <= lines for problem in parsed.errors)


# --- two files


def both(cluster: str | None, node: str | None) -> Loaded:
    def read(text: str | None, name: str) -> Parsed | None:
        return None if text is None else parse(text, name)

    return merge(read(cluster, CLUSTER), read(node, NODE))


def test_without_files_the_defaults_are_in_force() -> None:
    loaded = both(None, None)
    assert loaded == Loaded(DEFAULT, (), dict.fromkeys(loaded.origins, "default"))
    assert set(loaded.origins) == KEYS


def test_the_node_wins_key_by_key_and_its_lists_replace() -> None:
    loaded = both(
        "window:\n  open: [01:00-02:00]\n  timezone: Europe/Warsaw\n  exempt:\n    guests: [101, 102]\n    jobs: [a]\n",
        "window:\n  exempt:\n    guests: [200]\nio_priority: {mode: off}\n",
    )
    assert loaded.config == Config(
        WindowConfig(open=("01:00-02:00",), timezone="Europe/Warsaw", exempt=Exempt(guests=(200,), jobs=("a",))),
        IoPriorityConfig(mode="off"),
    )
    set_by_a_file = {key: origin for key, origin in loaded.origins.items() if origin != "default"}
    assert set_by_a_file == {
        "window.open": f"{CLUSTER}:2",
        "window.timezone": f"{CLUSTER}:3",
        "window.exempt.guests": f"{NODE}:3",
        "window.exempt.jobs": f"{CLUSTER}:6",
        "io_priority.mode": f"{NODE}:4",
    }


def test_the_node_can_take_back_what_the_cluster_set() -> None:
    loaded = both(
        "chain: /a\nwindow: {timezone: UTC, exempt: {guests: [101]}}",
        "chain: null\nwindow: {timezone: null, exempt: {guests: []}}",
    )
    assert loaded.config == DEFAULT
    assert loaded.origins["chain"] == f"{NODE}:1"


@pytest.mark.parametrize(("cluster", "node"), [("chain: x", "chain: /x"), ("chain: /x", "chain: x")])
def test_one_bad_file_makes_both_unusable(cluster: str, node: str) -> None:
    loaded = both(cluster, node)
    assert loaded.config is None
    assert [problem.key for problem in loaded.problems] == ["chain"]


def test_show_gives_each_key_its_value_and_its_origin() -> None:
    loaded = both(
        "window: {timezone: Europe/Warsaw}",
        "io_priority:\n  mode: off\n  check_every: 1500ms\nchain: '/a b'",
    )
    assert describe(loaded) == [
        'window.open:                    ["02:00-05:00"]                           # default',
        "window.timezone:                Europe/Warsaw                             # /etc/pve/pvehook.yaml:1",
        "window.next_guest:              refuse                                    # default",
        "window.running_guest:           finish                                    # default",
        "window.enforce:                 exit                                      # default",
        "window.overdue_after:           2                                         # default",
        "window.when_short:              rotate                                    # default",
        "window.overdue:                 refuse                                    # default",
        "window.exempt.guests:           []                                        # default",
        "window.exempt.jobs:             []                                        # default",
        "window.exempt.storages:         []                                        # default",
        "io_priority.mode:               off                                       # /etc/pvehook.yaml:2",
        "io_priority.check_every:        1500ms                                    # /etc/pvehook.yaml:3",
        'io_priority.also:               [{"command": "rsync", "mentions": "dump-directory"}]  # default',
        "io_priority.compressor_nice:    0                                         # default",
        "freeze.mode:                    auto                                      # default",
        "freeze.windows:                 auto                                      # default",
        "freeze.reply_within:            2s                                        # default",
        "freeze.frozen_at_most:          10s                                       # default",
        "freeze.windows_frozen_at_most:  8s                                        # default",
        "freeze.wait_for_pve:            30s                                       # default",
        "freeze.veto_hold_at_most:       8s                                        # default",
        "freeze.facts_within:            2s                                        # default",
        "freeze.pre_flush:               no                                        # default",
        "freeze.pre_flush_within:        60s                                       # default",
        "freeze.slow_after:              5s                                        # default",
        "freeze.slow_freezes:            3                                         # default",
        "freeze.rules:                   []                                        # default",
        "metrics.mode:                   on                                        # default",
        "metrics.sample_every:           500ms                                     # default",
        "metrics.guest_kernel_log:       yes                                       # default",
        "metrics.keep_days:              400                                       # default",
        "metrics.textfile:               null                                      # default",
        "governor.mode:                  on                                        # default",
        "governor.latency_floor:         10ms                                      # default",
        "governor.latency_factor:        3.5                                       # default",
        "governor.stretch_at_most:       1.9                                       # default",
        "governor.rules:                 []                                        # default",
        "pacer.mode:                     auto                                      # default",
        "pacer.step_mib:                 2                                         # default",
        "notify:                         on                                        # default",
        'chain:                          "/a b"                                    # /etc/pvehook.yaml:4',
    ]


def test_show_gives_the_problems_when_nothing_can_be_used() -> None:
    loaded = both("chain: x", None)
    assert describe(loaded) == [str(loaded.problems[0])]


# --- the example


def uncommented(text: str) -> str:
    """Takes the # away in front of keys, as the example tells its reader to."""
    return re.sub(r"^( *)#(?=\S)", r"\1", text, flags=re.MULTILINE)


def key_lines() -> list[int]:
    lines = EXAMPLE.read_text().splitlines()
    return [number for number, line in enumerate(lines) if re.match(r" *#\S", line)]


def test_the_example_as_it_is_changes_nothing() -> None:
    loaded = both(EXAMPLE.read_text(), None)
    assert loaded.config == DEFAULT
    assert set(loaded.origins.values()) == {"default"}


def test_the_example_has_every_key_with_its_default() -> None:
    loaded = both(uncommented(EXAMPLE.read_text()), None)
    assert loaded.problems == ()
    assert loaded.config == DEFAULT
    assert {key for key, origin in loaded.origins.items() if origin.startswith(CLUSTER)} == KEYS


@pytest.mark.parametrize("number", key_lines())
def test_each_key_of_the_example_can_be_taken_alone(number: int) -> None:
    lines = EXAMPLE.read_text().splitlines()
    lines[number] = uncommented(lines[number])
    parsed = parse("\n".join(lines), NODE)
    assert parsed.errors == ()
    assert [leaf.line for leaf in parsed.values.values()] == [number + 1]


# --- there and back

PRINTABLE = st.characters(blacklist_categories=("Cs", "Cc", "Cn", "Co")).filter(str.isprintable)
TEXTS = st.text(PRINTABLE, max_size=12)
IDS = st.lists(st.text(PRINTABLE.filter(lambda char: char not in " ,"), min_size=1, max_size=8), max_size=3).map(tuple)
SPANS = st.sampled_from(["02:00-05:00", "sat,sun 22:00-06:00", "mon..fri 01:30-04:00", "fri..mon 00:00-24:00"])
COMMANDS = st.text(PRINTABLE.filter(lambda char: char != "/"), min_size=1, max_size=8)
MOUNTPOINTS = st.lists(
    st.one_of(st.sampled_from(["/", "C:\\"]), TEXTS.map(lambda text: f"/{text}x")), min_size=1, max_size=3
).map(tuple)
WHOM = {
    "guests": st.lists(st.integers(100, 999_999_999), min_size=1, max_size=3).map(tuple),
    "tags": st.lists(st.sampled_from(["db", "no", "1"]), max_size=2).map(tuple),
    "names": st.lists(st.text(PRINTABLE, min_size=1, max_size=8), max_size=3).map(tuple),
}
NONE: Any = st.just(())
FREEZE_RULES = [
    st.builds(FreezeRule, **WHOM, mode=st.sampled_from(["never", "off"]), mountpoints=NONE, leave_out=NONE),
    st.builds(FreezeRule, **WHOM, mode=st.just("auto"), mountpoints=NONE, leave_out=MOUNTPOINTS),
    st.builds(FreezeRule, **WHOM, mode=st.just("mountpoints"), mountpoints=MOUNTPOINTS, leave_out=MOUNTPOINTS),
]


def times(limits_s: tuple[float, float]) -> Any:
    return st.integers(round(limits_s[0] * 1000), round(limits_s[1] * 1000)).map(lambda ms: ms / 1000)


CONFIGS = st.builds(
    Config,
    window=st.builds(
        WindowConfig,
        open=st.lists(SPANS, max_size=3).map(tuple),
        timezone=st.sampled_from([None, "UTC", "Europe/Warsaw", "America/Argentina/Buenos_Aires"]),
        next_guest=st.sampled_from(["refuse", "allow"]),
        running_guest=st.sampled_from(["finish", "cancel"]),
        enforce=st.sampled_from(["exit", "cancel"]),
        overdue_after=st.integers(1, 30),
        when_short=st.sampled_from(["rotate", "in-order"]),
        overdue=st.sampled_from(["refuse", "allow"]),
        exempt=st.builds(
            Exempt,
            guests=st.lists(st.integers(100, 999_999_999), max_size=3).map(tuple),
            jobs=IDS,
            storages=IDS,
        ),
    ),
    io_priority=st.builds(
        IoPriorityConfig,
        mode=st.sampled_from(["idle", "off"]),
        check_every_s=st.integers(500, 60_000).map(lambda ms: ms / 1000),
        also=st.lists(st.builds(AlsoProcess, command=COMMANDS, mentions=TEXTS), max_size=3).map(tuple),
        compressor_nice=st.integers(0, 19),
    ),
    freeze=st.builds(
        FreezeConfig,
        mode=st.sampled_from(["auto", "never", "off"]),
        windows=st.sampled_from(["auto", "never"]),
        pre_flush=st.booleans(),
        slow_freezes=st.integers(1, 100),
        rules=st.lists(st.one_of(FREEZE_RULES), max_size=3).map(tuple),
        **{name: times(get_args(hint)[1]) for name, hint in hints_of(FreezeConfig).items() if name.endswith("_s")},
    ),
    metrics=st.builds(
        MetricsConfig,
        mode=st.sampled_from(["on", "off"]),
        sample_every_s=times((0.2, 10.0)),
        guest_kernel_log=st.booleans(),
        keep_days=st.integers(1, 3650),
        textfile=st.sampled_from([None, "/srv/a b.prom"]),
    ),
    governor=st.builds(
        GovernorConfig,
        mode=st.sampled_from(["on", "observe", "off"]),
        latency_floor_s=times((0.001, 1.0)),
        latency_factor=st.integers(15, 200).map(lambda tenths: tenths / 10),
        stretch_at_most=st.integers(11, 200).map(lambda tenths: tenths / 10),
        rules=st.lists(
            st.one_of(
                st.builds(GovernorRule, **WHOM, mode=st.sampled_from(["on", "observe", "off"])),
                st.builds(GovernorRule, **WHOM, spare=st.sampled_from(["always", "own-backup", "never"])),
            )
        ).map(tuple),
    ),
    pacer=st.builds(PacerConfig, mode=st.sampled_from(["auto", "on", "off"]), step_mib=st.integers(1, 64)),
    notify=st.sampled_from(["on", "off"]),
    chain=st.one_of(st.none(), TEXTS.map(lambda text: "/" + text)),
)


@given(CONFIGS)
@settings(derandomize=True, deadline=None)
def test_json_gives_back_every_configuration(config: Config) -> None:
    assert from_json(to_json(config)) == config


@given(CONFIGS)
@settings(derandomize=True, deadline=None)
def test_what_show_prints_can_be_written_into_a_file(config: Config) -> None:
    sections: list[str] = []
    text = ""
    for line in describe(Loaded(config, (), dict.fromkeys(KEYS, "default"))):
        key, _, rest = line.partition(":")
        *path, name = key.split(".")
        for depth, section in enumerate(path):
            if sections[: depth + 1] != path[: depth + 1]:
                text += "  " * depth + section + ":\n"
                sections = path[: depth + 1]
        text += "  " * len(path) + f"{name}: {rest}\n"
    assert config_of(text) == config
