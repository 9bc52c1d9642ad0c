"""The style of the report's page. Nothing is fetched: system fonts, colours in pairs for light and dark.

Severities differ in lightness and in their words as well as in hue: blue, amber, vermilion and purple stay apart for
people who see no red or no green.
"""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f8; --card: #ffffff; --ink: #1a1f24; --muted: #5a6570; --line: #dde2e7; --grid: #e8ecf0;
  --latency: #0b62b8; --before: #56616c; --rate: #7d93a8; --limit: #6b3fa0; --freeze: #00776b;
  --none: #9fb0bf; --slowed: #c98a00; --stalled: #c8400a; --locked: #6d2a8c;
  --slowed-ink: #7a5200; --stalled-ink: #a83204; --locked-ink: #6d2a8c; --loud: #fdeee6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101316; --card: #181c20; --ink: #e7eaed; --muted: #9ba7b2; --line: #2c333a; --grid: #262c33;
    --latency: #6cb4ff; --before: #a3afba; --rate: #6d8296; --limit: #c9a6f5; --freeze: #4ecdbb;
    --none: #566573; --slowed: #e5b143; --stalled: #ff7f4d; --locked: #cf9df0;
    --slowed-ink: #eec164; --stalled-ink: #ff9a70; --locked-ink: #d9b3f5; --loud: #33211a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 66rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; letter-spacing: -0.01em; }
h3 { font-size: 1.05rem; margin: 0; display: flex; flex-wrap: wrap; gap: .25rem .6rem; align-items: baseline; }
h3 .small { font-weight: 400; }
p { margin: .35rem 0; }
a { color: inherit; text-decoration-color: var(--muted); text-underline-offset: 2px; }
.muted, figcaption, .small { color: var(--muted); }
.small, figcaption { font-size: .85rem; }
.measure { max-width: 46rem; }
.loud {
  margin: 1.25rem 0; padding: .8rem 1rem; background: var(--loud); border-left: 4px solid var(--stalled);
  border-radius: 0 6px 6px 0;
}
.loud strong { color: var(--stalled-ink); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1.25rem 0 0;
  padding: 0; }
.tiles div { display: flex; flex-direction: column-reverse; justify-content: flex-end; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem .7rem; }
.tiles dt { color: var(--muted); font-size: .85rem; line-height: 1.35; }
.tiles dd { margin: 0; font-size: 1.5rem; line-height: 1.25; letter-spacing: -0.02em; }
.tiles dd small { font-size: .85rem; color: var(--muted); letter-spacing: 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
article.card { padding: 1.1rem 1.25rem; margin: 0 0 1.25rem; scroll-margin-top: 1rem; }
.word { font-size: .8rem; font-weight: 600; padding: .05rem .5rem; border-radius: 99px; border: 1px solid currentColor;
  white-space: nowrap; }
.word.none { color: var(--muted); font-weight: 400; border-color: transparent; padding: 0; }
.word.unknown { color: var(--muted); font-weight: 400; border-style: dashed; }
.word.slowed { color: var(--slowed-ink); }
.word.stalled { color: var(--card); background: var(--stalled-ink); border-color: var(--stalled-ink); }
.word.locked-up { color: var(--card); background: var(--locked-ink); border-color: var(--locked-ink); }
.absent { color: var(--muted); cursor: help; }
.broken { color: var(--stalled-ink); font-weight: 700; cursor: help; }
table { border-collapse: collapse; width: 100%; }
#guests { font-size: .9rem; }
#guests th { text-align: left; font-weight: 600; color: var(--muted); font-size: .8rem; padding: .55rem .6rem;
  border-bottom: 1px solid var(--line); vertical-align: bottom; }
#guests th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; }
#guests th[aria-sort] button { color: var(--ink); }
#guests th[aria-sort="descending"] button::after { content: " \\2193"; }
#guests th[aria-sort="ascending"] button::after { content: " \\2191"; }
#guests td { padding: .4rem .6rem; border-bottom: 1px solid var(--grid); vertical-align: middle; }
#guests tr:last-child td { border-bottom: 0; }
#guests .number { text-align: right; white-space: nowrap; }
#guests .name { min-width: 9.5rem; }
#guests .nights { width: 28%; } #guests .cause { min-width: 7rem; }
.spark { display: block; height: 26px; width: 100%; min-width: 6rem; }
.spark path { fill: none; stroke-width: 3; vector-effect: none; }
.spark .none { stroke: var(--none); } .spark .slowed { stroke: var(--slowed); }
.spark .stalled { stroke: var(--stalled); } .spark .locked { stroke: var(--locked); }
.spark .absent { stroke: var(--muted); stroke-width: 1; } .spark .broken { stroke: var(--stalled); stroke-width: 1; }
.spark .change { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 2 2; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .6rem 0; font-size: .85rem; color: var(--muted); }
.legend span { white-space: nowrap; }
.legend svg { display: inline-block; width: 18px; min-width: 0; height: 12px; vertical-align: -1px;
  margin-right: .35rem; }
.figures { display: grid; grid-template-columns: repeat(5, auto); justify-content: start; gap: .3rem 2.2rem;
  margin: .9rem 0 .6rem; }
.figures div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.figures dt { font-size: .8rem; color: var(--muted); } .figures dd { margin: 0; font-size: 1.2rem; }
.causes { margin: .6rem 0; padding: 0; list-style: none; }
.causes li { padding-left: .8rem; border-left: 3px solid var(--line); margin: .4rem 0; }
figure { margin: .9rem 0 0; }
.chart { display: block; width: 100%; height: auto; }
.chart.middle, .chart.narrow { display: none; }
.chart text { fill: var(--muted); font: 11px system-ui, "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; }
.chart .title { fill: var(--ink); font-weight: 600; }
.chart .grid { stroke: var(--grid); } .chart .axis { stroke: var(--line); }
.chart .latency { fill: none; stroke: var(--latency); stroke-width: 1.6; stroke-linejoin: round; }
.chart .under { fill: var(--latency); opacity: .1; }
.chart .before { stroke: var(--before); stroke-dasharray: 6 4; stroke-width: 1.3; }
.chart .target { fill: none; stroke: var(--limit); stroke-dasharray: 1.5 3; stroke-width: 1.6; }
.chart .rate { fill: var(--rate); opacity: .75; }
.chart .limit { fill: none; stroke: var(--limit); stroke-width: 1.8; }
.chart .stall { fill: var(--stalled); } .chart .track { fill: var(--grid); }
.chart .band { fill: var(--stalled); opacity: .08; }
.chart .freeze { stroke: var(--freeze); stroke-width: 1.5; } .chart text.freeze { fill: var(--freeze); stroke: none; }
.chart .kernel { fill: var(--locked); }
.chart .name { fill: var(--ink); } .chart .some { fill: var(--stalled-ink); font-weight: 600; }
.chart .name, .chart .some { paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.chart .bar { fill: var(--rate); opacity: .55; }
.chart .failed { fill: none; stroke: var(--rate); stroke-width: 1.5; stroke-dasharray: 3 2; opacity: 1; }
.chart .slowed { fill: var(--slowed); }
.chart .window { stroke: var(--freeze); stroke-width: 1.5; stroke-dasharray: 5 3; }
.chart text.window { fill: var(--freeze); stroke: none; }
.chart .hit { fill: transparent; } .chart .hit:hover { fill: var(--ink); opacity: .07; }
.night { padding: 1.1rem 1.25rem; } .night figure { margin: 0; } .night h3 { margin-top: 1.1rem; }
.rows { font-size: .85rem; margin-top: .8rem; }
.rows th { text-align: left; font-weight: 600; color: var(--muted); font-size: .8rem; vertical-align: bottom; }
.rows th, .rows td { padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--grid); }
.turns td:nth-child(3), .turns td:nth-child(4) { white-space: nowrap; }
details { margin-top: .9rem; } summary { cursor: pointer; color: var(--muted); }
.views { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem 1.5rem; margin: .8rem 0; font-size: .85rem; }
.views h4 { margin: 0 0 .2rem; font-size: .85rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
.views td:last-child { text-align: right; white-space: nowrap; } .views td { padding: .08rem 0; }
.done { display: grid; grid-template-columns: 6rem 1fr; gap: .15rem .8rem; font-size: .85rem; margin: .8rem 0 0; }
.done dt { color: var(--muted); } .done dd { margin: 0; }
.kernel-log { font: .8rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; margin: .6rem 0 0; padding: .6rem .8rem;
  background: var(--page); border-radius: 6px; list-style: none; }
footer { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
@media (max-width: 60rem) { .chart.wide { display: none; } .chart.middle { display: block; } }
@media (max-width: 34rem) { .chart.middle { display: none; } .chart.narrow { display: block; } }
@media (max-width: 60rem) {
  #guests thead { display: none; }
  #guests tr { display: grid; grid-template-columns: 3fr 2fr; gap: .15rem .75rem; padding: .7rem .9rem;
    border-bottom: 1px solid var(--line); }
  #guests td { border: 0; padding: 0; } #guests .nights { grid-column: 1 / -1; order: 3; width: auto; }
  #guests .name { order: 1; min-width: 0; } #guests .severity { order: 2; text-align: right; }
  #guests .number, #guests .cause { order: 4; text-align: left; white-space: normal; }
  #guests td[data-label]::before { content: attr(data-label) " "; color: var(--muted); font-size: .8rem; }
  .rows thead { display: none; }
  .rows tr { display: grid; grid-template-columns: 1fr 1fr; gap: .1rem .75rem; padding: .5rem 0;
    border-bottom: 1px solid var(--line); }
  .rows td { border: 0; padding: 0; } .rows td:first-child, .rows td:last-child { grid-column: 1 / -1; }
  .turns td:nth-child(3), .turns td:nth-child(4) { white-space: normal; }
  .turns td:nth-child(4) { grid-column: 1 / -1; }
  .rows td:first-child { font-weight: 600; }
  .rows td:not(:first-child)::before { content: attr(data-label) " "; color: var(--muted); font-size: .8rem; }
  #guests .empty, .rows .empty { display: none; } #guests .spark { max-width: 26rem; }
}
@media (max-width: 44rem) {
  body { padding: 1.25rem 1rem 3rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .views { grid-template-columns: 1fr; } .figures { grid-template-columns: repeat(2, auto); gap: .4rem 1.8rem; }
  article.card, .night { padding: .9rem .9rem; }
}
"""

SCRIPT = """
for (const button of document.querySelectorAll("#guests th button")) {
  button.onclick = () => {
    const head = button.parentElement, row = head.parentElement, body = document.querySelector("#guests tbody");
    const column = [...row.children].indexOf(head), isText = "text" in head.dataset;
    const [first, second] = isText ? ["ascending", "descending"] : ["descending", "ascending"];
    const order = head.getAttribute("aria-sort") === first ? second : first;
    for (const each of row.children) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const key = (line) => line.children[column].dataset.sort;
    const byText = (a, b) => key(a).localeCompare(key(b), "en", { numeric: true });
    const compare = isText ? byText : (a, b) => key(a) - key(b);
    body.append(...[...body.rows].sort((a, b) => order === "ascending" ? compare(a, b) : compare(b, a)));
  };
}
"""
"""Sorts the table. The page is complete without it."""
