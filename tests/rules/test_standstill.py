"""A backup that copies nothing stands still; one that has nothing left to copy, or is slow, does not."""

from __future__ import annotations

from pvehook.contract.block_job import BlockJob
from pvehook.rules.standstill import still_since


def job(offset_bytes: int, length_bytes: int = 100, device: str = "drive-scsi0") -> BlockJob:
    return BlockJob(device, "backup", offset_bytes, length_bytes, 0)


def test_it_stands_still_from_the_last_sample_on_that_copied_something() -> None:
    since_s = still_since(None, 10.0, [job(0)], 0)
    assert since_s == 10.0
    assert still_since(since_s, 11.0, [job(0)], 0) == 10.0
    assert still_since(since_s, 12.0, [job(5)], 5) == 12.0


def test_without_a_job_or_with_all_copied_nothing_stands_still() -> None:
    """The archive's last bytes are written by vzdump or the backup server, after QEMU's job."""
    assert still_since(10.0, 11.0, [], 0) is None
    assert still_since(10.0, 11.0, [job(100)], 0) is None


def test_a_disk_that_waits_for_its_turn_is_no_standstill_while_another_one_is_copied() -> None:
    disks = [job(5), job(0, device="drive-scsi1")]
    assert still_since(10.0, 11.0, disks, 5) == 11.0
    assert still_since(10.0, 11.0, [job(100), job(0, device="drive-scsi1")], 0) == 10.0
