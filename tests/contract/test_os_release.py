"""/etc/os-release: what a distribution is, and what it is like."""

from __future__ import annotations

import pytest

from pvehook.contract.os_release import ids_of


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nHOME_URL="x"\n', ("debian",)),
        ('ID_LIKE="rhel centos fedora"\nID="rocky"\n', ("rocky", "rhel", "centos", "fedora")),
        ("ID='opensuse-leap'\nID_LIKE=\"suse opensuse\"\n", ("opensuse-leap", "suse", "opensuse")),
        ("VERSION_ID=12\nVARIANT_ID=server\n", ()),
        ("ID=\x1b[2J\n", ()),
        ("", ()),
    ],
)
def test_id_then_what_it_is_like(text: str, ids: tuple[str, ...]) -> None:
    assert ids_of(text) == ids
