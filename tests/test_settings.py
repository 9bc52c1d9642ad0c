"""The last good configuration: a file that is not exactly ours is refused with a reason, and loading it is cheap."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvehook.errors import ConfigError
from pvehook.rules.window import parse_span
from pvehook.settings import DEFAULT, FreezeRule, GovernorRule, from_json, to_json

RULE = FreezeRule(guests=(101,))._asdict()
GOVERNOR_RULE = GovernorRule(guests=(101,))._asdict()
REPOSITORY = Path(__file__).parents[1]


def changed(path: str, value: object) -> str:
    """The defaults' JSON with one value replaced; `path` is a dotted path of its keys."""
    stored = json.loads(to_json(DEFAULT))
    *sections, name = path.split(".")
    at = stored
    for section in sections:
        at = at[section]
    at[name] = value
    return json.dumps(stored)


def test_the_defaults_come_back() -> None:
    assert from_json(to_json(DEFAULT)) == DEFAULT


def test_the_default_window_is_one_that_opens() -> None:
    assert [parse_span(text).start_min for text in DEFAULT.window.open] == [120]


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        ("v", 4, "layout 4, expected 8"),
        ("v", 0, "layout 0, expected 8"),
        ("v", None, "layout None"),
        ("window", None, "wrong value"),
        ("window", [], "wrong value"),
        ("window.open", "02:00-05:00", "'02:00-05:00' is no list"),
        ("window.open", [2], "2 is no text"),
        ("window.timezone", 1, "1 is no text"),
        ("window.next_guest", "maybe", "'maybe' is not one of refuse, allow"),
        ("window.running_guest", None, "None is not one of finish, cancel"),
        ("window.exempt", {}, "lacks 'guests'"),
        ("window.exempt.guests", [99], "99 is no whole number from 100"),
        ("window.exempt.guests", [True], "True is no whole number"),
        ("window.exempt.guests", [101.5], "101.5 is no whole number"),
        ("window.exempt.jobs", [None], "None is no text"),
        ("window.exempt.storages", {"nas": 1}, "is no list"),
        ("io_priority.mode", False, "False is not one of idle, off"),
        ("io_priority.check_every_s", 0, "0 is no time from 0.5 to 60 seconds"),
        ("io_priority.check_every_s", 60.1, "60.1 is no time"),
        ("io_priority.check_every_s", float("nan"), "nan is no time"),
        ("io_priority.check_every_s", True, "True is no time"),
        ("io_priority.check_every_s", "2s", "'2s' is no time"),
        ("io_priority.also", [["rsync", ""]], "wrong value"),
        ("io_priority.also", [{"command": "rsync"}], "lacks 'mentions'"),
        ("io_priority.compressor_nice", -20, "-20 is no whole number from 0 to 19"),
        ("io_priority.compressor_nice", True, "True is no whole number"),
        ("freeze", None, "wrong value"),
        ("freeze", {}, "lacks 'mode'"),
        ("freeze.mode", "mountpoints", "'mountpoints' is not one of auto, never, off"),
        ("freeze.windows", "off", "'off' is not one of auto, never"),
        ("freeze.reply_within_s", 3, "3 is no time from 0.2 to 2.5 seconds"),
        ("freeze.frozen_at_most_s", 2.9, "2.9 is no time from 3 to 60 seconds"),
        ("freeze.windows_frozen_at_most_s", 10, "10 is no time from 3 to 9 seconds"),
        ("freeze.veto_hold_at_most_s", 3, "3 is no time from 4 to 30 seconds"),
        ("freeze.facts_within_s", float("inf"), "inf is no time"),
        ("freeze.pre_flush", 1, "1 is neither true nor false"),
        ("freeze.slow_freezes", 0, "0 is no whole number from 1 to 100"),
        ("freeze.rules", {}, "is no list"),
        ("freeze.rules", [{"guests": [101]}], "lacks 'tags'"),
        ("freeze.rules", [{**RULE, "mode": "always"}], "'always' is not one of auto, never, mountpoints, off"),
        ("freeze.rules", [{**RULE, "guests": [99]}], "99 is no whole number from 100"),
        ("freeze.rules", [{**RULE, "leave_out": "/backup"}], "'/backup' is no list"),
        ("metrics.sample_every_s", 0, "0 is no time from 0.2 to 10 seconds"),
        ("metrics.textfile", "a.prom", "'a.prom' is no absolute path"),
        ("governor.mode", "auto", "'auto' is not one of on, observe, off"),
        ("governor.latency_factor", float("nan"), "nan is no number"),
        ("governor.rules", [{"guests": [1]}], "1 is no whole number from 100"),
        ("governor.rules", [{**GOVERNOR_RULE, "mode": "auto"}], "'auto' is not one of on, observe, off"),
        ("governor.rules", [{**GOVERNOR_RULE, "spare": "on"}], "'on' is not one of always, own-backup, never"),
        ("pacer", {"mode": "on"}, "lacks 'step_mib'"),
        ("chain", "hook.sh", "'hook.sh' is no absolute path"),
        ("chain", ["/a"], "is no text"),
    ],
)
def test_a_changed_file_is_refused_with_the_reason(path: str, value: object, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(changed(path, value))
    assert part in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '"v"', "[" * 100_000, "{}", '{"v": 2}', "9" * 10_000])
def test_a_broken_file_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="the last good configuration"):
        from_json(text)


ANY_JSON: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
PATHS = ["v", "window", "window.open", "window.exempt.guests", "io_priority", "io_priority.also", "chain"]
PATHS += ["freeze", "freeze.slow_after_s", "freeze.rules"]


@given(path=st.sampled_from(PATHS), value=ANY_JSON)
@settings(derandomize=True, deadline=None)
def test_nothing_but_a_config_error_comes_out(path: str, value: object) -> None:
    try:
        config = from_json(changed(path, value))
    except ConfigError:
        return
    assert from_json(to_json(config)) == config


def test_the_degraded_path_loads_no_yaml() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import pvehook.settings;"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] in ('pvehook', 'yaml', 'zoneinfo')))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["pvehook", "pvehook.errors", "pvehook.settings"]
