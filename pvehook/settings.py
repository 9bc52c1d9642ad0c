"""What the administrator can set, as types; the defaults; and the last good configuration as JSON.

    /var/lib/pvehook/config.json
        {"v": 1,
         "window": {"open": ["02:00-05:00"], "timezone": null, "next_guest": "refuse",
                    "running_guest": "finish", "exempt": {"guests": [], "jobs": [], "storages": []}},
         "io_priority": {"mode": "idle", "check_every_s": 2.0,
                         "also": [{"command": "rsync", "mentions": "dump-directory"}], "compressor_nice": 0},
         "chain": null}

The hook's degraded path loads this module, so it imports no yaml. pvehook/config checks what people write.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from pvehook.errors import ConfigError

T = TypeVar("T")

JSON_LAYOUT = 1
"""Raised with every change of the layout above: a file of another version is then refused, not misread."""

NextGuest = Literal["refuse", "allow"]
NEXT_GUEST: tuple[NextGuest, ...] = ("refuse", "allow")

RunningGuest = Literal["finish", "cancel"]
RUNNING_GUEST: tuple[RunningGuest, ...] = ("finish", "cancel")

IoMode = Literal["idle", "off"]
IO_MODES: tuple[IoMode, ...] = ("idle", "off")

DUMP_DIRECTORY = "dump-directory"
"""As `mentions`: the directory into which the job writes its archives."""

VMIDS = (100, 999_999_999)
"""Lowest and highest number of a guest. Source: `pve-vmid` in pve-common's PVE/JSONSchema.pm."""

CHECK_EVERY_S = (0.5, 60.0)
COMPRESSOR_NICE = (0, 19)


class Exempt(NamedTuple):
    """Who may be backed up while the window is shut."""

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


class Config(NamedTuple):
    """All that can be set. `chain` is the absolute path of the script that vzdump ran before pvehook came."""

    window: WindowConfig = WindowConfig()
    io_priority: IoPriorityConfig = IoPriorityConfig()
    chain: str | None = None


DEFAULT = Config()


def to_json(config: Config) -> str:
    """The configuration as the text of a file; `from_json` gives it back."""
    window = {**config.window._asdict(), "exempt": config.window.exempt._asdict()}
    also = [process._asdict() for process in config.io_priority.also]
    io_priority = {**config.io_priority._asdict(), "also": also}
    everything = {"v": JSON_LAYOUT, "window": window, "io_priority": io_priority, "chain": config.chain}
    return json.dumps(everything, indent=1) + "\n"


def from_json(text: str) -> Config:
    """The configuration that `to_json` wrote.

    Raises ConfigError, and nothing else, for a broken file or one of another version; its text is the reason.
    It checks types and limits. It does not know whether this node has the time zone, nor what a span means:
    whoever uses them still has to expect an error.
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
    check_every_s = stored["check_every_s"]
    lowest, highest = CHECK_EVERY_S
    # Asked this way round NaN, which JSON readers take, is refused.
    if type(check_every_s) not in (int, float) or not lowest <= check_every_s <= highest:
        raise ValueError(f"{check_every_s!r:.40} is no time from {lowest:g} to {highest:g} seconds")
    return IoPriorityConfig(
        mode=_one_of(stored["mode"], IO_MODES),
        check_every_s=float(check_every_s),
        also=_each(stored["also"], lambda also: AlsoProcess(_text(also["command"]), _text(also["mentions"]))),
        compressor_nice=_whole(stored["compressor_nice"], COMPRESSOR_NICE),
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
    # In Python True is an int too; in a configuration it is none.
    if not isinstance(value, int) or isinstance(value, bool) or not limits[0] <= value <= limits[1]:
        raise ValueError(f"{value!r:.40} is no whole number from {limits[0]} to {limits[1]}")
    return value


def _one_of(value: object, allowed: tuple[T, ...]) -> T:
    for one in allowed:
        if one == value:
            return one
    raise ValueError(f"{value!r:.40} is none of {', '.join(map(str, allowed))}")


def _each(values: object, check: Callable[[Any], T]) -> tuple[T, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{values!r:.40} is no list")
    return tuple(check(value) for value in values)
