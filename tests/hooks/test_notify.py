"""hooks/notify as systemd starts it, with a PVE::Notify that writes down what it is called with.

That the call is the documented one (pve-cluster, src/PVE/Notify.pm; proxmox-perl-rs, common/src/bindings/notify.rs;
proxmox-notify, src/lib.rs and src/matcher.rs) is held by its arguments; Proxmox's own module needs a cluster.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pvehook.night.notifier import HAND_OVER_S
from pvehook.records.notice import Notice, template_data
from tests.notify_service import HELPER, REPO, helper_command

NOTICE = Notice(
    "guest-stalled",
    "warning",
    (101, 102),
    "2 guests stalled",
    ("VM 101 (wéb) <b>: stalled for 3.4 s",),
    (("in detail", "pvehook report --vmid 101"),),
)
SEVERITIES = ("info", "notice", "warning", "error", "unknown")
"""proxmox-notify, src/lib.rs: enum Severity, in kebab case."""
SAFE_ID = r"[A-Za-z0-9_][A-Za-z0-9._\-]*"
"""The names of fields that a matcher can name: SAFE_ID_REGEX of proxmox-schema, in proxmox-notify, src/matcher.rs."""


def request(notice: Notice = NOTICE) -> dict[str, Any]:
    vmids = ",".join(map(str, notice.vmids))
    return {"severity": notice.severity, "event": notice.event, "vmid": vmids, "data": template_data(notice)}


def call(
    given: Path, text: str, *options: str, does: str = "", with_proxmox: bool = True
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        helper_command(*options, with_proxmox=with_proxmox),
        input=text,
        env={"PVEHOOK_TEST_GIVEN": str(given), "PVEHOOK_TEST_DOES": does},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def given(tmp_path: Path) -> Path:
    return tmp_path / "given"


def test_proxmox_is_called_with_what_its_signature_asks_for(given: Path) -> None:
    done = call(given, json.dumps(request()))
    assert (done.returncode, done.stdout) == (0, "sent\n")
    assert done.stderr == "a module's own words\n"
    severity, template, data, fields = json.loads(given.read_text())  # and no fifth: the cluster's own configuration
    assert severity in SEVERITIES
    assert template == "pvehook"
    assert data == {**template_data(NOTICE), "node": "pve1"}
    assert data["lines"] == ["VM 101 (wéb) <b>: stalled for 3.4 s"]
    assert fields == {
        "type": "pvehook",
        "hostname": "pve1",
        "node": "pve1",
        "pvehook-event": "guest-stalled",
        "vmid": "101,102",
    }
    assert all(re.fullmatch(SAFE_ID, name) for name in fields)


@pytest.mark.parametrize("vmid", ["101", 101])
def test_a_field_is_a_text_and_no_number(given: Path, vmid: object) -> None:
    """In proxmox-perl-rs the fields are a HashMap<String, String>."""
    assert call(given, json.dumps(request() | {"vmid": vmid})).stdout == "sent\n"
    assert json.loads(given.read_text())[3]["vmid"] == "101"


def test_its_templates_have_the_names_that_proxmox_looks_for() -> None:
    """proxmox-notify, src/renderer/mod.rs: {template}-subject.txt.hbs, -body.txt.hbs, -body.html.hbs."""
    names = {each.name for each in (REPO / "hooks" / "templates").iterdir()}
    assert names == {"pvehook-subject.txt.hbs", "pvehook-body.txt.hbs", "pvehook-body.html.hbs"}


def test_off_proxmox_it_says_so(given: Path) -> None:
    done = call(given, json.dumps(request()), with_proxmox=False)
    assert done.stdout.startswith("not sent: Can't locate PVE/INotify.pm")
    assert done.stdout.count("\n") == 1
    assert done.returncode == 0  # systemd has nothing to report beside it


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("die", "ipcc_send_rec[1] failed: Connection refused"),
        ("raise", "Could not instantiate notification bus"),
    ],
)
def test_what_proxmox_refuses_is_one_line(given: Path, does: str, why: str) -> None:
    assert call(given, json.dumps(request()), does=does).stdout.strip() == f"not sent: {why}"
    assert not given.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"severity": "warning"}', "\xff", "[" * 100_000])
def test_what_is_no_notice_is_not_sent(given: Path, text: str) -> None:
    assert call(given, text).stdout.startswith("not sent: ")


def test_one_that_hangs_ends_itself(given: Path, tmp_path: Path) -> None:
    """Its 120 s are 1 s here."""
    (tmp_path / "ShortAlarm.pm").write_text(
        "package ShortAlarm; BEGIN { *CORE::GLOBAL::alarm = sub { CORE::alarm($_[0] / 120) } } 1;\n"
    )
    done = call(given, json.dumps(request()), f"-I{tmp_path}", "-MShortAlarm", does="hang")
    assert done.returncode == -14  # SIGALRM
    assert done.stdout == ""


def test_who_waits_for_it_waits_longer_than_it_may_take_and_systemd_longer_still() -> None:
    (own_s,) = re.findall(r"^alarm ([0-9]+);", HELPER.read_text(), re.MULTILINE)
    unit = (REPO / "hooks" / "systemd" / "pvehook-notify@.service").read_text()
    (systemds_s,) = re.findall(r"^RuntimeMaxSec=([0-9]+)s$", unit, re.MULTILINE)
    assert float(own_s) < HAND_OVER_S < float(systemds_s)
