"""The last good configuration on disk, and its window. Stdlib only: the hook reads it when no daemon answers."""

from __future__ import annotations

from datetime import tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pvehook.errors import ConfigError, WindowSpecError
from pvehook.host.node import Node
from pvehook.host.regular_file import read_regular_file, replace_file
from pvehook.rules.window import Window, parse_span
from pvehook.settings import DEFAULT, Config, from_json, to_json

FILE_LIMIT_BYTES = 1 << 20
LAST_GOOD_FILE = "/var/lib/pvehook/config.json"


def stored_config(node: Node) -> Config | None:
    """The last good configuration, None when there never was one. Raises ConfigError when it is damaged."""
    path = node.path(LAST_GOOD_FILE)
    try:
        return from_json(read_regular_file(path, FILE_LIMIT_BYTES).decode("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def store_config(node: Node, config: Config) -> None:
    """Stores a configuration as the last good one. Raises OSError."""
    replace_file(node.path(LAST_GOOD_FILE), to_json(config))


def window_of(config: Config, zone_of_node: tzinfo) -> tuple[Window, str]:
    """The window of a configuration that was checked once, and why it is not all of the configured one (else ""). What
    is no longer understood (a zone was removed from the system, an older version reads a newer file) is left out: then
    the node's own zone and the other spans apply, or the default's where no span is left."""
    doubts, spans, zone = [], [], zone_of_node
    if config.window.timezone:
        try:
            zone = ZoneInfo(config.window.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            doubts.append(f"the window's time zone cannot be used ({error}), the node's own applies")
    for text in config.window.open:
        try:
            spans.append(parse_span(text))
        except WindowSpecError as error:
            doubts.append(f"the window's span {text!r:.60} cannot be used ({error})")
    if config.window.open and not spans:
        spans = [parse_span(text) for text in DEFAULT.window.open]
        doubts.append(f"{', '.join(DEFAULT.window.open)} applies")
    return Window(tuple(spans), zone), "; ".join(doubts)
