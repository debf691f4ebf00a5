"""The page's style: one column, light and dark as the reader's system has it."""

STYLE = """
:root { color-scheme: light dark; --bg: #fbfbfc; --card: #fff; --text: #1c1f26; --dim: #5d6472; --rule: #dfe2e8;
  --ok: #2f6fd0; --failed: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --bg: #14161a; --card: #1d2026; --text: #e7e9ee; --dim: #9aa2b1;
  --rule: #343945; --ok: #6ba1f5; --failed: #f08a4b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 60px; max-width: 1000px; background: var(--bg); color: var(--text);
  font: 15px/1.5 system-ui, "Noto Sans", "Noto Sans CJK SC", sans-serif; }
h1 { font-size: 22px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 36px 0 10px; }
h3 { font-size: 14px; font-weight: 600; margin: 0 0 4px; }
p { margin: 4px 0; }
a { color: var(--ok); }
.dim, figcaption, .key { color: var(--dim); font-size: 13px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px;
  margin: 12px 0; overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 16px 0 0; padding: 0; list-style: none; }
.tiles li { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 8px 14px;
  min-width: 112px; }
.tiles b { display: block; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin: 0 4px 0 12px;
  background: var(--ok); }
.swatch.for-failed { background: var(--failed); }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: start; vertical-align: top; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--rule); }
td:first-child { white-space: nowrap; }
td div, td bdi, figcaption, .clips b { overflow-wrap: anywhere; }
th { color: var(--dim); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: end; white-space: nowrap; font-variant-numeric: tabular-nums; }
pre { font-size: 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
svg { display: block; width: 100%; min-width: 600px; height: auto; }
svg text { fill: var(--dim); font-size: 12px; font-family: inherit; }
svg text.name { fill: var(--text); font-size: 13px; }
svg .ok { fill: var(--ok); } svg .failed { fill: var(--failed); }
svg .grid { stroke: var(--rule); }
svg .line { stroke: var(--ok); stroke-width: 1.5; fill: none; }
svg .median { stroke: var(--card); stroke-width: 2; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(380px, 100%), 1fr)); gap: 12px; }
.clips figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px; }
.clips img { display: block; max-width: 100%; max-height: 120px; margin-bottom: 6px; }
.clips p { overflow-wrap: anywhere; display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical;
  overflow: hidden; }
"""
