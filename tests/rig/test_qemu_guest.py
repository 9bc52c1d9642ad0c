"""Our clients against a real QEMU and Debian's real qemu-ga, and a real QEMU that inherited idle priority."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvehook.contract.guest_facts import Filesystem
from pvehook.deadline import Deadline
from pvehook.errors import Refused, Unreachable
from pvehook.guest.agent import open_agent
from pvehook.guest.qmp import open_qmp
from pvehook.guest.sockets import connect
from pvehook.host import ioprio, processes
from pvehook.host.node import Node
from tests.rig.qemu_guest import CannotStart, QemuGuest, qemu_guest, thread_names

pytestmark = pytest.mark.rig

ANSWER_S = 30.0
AS_VZDUMP_STARTS_IT = ("ionice", "-c3", "nice", "-n10", "sh", "-c", '"$@"; exit $?', "worker")
"""A parent at idle I/O priority and niceness 10, which QEMU inherits and leaves behind as a daemon."""


@pytest.fixture(scope="module")
def guest() -> Iterator[QemuGuest]:
    """A booted VM with two disks and qemu-ga 7.2."""
    with contextlib.ExitStack() as stack:
        yield _started(stack, agent="7.2", disks=("/data", "/srv/two"))


def _started(stack: contextlib.ExitStack, **wanted: object) -> QemuGuest:
    try:
        return stack.enter_context(qemu_guest(101, **wanted))  # type: ignore[arg-type]
    except CannotStart as error:
        pytest.skip(f"no real QEMU guest: {error}")


def test_the_agent_tells_what_it_is_and_what_it_may_do(guest: QemuGuest) -> None:
    deadline = Deadline.after(ANSWER_S)
    with open_agent(guest.qga, deadline) as agent:
        agent.ping(deadline)
        info = agent.guest_info(deadline)
    assert info.version.startswith("7.2.")
    assert info.commands["guest-fsfreeze-freeze"]


def test_the_agent_lists_the_filesystems_the_latest_mount_first(guest: QemuGuest) -> None:
    guest.run("mkdir -p /bind && mount -o bind /data /bind")
    deadline = Deadline.after(ANSWER_S)
    with open_agent(guest.qga, deadline) as agent:
        seen = agent.get_fsinfo(deadline)
    guest.run("umount /bind")
    # The kernel probes its disks side by side: which of them is sda differs from one boot to the next.
    mounted = (guest.run(f"grep ' {mountpoint} ' /proc/mounts") for mountpoint in ("/data", "/srv/two"))
    one, two = (line.split()[0].removeprefix("/dev/") for line in mounted)
    assert {one, two} == {"sda", "sdb"}
    assert seen == (
        Filesystem(one, "/bind", "ext4"),
        Filesystem(two, "/srv/two", "ext4"),
        Filesystem(one, "/data", "ext4"),
    )


def test_a_freeze_stops_a_writer_until_the_thaw(guest: QemuGuest) -> None:
    deadline = Deadline.after(ANSWER_S)
    with open_agent(guest.qga, deadline) as agent:
        assert agent.fsfreeze_status(deadline) == "thawed"
        assert agent.fsfreeze_freeze(None, deadline) == 2
        assert agent.fsfreeze_status(deadline) == "frozen"
        # The writer is seen asleep in the kernel (state D) before it is let go on.
        guest.run("echo x >/data/written & echo $! >/tmp/writer")
        guest.run("until grep -q '^State:.*D' /proc/$(cat /tmp/writer)/status; do usleep 1000; done")
        assert guest.run("cat /data/written 2>/dev/null || true") == ""
        assert agent.fsfreeze_thaw(deadline) == 2
        assert agent.fsfreeze_status(deadline) == "thawed"
    assert guest.run("until [ -s /data/written ]; do usleep 1000; done; cat /data/written") == "x\n"


def test_a_list_freezes_only_what_it_names(guest: QemuGuest) -> None:
    deadline = Deadline.after(ANSWER_S)
    with open_agent(guest.qga, deadline) as agent:
        assert agent.fsfreeze_freeze(["/srv/two"], deadline) == 1
        guest.run("echo y >/data/not-frozen")
        assert agent.fsfreeze_thaw(deadline) == 1


def test_qmp_tells_the_state_and_refuses_proxmoxs_own_command(guest: QemuGuest) -> None:
    deadline = Deadline.after(ANSWER_S)
    with open_qmp(guest.qmp, deadline) as qmp:
        assert qmp.query_status(deadline) == "running"
        assert qmp.query_block_jobs(deadline) == ()
        with pytest.raises(Refused, match="CommandNotFound: The command backup-cancel has not been found"):
            qmp.backup_cancel(deadline)


def test_a_real_backup_job_is_listed_with_its_numbers(guest: QemuGuest) -> None:
    target = {"driver": "null-co", "node-name": "target", "size": 64 * 1024 * 1024}
    backup = {"job-id": "drive-scsi0", "device": "drive-scsi0", "target": "target", "sync": "full"}
    deadline = Deadline.after(ANSWER_S)
    with open_qmp(guest.qmp, deadline) as qmp:
        qmp.execute("blockdev-add", target, deadline=deadline)
        qmp.execute("blockdev-backup", {**backup, "speed": 65536}, deadline=deadline)
        (job,) = qmp.query_block_jobs(deadline)
        assert (job.device, job.type, job.speed_bytes_per_s) == ("drive-scsi0", "backup", 65536)
        assert 0 <= job.offset_bytes < job.length_bytes == 64 * 1024 * 1024
        qmp.execute("block-job-cancel", {"device": "drive-scsi0", "force": True}, deadline=deadline)


def test_all_threads_of_a_vm_that_vzdump_started_are_set_back_to_normal() -> None:
    with contextlib.ExitStack() as stack:
        guest = _started(stack, disks=(), launcher=AS_VZDUMP_STARTS_IT, wait_for_agent=False)
        names = thread_names(guest.pid)
        assert any(name.startswith("CPU 0") for name in names.values())
        assert len(names) >= 4  # beside it: the main loop, RCU, the I/O threads
        _assert_all_threads(guest.pid, "idle", niceness=10)

        node = Node(guest.root)
        (found,) = [each for each in processes.vm_processes(node, 101, None) if each.process.pid == guest.pid]
        restored = ioprio.restore_normal(node, found.process.pid)

        assert restored.failed == ()
        assert restored.confirmed == restored.threads >= len(names)
        _assert_all_threads(guest.pid, "none: prio 0", niceness=0)


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="package swtpm not installed")
def test_the_tpm_beside_a_vm_is_found_and_set_back_too() -> None:
    with contextlib.ExitStack() as stack:
        guest = _started(stack, disks=(), launcher=AS_VZDUMP_STARTS_IT, wait_for_agent=False)
        tpm = stack.enter_context(_swtpm(guest, AS_VZDUMP_STARTS_IT))
        _assert_all_threads(tpm, "idle", niceness=10)

        node = Node(guest.root)
        found = [each.process.pid for each in processes.vm_processes(node, 101, None)]
        assert sorted(found) == sorted([guest.pid, tpm])
        for pid in found:
            assert ioprio.restore_normal(node, pid).failed == ()

        _assert_all_threads(tpm, "none: prio 0", niceness=0)
        _assert_all_threads(guest.pid, "none: prio 0", niceness=0)


def test_a_vm_that_was_ended_is_unreachable() -> None:
    with contextlib.ExitStack() as stack:
        guest = _started(stack, disks=(), wait_for_agent=False)
        stack.pop_all().close()
        with pytest.raises(Unreachable):
            connect(guest.qmp)


def _assert_all_threads(pid: int, io_priority: str, niceness: int) -> None:
    """By another reader than ours: util-linux' ionice, and the 19th field of stat (proc(5))."""
    tids = os.listdir(f"/proc/{pid}/task")
    shown = subprocess.run(["ionice", "-p", *tids], capture_output=True, text=True, timeout=30, check=True)
    stats = [Path(f"/proc/{pid}/task/{tid}/stat").read_text().rpartition(")")[2].split() for tid in tids]
    assert set(shown.stdout.splitlines()) == {io_priority}
    assert {int(fields[16]) for fields in stats} == {niceness}


@contextlib.contextmanager
def _swtpm(guest: QemuGuest, launcher: tuple[str, ...]) -> Iterator[int]:
    """A TPM as qemu-server starts it beside a VM, a daemon of its own; its pid."""
    beside = f"{guest.root}/var/run/qemu-server/{guest.vmid}.swtpm"
    state = Path(guest.root, "tpm")
    state.mkdir()
    argv = [*launcher, "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}"]
    argv += ["--ctrl", f"type=unixio,path={beside}", "--pid", f"file={beside}.pid", "--daemon"]
    subprocess.run(argv, capture_output=True, timeout=30, check=True)
    pid = int(Path(f"{beside}.pid").read_text())
    process = os.pidfd_open(pid)
    try:
        yield pid
    finally:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        assert select.select([process], [], [], 20)[0], f"swtpm (pid {pid}) is still there"
        os.close(process)
