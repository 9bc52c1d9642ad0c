"""The line that the hook sends and the answer it reads: nothing is lost, nothing else gets through."""

from __future__ import annotations

import json
from _json import encode_basestring_ascii as quoted

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvehook.contract.call import BadCall, HookCall, Reply, call_from, encode_reply, parse_call

ENV = {"STOREID": "local", "DUMPDIR": "/var/lib/vz/dump", "VMTYPE": "qemu", "HOSTNAME": "web", "TARGET": "/t.vma"}
GOOD: dict[str, object] = {"v": 1, "argv": ["pre-stop", "snapshot", "101"], "env": ENV, "worker": 4711}

# What a process can be given: any bytes but NUL, which Python shows as text with lone surrogates.
WORDS = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))


def line_of_the_hook(argv: list[str], env: dict[str, str], worker: int, until: float = 8812.345) -> bytes:
    """As hooks/vzdump-hook writes it, which has no JSON encoder. tests/job try the hook itself."""
    words = ",".join(map(quoted, argv))
    pairs = ",".join(f"{quoted(name)}:{quoted(value)}" for name, value in env.items())
    return f'{{"v":1,"argv":[{words}],"env":{{{pairs}}},"worker":{worker},"until":{until:.3f}}}\n'.encode("ascii")


@settings(derandomize=True, deadline=None)
@given(
    phase=WORDS,
    mode=WORDS,
    vmid=st.integers(0, 999_999_999),
    env=st.dictionaries(st.sampled_from(sorted(ENV)), WORDS),
    worker=st.integers(2, 2**22),
    until=st.integers(0, 2**40).map(lambda milliseconds: milliseconds / 1000),
)
def test_every_call_of_the_hook_arrives_as_it_was(
    phase: str, mode: str, vmid: int, env: dict[str, str], worker: int, until: float
) -> None:
    line = line_of_the_hook([phase, mode, str(vmid)], env, worker, until)
    assert line.count(b"\n") == 1
    assert parse_call(line) == HookCall(
        phase=phase,
        mode=mode,
        vmid=vmid,
        worker_pid=worker,
        vmtype=env.get("VMTYPE"),
        hostname=env.get("HOSTNAME"),
        storeid=env.get("STOREID"),
        dumpdir=env.get("DUMPDIR"),
        target=env.get("TARGET"),
        until_s=until,
    )


def test_a_call_may_leave_open_until_when_it_waits() -> None:
    assert parse_call(json.dumps(GOOD).encode()).until_s is None


def test_a_job_phase_has_no_guest() -> None:
    call = parse_call(line_of_the_hook(["job-init"], {}, 7))
    assert (call.phase, call.mode, call.vmid, call.storeid) == ("job-init", None, None, None)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"v": 2}, "version 1"),
        ({"v": None}, "version 1"),
        ({"argv": "job-init"}, "argv"),
        ({"argv": ["job-init", 3]}, "argv"),
        ({"argv": []}, "without a phase"),
        ({"env": []}, "env"),
        ({"env": {"HOSTNAME": None}}, "env"),
        ({"worker": 0}, "worker"),
        ({"worker": -1}, "worker"),
        ({"worker": True}, "worker"),
        ({"worker": "4711"}, "worker"),
        ({"worker": 4711.0}, "worker"),
        ({"until": "8812.345"}, "until"),
        ({"until": True}, "until"),
        ({"until": float("nan")}, "until"),
        ({"until": float("inf")}, "until"),
        ({"until": 10**400}, "until"),
        ({"argv": ["pre-stop", "snapshot", "1e3"]}, "not a guest's number"),
        ({"argv": ["pre-stop", "snapshot", "-1"]}, "not a guest's number"),
        ({"argv": ["pre-stop", "snapshot", ""]}, "not a guest's number"),
        ({"argv": ["pre-stop", "snapshot", "\u0661\u0660\u0661"]}, "not a guest's number"),  # 101 in Arabic digits
        ({"argv": ["pre-stop", "snapshot", "1" * 10]}, "not a guest's number"),
    ],
)
def test_a_request_of_another_shape_is_none(changed: dict[str, object], why: str) -> None:
    parse_call(json.dumps(GOOD).encode())  # the one that is changed is good
    with pytest.raises(BadCall, match=why):
        parse_call(json.dumps({**GOOD, **changed}).encode())


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b'{"v":1,"worker":' + b"9" * 5000 + b"}"]
)
def test_what_is_no_request_at_all_is_refused_by_name(line: bytes) -> None:
    with pytest.raises(BadCall):
        parse_call(line)


def test_the_reason_can_be_shown() -> None:
    """It goes to the task log: what somebody sent must not act on a terminal there."""
    with pytest.raises(BadCall) as caught:
        call_from(["pre-stop", "snapshot", "\x1b[2J\n\u202e"], {}, 1)
    assert str(caught.value).isprintable()


def test_an_answer_is_a_head_and_lines() -> None:
    assert encode_reply(Reply(("one", "zwei \u00fc"), 1)) == b"exit 1\none\nzwei \xc3\xbc\n"
    assert encode_reply(Reply()) == b"exit 0\n"


def test_a_chained_script_is_named_only_when_it_may_run() -> None:
    assert encode_reply(Reply(chain="/opt/my script")) == b"exit 0 chain /opt/my script\n"
    assert encode_reply(Reply(exit_code=1, chain="/opt/script")) == b"exit 1\n"


@pytest.mark.parametrize("ending", ["\n", "\r", "\r\n"])
def test_a_line_cannot_forge_another(ending: str) -> None:
    lines = encode_reply(Reply((f"name{ending}INFO: all is well",))).split(b"\n")
    assert len(lines) == 3
    assert b"\r" not in lines[1]


def test_a_text_that_cannot_be_encoded_costs_a_character_not_the_answer() -> None:
    assert encode_reply(Reply(("a\udcffb",))) == b"exit 0\na?b\n"
