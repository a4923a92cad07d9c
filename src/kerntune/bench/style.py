"""The look of a page: light or dark as the reader has it, narrow or wide, and on paper."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

# Light and dark have the same contrasts. Shapes and words say all that colours say.
STYLE: Final = """
:root { --paper: #fcfcfa; --card: #fff; --ink: #1c1f22; --quiet: #5a6168; --rule: #dfe1dd; --before: #5a6168;
  --after: #00626f; --bad: #a33b00; color-scheme: light dark; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #15181a; --card: #1c2023; --ink: #e8eaea;
  --quiet: #a3abb1; --rule: #363c41; --before: #a9b1b7; --after: #56c6d4; --bad: #ff9d66; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 70rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.4rem, 1.1rem + 1.4vw, 2rem); line-height: 1.25; margin: 0 0 .3rem; font-weight: 650;
  max-width: 44rem; }
h2 { font-size: .95rem; margin: 1.2rem 0 .3rem; font-weight: 650; }
.leg h2 { font-size: 1.15rem; margin: 0; }
p { margin: .4rem 0; max-width: 42rem; }
code, h2, td, dd, li { unicode-bidi: isolate; }
code { font: .92em ui-monospace, "DejaVu Sans Mono", monospace; }
h1 code { font-size: .9em; font-weight: 600; }
.quiet, figcaption, .notes, caption { color: var(--quiet); }
.top, .leg, .below { display: grid; gap: 0 2.5rem; }
.top > *, .leg > *, .below > * { min-width: 0; }
.answers { list-style: none; margin: 1rem 0; padding: 0; }
.answers li { padding: .55rem 0; border-top: 1px solid var(--rule); }
.answers li:last-child { border-bottom: 1px solid var(--rule); }
.answers .name { font-weight: 650; margin-right: .5rem; }
.verdict { display: inline-block; padding: 0 .5em; border: 1.5px solid var(--quiet); border-radius: .25rem;
  font-size: .85rem; font-weight: 600; line-height: 1.45; white-space: nowrap; }
.faster { background: var(--after); border-color: var(--after); color: var(--card); }
.slower { border-color: var(--bad); color: var(--bad); }
.invalid { border-style: dashed; border-color: var(--bad); color: var(--bad); }
.said { display: block; font-variant-numeric: tabular-nums; }
.leg { background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; padding: 1.1rem;
  margin: 1.2rem 0; }
.leg header .verdict { margin-left: .6rem; vertical-align: .1em; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; font-variant-numeric: tabular-nums;
  font-size: .95rem; }
caption { text-align: left; font-size: .85rem; font-weight: 650; }
th, td { padding: .3rem .25rem; text-align: right; vertical-align: baseline; border-top: 1px solid var(--rule);
  font-weight: 400; overflow-wrap: normal; }
thead > tr > * { border-top: 0; color: var(--quiet); font-size: .85rem; }
th:first-child { text-align: left; padding-left: 0; overflow-wrap: break-word; min-width: 5.4rem; }
th:last-child, td:last-child { padding-right: 0; }
tr.compared > * { font-weight: 650; }
td small { display: block; font-weight: 400; font-size: .85rem; }
td .interval { white-space: nowrap; }
figure { margin: .6rem 0; }
figcaption, .notes { font-size: .88rem; }
.notes { padding-left: 1.1rem; margin: .4rem 0; }
dl { display: grid; grid-template-columns: minmax(4rem, max-content) minmax(0, 1fr); gap: .2rem 1.2rem;
  margin: .4rem 0; }
dt { color: var(--quiet); }
dd { margin: 0; }
svg { display: block; width: 100%; max-width: 30rem; height: auto; margin: 0 auto; }
svg text { fill: var(--quiet); font-size: 11.5px; text-anchor: middle; }
svg .tick, svg .leg { text-anchor: end; }
svg .right { text-anchor: start; }
svg .leg, svg .name { fill: var(--ink); }
svg .leg { font-weight: 650; }
svg .value { font-weight: 650; fill: var(--ink); }
svg line, svg path, svg circle { fill: none; stroke: var(--quiet); }
svg .grid { stroke: var(--rule); }
svg .one { stroke: var(--ink); stroke-width: 1.2; }
svg .pair { stroke: var(--after); stroke-opacity: .55; }
svg .control { stroke: var(--before); stroke-dasharray: 3 3; stroke-opacity: .6; }
svg circle, svg .again { fill: var(--card); stroke: var(--before); stroke-width: 1.2; }
svg .after { fill: var(--after); stroke: var(--card); stroke-width: .7; }
svg .hollow { fill: var(--card); stroke: var(--after); stroke-width: 1.8; }
svg .trouble { stroke: var(--bad); stroke-width: 2; }
svg .median { stroke: var(--ink); stroke-width: 2.2; }
svg .effect { stroke: var(--after); stroke-width: 2; }
svg .effect.invalid { stroke: var(--quiet); }
.ratios .trouble { stroke-width: 2.4; }
.names code { display: inline-block; margin-right: 1rem; }
.ratios .control { stroke-dasharray: none; stroke-opacity: .9; }
.ratios .open { stroke-dasharray: 1 5; }
.many .pair, .many .control { stroke-width: .4; stroke-opacity: .3; }
.many circle, .many .after, .many .again { stroke: none; fill-opacity: .25; }
.many circle, .many .again { fill: var(--before); }
@media (max-width: 30rem) {
  body { padding: 1rem .75rem 2rem; }
  .leg { padding: .9rem .75rem; }
  table { font-size: .84rem; }
  td small { font-size: .76rem; }
  th, td { padding: .3rem .2rem; }
  th:first-child { min-width: 4.2rem; }
  svg text { font-size: 12.5px; }
}
@media (min-width: 56rem) {
  body { padding: 2.5rem 2rem 4rem; }
  .top { grid-template-columns: minmax(0, 1fr) minmax(0, 26rem); align-items: start; }
  .top header { grid-column: 1 / -1; }
  .top figure { margin-top: 1.4rem; }
  .leg { grid-template-columns: minmax(0, 1fr) minmax(0, 26rem); padding: 1.4rem 1.6rem; }
  .leg header { grid-column: 1 / -1; }
  .leg figure { grid-area: 2 / 2; }
  .below { grid-template-columns: 1fr 1fr; }
}
@media (forced-colors: active) {
  :root { --paper: Canvas; --card: Canvas; --ink: CanvasText; --quiet: CanvasText; --rule: GrayText;
    --before: CanvasText; --after: CanvasText; --bad: CanvasText; }
}
@media print {
  @page { margin: 15mm; }
  :root { font-size: 9pt; }
  body { padding: 0; max-width: none; background: none; }
  .leg { border: 0; border-top: 1px solid var(--rule); border-radius: 0; padding: 1em 0; background: none; }
  .leg, .top, .below > *, table, figure { break-inside: avoid; }
  .leg, .top { grid-template-columns: minmax(0, 1fr) minmax(0, 8cm); }
  .below { grid-template-columns: 1fr 1fr; }
  .leg header, .top header { grid-column: 1 / -1; }
  .leg figure { grid-area: 2 / 2; }
  .faster { background: none; color: var(--after); border-width: 2px; }
  h2 { break-after: avoid; }
}
"""

# CSP level 3: a policy allows an inline style by the hash of its text.
POLICY: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
)
