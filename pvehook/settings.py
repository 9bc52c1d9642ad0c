"""What the administrator can set, as types; the defaults; and the last good configuration as JSON.

    /var/lib/pvehook/config.json
        {"v": 3,
         "window": {"open": ["02:00-05:00"], "timezone": null, "next_guest": "refuse",
                    "running_guest": "finish", "exempt": {"guests": [], "jobs": [], "storages": []}},
         "io_priority": {"mode": "idle", "check_every_s": 2.0,
                         "also": [{"command": "rsync", "mentions": "dump-directory"}], "compressor_nice": 0},
         "freeze": {"mode": "auto", "windows": "auto", "reply_within_s": 2.0, ...: a key for each field of FreezeConfig,
                    "rules": [{"guests": [101], "tags": [], "names": [], "mode": "mountpoints",
                               "mountpoints": ["/"], "leave_out": []}]},
         "metrics": {"mode": "on", "sample_every_s": 0.5, "guest_kernel_log": true, "keep_days": 400, "textfile": null},
         "governor": {"mode": "on", "latency_floor_s": 0.01, "latency_factor": 3.5, "stretch_at_most": 1.9,
                      "rules": [{"guests": [101], "tags": [], "names": [], "mode": "off"}]},
         "pacer": {"mode": "auto", "step_mib": 2},
         "chain": null}

The hook's degraded path loads this module, so it imports no yaml. pvehook/config checks what people write.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from pvehook.errors import ConfigError

T = TypeVar("T")

JSON_LAYOUT = 3
"""Raised with every change of the layout above: a file of another version is then refused, not misread."""

NextGuest = Literal["refuse", "allow"]
NEXT_GUEST: tuple[NextGuest, ...] = ("refuse", "allow")

RunningGuest = Literal["finish", "cancel"]
RUNNING_GUEST: tuple[RunningGuest, ...] = ("finish", "cancel")

IoMode = Literal["idle", "off"]
IO_MODES: tuple[IoMode, ...] = ("idle", "off")

FreezeMode = Literal["auto", "never", "off"]
FREEZE_MODES: tuple[FreezeMode, ...] = ("auto", "never", "off")

FreezeRuleMode = Literal["auto", "never", "mountpoints", "off"]
FREEZE_RULE_MODES: tuple[FreezeRuleMode, ...] = ("auto", "never", "mountpoints", "off")

WindowsFreeze = Literal["auto", "never"]
WINDOWS_FREEZE: tuple[WindowsFreeze, ...] = ("auto", "never")

MetricsMode = Literal["on", "off"]
METRICS_MODES: tuple[MetricsMode, ...] = ("on", "off")

GovernorMode = Literal["on", "observe", "off"]
GOVERNOR_MODES: tuple[GovernorMode, ...] = ("on", "observe", "off")

PacerMode = Literal["auto", "on", "off"]
PACER_MODES: tuple[PacerMode, ...] = ("auto", "on", "off")

DUMP_DIRECTORY = "dump-directory"
"""As `mentions`: the directory into which the job writes its archives."""

VMIDS = (100, 999_999_999)
"""Lowest and highest number of a guest. Source: `pve-vmid` in pve-common's PVE/JSONSchema.pm."""

CHECK_EVERY_S = (0.5, 60.0)
COMPRESSOR_NICE = (0, 19)

FREEZE_TIMES_S = {
    "reply_within_s": (0.2, 2.5),  # PVE waits 3 s for the agent, and must be released before
    "frozen_at_most_s": (3.0, 60.0),  # from here on it is longer than any reply_within
    "windows_frozen_at_most_s": (3.0, 9.0),  # VSS lets go by itself after 10 s
    "wait_for_pve_s": (1.0, 300.0),
    "veto_hold_at_most_s": (4.0, 30.0),  # longer than PVE's 3 s, or PVE freezes after all
    "facts_within_s": (0.1, 5.0),
    "pre_flush_within_s": (1.0, 600.0),
    "slow_after_s": (0.1, 60.0),
}
"""Shortest and longest of each time of FreezeConfig."""

SLOW_FREEZES = (1, 100)

SAMPLE_EVERY_S = (0.2, 10.0)
KEEP_DAYS = (1, 3650)
LATENCY_FLOOR_S = (0.001, 1.0)
LATENCY_FACTOR = (1.5, 20.0)
STRETCH_AT_MOST = (1.1, 20.0)
STEP_MIB = (1, 64)


class Exempt(NamedTuple):
    """Who may be backed up while the window is closed."""

    guests: tuple[int, ...] = ()
    jobs: tuple[str, ...] = ()
    storages: tuple[str, ...] = ()


class WindowConfig(NamedTuple):
    """When backups may run. Each text of `open` is one for `rules.window.parse_span`; none means never.

    `timezone` is an IANA name, None is the zone of the node.
    """

    open: tuple[str, ...] = ("02:00-05:00",)
    timezone: str | None = None
    next_guest: NextGuest = "refuse"
    running_guest: RunningGuest = "finish"
    exempt: Exempt = Exempt()


class AlsoProcess(NamedTuple):
    """Processes outside vzdump that belong to the backup: the name of the program, and a text that its
    command line has. DUMP_DIRECTORY stands for the job's own directory, "" for any command line."""

    command: str
    mentions: str


class IoPriorityConfig(NamedTuple):
    """Which processes get the idle class. `compressor_nice` 0 leaves the CPU niceness as it is."""

    mode: IoMode = "idle"
    check_every_s: float = 2.0
    also: tuple[AlsoProcess, ...] = (AlsoProcess("rsync", DUMP_DIRECTORY),)
    compressor_nice: int = 0


class FreezeRule(NamedTuple):
    """What counts for some guests instead of the section's `mode`. One match of `guests`, `tags` or `names` is enough;
    `names` are patterns for fnmatch. `leave_out` is `except` in YAML: filesystems that are never frozen."""

    guests: tuple[int, ...] = ()
    tags: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    mode: FreezeRuleMode = "auto"
    mountpoints: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()


class FreezeConfig(NamedTuple):
    """Which guests are frozen for a backup, and within which bounds. Of `rules` the first one that matches counts."""

    mode: FreezeMode = "auto"
    windows: WindowsFreeze = "auto"
    reply_within_s: float = 2.0
    frozen_at_most_s: float = 10.0
    windows_frozen_at_most_s: float = 8.0
    wait_for_pve_s: float = 30.0
    veto_hold_at_most_s: float = 8.0
    facts_within_s: float = 2.0
    pre_flush: bool = False
    pre_flush_within_s: float = 60.0
    slow_after_s: float = 5.0
    slow_freezes: int = 3
    rules: tuple[FreezeRule, ...] = ()


class MetricsConfig(NamedTuple):
    """What is looked at while a guest is backed up. Without it there is no governor either, which lives on what is
    seen. `textfile` is where node_exporter's textfile collector finds the last night; None: nowhere."""

    mode: MetricsMode = "on"
    sample_every_s: float = 0.5
    guest_kernel_log: bool = True
    keep_days: int = 400
    textfile: str | None = None


class GovernorRule(NamedTuple):
    """What counts for some guests instead of the section's `mode`, matched as a FreezeRule is."""

    guests: tuple[int, ...] = ()
    tags: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    mode: GovernorMode = "on"


class GovernorConfig(NamedTuple):
    """When a backup is slowed down: while its guest's requests take longer than `latency_factor` times what they took
    before, and longer than `latency_floor_s`. A backup is stretched to `stretch_at_most` times its length by it.
    A busy guest's backup begins slowly in any case."""

    mode: GovernorMode = "on"
    latency_floor_s: float = 0.01
    latency_factor: float = 3.5
    stretch_at_most: float = 1.9
    rules: tuple[GovernorRule, ...] = ()


class PacerConfig(NamedTuple):
    """Whether the archive is written back in small steps: `auto` where it shares a disk with the guest."""

    mode: PacerMode = "auto"
    step_mib: int = 2


class Config(NamedTuple):
    """All that can be set. `chain` is the absolute path of the script that vzdump ran before pvehook came."""

    window: WindowConfig = WindowConfig()
    io_priority: IoPriorityConfig = IoPriorityConfig()
    freeze: FreezeConfig = FreezeConfig()
    metrics: MetricsConfig = MetricsConfig()
    governor: GovernorConfig = GovernorConfig()
    pacer: PacerConfig = PacerConfig()
    chain: str | None = None


DEFAULT = Config()


def to_json(config: Config) -> str:
    """The configuration as the text of a file; `from_json` gives it back."""
    window = {**config.window._asdict(), "exempt": config.window.exempt._asdict()}
    also = [process._asdict() for process in config.io_priority.also]
    io_priority = {**config.io_priority._asdict(), "also": also}
    freeze = {**config.freeze._asdict(), "rules": [rule._asdict() for rule in config.freeze.rules]}
    governor = {**config.governor._asdict(), "rules": [rule._asdict() for rule in config.governor.rules]}
    everything = {
        "v": JSON_LAYOUT,
        "window": window,
        "io_priority": io_priority,
        "freeze": freeze,
        "metrics": config.metrics._asdict(),
        "governor": governor,
        "pacer": config.pacer._asdict(),
        "chain": config.chain,
    }
    return json.dumps(everything, indent=1) + "\n"


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
        return Config(
            window=_window(stored["window"]),
            io_priority=_io_priority(stored["io_priority"]),
            freeze=_freeze(stored["freeze"]),
            metrics=_monitor(stored["metrics"]),
            governor=_governor(stored["governor"]),
            pacer=PacerConfig(
                mode=_one_of(stored["pacer"]["mode"], PACER_MODES),
                step_mib=_whole(stored["pacer"]["step_mib"], STEP_MIB),
            ),
            chain=_absolute(stored["chain"]),
        )
    except KeyError as error:
        raise ConfigError(f"the last good configuration lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the last good configuration has a wrong value: {error}") from error


def _window(stored: Any) -> WindowConfig:
    exempt = stored["exempt"]
    return WindowConfig(
        open=_each(stored["open"], _text),
        timezone=None if stored["timezone"] is None else _text(stored["timezone"]),
        next_guest=_one_of(stored["next_guest"], NEXT_GUEST),
        running_guest=_one_of(stored["running_guest"], RUNNING_GUEST),
        exempt=Exempt(
            guests=_each(exempt["guests"], lambda vmid: _whole(vmid, VMIDS)),
            jobs=_each(exempt["jobs"], _text),
            storages=_each(exempt["storages"], _text),
        ),
    )


def _io_priority(stored: Any) -> IoPriorityConfig:
    return IoPriorityConfig(
        mode=_one_of(stored["mode"], IO_MODES),
        check_every_s=_time_s(stored["check_every_s"], CHECK_EVERY_S),
        also=_each(stored["also"], lambda also: AlsoProcess(_text(also["command"]), _text(also["mentions"]))),
        compressor_nice=_whole(stored["compressor_nice"], COMPRESSOR_NICE),
    )


def _freeze(stored: Any) -> FreezeConfig:
    return FreezeConfig(
        mode=_one_of(stored["mode"], FREEZE_MODES),
        windows=_one_of(stored["windows"], WINDOWS_FREEZE),
        pre_flush=_true_or_false(stored["pre_flush"]),
        slow_freezes=_whole(stored["slow_freezes"], SLOW_FREEZES),
        rules=_each(stored["rules"], _freeze_rule),
        **{name: _time_s(stored[name], limits_s) for name, limits_s in FREEZE_TIMES_S.items()},
    )


def _freeze_rule(stored: Any) -> FreezeRule:
    return FreezeRule(
        guests=_each(stored["guests"], lambda vmid: _whole(vmid, VMIDS)),
        tags=_each(stored["tags"], _text),
        names=_each(stored["names"], _text),
        mode=_one_of(stored["mode"], FREEZE_RULE_MODES),
        mountpoints=_each(stored["mountpoints"], _text),
        leave_out=_each(stored["leave_out"], _text),
    )


def _monitor(stored: Any) -> MetricsConfig:
    return MetricsConfig(
        mode=_one_of(stored["mode"], METRICS_MODES),
        sample_every_s=_number(stored["sample_every_s"], SAMPLE_EVERY_S),
        guest_kernel_log=_true_or_false(stored["guest_kernel_log"]),
        keep_days=_whole(stored["keep_days"], KEEP_DAYS),
        textfile=_absolute(stored["textfile"]),
    )


def _governor(stored: Any) -> GovernorConfig:
    return GovernorConfig(
        mode=_one_of(stored["mode"], GOVERNOR_MODES),
        latency_floor_s=_number(stored["latency_floor_s"], LATENCY_FLOOR_S),
        latency_factor=_number(stored["latency_factor"], LATENCY_FACTOR),
        stretch_at_most=_number(stored["stretch_at_most"], STRETCH_AT_MOST),
        rules=_each(stored["rules"], _governor_rule),
    )


def _governor_rule(stored: Any) -> GovernorRule:
    return GovernorRule(
        guests=_each(stored["guests"], lambda vmid: _whole(vmid, VMIDS)),
        tags=_each(stored["tags"], _text),
        names=_each(stored["names"], _text),
        mode=_one_of(stored["mode"], GOVERNOR_MODES),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is no text")
    return value


def _absolute(value: object) -> str | None:
    if value is None:
        return None
    path = _text(value)
    if not path.startswith("/"):
        raise ValueError(f"{path!r:.40} is no absolute path")
    return path


def _whole(value: object, limits: tuple[int, int]) -> int:
    # In Python True is an int; in a configuration it is not a number.
    if not isinstance(value, int) or isinstance(value, bool) or not limits[0] <= value <= limits[1]:
        raise ValueError(f"{value!r:.40} is no whole number from {limits[0]} to {limits[1]}")
    return value


def _time_s(value: object, limits_s: tuple[float, float]) -> float:
    return _number(value, limits_s, "time", " seconds")


def _number(value: object, limits: tuple[float, float], what: str = "number", unit: str = "") -> float:
    # Asked this way round NaN, which JSON readers take, is refused.
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not limits[0] <= value <= limits[1]:
        raise ValueError(f"{value!r:.40} is no {what} from {limits[0]:g} to {limits[1]:g}{unit}")
    return float(value)


def _true_or_false(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r:.40} is neither true nor false")
    return value


def _one_of(value: object, allowed: tuple[T, ...]) -> T:
    for one in allowed:
        if one == value:
            return one
    raise ValueError(f"{value!r:.40} is not one of {', '.join(map(str, allowed))}")


def _each(values: object, check: Callable[[Any], T]) -> tuple[T, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{values!r:.40} is no list")
    return tuple(check(value) for value in values)
