"""The last good configuration on disk, and its window. Stdlib only: the hook reads it when no daemon answers."""

from __future__ import annotations

from datetime import tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pvehook.errors import ConfigError, WindowSpecError
from pvehook.host.atomic_file import replace_file
from pvehook.host.node import Node
from pvehook.rules.window import Span, Window, parse_span
from pvehook.settings import DEFAULT, Config, from_json, to_json

LAST_GOOD_FILE = "/var/lib/pvehook/config.json"


def stored_config(node: Node) -> Config | None:
    """The last good configuration, None when there never was one. Raises ConfigError when it is damaged."""
    path = node.path(LAST_GOOD_FILE)
    try:
        with open(path, encoding="utf-8") as file:
            return from_json(file.read(1 << 20))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def store_config(node: Node, config: Config) -> None:
    """Stores a configuration as the last good one. Raises OSError."""
    replace_file(node.path(LAST_GOOD_FILE), to_json(config))


class WindowInForce(NamedTuple):
    """The window that applies, and why it is not the configured one (else "")."""

    window: Window
    doubt: str


def window_of(config: Config, zone_of_node: tzinfo) -> WindowInForce:
    """The window of a configuration that was checked once. If its zone or its spans are no longer understood (a zone
    was removed from the system, an older version reads a newer file), the default window applies, with the reason."""
    try:
        zone = ZoneInfo(config.window.timezone) if config.window.timezone else zone_of_node
        return WindowInForce(Window(_spans(config), zone), "")
    except (WindowSpecError, ZoneInfoNotFoundError, ValueError, OSError) as error:
        doubt = f"the configured window cannot be used ({error}), {', '.join(DEFAULT.window.open)} applies"
        return WindowInForce(Window(_spans(DEFAULT), zone_of_node), doubt)


def _spans(config: Config) -> tuple[Span, ...]:
    return tuple(parse_span(text) for text in config.window.open)
