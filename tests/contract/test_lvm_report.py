"""What lvs says of volumes: its letters, and what is no report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pvehook.contract.lvm_report import LogicalVolume, parse_lvs

ROW = {
    "vg_name": "pve",
    "lv_name": "data",
    "lv_attr": "twi-aotz--",
    "lv_size": "1000204886016",
    "origin": "",
    "data_percent": "61.24",
    "metadata_percent": "2.11",
    "vg_free": "17175674880",
}


def volume(**fields: str) -> LogicalVolume:
    (only,) = parse_lvs(json.dumps({"report": [{"lv": [{**ROW, **fields}]}]}))
    return only


def test_a_thin_pool_and_a_volume_without_a_percentage() -> None:
    assert volume() == LogicalVolume("pve", "data", "twi-aotz--", 1000204886016, "", 61.24, 2.11, 17175674880)
    assert (volume().full_name, volume().is_thin_pool) == ("pve/data", True)
    plain = volume(lv_attr="-wi-ao----", data_percent="", metadata_percent="")
    assert (plain.data_percent, plain.metadata_percent, plain.is_thin_pool) == (None, None, False)


@pytest.mark.parametrize(
    ("attr", "is_snapshot", "trouble"),
    [
        ("swi-a-s---", True, ""),
        ("Swi-a-s---", True, ""),  # being merged back
        ("owi-a-s---", False, ""),
        ("Vwi-a-tz--", False, ""),
        ("swi-I-s---", True, "invalid"),
        ("twi-cotz--", False, "its metadata must be checked"),
        ("twi-aotzD-", False, "out of data space"),
        ("twi-aotzF-", False, "failed"),
        ("", False, ""),
    ],
)
def test_the_letters(attr: str, is_snapshot: bool, trouble: str) -> None:
    assert (volume(lv_attr=attr).is_thick_snapshot, volume(lv_attr=attr).trouble) == (is_snapshot, trouble)


@pytest.mark.parametrize(
    "report",
    ["", "[]", "3", '{"report": 3}', '{"report": [{"lv": [3]}]}', '{"report": [{"lv": [{"vg_name": "pve"}]}]}'],
)
def test_another_text_is_no_report(report: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_lvs(report)


@pytest.mark.parametrize("fields", [{"lv_size": "1g"}, {"data_percent": "61,24"}, {"vg_free": ""}])
def test_a_figure_that_is_none_is_no_report(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"could not convert|invalid literal"):
        volume(**fields)
