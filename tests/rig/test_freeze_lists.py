"""A filesystem in a file of another one: what the rules choose is frozen and thawed at once by the real agent, and
what they refuse really hangs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from pvehook.contract.guest_facts import Filesystem
from pvehook.deadline import Deadline
from pvehook.errors import TimedOut
from pvehook.guest.agent import open_agent
from pvehook.rules.freeze_policy import FreezePolicy
from pvehook.rules.freeze_selection import Selection, select
from tests.rig.guest_image import AGENT_SUITES
from tests.rig.qemu_guest import CannotStart, QemuGuest, qemu_guest

pytestmark = pytest.mark.rig

ANSWER_S = 30.0
EVERYTHING = FreezePolicy("auto", (), (), "auto", 5000, 3, "freeze.mode")
HANGS_S = 5.0
"""A freeze of this guest takes 0.2 s."""

MAKE = "dd if=/dev/zero of=/data/file bs=1M count=16 2>&1 && mke2fs -F /data/file >/dev/null && mkdir /loop /bind"
MOUNT = "mount -o loop /data/file /loop && mount -o bind /data /bind"
WRITE = "dd if=/dev/urandom of=/loop/dirty bs=64k count=60 2>&1"
"""Without anything to be written out a freeze would wait for nothing."""


@pytest.fixture(params=sorted(AGENT_SUITES))
def guest(request: pytest.FixtureRequest) -> Iterator[QemuGuest]:
    """/loop is in a file of /data, and /bind is a later bind mount of /data."""
    with contextlib.ExitStack() as stack:
        try:
            guest = stack.enter_context(qemu_guest(101, disks=("/data", "/srv/two"), agent=request.param))
        except CannotStart as error:
            pytest.skip(f"no real QEMU guest: {error}")
        guest.run(f"{MAKE} && {MOUNT}")
        yield guest


def test_the_lists_freeze_at_once_and_everything_hangs(guest: QemuGuest) -> None:
    selection, _ = choose(guest)
    assert selection.mountpoints == ("/loop", "/srv/two", "/data")
    assert freeze(guest, selection.mountpoints) == 3

    guest.run("umount -l /data")  # the file is held open, so only its name goes
    selection, filesystems = choose(guest)
    assert [each.mountpoint for each in filesystems] == ["/bind", "/loop", "/srv/two"]
    assert selection.mountpoints == ("/bind", "/srv/two")
    assert freeze(guest, selection.mountpoints) == 2

    with pytest.raises(TimedOut):
        freeze(guest, None, within_s=HANGS_S)


def choose(guest: QemuGuest) -> tuple[Selection, tuple[Filesystem, ...]]:
    deadline = Deadline.after(ANSWER_S)
    with open_agent(guest.qga, deadline) as agent:
        filesystems = agent.get_fsinfo(deadline)
        return select(filesystems, agent.guest_info(deadline), EVERYTHING), filesystems


def freeze(guest: QemuGuest, mountpoints: tuple[str, ...] | None, within_s: float = ANSWER_S) -> int:
    """The number of filesystems that were frozen, and then thawed."""
    guest.run(WRITE)
    with open_agent(guest.qga, Deadline.after(ANSWER_S)) as agent:
        frozen = agent.fsfreeze_freeze(mountpoints, Deadline.after(within_s))
        assert agent.fsfreeze_thaw(Deadline.after(ANSWER_S)) == frozen
        assert agent.fsfreeze_status(Deadline.after(ANSWER_S)) == "thawed"
    guest.run("sync; echo written >/loop/after && echo written >/srv/two/after")
    return frozen
