"""What pvehook says about idle priority must be true for the administrator's disks and for their backup."""

from __future__ import annotations

import pytest

from pvehook.contract.disks import Disk, Kind, Location
from pvehook.rules.io_effect import (
    Effect,
    Verdict,
    combined_effect,
    idle_effect,
    idle_reach,
    location_effect,
)

HONOURED = Effect("honoured", "yes")
IGNORED = Effect("ignored", "no")
NETWORK = Effect("not-applicable", "elsewhere")
UNKNOWN = Effect("unknown", "nobody knows")


@pytest.mark.parametrize(
    ("scheduler", "kernel", "kind", "verdict"),
    [
        ("bfq", (5, 10), "disks", "honoured"),
        ("mq-deadline", (5, 16), "disks", "honoured"),
        ("mq-deadline", (6, 8), "disks", "honoured"),
        ("mq-deadline", (5, 15), "disks", "ignored"),
        ("mq-deadline", None, "disks", "unknown"),
        ("none", (6, 8), "disks", "ignored"),
        ("kyber", (6, 8), "disks", "ignored"),
        ("cfq", (4, 19), "disks", "unknown"),
        (None, (6, 8), "disks", "unknown"),
        ("bfq", (6, 8), "network", "not-applicable"),
        (None, (6, 8), "network", "not-applicable"),
        ("bfq", (6, 8), "zfs", "ignored"),
        ("bfq", (6, 8), "unknown", "unknown"),
    ],
)
def test_one_disk(
    scheduler: str | None,
    kernel: tuple[int, int] | None,
    kind: Kind,
    verdict: Verdict,
) -> None:
    effect = idle_effect(scheduler, kernel, kind)
    assert effect.verdict == verdict
    assert effect.reason


def test_reasons_name_what_was_seen() -> None:
    assert "5.15" in idle_effect("mq-deadline", (5, 15), "disks").reason
    assert "10 s" in idle_effect("mq-deadline", (6, 8), "disks").reason
    assert "cfq" in idle_effect("cfq", (4, 19), "disks").reason


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ([HONOURED, HONOURED], "honoured"),
        ([IGNORED, IGNORED], "ignored"),
        ([HONOURED, IGNORED], "partly"),
        ([HONOURED, NETWORK], "partly"),
        ([HONOURED, UNKNOWN], "partly"),
        ([IGNORED, UNKNOWN], "unknown"),
        ([IGNORED, NETWORK], "ignored"),
        ([NETWORK, NETWORK], "not-applicable"),
        ([], "unknown"),
    ],
)
def test_several_disks(effects: list[Effect], verdict: Verdict) -> None:
    combined = combined_effect((f"sd{number}", effect) for number, effect in enumerate(effects))
    assert combined.verdict == verdict


def test_places_that_are_combined_themselves_stay_partly_honoured() -> None:
    dump = combined_effect([("sda", HONOURED), ("sdb", IGNORED)])
    assert combined_effect([("dump", dump), ("scsi0", IGNORED)]).verdict == "partly"


def test_the_combined_reason_groups_disks_that_are_alike() -> None:
    reason = combined_effect([("sda", HONOURED), ("nvme0n1", IGNORED), ("sdb", HONOURED)]).reason
    assert reason == "nvme0n1: no; sda, sdb: yes"


def test_a_place_on_two_kinds_of_disks_names_each_with_its_reason() -> None:
    hard_disk = Disk("sda", "mq-deadline", "local")
    far_disk = Disk("sdb", "bfq", "iscsi")
    effect = location_effect(Location("disks", (hard_disk, far_disk), "ext4 on dm-0"), (6, 8))
    assert effect.verdict == "partly"
    assert "sda: mq-deadline (kernel 6.8)" in effect.reason
    assert "sdb (iscsi): another machine" in effect.reason


@pytest.mark.parametrize(
    ("location", "verdict", "said"),
    [
        (Location("network", (), "nfs4 from nas:/export"), "not-applicable", "nfs4 from nas:/export"),
        (Location("zfs", (Disk("sda", "bfq", "local"),), "ZFS pool rpool"), "ignored", "ZFS pool rpool"),
        (Location("unknown", (), "tmpfs at /dump"), "unknown", "tmpfs at /dump"),
        (Location("disks", (), "dm-0"), "unknown", "dm-0"),
    ],
)
def test_a_place_without_disks_of_its_own_says_what_it_is(location: Location, verdict: Verdict, said: str) -> None:
    effect = location_effect(location, (6, 8))
    assert effect.verdict == verdict
    assert effect.reason.startswith(said)


@pytest.mark.parametrize("mode", ["snapshot", "suspend", "stop"])
def test_a_vms_own_qemu_is_never_said_to_be_reached(mode: str) -> None:
    to_directory = idle_reach("qemu", mode, target_is_pbs=False)
    assert "read by the VM's own QEMU" in to_directory
    assert "reaches only the compressor" in to_directory
    to_pbs = idle_reach("qemu", mode, target_is_pbs=True)
    assert "reaches nothing of the data path" in to_pbs
    assert "compressor" not in to_pbs


def test_a_vm_that_vzdump_starts_is_said_to_be_put_back() -> None:
    assert "pvehook puts its priority back" in idle_reach("qemu", "stop", target_is_pbs=False)
    assert "pvehook puts its priority back" not in idle_reach("qemu", "snapshot", target_is_pbs=False)


def test_an_unknown_compression_is_not_asserted() -> None:
    assert "the compressor, if there is one," in idle_reach("qemu", "snapshot", target_is_pbs=False)


def test_a_containers_reading_is_reached() -> None:
    assert "tar: idle priority reaches all of the reading and writing" in idle_reach("lxc", "snapshot", False)
    assert "proxmox-backup-client" in idle_reach("lxc", "stop", target_is_pbs=True)
    assert "rsync" in idle_reach("lxc", "suspend", target_is_pbs=False)
    assert "rsync" not in idle_reach("lxc", "snapshot", target_is_pbs=False)


def test_a_guest_of_unknown_type_gets_no_promise() -> None:
    assert "unknown" in idle_reach(None, "snapshot", target_is_pbs=False)
