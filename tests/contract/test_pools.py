"""The pools of /etc/pve/user.cfg, as PVE reads them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pvehook.contract.pools import parse_pools

USER_CFG = """\
user:root@pam:1:0:::admin@example.org:pool%3A not one:
group:admin:root@pam::
pool:web:front ends:101,102:local,nas:
pool:web/test::103;104 105::
pool:empty:
  pool : odd : : 106 :
acl:1:/pool/web:admin@pve:PVEAdmin:
"""


def test_pools_and_their_guests() -> None:
    assert parse_pools(USER_CFG) == {
        "web": {101, 102},
        "web/test": {103, 104, 105},
        "empty": set(),
        "odd": {106},
    }


def test_a_guest_is_the_first_pools_that_names_it() -> None:
    assert parse_pools("pool:a::101:\npool:b::101,102:\n") == {"a": {101}, "b": {102}}


def test_an_outer_pool_is_there_without_a_line_of_its_own() -> None:
    assert parse_pools("pool:a/b/c::101:\n") == {"a": set(), "a/b": set(), "a/b/c": {101}}


def test_what_pve_ignores_is_ignored() -> None:
    text = "pool:a/b/c/d::101:\npool:b d::102:\npool:::103:\npool:x::one,0x1,\u0661\u0660\u0661,104:\n"
    assert parse_pools(text) == {"x": {104}}


@given(st.text(alphabet=st.sampled_from("pol:ab/1, \t\n\x00é"), max_size=200))
def test_no_text_raises(text: str) -> None:
    assert all(name for name in parse_pools(text))
