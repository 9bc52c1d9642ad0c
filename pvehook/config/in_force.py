"""Which configuration is in force right now, and how loudly to say that it is not the one on disk.

    the files are fine            they are in force, and remembered as the last good configuration
    a file is wrong or hangs      the last good configuration
    and there never was one       the valid values of the files, else the built-in defaults

Backups never stop because of a typing error, and never run by other rules than before without a word: while the files
are not in force, every job reports it.
"""

from __future__ import annotations

from datetime import UTC, tzinfo
from functools import lru_cache
from typing import Literal, NamedTuple

from pvehook.config import Loaded, merge, parse
from pvehook.errors import ConfigError, NodeError
from pvehook.host.clock import local_zone
from pvehook.host.node import Node
from pvehook.host.timely_files import TimelyReader
from pvehook.rescue.last_good import LAST_GOOD_FILE, store_config, stored_config, window_of
from pvehook.rules.window import Window
from pvehook.settings import DEFAULT, Config

CLUSTER_FILE = "/etc/pve/pvehook.yaml"
NODE_FILE = "/etc/pvehook.yaml"

READ_DEADLINE_S = 1.0

Source = Literal["files", "last good configuration", "the files' valid values", "built-in defaults"]


class InForce(NamedTuple):
    """The configuration by which to act now."""

    config: Config
    window: Window
    source: Source
    problems: tuple[str, ...]
    """Why it is not the files'; empty when it is."""
    zone: tzinfo = UTC
    """The node's own, by which schedules are read; the window may have another."""


def read_files(node: Node, reader: TimelyReader, only_file: str | None = None) -> Loaded:
    """The two files (or the one of `--config`), checked. Raises NodeError when one hangs or cannot be read."""
    if only_file is None:
        cluster, own = (reader.text(node.path(path), READ_DEADLINE_S) for path in (CLUSTER_FILE, NODE_FILE))
        return _checked(((CLUSTER_FILE, cluster), (NODE_FILE, own)))
    text = reader.text(only_file, READ_DEADLINE_S)
    if text is None:
        raise NodeError(f"{only_file} does not exist")
    return _checked(((only_file, None), (only_file, text)))


@lru_cache(maxsize=4)
def _checked(files: tuple[tuple[str, str | None], tuple[str, str | None]]) -> Loaded:
    """Checking costs more than reading, and the files hardly ever change."""
    cluster, own = (None if text is None else parse(text, path) for path, text in files)
    return merge(cluster, own)


class Configuration:
    """Reads the files again at each call, within a deadline."""

    def __init__(
        self, node: Node, reader: TimelyReader, only_file: str | None = None, *, remembers: bool = True
    ) -> None:
        self._node = node
        self._reader = reader
        self._own_files = TimelyReader()  # a /etc/pve that hangs must not cost the node's time zone, nor the other way
        self._zone: tzinfo = UTC
        self._only_file = only_file
        # Only the daemon writes the last good configuration down, and not one that is tried out by --config.
        self._remembers = remembers and only_file is None
        self._remembered: Config | None = None

    def now(self) -> InForce:
        """The configuration in force. Never raises, never waits longer than the deadline of each file."""
        try:
            loaded = read_files(self._node, self._reader, self._only_file)
            problems = tuple(str(problem) for problem in loaded.problems)
            config, valid = loaded.config, loaded.valid
        except NodeError as error:
            problems, config, valid = (str(error),), None, None
        if config is not None and not problems:
            self._remember(config)
            return self._in_force(config, "files", ())
        last_good = self._remembered or self._stored()
        if last_good is not None:
            return self._in_force(last_good, "last good configuration", problems)
        if valid is not None:
            return self._in_force(valid, "the files' valid values", problems)
        return self._in_force(DEFAULT, "built-in defaults", problems)

    def _in_force(self, config: Config, source: Source, problems: tuple[str, ...]) -> InForce:
        try:
            self._zone = self._own_files.within(READ_DEADLINE_S, "/etc/localtime", lambda: local_zone(self._node))
        except NodeError as error:
            problems = (*problems, f"{error}; the node's time zone is taken to be {self._zone}")
        window, doubt = window_of(config, self._zone)
        return InForce(config, window, source, (*problems, doubt) if doubt else problems, self._zone)

    def _remember(self, config: Config) -> None:
        if config == self._remembered:
            return
        self._remembered = config
        if not self._remembers:
            return
        try:
            self._own_files.within(READ_DEADLINE_S, LAST_GOOD_FILE, lambda: store_config(self._node, config))
        except (NodeError, OSError):
            pass  # it is in memory; the next change or the next daemon tries again

    def _stored(self) -> Config | None:
        try:
            return self._own_files.within(READ_DEADLINE_S, LAST_GOOD_FILE, lambda: stored_config(self._node))
        except (ConfigError, NodeError):
            return None
