"""A disk's queue, on trees as the kernel shows them, and on this machine's own disks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pvehook.host.disk_queue import read_queue
from pvehook.host.node import Node

if TYPE_CHECKING:
    from tests.host.conftest import BlockTree


def test_a_raid_volume_says_who_it_is_and_by_which_name_it_lasts(tree: BlockTree) -> None:
    tree.device(
        "sda",
        (8, 0),
        under="pci0000:00/0000:03:00.0/host0/target0:2:0/0:2:0:0",
        scheduler="none [mq-deadline] kyber bfq",
        rotational="1",
    )
    tree.write("/sys/class/scsi_host/host0/proc_name", "megaraid_sas\n")
    for name, text in (("vendor", "DELL    "), ("model", "PERC H730 Mini  "), ("wwid", "naa.6848f690e936450025f4")):
        tree.write(f"/sys/block/sda/device/{name}", f"{text}\n")
    tree.write("/sys/block/sda/queue/wbt_lat_usec", "75000\n")
    tree.write("/sys/block/sda/queue/write_cache", "write through\n")
    queue = read_queue(tree.node, "sda")
    assert (queue.scheduler, queue.schedulers) == ("mq-deadline", ("none", "mq-deadline", "kyber", "bfq"))
    assert (queue.model, queue.driver) == ("DELL PERC H730 Mini", "megaraid_sas")
    assert queue.wwid == "naa.6848f690e936450025f4"
    assert (queue.is_rotational, queue.throttling_us, queue.write_cache) == (True, 75000, "write through")


def test_what_a_disk_does_not_say_is_unknown(tree: BlockTree) -> None:
    tree.device("vda", (254, 0))
    queue = read_queue(tree.node, "vda")
    assert (queue.scheduler, queue.schedulers, queue.is_rotational, queue.throttling_us) == (None, (), None, None)
    assert (queue.write_cache, queue.model, queue.driver, queue.wwid) == (None, "", "", "")


@pytest.mark.parametrize("wwid", ["t10.ATA     Samsung SSD 860", "naa.x\"; RUN+=\"/bin/sh", ""])
def test_a_name_that_does_not_go_into_a_udev_rule_is_left_out(tree: BlockTree, wwid: str) -> None:
    tree.device("sda", (8, 0))
    tree.write("/sys/block/sda/device/wwid", f"{wwid}\n")
    assert read_queue(tree.node, "sda").wwid == ""


def test_this_machines_disks_are_read_as_the_kernel_shows_them() -> None:
    for queue in Path("/sys/block").glob("*/queue"):
        read = read_queue(Node(), queue.parent.name)
        assert read.is_rotational == (queue.joinpath("rotational").read_text() == "1\n")
        if read.schedulers:
            assert read.scheduler in read.schedulers
