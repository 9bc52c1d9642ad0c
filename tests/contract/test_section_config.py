"""Section configurations as Proxmox writes them, and as a tired administrator edits them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pvehook.contract.section_config import find_section, parse_sections

STORAGE_CFG = """\
# written by hand
dir: local
\tpath /var/lib/vz
\tcontent iso,vztmpl,backup

zfspool: local-zfs
\tpool rpool/data
\tsparse
\tcontent images,rootdir

pbs: vault
        datastore main
        server 10.0.0.9
        prune-backups keep-daily=7,keep-last=3
"""


def test_sections_keep_their_order_type_and_id() -> None:
    sections = parse_sections(STORAGE_CFG)
    assert [(section.type, section.id) for section in sections] == [
        ("dir", "local"),
        ("zfspool", "local-zfs"),
        ("pbs", "vault"),
    ]


def test_properties_are_read_whether_tabs_or_blanks_indent_them() -> None:
    local, _, vault = parse_sections(STORAGE_CFG)
    assert local.properties == {"path": "/var/lib/vz", "content": "iso,vztmpl,backup"}
    assert vault.properties["prune-backups"] == "keep-daily=7,keep-last=3"


def test_a_property_without_a_value_is_a_set_boolean() -> None:
    zfs = find_section(parse_sections(STORAGE_CFG), "local-zfs")
    assert zfs is not None
    assert zfs.properties["sparse"] == "1"


def test_a_job_with_blanks_in_a_value_is_read() -> None:
    (job,) = parse_sections(
        "vzdump: backup-4f2\n\tschedule mon..fri 02:00\n\tscript /root/old hook\n\tionice 5\n"
    )
    assert job.properties == {"schedule": "mon..fri 02:00", "script": "/root/old hook", "ionice": "5"}


def test_a_property_after_a_blank_line_belongs_to_nobody() -> None:
    (section,) = parse_sections("dir: local\n\tpath /a\n\n\tpath /b\n")
    assert section.properties == {"path": "/a"}


def test_a_line_of_blanks_ends_no_section() -> None:
    (job,) = parse_sections("vzdump: nightly\n\tenabled 1\n  \n\tvmid 102\n")
    assert job.properties == {"enabled": "1", "vmid": "102"}


def test_a_header_without_an_empty_line_before_it_opens_no_section() -> None:
    (job,) = parse_sections("vzdump: nightly\n\tvmid 101\nvzdump: weekly\n\tenabled 0\n\tvmid 102\n")
    assert (job.id, job.properties) == ("nightly", {"vmid": "101", "enabled": "0"})


def test_of_a_property_that_is_set_twice_the_first_value_counts() -> None:
    (job,) = parse_sections("vzdump: nightly\n\tenabled 0\n\tenabled 1\n")
    assert job.properties == {"enabled": "0"}


def test_an_indented_comment_is_a_comment() -> None:
    (job,) = parse_sections("vzdump: nightly\n\t# script /gone\n\tvmid 101\n")
    assert job.properties == {"vmid": "101"}


def test_odd_lines_are_skipped_and_what_follows_is_still_read() -> None:
    sections = parse_sections("<<<< HEAD\n\tlost value\ndir: a\n????\n\tpath /a\n\nnfs: b\n\tserver x\n")
    assert [(section.id, dict(section.properties)) for section in sections] == [
        ("a", {"path": "/a"}),
        ("b", {"server": "x"}),
    ]


def test_of_two_sections_with_one_id_the_last_counts() -> None:
    sections = parse_sections("dir: a\n\tpath /first\n\ndir: a\n\tpath /second\n")
    found = find_section(sections, "a")
    assert found is not None
    assert found.properties["path"] == "/second"
    assert find_section(sections, "nowhere") is None


def test_only_a_line_feed_ends_a_line_and_only_ascii_blanks_count() -> None:
    """Proxmox reads bytes: what str.splitlines and str.strip take for more is part of a value there."""
    (job,) = parse_sections("vzdump: a\x1eb\n\tcomment x\x85\u2028y\xa0\n\tvmid 101\r\n")
    assert (job.id, job.properties) == ("a\x1eb", {"comment": "x\x85\u2028y\xa0", "vmid": "101"})


@given(st.text(alphabet=st.sampled_from("ab:# \t\n\r/=,é\x00"), max_size=200))
def test_no_text_raises_and_no_section_is_nameless(text: str) -> None:
    assert all(section.type and section.id for section in parse_sections(text))
