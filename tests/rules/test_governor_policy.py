from __future__ import annotations

import pytest

from pvehook.rules.governor_policy import (
    Setup,
    advice,
    may_be_spared_for_others,
    mode_for,
    spared_in_own_backup,
    workers_of,
)
from pvehook.settings import GovernorConfig, GovernorRule


def test_the_first_rule_that_matches_a_guest_wins_over_the_section() -> None:
    rules = (GovernorRule(tags=("db",), mode="observe"), GovernorRule(guests=(101,), mode="on"))
    config = GovernorConfig(mode="on", rules=rules)
    assert mode_for(config, 101, "web", ("DB",)) == "observe"
    assert mode_for(config._replace(mode="off"), 101, "web", ()) == "on"
    assert mode_for(config._replace(mode="off"), 102, "web", ()) == "off"


@pytest.mark.parametrize(
    ("vmid", "own", "others"),
    [(101, True, False), (102, False, False), (103, True, True), (104, True, True)],
)
def test_a_rule_says_which_backups_are_slowed_for_a_guest(vmid: int, own: bool, others: bool) -> None:
    rules = (
        GovernorRule(guests=(101,), spare="own-backup"),
        GovernorRule(guests=(102,), spare="never"),
        GovernorRule(guests=(103,), spare="always"),
        GovernorRule(names=("*",), mode="off"),
    )
    config = GovernorConfig(rules=rules)
    assert spared_in_own_backup(config, vmid, "web", ()) is own
    assert may_be_spared_for_others(config, vmid, "web", ()) is others


def test_a_rule_that_says_one_thing_leaves_the_other_to_the_rules_after_it() -> None:
    rules = (
        GovernorRule(tags=("db",), spare="own-backup"),
        GovernorRule(guests=(101,), mode="observe"),
        GovernorRule(guests=(101,), mode="off", spare="never"),
    )
    config = GovernorConfig(rules=rules)
    assert mode_for(config, 101, None, ("db",)) == "observe"
    assert spared_in_own_backup(config, 101, None, ("db",))
    assert not may_be_spared_for_others(config, 101, None, ("db",))
    assert not spared_in_own_backup(config, 101, None, ())


@pytest.mark.parametrize(
    ("performance", "workers"),
    [
        (None, 16),
        ("max-workers=1", 1),
        ("pbs-entries-max=100, max-workers=4", 4),
        ("pbs-entries-max=100", 16),
        ("max-workers=x", 16),
        ("", 16),
    ],
)
def test_the_number_of_workers_is_proxmoxs_own_where_none_is_set(performance: str | None, workers: int) -> None:
    assert workers_of(performance) == workers


def test_many_workers_on_shared_disks_are_named_with_the_setting() -> None:
    assert advice(101, Setup(max_workers=16), None) == (
        "up to 16 requests of the backup may be queued in front of each of the guest's: set "
        "`performance: max-workers=1` in /etc/vzdump.conf",
    )


def test_one_worker_is_as_few_as_can_be() -> None:
    assert advice(101, Setup(max_workers=1), None) == ()


def test_against_a_slow_target_fleecing_helps_and_one_worker_costs_no_time() -> None:
    fleecing, workers = advice(101, Setup(max_workers=16, fleecing=False), "slow-target")
    assert "fleecing enabled=1,storage=STORAGE" in fleecing
    assert "set `performance: max-workers=1`" in workers
    assert workers.endswith("; the backup takes no longer, since its target is the slow part")
    assert advice(101, Setup(fleecing=True), "slow-target") == ()


def test_an_archive_on_the_guests_own_disk_belongs_elsewhere() -> None:
    (found,) = advice(101, Setup(shares_disk=True), "other-load")
    assert "a storage on other disks" in found
    assert advice(101, Setup(shares_disk=False), None) == ()


def test_disks_without_an_io_thread_are_named_with_the_command() -> None:
    (found,) = advice(101, Setup(iothread=False), None)
    assert "qm set 101 --scsihw virtio-scsi-single" in found
    assert advice(101, Setup(iothread=True), None) == ()


def test_of_what_is_not_known_nothing_is_said() -> None:
    assert advice(101, Setup(), None) == ()
