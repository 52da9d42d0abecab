"""Template of the report: HTML and style for `string.Template`, without external resources."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light; --ink: #1c2733; --soft: #5b6b7b; --line: #dfe5ea; --panel: #fff;
  --blue: #2f6fb2; --red: #c4472f; --green: #2c8a5b; }
* { box-sizing: border-box; }
body { margin: 0; background: #f3f5f7; color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 4px; }
section { background: var(--panel); border: 1px solid var(--line); border-radius: 10px;
  padding: 20px 22px; margin-top: 18px; }
.soft, .settings { color: var(--soft); }
.settings { margin: 0; overflow-wrap: anywhere; }
.soft { margin: 0 0 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 14px;
  margin-top: 18px; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 18px; }
.tile b { display: block; font-size: 30px; line-height: 1.25; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.tile small { display: block; color: var(--soft); font-size: 13px; min-height: 1.5em; }
.near { color: var(--green); } .far { color: var(--red); font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; }
th, td { padding: 3px 14px 3px 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; width: 1%; }
td.wide { width: 42%; min-width: 120px; }
.bar { display: block; height: 12px; background: #edf1f4; border-radius: 3px; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--blue); }
.bar.wrong i { background: var(--red); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 11px; fill: var(--soft); }
svg .grid line { stroke: var(--line); }
svg .bars rect { fill: var(--blue); }
svg .marks line { stroke: var(--red); stroke-width: 2.5; }
svg .counts rect { fill: #a9b7c4; }
svg .ideal { stroke: var(--soft); stroke-dasharray: 4 4; }
svg line.mean { stroke: var(--ink); stroke-dasharray: 5 3; }
svg text.mean { fill: var(--ink); font-weight: 600; paint-order: stroke; stroke: #fff;
  stroke-width: 3px; }
.halves { display: grid; grid-template-columns: 1fr 1fr; gap: 0 36px; margin-top: 14px;
  align-items: start; }
.pair { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 18px; }
.calibration { max-width: 360px; margin: 0 auto; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr));
  gap: 16px; }
figure { margin: 0; font-size: 13px; line-height: 1.35; overflow-wrap: anywhere; }
figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 6px;
  background: #edf1f4; margin-bottom: 6px; }
figure .said { color: var(--red); font-weight: 600; }
figure .is { color: var(--soft); }
@media (max-width: 760px) { .halves, .pair { grid-template-columns: minmax(0, 1fr); } }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="settings">$settings</p>
<div class="tiles">$tiles</div>
<section id="classes"><h2>Class by class</h2>$classes</section>
<div class="pair">
<section id="pairs"><h2>Most confused</h2>$pairs</section>
<section id="calibration"><h2>Calibration</h2>
<p class="soft">For each range of confidence: accuracy (blue), mean confidence (red) and number of
images (gray). In a calibrated network, every bar ends at its red mark.</p>
<div class="calibration">$calibration</div></section>
</div>
<section id="mistakes"><h2>Worst mistakes</h2>$mistakes</section>
</main>
</body>
</html>
"""
