"""The list of known faults: what the file holds, what a damaged one costs, and which node each fault is found on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pvehook.doctor.fault_atlas import GUESTS, Fault, atlas, parse_atlas
from pvehook.doctor.fault_checks import GROUP, find
from pvehook.doctor.fault_facts import FaultFacts, gather, traits_of
from pvehook.doctor.finding import Finding
from tests.doctor.test_host_checks import package, sources

FAULTS = atlas().faults
WITH_VERSIONS = [each for each in FAULTS if each.affected]
CLEAN = {"kernel": "7.0.14-14", "pve-qemu-kvm": "11.0.0-2", "qemu-server": "9.2.6", "pve-manager": "9.2.11"}
"""The newest that were known when the list was made."""
ENTRY: dict[str, Any] = {
    "id": "PVH-699",
    "title": "A fault",
    "component": "kernel",
    "affected": [{"kernel": ">= 6.17, < 6.17.4-2"}],
    "severity": "warning",
    "backups": False,
    "shows": "It shows.",
    "remedy": ["reboot"],
    "source": "proxmox/pve-kernel debian/changelog, 6.17.4-2",
}


def by_id(fault: Fault) -> str:
    return fault.id


def facts(**changed: Any) -> FaultFacts:
    plain = FaultFacts(CLEAN, (), frozenset(), "", frozenset(), 1, frozenset(), False, {})
    return plain._replace(**changed)


def facts_for(fault: Fault, affected: int = 0) -> FaultFacts:
    """A node at the lower end of one of the fault's ranges, on which all conditions are met."""
    versions = {package: bounds.at_least or "0.1" for package, bounds in fault.affected[affected].items()}
    when = fault.when
    return facts(
        versions=CLEAN | versions,
        drivers=frozenset(when.drivers[-1:]),
        cpu=when.cpu or "amd",
        mounted=frozenset(when.mounted[-1:]),
        numa_nodes=2,
        storages=frozenset(when.storages[-1:]),
        fleecing=True,
        vms={101: frozenset({when.guests}), 102: frozenset(GUESTS)},
    )


def fixed(fault: Fault, affected: int) -> dict[str, str]:
    """The first versions that have the fault no more."""
    return {package: bounds.below for package, bounds in fault.affected[affected].items() if bounds.below}


# The file


def test_the_file_has_no_damaged_entry_and_enough_of_them() -> None:
    assert atlas().problems == ()
    assert len(FAULTS) >= 25


def test_each_fault_that_a_version_tells_is_a_check_of_its_own() -> None:
    assert [check.id for check in GROUP.checks] == [fault.id for fault in WITH_VERSIONS]


def test_ids_are_in_order_as_people_look_for_them() -> None:
    assert [fault.id for fault in FAULTS] == sorted(fault.id for fault in FAULTS)


@pytest.mark.parametrize("fault", WITH_VERSIONS, ids=by_id)
def test_a_fault_is_found_where_its_versions_and_conditions_are(fault: Fault) -> None:
    for index in range(len(fault.affected)):
        (found,) = find(fault, facts_for(fault, index))
        assert (found.subject, found.severity, found.remedy) == ("node", fault.severity, fault.remedy)
        assert fault.shows in found.evidence
        assert found.evidence.endswith("Backups are not its cause.") is not fault.backups
        assert all(f"fixed in {version}" in found.evidence for version in fixed(fault, index).values())


@pytest.mark.parametrize("fault", WITH_VERSIONS, ids=by_id)
def test_it_is_gone_with_the_version_that_fixes_it(fault: Fault) -> None:
    for index in range(len(fault.affected)):
        node = facts_for(fault, index)
        for name, version in fixed(fault, index).items():
            assert list(find(fault, node._replace(versions={**node.versions, name: version}))) == []


@pytest.mark.parametrize("fault", [each for each in WITH_VERSIONS if any(each.when)], ids=by_id)
def test_it_is_not_found_where_a_condition_is_not_met(fault: Fault) -> None:
    node = facts_for(fault)
    without: dict[str, Any] = {
        **{key: {key: frozenset()} for key in ("drivers", "mounted", "storages")},
        "guests": {"vms": {101: frozenset()}},
        "cpu": {"cpu": "of somebody else"},
        "numa": {"numa_nodes": 1},
        "fleecing": {"fleecing": False},
    }
    for key, value in fault.when._asdict().items():
        if value:
            assert list(find(fault, node._replace(**without[key]))) == [], key


def test_a_node_with_the_newest_versions_has_none() -> None:
    node = facts(
        drivers=frozenset({"mpt3sas", "aacraid", "openvswitch", "zfs"}),
        cpu="intel",
        mounted=frozenset({"ext4", "nfs4", "cifs", "ceph", "ocfs2"}),
        numa_nodes=2,
        storages=frozenset({"zfspool"}),
        fleecing=True,
        vms={101: frozenset(GUESTS)},
    )
    assert [finding for fault in FAULTS for finding in find(fault, node)] == []


def test_what_is_not_known_is_not_found() -> None:
    unknown = facts(versions={}, storages=None, fleecing=None, vms=None)
    assert [finding for fault in FAULTS for finding in find(fault, unknown)] == []


def test_the_vms_are_named_up_to_three() -> None:
    (fault,) = (each for each in FAULTS if each.id == "PVH-632")
    node = facts_for(fault)._replace(vms=dict.fromkeys((1000, 104, 101, 102, 103), frozenset({"tpm"})))
    (found,) = find(fault, node)
    assert found.evidence.startswith(
        "pve-qemu-kvm 10.0 is installed, fixed in 10.1.2-5; qemu-server 9.0.1 is installed;"
        " VM 101, VM 102, VM 103 and 2 more with a TPM. "
    )


# Damage


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"id": "PVH-301"}, "id: PVH-6nn was expected"),
        ({"severity": "bad"}, "severity: one of error, warning, note was expected"),
        ({"backups": "no one knows"}, "backups: another kind of value was expected"),
        ({"remedy": []}, "remedy: nothing is said"),
        ({"remedy": [1]}, "remedy: texts were expected"),
        ({"title": ""}, "title: another kind of value was expected"),
        ({"source": "heard in the forum 6.17"}, "source: "),
        ({"source": "https://example.com/"}, "source: "),
        ({"affected": [{"kernel": "6.17"}]}, "no range of versions: '6.17'"),
        ({"affected": [{"linux": ">= 6"}]}, "affected: mappings of "),
        ({"affected": [{}]}, "affected: mappings of "),
        ({"affected": ["kernel"]}, "affected: mappings of "),
        ({"when": {"moon": "full"}}, "moon unknown"),
        ({"when": {"drivers": "mpt3sas"}}, "when: drivers: another kind of value was expected"),
        ({"when": {"drivers": [None]}}, "when: drivers: texts were expected"),
        ({"when": {"guests": "large"}}, "when: guests: one of "),
        ({"when": {"cpu": "sparc"}}, "when: cpu: intel or amd was expected"),
        ({"when": []}, "a mapping was expected"),
        ({"colour": "red"}, "colour unknown"),
        ({"shows": None}, "shows: another kind of value was expected"),
    ],
)
def test_a_damaged_entry_is_reported_and_the_others_count(changed: dict[str, Any], said: str) -> None:
    text = yaml.safe_dump([ENTRY | changed, ENTRY | {"id": "PVH-698"}])
    read = parse_atlas(text)
    assert [fault.id for fault in read.faults] == ["PVH-698"]
    (problem,) = read.problems
    assert problem.startswith("faults.yaml, entry 1 (PVH-")
    assert said in problem


@pytest.mark.parametrize("key", ENTRY)
def test_an_entry_that_lacks_something_is_reported(key: str) -> None:
    read = parse_atlas(yaml.safe_dump([{name: value for name, value in ENTRY.items() if name != key}]))
    assert (read.faults, len(read.problems)) == ((), 1)
    assert f"{key} missing" in read.problems[0]


def test_an_id_that_comes_twice_counts_once() -> None:
    read = parse_atlas(yaml.safe_dump([ENTRY, ENTRY | {"title": "Another"}]))
    assert [fault.title for fault in read.faults] == ["A fault"]
    assert read.problems == ("faults.yaml, entry 2 (PVH-699): there is one with this id already",)


@pytest.mark.parametrize("text", ["", "a: b", "- [", "\x00", "- 1\n- &a [*a]", "- 2026-99-99"])
def test_what_is_no_list_of_faults_is_reported(text: str) -> None:
    read = parse_atlas(text)
    assert read.faults == ()
    assert all(problem.startswith("faults.yaml") for problem in read.problems)
    assert read.problems


# A node


VM = """\
agent: 1
ostype: l26
scsihw: virtio-scsi-single
scsi0: local-lvm:vm-101-disk-0,iothread=1,size=32G
tpmstate0: local-lvm:vm-101-disk-1,size=4M,version=v2.0

[before]
sata0: local-lvm:vm-101-disk-0
"""


NODE = {
    "/proc/sys/kernel/osrelease": "6.17.2-1-pve\n",
    "/proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\n",
    "/proc/self/mountinfo": "36 35 0:43 / /mnt/pve/nas rw,noatime shared:1 - nfs4 nas:/export rw,hard\n",
    "/sys/module/mpt3sas/initstate": "live\n",
    "/sys/devices/system/node/node0/cpulist": "0-7\n",
    "/sys/devices/system/node/possible": "0\n",
    "/var/lib/dpkg/status": package("pve-manager", "9.0.11")
    + package("pve-qemu-kvm", "10.0.2-4")
    + package("qemu-server", "9.0.19"),
    "/etc/pve/qemu-server/101.conf": VM,
    "/etc/pve/qemu-server/102.conf": "ostype: win11\nsata0: local-lvm:vm-102-disk-0\n",
    "/etc/pve/storage.cfg": "zfspool: tank\n\tpool tank\n\tdisable\n\nlvmthin: local-lvm\n\tvgname pve\n",
    "/etc/pve/jobs.cfg": "vzdump: nightly\n\tschedule 21:00\n\tall 1\n\tfleecing 1,storage=local-lvm\n",
}


def test_what_a_node_is_held_against_is_read_from_it(tmp_path: Path) -> None:
    seen = gather(sources(tmp_path, NODE))
    assert seen == FaultFacts(
        versions={
            "kernel": "6.17.2-1",
            "pve-qemu-kvm": "10.0.2-4",
            "qemu-server": "9.0.19",
            "pve-manager": "9.0.11",
        },
        unknown=(),
        drivers=frozenset({"mpt3sas"}),
        cpu="intel",
        mounted=frozenset({"nfs4"}),
        numa_nodes=1,
        storages=frozenset({"dir", "lvmthin"}),
        fleecing=True,
        vms={101: frozenset({"agent", "linux", "virtio-scsi", "iothread", "tpm"}), 102: frozenset({"windows", "sata"})},
    )
    found: dict[str, list[Finding]] = {check.id: list(check.find(seen)) for check in GROUP.checks}
    assert [each for each in found if found[each]] == [
        *("PVH-601", "PVH-602", "PVH-632", "PVH-633", "PVH-651", "PVH-653")
    ]
    assert GROUP.missing(seen) == ()


def test_fleecing_may_be_turned_on_for_the_whole_node(tmp_path: Path) -> None:
    files = NODE | {"/etc/vzdump.conf": "fleecing: enabled=1,storage=local-lvm\n", "/etc/pve/jobs.cfg": ""}
    assert gather(sources(tmp_path, files)).fleecing is True
    assert gather(sources(tmp_path, files | {"/etc/vzdump.conf": "fleecing: enabled=0\n"})).fleecing is False


def test_what_cannot_be_read_is_reported_as_not_checked(tmp_path: Path) -> None:
    seen = gather(sources(tmp_path, {"/proc/sys/kernel/osrelease": "6.12.57+deb13-amd64\n"}))
    assert GROUP.missing(seen) == (
        "known faults of the kernel: 6.12.57+deb13-amd64 is no kernel of Proxmox VE",
        "known faults of Proxmox VE: no Proxmox VE: dpkg is not used here",
    )
    half = NODE | {"/var/lib/dpkg/status": package("pve-manager", "9.0.11") + package("qemu-server", "no version")}
    assert GROUP.missing(gather(sources(tmp_path, half))) == (
        "known faults of pve-qemu-kvm: the package is not installed",
        "known faults of qemu-server: no version of Debian: 'no version'",
    )
    (tmp_path / "etc/pve/qemu-server/101.conf").unlink()
    (tmp_path / "etc/pve/qemu-server/101.conf").mkdir()
    (vms,) = (text for text in GROUP.missing(gather(sources(tmp_path, {}))) if "VMs" in text)
    assert vms.startswith("known faults that depend on the VMs: the guests' configurations cannot be read: ")


@pytest.mark.parametrize(
    ("options", "traits"),
    [
        ({}, set()),
        ({"scsi0": "a:b,iothread=1", "scsihw": "virtio-scsi-pci"}, {"virtio-scsi"}),
        ({"scsi0": "a:b"}, set()),
        ({"virtio0": "a:b,iothread=1"}, {"iothread", "virtio-blk-iothread"}),
        ({"sata0": "none,media=cdrom"}, set()),
        ({"ostype": "win10"}, {"windows"}),
        ({"ostype": "win7"}, set()),
        ({"agent": "0"}, set()),
    ],
)
def test_what_a_vm_is(options: dict[str, str], traits: set[str]) -> None:
    assert traits_of(options) == traits
