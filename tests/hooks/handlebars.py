"""As much of Handlebars as the templates in hooks/templates use, by its own rules.

    {{name}}, {{this.name}}     the value; undefined is empty (handlebarsjs.com/guide/expressions.html)
    {{this}}                    the item of the innermost each
    {{#each list}}...{{/each}}  the block for each item (handlebarsjs.com/guide/builtin-helpers.html)
    {{#if name}}...{{/if}}      the block unless the value is false, undefined, null, "", 0 or []

What is escaped in HTML: & < > " ' ` = (handlebarsjs.com/api-reference/utilities.html, escapeExpression). A block's tag
that is alone on its line takes the line with it (mustache(5), standalone tags, which Handlebars follows).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

ESCAPED: Final = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    '"': "&quot;",
    "'": "&#x27;",
    "`": "&#x60;",
    "=": "&#x3D;",
}
_TAG: Final = re.compile(r"\{\{\s*([#/]?)\s*([\w.\- ]+?)\s*\}\}")
_STANDALONE: Final = re.compile(r"^[ \t]*(\{\{[#/][^}]*\}\})[ \t]*\n", re.MULTILINE)

Escape = Callable[[str], str]


def html_escape(text: str) -> str:
    return "".join(ESCAPED.get(each, each) for each in text)


def no_escape(text: str) -> str:
    """Of subjects and plain bodies (proxmox-notify, src/renderer/mod.rs)."""
    return text


def render(template: str, data: dict[str, Any], escape: Escape) -> str:
    """Raises ValueError for what it does not know, and for blocks that do not match."""
    return _block(_STANDALONE.sub(r"\1", template), data, escape)


def _block(template: str, this: Any, escape: Escape) -> str:
    shown, at = "", 0
    while match := _TAG.search(template, at):
        shown += _literal(template[at : match.start()])
        kind, name = match.groups()
        at = match.end()
        if kind == "/":
            raise ValueError(f"{{{{/{name}}}}} closes nothing")
        if kind == "":
            value = _value(name, this)
            shown += escape("" if value is None else str(value))
            continue
        helper, _, argument = name.partition(" ")
        end = _end_of(template, at, helper)
        body, at = template[at : end.start()], end.end()
        value = _value(argument, this)
        if helper == "each":
            items = value or []
        elif helper == "if":
            items = [this] if value else []
        else:
            raise ValueError(f"unknown helper {helper}")
        shown += "".join(_block(body, item, escape) for item in items)
    return shown + _literal(template[at:])


def _end_of(template: str, at: int, helper: str) -> re.Match[str]:
    depth = 1
    for match in _TAG.finditer(template, at):
        kind, name = match.groups()
        if kind and name.partition(" ")[0] == helper:
            depth += 1 if kind == "#" else -1
            if depth == 0:
                return match
    raise ValueError(f"{{{{#{helper}}}}} is not closed")


def _literal(text: str) -> str:
    if "{{" in text or "}}" in text:
        raise ValueError(f"not understood: {text!r}")
    return text


def _value(name: str, this: Any) -> Any:
    return this if name == "this" else this.get(name.removeprefix("this."))
