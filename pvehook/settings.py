"""What the administrator can set, as types; the defaults; and the last good configuration as JSON.

    /var/lib/pvehook/config.json
        {"v": 8,
         "window": {"open": ["02:00-05:00"], "timezone": null, "next_guest": "refuse",
                    "running_guest": "finish", "enforce": "exit", "overdue_after": 2,
                    "when_short": "rotate", "overdue": "refuse",
                    "exempt": {"guests": [], "jobs": [], "storages": []}},
         "io_priority": {"mode": "idle", "check_every_s": 2.0,
                         "also": [{"command": "rsync", "mentions": "dump-directory"}], "compressor_nice": 0},
         "freeze": {"mode": "auto", "windows": "auto", "reply_within_s": 2.0, ...: a key for each field of FreezeConfig,
                    "rules": [{"guests": [101], "tags": [], "names": [], "mode": "mountpoints",
                               "mountpoints": ["/"], "leave_out": []}]},
         "metrics": {"mode": "on", "sample_every_s": 0.5, "guest_kernel_log": true, "keep_days": 400, "textfile": null},
         "governor": {"mode": "on", "latency_floor_s": 0.01, "latency_factor": 3.5, "stretch_at_most": 1.9,
                      "rules": [{"guests": [101], "tags": [], "names": [], "mode": "off", "spare": null}]},
         "pacer": {"mode": "auto", "step_mib": 2},
         "notify": "on",
         "chain": null}

The hook's degraded path loads this module, so it imports no yaml. pvehook/config checks what people write.
"""

from __future__ import annotations

import json
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pvehook.errors import ConfigError

JSON_LAYOUT = 8
"""Raised with every change of the layout above: a file of another version is then refused, not misread."""


class Between(NamedTuple):
    """The lowest and the highest value of a number."""

    lowest: float
    highest: float


class Seconds(NamedTuple):
    """The shortest and the longest of a time; in a file it carries its unit."""

    lowest: float
    highest: float


ABSOLUTE = "/"
"""A path must begin with it."""

Vmid = Annotated[int, Between(100, 999_999_999)]
"""Source: `pve-vmid` in pve-common's PVE/JSONSchema.pm."""

Path = Annotated[str, ABSOLUTE]

WhenShort = Literal["rotate", "in-order"]
OverdueOutside = Literal["refuse", "allow"]
NextGuest = Literal["refuse", "allow"]
RunningGuest = Literal["finish", "cancel"]
Enforce = Literal["exit", "cancel"]
IoMode = Literal["idle", "off"]
FreezeMode = Literal["auto", "never", "off"]
FreezeRuleMode = Literal["auto", "never", "mountpoints", "off"]
WindowsFreeze = Literal["auto", "never"]
MetricsMode = Literal["on", "off"]
GovernorMode = Literal["on", "observe", "off"]
Spare = Literal["always", "own-backup", "never"]
Notify = Literal["on", "off"]
PacerMode = Literal["auto", "on", "off"]

DUMP_DIRECTORY = "dump-directory"
"""As `mentions`: the directory into which the job writes its archives."""


class Exempt(NamedTuple):
    """Who may be backed up while the window is closed."""

    guests: tuple[Vmid, ...] = ()
    jobs: tuple[str, ...] = ()
    storages: tuple[str, ...] = ()


class WindowConfig(NamedTuple):
    """When backups may run. Each text of `open` is one for `rules.window.parse_span`; none means never.

    `timezone` is an IANA name, None is the zone of the node. `overdue_after` is how many turns a guest may miss.
    """

    open: tuple[str, ...] = ("02:00-05:00",)
    timezone: str | None = None
    next_guest: NextGuest = "refuse"
    running_guest: RunningGuest = "finish"
    enforce: Enforce = "exit"
    overdue_after: Annotated[int, Between(1, 30)] = 2
    when_short: WhenShort = "rotate"
    overdue: OverdueOutside = "refuse"
    exempt: Exempt = Exempt()


class AlsoProcess(NamedTuple):
    """Processes outside vzdump that belong to the backup: the name of the program, and a text that its
    command line has. DUMP_DIRECTORY stands for the job's own directory, "" for any command line."""

    command: str
    mentions: str


class IoPriorityConfig(NamedTuple):
    """Which processes get the idle class. `compressor_nice` 0 leaves the CPU niceness as it is."""

    mode: IoMode = "idle"
    check_every_s: Annotated[float, Seconds(0.5, 60.0)] = 2.0
    also: tuple[AlsoProcess, ...] = (AlsoProcess("rsync", DUMP_DIRECTORY),)
    compressor_nice: Annotated[int, Between(0, 19)] = 0


class FreezeRule(NamedTuple):
    """What counts for some guests instead of the section's `mode`. One match of `guests`, `tags` or `names` is enough;
    `names` are patterns for fnmatch. `leave_out` is `except` in YAML: filesystems that are never frozen."""

    guests: tuple[Vmid, ...] = ()
    tags: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    mode: FreezeRuleMode = "auto"
    mountpoints: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()


class FreezeConfig(NamedTuple):
    """Which guests are frozen for a backup, and within which bounds. Of `rules` the first one that matches counts."""

    mode: FreezeMode = "auto"
    windows: WindowsFreeze = "auto"
    reply_within_s: Annotated[float, Seconds(0.2, 2.5)] = 2.0  # PVE waits 3 s, and must be released before
    frozen_at_most_s: Annotated[float, Seconds(3.0, 60.0)] = 10.0  # from here on it is longer than any reply_within
    windows_frozen_at_most_s: Annotated[float, Seconds(3.0, 9.0)] = 8.0  # VSS lets go by itself after 10 s
    wait_for_pve_s: Annotated[float, Seconds(1.0, 300.0)] = 30.0
    veto_hold_at_most_s: Annotated[float, Seconds(4.0, 30.0)] = 8.0  # longer than PVE's 3 s, or PVE freezes after all
    facts_within_s: Annotated[float, Seconds(0.1, 5.0)] = 2.0
    pre_flush: bool = False
    pre_flush_within_s: Annotated[float, Seconds(1.0, 600.0)] = 60.0
    slow_after_s: Annotated[float, Seconds(0.1, 60.0)] = 5.0
    slow_freezes: Annotated[int, Between(1, 100)] = 3
    rules: tuple[FreezeRule, ...] = ()


class MetricsConfig(NamedTuple):
    """What is sampled while a guest is backed up. Without it there is no governor either. `textfile` is where
    node_exporter's textfile collector finds the last backups; None: nowhere."""

    mode: MetricsMode = "on"
    sample_every_s: Annotated[float, Seconds(0.2, 10.0)] = 0.5
    guest_kernel_log: bool = True
    keep_days: Annotated[int, Between(1, 3650)] = 400
    textfile: Path | None = None


class GovernorRule(NamedTuple):
    """What counts for some guests, matched as a FreezeRule is. `mode` is how such a guest's backup is treated, whoever
    suffers from it; `spare` is which backups are slowed while such a guest suffers. None: the rule does not say."""

    guests: tuple[Vmid, ...] = ()
    tags: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    mode: GovernorMode | None = None
    spare: Spare | None = None


class GovernorConfig(NamedTuple):
    """When a backup is slowed down: while the requests of its guest, or of another one on the same disks, take longer
    than `latency_factor` times what they took before, and longer than `latency_floor_s`. A backup is stretched to
    `stretch_at_most` times its length by it. A busy guest's backup begins slowly in any case. Of `rules` the first one
    that matches a guest and has a mode gives its mode, and so it is with `spare`."""

    mode: GovernorMode = "on"
    latency_floor_s: Annotated[float, Seconds(0.001, 1.0)] = 0.01
    latency_factor: Annotated[float, Between(1.5, 20.0)] = 3.5
    stretch_at_most: Annotated[float, Between(1.1, 20.0)] = 1.9
    rules: tuple[GovernorRule, ...] = ()


class PacerConfig(NamedTuple):
    """Whether the archive is written back in small steps: `auto` where it shares a disk with the guest."""

    mode: PacerMode = "auto"
    step_mib: Annotated[int, Between(1, 64)] = 2


class Config(NamedTuple):
    """All that can be set. `notify`: whether Proxmox's notifications are used, beside the journal. `chain` is the
    absolute path of the script that vzdump ran before pvehook came."""

    window: WindowConfig = WindowConfig()
    io_priority: IoPriorityConfig = IoPriorityConfig()
    freeze: FreezeConfig = FreezeConfig()
    metrics: MetricsConfig = MetricsConfig()
    governor: GovernorConfig = GovernorConfig()
    pacer: PacerConfig = PacerConfig()
    notify: Notify = "on"
    chain: Path | None = None


DEFAULT = Config()


def to_json(config: Config) -> str:
    """The configuration as the text of a file; `from_json` gives it back."""
    return json.dumps({"v": JSON_LAYOUT, **_as_objects(config)}, indent=1) + "\n"


def _as_objects(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: _as_objects(each) for name, each in value._asdict().items()}
    return [_as_objects(each) for each in value] if isinstance(value, tuple) else value


def from_json(text: str) -> Config:
    """The configuration that `to_json` wrote.

    Raises ConfigError, and nothing else, for a broken file or one of another version; its text is the reason.
    It checks types and limits. It does not know whether this node has the time zone, nor what a span means:
    the code that uses them still has to expect an error.
    """
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the last good configuration is not JSON: {error}") from error
    layout = stored.get("v") if isinstance(stored, dict) else None
    if layout != JSON_LAYOUT:
        raise ConfigError(f"the last good configuration has layout {layout!r:.40}, expected {JSON_LAYOUT}")
    try:
        config: Config = _read(Config, stored)
    except KeyError as error:
        raise ConfigError(f"the last good configuration lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the last good configuration has a wrong value: {error}") from error
    return config


def _read(hint: Any, stored: Any) -> Any:
    """The value of the annotated type that stands in the file. Raises ValueError, KeyError and TypeError."""
    kind, *limits = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if hasattr(kind, "_fields"):
        return kind(**{name: _read(each, stored[name]) for name, each in hints_of(kind).items()})
    if get_origin(kind) in (Union, UnionType):
        return None if stored is None else _read(get_args(kind)[0], stored)
    if get_origin(kind) is tuple:
        if not isinstance(stored, list):
            raise ValueError(f"{stored!r:.40} is no list")
        return tuple(_read(get_args(kind)[0], each) for each in stored)
    if get_origin(kind) is Literal:
        if stored not in get_args(kind):
            raise ValueError(f"{stored!r:.40} is not one of {', '.join(get_args(kind))}")
        return stored
    if kind is bool:
        if not isinstance(stored, bool):
            raise ValueError(f"{stored!r:.40} is neither true nor false")
        return stored
    return _text(stored, limits) if kind is str else _number(kind, stored, limits[0])


def hints_of(kind: Any) -> dict[str, Any]:
    """The fields of a class above, each with its annotation: type, and limits where it has some."""
    return get_type_hints(kind, include_extras=True)


def _text(stored: object, limits: list[str]) -> str:
    if not isinstance(stored, str):
        raise ValueError(f"{stored!r:.40} is no text")
    if limits and not stored.startswith(ABSOLUTE):
        raise ValueError(f"{stored!r:.40} is no absolute path")
    return stored


def _number(kind: type, stored: object, limits: Between | Seconds) -> float:
    # In Python True is an int; in a configuration it is not a number. Asked this way round NaN, which JSON readers
    # take, is refused.
    allowed = (int,) if kind is int else (int, float)
    if not isinstance(stored, allowed) or isinstance(stored, bool) or not limits.lowest <= stored <= limits.highest:
        what = "time" if isinstance(limits, Seconds) else "whole number" if kind is int else "number"
        unit = " seconds" if isinstance(limits, Seconds) else ""
        raise ValueError(f"{stored!r:.40} is no {what} from {limits.lowest:.12g} to {limits.highest:.12g}{unit}")
    return kind(stored)  # type: ignore[no-any-return]
