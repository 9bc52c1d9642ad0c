"""Every rule of the freeze: it fires with what it saw, it does not fire beside it, and together they never slip."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvehook.contract.guest_config import AgentOption
from pvehook.contract.guest_facts import Filesystem, GuestInfo
from pvehook.rules import freeze_safety
from pvehook.rules.freeze_policy import FreezePolicy
from pvehook.rules.freeze_safety import (
    LIST_OF_MOUNTS,
    NEEDED_COMMANDS,
    RETRY_AFTER_S,
    FreezeFacts,
    FreezeVerdict,
    PastFreeze,
    decide,
)
from pvehook.rules.freeze_selection import LIST_COMMAND

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0

COMMANDS = dict.fromkeys((*NEEDED_COMMANDS, LIST_COMMAND, LIST_OF_MOUNTS), True)
HOME = Filesystem("sda2", "/home", "ext4")
ROOT = Filesystem("sda1", "/", "ext4")
SNAP = Filesystem("loop3", "/snap/core", "squashfs")
LOOP = Filesystem("loop0", "/tmp", "ext4")
BIND = Filesystem("sda1", "/home/virtfs/joe", "ext4")
C = Filesystem("\\\\?\\Volume{1}\\", "C:\\", "NTFS")
RESERVED = Filesystem("\\\\?\\Volume{2}\\", "System Reserved", "NTFS")

SAFE = FreezeFacts(
    vmtype="qemu",
    mode="snapshot",
    run_state="running",
    qmp_fault=None,
    migrating=False,
    agent_option=AgentOption(enabled=True, freezes=True),
    agent_fault=None,
    info=GuestInfo("7.2.22", COMMANDS),
    os_id="debian",
    status="thawed",
    filesystems=(HOME, ROOT),
    history=(),
    now_s=NOW_S,
)
AUTO = FreezePolicy("auto", (), (), "auto", 5000, 3, "freeze.mode")
RULE = AUTO._replace(because="freeze.rules[0] (guest 101)")


def verdict(policy: FreezePolicy = AUTO, **changed: Any) -> FreezeVerdict:
    return decide(SAFE._replace(**changed), policy)


def past(days: float, frozen_ms: int | None, outcome: Any) -> PastFreeze:
    return PastFreeze(NOW_S - days * DAY_S, frozen_ms, outcome)


def without(*commands: str, disabled: tuple[str, ...] = ()) -> GuestInfo:
    kept = {name: name not in disabled for name in COMMANDS if name not in commands}
    return GuestInfo("7.2.22", kept)


# What every safe guest gets


def test_a_safe_guest_is_frozen_as_a_whole_and_the_reason_names_what_was_looked_at() -> None:
    assert verdict() == FreezeVerdict(
        "freeze",
        None,
        ("safe: agent 7.2.22 answers, and nothing speaks against /home (sda2, ext4), / (sda1, ext4)",),
        None,
    )


# Proxmox will not freeze anyway

NONE: list[tuple[dict[str, Any], FreezePolicy, str]] = [
    ({"vmtype": "lxc"}, AUTO, "not-a-vm: only VMs are frozen, and vzdump calls this guest lxc"),
    ({"vmtype": None}, AUTO, "not-a-vm: only VMs are frozen, and vzdump calls this guest nothing at all"),
    ({"mode": "stop"}, AUTO, "mode: in mode stop the guest does not run while its backup begins"),
    ({"mode": "suspend"}, AUTO, "mode: in mode suspend the guest does not run while its backup begins"),
    ({"run_state": "paused"}, AUTO, "paused: the VM is paused"),
    ({"run_state": "prelaunch"}, AUTO, "paused: the VM is prelaunch"),
    ({"agent_option": AgentOption(False, True)}, AUTO, "agent-off: the option `agent` of the VM is off"),
    ({"agent_option": AgentOption(False, False)}, AUTO, "agent-off: the option `agent` of the VM is off"),
    ({"agent_option": AgentOption(True, False)}, AUTO, "freeze-off: freeze-fs is off in the option `agent` of the VM"),
    ({}, AUTO._replace(mode="off"), "left-to-pve: freeze.mode says off: the freeze is left to Proxmox"),
]


@pytest.mark.parametrize(("changed", "policy", "reason"), NONE, ids=[str(row[2])[:30] for row in NONE])
def test_what_proxmox_does_not_freeze_is_left_alone(changed: dict[str, Any], policy: FreezePolicy, reason: str) -> None:
    assert verdict(policy, **changed) == FreezeVerdict("none", None, (reason,), None)


def test_nothing_else_is_asked_of_a_guest_that_is_left_alone() -> None:
    seen = verdict(AUTO._replace(mode="off"), mode="stop", run_state=None, info=None, status=None, filesystems=None)
    assert seen.action == "none"
    assert [reason.split(":")[0] for reason in seen.reasons] == ["mode", "left-to-pve"]


# Vetoes

AGENT_AWAY = {"agent_fault": "101.qga: nobody listens", "info": None, "status": None, "filesystems": None}
TRIED_AGAIN = "it is tried again 7 nights later, or after `pvehook guest VMID freeze-check --forget`"
VETO: list[tuple[dict[str, Any], FreezePolicy, str]] = [
    ({}, AUTO._replace(mode="never"), "never: freeze.mode says never"),
    (
        {"run_state": None, "qmp_fault": "no greeting\nwithin 2 s"},
        AUTO,
        "no-monitor: QMP does not answer (no greeting\\nwithin 2 s), so nobody would see the backup begin",
    ),
    ({"run_state": None}, AUTO, "no-monitor: QMP does not answer, so nobody would see the backup begin"),
    (
        {"run_state": "io-error"},
        AUTO,
        "halted: the VM is in state io-error, not running: a freeze could not be ended",
    ),
    ({"migrating": True}, AUTO, "migrating: the VM is being migrated: it would arrive frozen, where nobody thaws it"),
    (
        AGENT_AWAY,
        AUTO,
        "agent-silent: the agent does not answer guest-info and guest-fsfreeze-status and guest-get-fsinfo: "
        "101.qga: nobody listens",
    ),
    (
        {"agent_fault": "a list of 9999 entries, more than 8192", "filesystems": None},
        AUTO,
        "agent-silent: the agent does not answer guest-get-fsinfo: a list of 9999 entries, more than 8192",
    ),
    ({"status": None}, AUTO, "agent-silent: the agent does not answer guest-fsfreeze-status"),
    ({"agent_fault": "it hangs"}, AUTO, "agent-silent: the agent does not answer everything: it hangs"),
    (
        {"info": without("guest-fsfreeze-freeze", disabled=("guest-fsfreeze-thaw",))},
        AUTO,
        "commands: guest-fsfreeze-freeze is unknown to the agent and guest-fsfreeze-thaw is disabled in the guest",
    ),
    (
        {"info": without(disabled=("guest-fsfreeze-status",))},
        AUTO,
        "commands: guest-fsfreeze-status is disabled in the guest",
    ),
    (
        {"os_id": "mswindows", "filesystems": (C,)},
        AUTO._replace(windows="never"),
        "windows: the guest is Windows and freeze.windows says never",
    ),
    (
        {"os_id": None, "filesystems": (C, RESERVED)},
        AUTO._replace(windows="never"),
        "windows: the guest has C:\\ (\\\\?\\Volume{1}\\, NTFS), so it is Windows, and freeze.windows says never",
    ),
    (
        {"history": (past(2, 90, "ok"), past(1, 15_250, "hung"))},
        AUTO,
        f"hung: the last freeze hung (15250 ms, 1.0 days ago); {TRIED_AGAIN}",
    ),
    (
        {"history": (past(7, None, "hung"), past(0.5, None, "failed"))},
        AUTO,
        f"hung: the last freeze hung (hung, its end was never confirmed, 7.0 days ago); {TRIED_AGAIN}",
    ),
    (
        {"history": (past(4, 100, "ok"), past(3, 5001, "slow"), past(2, 8566, "slow"), past(1, 9000, "ok"))},
        AUTO,
        "slow: the last 3 freezes were all longer than 5000 ms (5001 ms, 3.0 days ago; 8566 ms, 2.0 days ago; "
        f"9000 ms, 1.0 days ago); {TRIED_AGAIN}",
    ),
    (
        {"history": (past(2, 6000, "slow"), past(1.5, 7000, "slow"), past(1, None, "failed"))},
        AUTO._replace(slow_freezes=2),
        "slow: the last 2 freezes were all longer than 5000 ms (6000 ms, 2.0 days ago; 7000 ms, 1.5 days ago); "
        + TRIED_AGAIN,
    ),
    (
        {"history": (past(7.4, 6000, "slow"),)},
        AUTO._replace(slow_freezes=1),
        f"slow: the last freeze was longer than 5000 ms (6000 ms, 7.4 days ago); {TRIED_AGAIN}",
    ),
    (
        {"filesystems": ()},
        AUTO,
        "nothing-to-freeze: guest-get-fsinfo lists no filesystem (overlay, network filesystems and ZFS are not listed)",
    ),
    (
        {"filesystems": (SNAP,)},
        AUTO,
        "nothing-to-freeze: guest-get-fsinfo lists only what cannot be frozen: /snap/core (loop3, squashfs)",
    ),
]


@pytest.mark.parametrize(("changed", "policy", "reason"), VETO, ids=[str(row[2])[:40] for row in VETO])
def test_what_is_not_safe_is_vetoed_with_what_was_seen(
    changed: dict[str, Any], policy: FreezePolicy, reason: str
) -> None:
    assert verdict(policy, **changed) == FreezeVerdict("veto", None, (reason,), None)


def test_a_freeze_of_somebody_else_is_an_alert_and_not_blamed_on_the_agent() -> None:
    # As qemu-ga 7.2 shows itself while frozen: most commands count as disabled, fsinfo is refused.
    closed = without(disabled=("guest-fsfreeze-freeze", LIST_COMMAND))
    seen = verdict(status="frozen", info=closed, filesystems=None, agent_fault="refused: CommandNotFound")
    assert (seen.action, seen.reasons) == (
        "veto",
        ("frozen-by-others: the guest is frozen already, by somebody else",),
    )
    assert seen.alert is not None
    assert "does not thaw it" in seen.alert


def test_all_reasons_are_told_and_not_only_the_first() -> None:
    seen = verdict(AUTO._replace(mode="never"), migrating=True, history=(past(1, None, "hung"),), filesystems=())
    assert [reason.split(":")[0] for reason in seen.reasons] == ["never", "migrating", "hung", "nothing-to-freeze"]


def test_each_rule_is_seen_to_fire() -> None:
    fired = {row[2].split(":")[0] for row in NONE + VETO} | {"frozen-by-others", "unknown", "unseen"}
    assert fired == set(re.findall(r'"([a-z-]+): ', inspect.getsource(freeze_safety))) - {"safe"}


# Beside a veto

FREEZE: list[tuple[str, dict[str, Any], FreezePolicy]] = [
    ("Windows is frozen unless never", {"os_id": "mswindows", "filesystems": (C, RESERVED)}, AUTO),
    ("windows: never is not about Linux", {}, AUTO._replace(windows="never")),
    ("nor about a Linux that does not say what it is", {"os_id": None}, AUTO._replace(windows="never")),
    ("a command that is not needed may be disabled", {"info": without(LIST_COMMAND)}, AUTO),
    ("a hang was followed by a good freeze", {"history": (past(2, None, "hung"), past(1, 90, "ok"))}, AUTO),
    ("a hang is 8 nights old", {"history": (past(8, None, "hung"),)}, AUTO),
    ("two slow ones are not three", {"history": (past(2, 6000, "slow"), past(1, 6000, "slow"))}, AUTO),
    (
        "one of three was fast enough",
        {"history": (past(3, 6000, "slow"), past(2, 5000, "ok"), past(1, 6000, "slow"))},
        AUTO,
    ),
    (
        "the limit was raised since",
        {"history": tuple(past(days, 6000, "slow") for days in (3, 2, 1))},
        AUTO._replace(slow_after_ms=7000),
    ),
    ("slow ones are 8 nights old", {"history": tuple(past(days, 6000, "slow") for days in (10, 9, 8))}, AUTO),
    (
        "an error says nothing about slowness",
        {"history": (past(3, 6000, "slow"), past(2, 6000, "slow"), past(1, None, "failed"))},
        AUTO,
    ),
    ("snaps are loop devices, but read-only", {"filesystems": (SNAP, HOME, ROOT)}, AUTO),
    ("a name that only begins like a loop's", {"filesystems": (Filesystem("loopy", "/x", "ext4"), ROOT)}, AUTO),
    ("bind mounts without loop devices are harmless", {"filesystems": (BIND, HOME, ROOT)}, AUTO),
]


@pytest.mark.parametrize(("changed", "policy"), [row[1:] for row in FREEZE], ids=[row[0] for row in FREEZE])
def test_what_only_looks_like_a_veto_freezes_everything(changed: dict[str, Any], policy: FreezePolicy) -> None:
    seen = verdict(policy, **changed)
    assert (seen.action, seen.mountpoints, seen.alert) == ("freeze", None, None)


@pytest.mark.parametrize("kind", ["erofs", "cramfs", "romfs"])
def test_a_root_that_is_read_only_by_its_kind_is_nothing_to_freeze(kind: str) -> None:
    """An image-based guest: / on erofs, its data on ext4. The agent passes the root over."""
    root, data = Filesystem("sda3", "/", kind), Filesystem("sda8", "/mnt/data", "ext4")
    assert verdict(filesystems=(root, data)).action == "freeze"
    assert "nothing-to-freeze" in verdict(filesystems=(root,)).reasons[0]


def test_the_veto_of_a_hang_holds_for_the_next_run_of_a_weekly_job_and_then_ends() -> None:
    assert verdict(history=(past(7.02, None, "hung"),)).action == "veto"
    assert RETRY_AFTER_S == 7.5 * DAY_S
    assert verdict(history=(PastFreeze(NOW_S - RETRY_AFTER_S, None, "hung"),)).action == "freeze"


def test_one_that_was_remembered_by_a_wrong_clock_does_not_count_until_then() -> None:
    assert verdict(history=(PastFreeze(NOW_S + 3600, None, "hung"),)).action == "veto"
    assert verdict(history=(PastFreeze(NOW_S + 3650 * DAY_S, None, "hung"),)).action == "freeze"
    # A clock that was set back: the hang lies in the future.
    assert verdict(history=(past(-2, None, "hung"),)).action == "veto"


# Lists: the mountpoints, and the reasons in full


def listed(policy: FreezePolicy = AUTO, **changed: Any) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    seen = verdict(policy, **changed)
    assert (seen.action, seen.alert) == ("freeze", None)
    return seen.mountpoints, seen.reasons


def vetoed(policy: FreezePolicy = AUTO, **changed: Any) -> tuple[str, ...]:
    seen = verdict(policy, **changed)
    assert (seen.action, seen.mountpoints) == ("veto", None)
    return seen.reasons


def test_only_the_mountpoints_that_the_administrator_named() -> None:
    assert listed(RULE._replace(mode="mountpoints", mountpoints=("/", "/home/"))) == (
        ("/",),
        (
            "mountpoints: freeze.rules[0] (guest 101) freezes /, /home/ and nothing else; "
            "the guest has no mountpoint /home/",
            "crash-consistent: not frozen, so in this backup as after a power cut: /home (sda2, ext4)",
        ),
    )


def test_a_list_is_partial_only_where_it_leaves_something_out() -> None:
    policy = RULE._replace(mode="mountpoints", mountpoints=("/",))
    assert verdict(policy).is_partial
    assert not verdict(policy._replace(mountpoints=("/", "/home"))).is_partial
    assert not verdict().is_partial


def test_none_of_the_named_mountpoints_exists() -> None:
    assert vetoed(RULE._replace(mode="mountpoints", mountpoints=("/srv",))) == (
        "mountpoints: freeze.rules[0] (guest 101) freezes /srv and nothing else; the guest has no mountpoint /srv",
        "none-left: no filesystem is left to be frozen",
    )


def test_mountpoints_without_any_freezes_nothing() -> None:
    assert vetoed(RULE._replace(mode="mountpoints"))[-1] == "none-left: no filesystem is left to be frozen"


def test_a_filesystem_that_is_excepted_goes_with_all_its_mountpoints() -> None:
    mounts = (Filesystem("sdb", "/mnt/again", "xfs"), Filesystem("sdb", "/backup", "xfs"), ROOT)
    assert listed(RULE._replace(leave_out=("/backup",)), filesystems=mounts) == (
        ("/",),
        (
            "except: freeze.rules[0] (guest 101) leaves out /backup",
            "crash-consistent: not frozen, so in this backup as after a power cut: /mnt/again (sdb, xfs), "
            "/backup (sdb, xfs)",
        ),
    )


def test_filesystems_whose_device_has_no_name_are_not_taken_for_one() -> None:
    mounts = (Filesystem("", "/backup", "xfs"), Filesystem("", "/srv", "xfs"), LOOP, ROOT)
    assert listed(RULE._replace(leave_out=("/backup",)), filesystems=mounts)[0] == ("/srv", "/")


def test_an_exception_that_is_not_mounted_now_may_be_in_a_second_so_there_is_a_list() -> None:
    assert listed(RULE._replace(leave_out=("/backup",))) == (
        ("/home", "/"),
        ("except: freeze.rules[0] (guest 101) leaves out /backup; the guest has no mountpoint /backup",),
    )


def test_everything_is_excepted() -> None:
    assert vetoed(RULE._replace(leave_out=("/", "/home")))[-1] == "none-left: no filesystem is left to be frozen"


def test_a_list_on_windows_has_no_volume_without_a_path() -> None:
    d = Filesystem("\\\\?\\Volume{3}\\", "D:\\", "NTFS")
    mountpoints, _ = listed(RULE._replace(leave_out=("D:\\",)), os_id="mswindows", filesystems=(C, RESERVED, d))
    assert mountpoints == ("C:\\",)


@pytest.mark.parametrize(
    ("info", "fault"),
    [(without(LIST_COMMAND), "unknown to the agent"), (without(disabled=(LIST_COMMAND,)), "disabled in the guest")],
)
def test_an_agent_that_takes_no_list_is_not_frozen_where_a_list_is_needed(info: GuestInfo, fault: str) -> None:
    *_, reason = vetoed(info=info, filesystems=(LOOP, ROOT))
    assert reason == f"no-list: a list is needed, but {LIST_COMMAND} is {fault}"


# Loop devices


def test_a_loop_device_that_is_frozen_before_all_others() -> None:
    assert listed(filesystems=(LOOP, HOME, ROOT)) == (
        ("/tmp", "/home", "/"),
        ("loops: /tmp (loop0, ext4), agent 7.2.22: it is frozen first, and each device by its first mount only",),
    )


def test_a_bind_mount_over_the_file_of_a_loop_device_is_left_out_and_nothing_is_lost() -> None:
    mountpoints, reasons = listed(filesystems=(BIND, LOOP, HOME, ROOT))
    assert mountpoints == ("/tmp", "/home", "/")
    assert [reason.split(":")[0] for reason in reasons] == ["loops"]  # sda1 is frozen by /, so nothing is inconsistent


def test_a_loop_device_that_is_mounted_twice() -> None:
    again = Filesystem("loop0", "/var/tmp", "ext4")
    assert listed(filesystems=(BIND, again, LOOP, ROOT))[0] == ("/tmp", "/")


def test_a_loop_device_whose_file_may_be_frozen_before_it_is_left_out() -> None:
    newer = Filesystem("sdb", "/srv", "xfs")
    assert listed(filesystems=(newer, LOOP, ROOT)) == (
        ("/srv", "/"),
        (
            "loops: /tmp (loop0, ext4), agent 7.2.22: left out, since what holds its file may be frozen before it",
            "crash-consistent: not frozen, so in this backup as after a power cut: /tmp (loop0, ext4)",
        ),
    )


def test_of_two_loop_devices_one_may_lie_on_the_other() -> None:
    other = Filesystem("loop1", "/srv/mail", "ext4")
    assert listed(filesystems=(other, LOOP, ROOT))[0] == ("/",)
    assert vetoed(filesystems=(other, LOOP))[-1] == "none-left: no filesystem is left to be frozen"


def test_a_lonely_loop_device_has_nothing_to_wait_for() -> None:
    assert listed(filesystems=(LOOP,))[0] == ("/tmp",)


def test_a_mountpoint_that_two_filesystems_share_stands_for_both() -> None:
    # sda1 lies at /data, then the loop device was mounted, then sda1 once more over itself: to list /data freezes
    # the later one, before the loop device.
    first, over = Filesystem("sda1", "/data", "ext4"), Filesystem("sda1", "/data", "ext4")
    assert listed(filesystems=(over, LOOP, first))[0] == ("/data",)


@pytest.mark.parametrize("hidden", ["/tmp", "/tmp/below"])
def test_a_mountpoint_that_a_loop_device_may_hide_is_left_out_with_it(hidden: str) -> None:
    newer = Filesystem("sdb", "/srv", "xfs")
    mounts = (newer, LOOP, Filesystem("sdc", hidden, "ext4"), Filesystem("sdd", "/tmpfiles", "ext4"))
    mountpoints, reasons = listed(filesystems=mounts)
    assert mountpoints == ("/srv", "/tmpfiles")
    assert reasons[-1].endswith(f"/tmp (loop0, ext4), {hidden} (sdc, ext4)")


def test_a_loop_device_that_is_not_to_be_frozen_anyway_costs_nothing_more() -> None:
    newer = Filesystem("sdb", "/srv", "xfs")
    mountpoints, reasons = listed(RULE._replace(leave_out=("/tmp",)), filesystems=(newer, LOOP, ROOT))
    assert mountpoints == ("/srv", "/")
    assert [reason.split(":")[0] for reason in reasons] == ["except", "crash-consistent"]


def test_many_filesystems_are_counted_and_not_all_named() -> None:
    many = tuple(Filesystem(f"sd{number}", f"/srv/{number}", "xfs") for number in range(9))
    (reason,) = verdict(filesystems=many).reasons
    assert reason.endswith("/srv/4 (sd4, xfs) and 4 more")


# Whatever a guest says

SHORT = st.text(max_size=6)
DEVICES = st.sampled_from(["sda1", "sda2", "sdb", "loop0", "loop1", "loop0p1", "dm-0", ""])
PLACES = st.sampled_from(["/", "/a", "/a/b", "/tmp", "/tmp/x", "C:\\", "System Reserved", ""])
TYPES = st.sampled_from(["ext4", "xfs", "btrfs", "squashfs", "iso9660", "NTFS"])
MOUNTS = st.lists(
    st.one_of(st.builds(Filesystem, DEVICES, PLACES, TYPES), st.builds(Filesystem, SHORT, SHORT, SHORT)), max_size=7
).map(tuple)
INFOS = st.builds(
    GuestInfo, st.one_of(st.just("7.2.22"), SHORT), st.dictionaries(st.sampled_from(sorted(COMMANDS)), st.booleans())
)
HISTORIES = st.lists(
    st.builds(
        PastFreeze,
        st.floats(NOW_S - 20 * DAY_S, NOW_S + DAY_S),
        st.one_of(st.none(), st.integers(0, 20_000)),
        st.sampled_from(["ok", "slow", "hung", "failed"]),
    ),
    max_size=5,
).map(tuple)


def mostly(good: object, strategy: Any) -> Any:
    """The safe value in most cases: else no example would get past the first rules."""
    return st.one_of(st.just(good), st.just(good), st.just(good), strategy)


FACTS = st.builds(
    FreezeFacts,
    vmtype=mostly("qemu", st.one_of(st.none(), SHORT)),
    mode=mostly("snapshot", SHORT),
    run_state=mostly("running", st.one_of(st.none(), st.sampled_from(["paused", "prelaunch", "io-error"]), SHORT)),
    qmp_fault=st.one_of(st.none(), SHORT),
    migrating=mostly(False, st.booleans()),
    agent_option=mostly(AgentOption(True, True), st.builds(AgentOption, st.booleans(), st.booleans())),
    agent_fault=mostly(None, SHORT),
    info=mostly(SAFE.info, st.one_of(st.none(), INFOS)),
    os_id=st.one_of(st.none(), st.sampled_from(["debian", "mswindows"]), SHORT),
    status=mostly("thawed", st.sampled_from([None, "frozen"])),
    filesystems=st.one_of(MOUNTS, MOUNTS, MOUNTS, st.none()),
    history=mostly((), HISTORIES),
    now_s=st.just(NOW_S),
)
POLICIES = st.builds(
    FreezePolicy,
    mode=mostly("auto", st.sampled_from(["never", "mountpoints", "off"])),
    mountpoints=st.lists(PLACES, max_size=3).map(tuple),
    leave_out=mostly((), st.lists(PLACES, max_size=2).map(tuple)),
    windows=st.sampled_from(["auto", "never"]),
    slow_after_ms=st.just(5000),
    slow_freezes=st.integers(1, 3),
    because=st.just("freeze.mode"),
)


def forbids(facts: FreezeFacts, policy: FreezePolicy) -> bool:
    """The vetoes once more, written out from the design without its tables."""
    enough = facts.info is not None and all(facts.info.commands.get(each) for each in NEEDED_COMMANDS)
    finished = [each for each in facts.history if each.outcome != "failed"]
    hung = bool(finished) and finished[-1].outcome == "hung" and abs(NOW_S - finished[-1].at_s) < RETRY_AFTER_S
    can_list = facts.filesystems is not None or (facts.info is not None and facts.info.commands.get(LIST_OF_MOUNTS))
    return (
        policy.mode in ("never", "off")
        or facts.vmtype != "qemu"
        or facts.mode != "snapshot"
        or facts.run_state != "running"
        or facts.migrating
        or facts.agent_option != AgentOption(True, True)
        or facts.agent_fault is not None
        or facts.status != "thawed"
        or not enough
        or bool(not facts.filesystems if can_list else policy.mode == "mountpoints" or policy.leave_out)
        or (policy.windows == "never" and facts.os_id == "mswindows")
        or hung
    )


@given(FACTS, POLICIES)
@settings(derandomize=True, max_examples=1000, deadline=None)
def test_whatever_a_guest_says_it_is_not_frozen_where_a_rule_forbids_it(
    facts: FreezeFacts, policy: FreezePolicy
) -> None:
    seen = decide(facts, policy)
    assert not (seen.action == "freeze" and forbids(facts, policy))
    assert seen.reasons
    assert all(reason.isprintable() for reason in seen.reasons)
    assert seen.alert is None or (seen.action == "veto" and facts.status == "frozen")


@given(FACTS, POLICIES)
@settings(derandomize=True, max_examples=1000, deadline=None)
def test_a_list_has_only_what_the_guest_has_and_is_allowed_and_is_never_empty(
    facts: FreezeFacts, policy: FreezePolicy
) -> None:
    seen = decide(facts, policy)
    mounts = facts.filesystems or ()
    if seen.mountpoints is None:
        if seen.action == "freeze":
            assert (policy.mode, policy.leave_out) == ("auto", ())
            assert not any(each.name.startswith("loop") and each.type not in ("squashfs", "iso9660") for each in mounts)
        return
    assert seen.action == "freeze"
    assert seen.mountpoints
    assert len(set(seen.mountpoints)) == len(seen.mountpoints)
    assert set(seen.mountpoints) <= {each.mountpoint for each in mounts}
    assert not set(seen.mountpoints) & set(policy.leave_out)
    if policy.mode == "mountpoints":
        assert set(seen.mountpoints) <= set(policy.mountpoints)
    assert facts.info is not None
    assert facts.info.commands.get(LIST_COMMAND)


@given(MOUNTS)
@settings(derandomize=True, max_examples=1000, deadline=None)
def test_walked_as_the_agent_does_no_loop_device_is_frozen_after_what_may_hold_its_file(
    mounts: tuple[Filesystem, ...],
) -> None:
    seen = verdict(filesystems=mounts)
    if seen.mountpoints is None:
        return
    walk = [each for each in mounts if each.mountpoint in seen.mountpoints]
    loops = [each.name.startswith("loop") and each.type not in ("squashfs", "iso9660") for each in walk]
    if any(loops):
        assert loops[0]
        assert len({each.name for each, is_loop in zip(walk, loops, strict=True) if is_loop}) == 1


def test_what_could_not_be_read_vetoes_and_is_named() -> None:
    seen = verdict(unknown="/etc/pve/qemu-server/101.conf did not answer within 1 s")
    assert seen.action == "veto"
    assert seen.reasons[0].startswith("unknown: /etc/pve/qemu-server/101.conf did not answer within 1 s")


# An agent that cannot list its filesystems: FreeBSD's builds, RHEL 6


def test_an_agent_without_a_list_of_filesystems_is_frozen_as_a_whole() -> None:
    info = GuestInfo("0.12.1", dict.fromkeys(NEEDED_COMMANDS, True))
    seen = verdict(info=info, filesystems=None, os_id=None)
    assert (seen.action, seen.mountpoints) == ("freeze", None)
    assert "has no guest-get-fsinfo: all is frozen, loop mounts could not be seen" in seen.reasons[0]


@pytest.mark.parametrize("policy", [AUTO._replace(leave_out=("/home",)), AUTO._replace(mode="mountpoints")])
def test_what_cannot_be_listed_cannot_be_left_out(policy: FreezePolicy) -> None:
    seen = verdict(policy, info=GuestInfo("0.12.1", dict.fromkeys(NEEDED_COMMANDS, True)), filesystems=None)
    assert seen.action == "veto"
    assert seen.reasons[0].startswith("unseen: freeze.mode names mountpoints, and the agent has no guest-get-fsinfo")
