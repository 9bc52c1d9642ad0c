"""Which values vzdump takes, as its schema has them."""

from __future__ import annotations

import pytest

from pvehook.contract.vzdump_options import OPTIONS, Fleecing, parse_fleecing, with_workers, workers_set


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("performance", "max-workers=256,pbs-entries-max=100000"),
        ("performance", "pbs-entries-max=100000"),
        ("fleecing", "1,storage=local-lvm"),
        ("fleecing", "enabled=yes,storage=local-lvm"),
        ("fleecing", "storage=local-lvm,enabled=1"),
        ("fleecing", "enabled=0"),
        ("prune-backups", "keep-last=3,keep-daily=7"),
        ("prune-backups", "keep-all=1"),
        ("bwlimit", "0"),
        ("stdexcludes", "Yes"),
        ("exclude-path", "/tmp /var/tmp"),
    ],
)
def test_vzdump_takes(option: str, value: str) -> None:
    assert OPTIONS[option].fullmatch(value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("performance", "max-workers=0"),
        ("performance", "max-workers=257"),
        ("performance", "max-workers = 1"),
        ("performance", "workers=1"),
        ("fleecing", "enabled=1"),  # without a storage it is refused
        ("prune-backups", "last=3"),
        ("bwlimit", "100M"),
        ("compress", "zst"),
    ],
)
def test_vzdump_drops(option: str, value: str) -> None:
    assert not OPTIONS[option].fullmatch(value)


@pytest.mark.parametrize(
    ("text", "fleecing"),
    [
        (None, Fleecing(False, None)),
        ("", Fleecing(False, None)),
        ("1,storage=fast", Fleecing(True, "fast")),
        ("storage=fast,enabled=1", Fleecing(True, "fast")),
        ("enabled=0,storage=fast", Fleecing(False, "fast")),
    ],
)
def test_fleecing(text: str | None, fleecing: Fleecing) -> None:
    assert parse_fleecing(text) == fleecing


def test_workers_are_changed_and_nothing_else() -> None:
    assert workers_set("pbs-entries-max=9,max-workers=4") == 4
    assert workers_set("pbs-entries-max=9") is None
    assert with_workers("pbs-entries-max=9,max-workers=4", 1) == "max-workers=1,pbs-entries-max=9"
    assert with_workers(None, 1) == "max-workers=1"
