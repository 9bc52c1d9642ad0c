"""A task's id, as Proxmox writes it into a worker's command line."""

from __future__ import annotations

import pytest

from pvehook.contract.upid import parse_upid

TEXT = "UPID:pve1:0003A6C1:00C0FFEE:6921B2F0:vzdump:101:root@pam:"


@pytest.mark.parametrize("text", [TEXT, "task " + TEXT, TEXT + "\n", TEXT + "OK"])
def test_the_parts_of_an_id(text: str) -> None:
    upid = parse_upid(text)
    assert upid is not None
    assert (upid.text, upid.vmid) == (TEXT, 101)


@pytest.mark.parametrize("name", ["", "pool", "1x", "\u0661\u0660\u0661", "9" * 5000])
def test_a_run_that_is_not_of_one_guest_names_none(name: str) -> None:
    upid = parse_upid(TEXT.replace(":101:", f":{name}:"))
    assert upid is not None
    assert upid.vmid is None


def test_a_user_of_an_api_token_is_kept() -> None:
    upid = parse_upid(TEXT.replace("root@pam", "root@pam!backup"))
    assert upid is not None
    assert (upid.text, upid.vmid) == (TEXT.replace("root@pam", "root@pam!backup"), 101)


@pytest.mark.parametrize(
    "text",
    ["", "/usr/bin/perl", "UPID:pve1:1:2", "task", TEXT.replace("UPID", "UP1D"), TEXT.replace("0003A6C1", "pid")],
)
def test_what_is_no_id_is_none(text: str) -> None:
    assert parse_upid(text) is None
