"""How the HTML page of a drill looks: calm on the screen, whole on paper."""

STYLE = """
:root { --ink: #20262d; --soft: #5b6570; --line: #dfe3e8; --paper: #ffffff; --shade: #f5f7f9;
  --verified: #1b7a43; --refuted: #b71c1c; --inconclusive: #8a5a00; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--shade); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 36px 44px 60px; background: var(--paper); }
h1 { font-size: 28px; margin: 0 0 16px; line-height: 1.25; }
h2 { font-size: 19px; margin: 40px 0 10px; padding-bottom: 5px; border-bottom: 2px solid var(--line); }
h3 { font-size: 16px; margin: 26px 0 8px; }
h4 { font-size: 14px; margin: 18px 0 6px; color: var(--soft); }
p { margin: 6px 0; overflow-wrap: anywhere; }
header > p { color: var(--soft); font-size: 13px; }
header .kind { text-transform: uppercase; letter-spacing: .08em; margin: 0; }
.banner { display: flex; gap: 18px; align-items: baseline; padding: 14px 18px; border-radius: 6px;
  border-left: 6px solid; margin-bottom: 10px; overflow-wrap: anywhere; }
.banner strong { font-size: 18px; letter-spacing: .04em; white-space: nowrap; }
.banner.verified { background: #eaf6ee; border-color: var(--verified); }
.banner.verified strong { color: var(--verified); }
.banner.refuted { background: #fdecec; border-color: var(--refuted); }
.banner.refuted strong { color: var(--refuted); }
.banner.inconclusive { background: #fff5e0; border-color: var(--inconclusive); }
.banner.inconclusive strong { color: var(--inconclusive); }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin-top: 18px; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: 10px 14px; }
.card p { color: var(--soft); font-size: 12.5px; margin: 0; }
.card strong { font-size: 21px; font-weight: 600; }
table { border-collapse: collapse; width: 100%; margin: 6px 0 10px; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 500; font-size: 12.5px; white-space: nowrap; }
tbody th { font-weight: 500; width: 190px; color: var(--soft); }
.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-right: 18px; }
.badge { display: inline-block; font-size: 11.5px; line-height: 18px; padding: 0 8px; border-radius: 9px;
  white-space: nowrap; background: #eceff2; color: var(--ink); }
.badge.verified { background: #ddf1e4; color: var(--verified); }
.badge.refuted { background: #fadcdc; color: var(--refuted); }
.badge.inconclusive { background: #fdebc8; color: var(--inconclusive); }
.name, code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .92em; overflow-wrap: anywhere; }
.name { unicode-bidi: isolate; white-space: pre-wrap; }
.id { display: inline-block; min-width: 8.5em; }
.detail { color: var(--soft); font-size: 13px; }
.findings { list-style: none; padding: 0; margin: 0; }
.findings li { padding: 8px 0; border-bottom: 1px solid var(--line); }
.findings code { color: var(--soft); }
figure { margin: 8px 0 12px; border: 1px solid var(--line); border-radius: 6px; padding: 8px; }
figure svg { display: block; width: 100%; height: auto; }
details { margin: 8px 0; }
summary { cursor: pointer; color: #2f6f9f; }
dl { display: grid; grid-template-columns: 130px 1fr; gap: 4px 14px; font-size: 14px; }
dt { font-weight: 600; } dd { margin: 0; }
ol { padding-left: 20px; } li { margin: 4px 0; }
@media (max-width: 760px) { main { padding: 20px 16px; } .cards { grid-template-columns: repeat(2, 1fr); }
  .banner { flex-direction: column; gap: 4px; } tbody th { width: 120px; }
  dl { grid-template-columns: 1fr; } }
@media print { body { background: #fff; font-size: 11pt; } main { max-width: none; padding: 0; }
  summary { color: var(--ink); } details::details-content { content-visibility: visible; display: block; }
  tr, .card, figure, .banner { break-inside: avoid; } h2, h3, h4 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
