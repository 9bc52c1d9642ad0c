"""When an archive's writeback is paced: where it can help, and nowhere else."""

from __future__ import annotations

import pytest

from pvehook.contract.disks import Disk, Kind, Location
from pvehook.host.mounts import Mount
from pvehook.rules.pacing import Due, DumpPlace, PacerRecord, Pacing, Reason, growing_file, is_due, judge_pacing
from pvehook.settings import PacerMode

STEP = 2 << 20
FILE = "/var/lib/vz/dump/vzdump-qemu-101-2026_11_22-02_10_00.vma.dat"


def disk(name: str, transport: str = "local") -> Disk:
    return Disk(name, "mq-deadline", transport)


def on(*names: str, kind: Kind = "disks", detail: str = "ext4 on sda1") -> Location:
    return Location(kind, tuple(map(disk, names)), detail)


def dump(fs_type: str, where: Location) -> DumpPlace:
    mount = Mount("/var/lib/vz", fs_type, "source")
    return DumpPlace(mount.mount_point, fs_type, mount.is_network, mount.is_in_memory, mount.is_fuse, where)


UNKNOWN = Location("unknown", (), "storage new: pvehook does not know where this type keeps its volumes")


@pytest.mark.parametrize(
    ("target", "file"),
    [
        ("/d/vzdump-qemu-101-2026_11_22-02_10_00.vma.zst", "/d/vzdump-qemu-101-2026_11_22-02_10_00.vma.dat"),
        ("/d/vzdump-qemu-101-2026_11_22-02_10_00.vma", "/d/vzdump-qemu-101-2026_11_22-02_10_00.dat"),
        ("/d/vzdump-lxc-200-2026_11_22-02_10_00.tar.gz", "/d/vzdump-lxc-200-2026_11_22-02_10_00.tar.dat"),
        ("/d.d/archive", None),  # no extension: the growing file would be the archive itself
        ("/d/archive.dat", None),
        ("vm/101/2026-11-22T18:56:26Z", None),  # a backup server's
        ("/d/a\0b.vma", None),
        ("", None),
        (None, None),
    ],
)
def test_vzdump_writes_to_the_target_with_another_extension(target: str | None, file: str | None) -> None:
    assert growing_file(target) == file


def test_a_disk_under_both_archive_and_guest_is_reason_enough() -> None:
    volumes = [("scsi0", on("sda", "sdb")), ("scsi1", on("sdc")), ("scsi2", on("sda"))]
    pacing = judge_pacing("auto", FILE, dump("ext4", on("sda", "sdb")), volumes)
    assert (pacing.acts, pacing.reason) == (True, "shared-disk")
    assert pacing.why == "sda, sdb carry the archive (ext4 on sda1) and scsi0, scsi2 of the guest"


def test_a_shared_disk_of_another_machine_is_shared_all_the_same() -> None:
    lun = Location("network", (disk("sdb", "iscsi"),), "ext4 on sdb")
    pacing = judge_pacing("auto", FILE, dump("ext4", lun), [("scsi0", lun)])
    why = "sdb carries the archive (ext4 on sdb) and scsi0 of the guest"
    assert pacing == Pacing(True, "shared-disk", why, ("sdb",))


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_all_disks_under_the_archive_are_to_be_quiet(mode: PacerMode) -> None:
    pacing = judge_pacing(mode, FILE, dump("ext4", on("sdb", "sda")), [("scsi0", on("sda"))])
    assert pacing.disks == ("sda", "sdb")


@pytest.mark.parametrize(
    ("ahead", "is_complete", "due"),
    [
        (0, False, "not-yet"),
        (STEP - 1, False, "not-yet"),
        (STEP, False, "when-quiet"),
        (16 * STEP - 1, False, "when-quiet"),
        (16 * STEP, False, "now"),
        (40 * STEP, False, "now"),
        (0, True, "not-yet"),
        (1, True, "now"),
        (2 * STEP, True, "now"),
    ],
)
def test_a_step_waits_for_a_quiet_disk_but_not_for_ever(ahead: int, is_complete: bool, due: Due) -> None:
    assert is_due(ahead, STEP, is_complete) == due


def test_large_steps_do_not_wait_for_a_quiet_disk() -> None:
    assert is_due(32 * STEP, 32 * STEP, False) == "now"


def test_one_shared_disk_counts_though_another_volume_is_unknown() -> None:
    pacing = judge_pacing("auto", FILE, dump("ext4", on("sda")), [("scsi0", UNKNOWN), ("scsi1", on("sda"))])
    assert pacing.acts


@pytest.mark.parametrize(
    ("mode", "place", "volumes", "reason"),
    [
        ("off", dump("ext4", on("sda")), [("scsi0", on("sda"))], "switched-off"),
        ("auto", dump("ext4", on("sda")), [("scsi0", on("sdb"))], "no-shared-disk"),
        ("auto", dump("ext4", on("sda")), [], "no-shared-disk"),
        ("auto", dump("ext4", on("sda")), [("scsi0", on(kind="zfs"))], "no-shared-disk"),
        ("auto", dump("ext4", on("sda")), [("scsi0", on(kind="network"))], "no-shared-disk"),
        ("auto", dump("ext4", on("sda")), [("scsi0", UNKNOWN), ("scsi1", on("sdb"))], "volumes-unknown"),
        ("auto", dump("ext4", on("sda")), "/etc/pve/qemu-server/101.conf is not there", "volumes-unknown"),
        ("auto", dump("ext4", on(kind="unknown")), [("scsi0", on("sda"))], "dump-unknown"),
        ("auto", "/etc/pve/storage.cfg did not answer within 2 s", [("scsi0", on("sda"))], "dump-unknown"),
        ("on", "/etc/pve/storage.cfg did not answer within 2 s", [], "dump-unknown"),
    ],
)
def test_it_stays_off_with_the_reason(
    mode: PacerMode, place: DumpPlace | str, volumes: list[tuple[str, Location]] | str, reason: Reason
) -> None:
    pacing = judge_pacing(mode, FILE, place, volumes)
    assert (pacing.acts, pacing.reason) == (False, reason)
    assert pacing.why


def test_a_backup_without_a_file_is_not_paced_whatever_the_mode() -> None:
    for mode in ("auto", "on"):
        assert judge_pacing(mode, None, dump("ext4", on("sda")), []).reason == "no-dump-file"


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize(
    ("fs_type", "where", "reason", "said"),
    [
        ("nfs4", on(kind="network", detail="nfs4 from nas:/export"), "network", "nfs4 from nas:/export"),
        ("cifs", on(kind="network", detail="cifs from //nas/x"), "network", "cifs"),
        ("fuse.sshfs", on(kind="network", detail="fuse.sshfs from nas"), "network", "another machine"),
        # Configured as a network storage, though nothing is mounted there now.
        ("ext4", on(kind="network", detail="nfs storage nas"), "network", "nfs storage nas"),
        ("tmpfs", on(kind="unknown"), "in-memory", "in memory"),
        ("zfs", on("sda", kind="zfs"), "zfs", "page cache"),
        ("fuse.mergerfs", on(kind="unknown"), "file-system", "a process of its own"),
        ("fuseblk", on("sda"), "file-system", "fuseblk"),
        ("overlay", on(kind="unknown"), "file-system", "overlay"),
        ("autofs", on(kind="unknown"), "file-system", "autofs"),
        ("", on(kind="unknown"), "file-system", "an unknown file system"),
    ],
)
def test_where_this_nodes_page_cache_does_not_carry_the_archive_nothing_is_paced(
    mode: PacerMode, fs_type: str, where: Location, reason: Reason, said: str
) -> None:
    pacing = judge_pacing(mode, FILE, dump(fs_type, where), [("scsi0", where)])
    assert (pacing.acts, pacing.reason) == (False, reason)
    assert said in pacing.why


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
def test_asked_for_it_paces_any_local_file_system_whatever_is_known_of_the_disks(fs_type: str) -> None:
    for volumes in ([("scsi0", on("sdb"))], [("scsi0", UNKNOWN)], "no configuration"):
        assert judge_pacing("on", FILE, dump(fs_type, on("sda")), volumes).reason == "asked-for"
    assert judge_pacing("on", FILE, dump(fs_type, on(kind="unknown")), []).acts


def test_a_record_without_a_step_has_paced_nothing() -> None:
    record = PacerRecord("auto", None, 2 << 20)
    assert not record.has_paced
    assert record._replace(steps=1).has_paced
