"""The templates of Proxmox's notifications, rendered by Handlebars' rules; where it is installed, also by the library
that Proxmox uses (handlebars-rust; `pip install dotprompt-handlebars`, which asks for a newer structlog than a node
has, so the tests do not install it)."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pvehook.records.notice import Notice, template_data
from tests.hooks.handlebars import ESCAPED, html_escape, no_escape, render

TEMPLATES = Path(__file__).parents[2] / "hooks" / "templates"
EVIL = "VM 101 (<script>\"'`=&amp;{{title}}) stalled"

Renderer = Callable[[str, dict[str, Any], bool], str]
"""Template, data, whether HTML is escaped."""


def ours(template: str, data: dict[str, Any], is_html: bool) -> str:
    return render(template, data, html_escape if is_html else no_escape)


def proxmoxs(template: str, data: dict[str, Any], is_html: bool) -> str:
    native = importlib.import_module("handlebarrz._native").HandlebarrzTemplate()
    native.set_escape_fn("html_escape" if is_html else "no_escape")
    text: str = native.render_template(template, json.dumps(data))
    return text


RENDERERS = [ours, *([proxmoxs] if importlib.util.find_spec("handlebarrz") else [])]
renderers = pytest.mark.parametrize("renderer", RENDERERS, ids=lambda each: str(each.__name__))


@pytest.fixture(params=RENDERERS, ids=lambda each: str(each.__name__))
def rendered(request: pytest.FixtureRequest) -> Callable[[str, Notice], str]:
    renderer: Renderer = request.param

    def of(name: str, notice: Notice) -> str:
        template = (TEMPLATES / f"pvehook-{name}.hbs").read_text()
        return renderer(template, {**template_data(notice), "node": "pve1"}, name.endswith("html"))

    return of


def notice(title: str = "VM 101 (web) stalled for 196 s during the backups", **more: Any) -> Notice:
    known: dict[str, Any] = {
        "event": "guest-stalled",
        "severity": "warning",
        "vmids": (101,),
        "title": title,
        "lines": (
            "VM 101 (web), in its own backup: stalled for 3.4 s",
            "VM 101 (web): stalled for 193 s beside others",
        ),
        "advice": (("VM 101 (web) in detail", "pvehook report --vmid 101"), ("ask your storage", "")),
    }
    return Notice(**known | more)


def test_a_mail_reads_well(rendered: Callable[[str, Notice], str]) -> None:
    assert rendered("subject.txt", notice()).rstrip("\n") == (
        "pvehook (pve1): VM 101 (web) stalled for 196 s during the backups"
    )
    assert rendered("body.txt", notice()) == (
        "VM 101 (web), in its own backup: stalled for 3.4 s\n"
        "VM 101 (web): stalled for 193 s beside others\n"
        "\n"
        "What to do\n"
        "- VM 101 (web) in detail:\n"
        "    pvehook report --vmid 101\n"
        "- ask your storage\n"
        "\n"
        "Node pve1. Sent by pvehook; to switch this off: notify: off in /etc/pvehook.yaml\n"
    )


def test_the_page_has_the_same(rendered: Callable[[str, Notice], str]) -> None:
    page = rendered("body.html", notice())
    assert texts_of(page) == [
        "VM 101 (web) stalled for 196 s during the backups",
        "VM 101 (web), in its own backup: stalled for 3.4 s",
        "VM 101 (web): stalled for 193 s beside others",
        "What to do",
        "VM 101 (web) in detail:",
        "pvehook report --vmid 101",
        "ask your storage",
        "Node pve1. Sent by pvehook; to switch this off:",
        "notify: off",
        "in /etc/pvehook.yaml",
    ]


def test_a_guests_name_is_text_in_both(rendered: Callable[[str, Notice], str]) -> None:
    evil = notice(EVIL, lines=(EVIL,), advice=((EVIL, EVIL),))
    page = rendered("body.html", evil)
    assert "<script" not in page
    assert texts_of(page)[:2] == [EVIL, EVIL]
    assert EVIL in rendered("subject.txt", evil)
    assert EVIL in rendered("body.txt", evil)


def test_a_long_line_is_wrapped_and_a_command_is_not() -> None:
    command = 'pvehook allow --vmid 104 --for 4h --reason "no backup since 2026-11-20" && vzdump 104 --storage nas'
    text = str(template_data(notice(lines=("word " * 60,), advice=(("now " * 30, command),)))["text"])
    lines = text.splitlines()
    assert f"    {command}" in lines
    assert max(len(line) for line in lines if command not in line) <= 78


@pytest.mark.parametrize("name", ["subject.txt", "body.txt", "body.html"])
def test_a_template_names_only_what_it_is_given(name: str) -> None:
    """A name that is not there would be empty, and nobody would see it."""

    class Strict(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            return self[key]

    data = Strict({**template_data(notice()), "node": "pve1"})
    data["advice"] = [Strict(each) for each in data["advice"]]
    assert ours((TEMPLATES / f"pvehook-{name}.hbs").read_text(), data, name.endswith("html"))


# The renderer


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{{a}} {{ a }}", "&lt;b&gt; &lt;b&gt;"),
        ("[{{none}}]", "[]"),
        ("{{#each list}}{{this}},{{/each}}", "1,2,"),
        ("{{#each empty}}x{{/each}}", ""),
        ("{{#each none}}x{{/each}}", ""),
        ("{{#each rows}}{{#if this.b}}{{this.a}}{{/if}};{{/each}}", "1;;"),
        ("{{#if empty}}x{{/if}}{{#if zero}}x{{/if}}{{#if text}}x{{/if}}{{#if a}}y{{/if}}", "y"),
        ("a\n  {{#each list}}\n  {{this}}\n  {{/each}}\nb\n", "a\n  1\n  2\nb\n"),
    ],
)
@renderers
def test_the_renderer_keeps_handlebars_rules(renderer: Renderer, template: str, shown: str) -> None:
    data = {
        "a": "<b>",
        "list": [1, 2],
        "empty": [],
        "zero": 0,
        "text": "",
        "rows": [{"a": "1", "b": "x"}, {"a": "2", "b": ""}],
    }
    assert renderer(template, data, True) == shown


@pytest.mark.parametrize(
    "template", ["{{#each a}}", "{{/each}}", "{{#with a}}{{/with}}", "{{", "{{a", "{{#if a}}{{/each}}"]
)
def test_what_the_renderer_does_not_know_is_an_error(template: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        ours(template, {"a": [1]}, True)


@renderers
def test_what_could_end_a_text_or_an_attribute_is_escaped(renderer: Renderer) -> None:
    assert renderer("{{a}}", {"a": "".join(ESCAPED)}, True) == "".join(ESCAPED.values())
    assert renderer("{{a}}", {"a": "".join(ESCAPED)}, False) == "".join(ESCAPED)


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(" ".join(data.split()))


def texts_of(page: str) -> list[str]:
    parser = _Texts()
    parser.feed(page)
    return parser.texts
