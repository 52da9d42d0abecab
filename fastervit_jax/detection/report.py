"""What `fastervit eval` says of a detector: lines, JSON, and a page without external resources."""

import base64
import io
import json
from collections.abc import Sequence
from html import escape

import numpy as np
from etils import epath
from PIL import ImageDraw

from fastervit_jax.data.images import decode_rgb
from fastervit_jax.data.paths import write_whole
from fastervit_jax.detection.mistakes import Mistake, mistakes
from fastervit_jax.detection.run import DetectionResult
from fastervit_jax.evaluation.charts import bar
from fastervit_jax.evaluation.report import REPORT_NAME
from fastervit_jax.evaluation.report_page import PAGE

LEAST_SCORE = 0.3
_MOST_CLASSES = 80
_SHOWN = 12
_SIDE = 240
_CURVES = {0: "IoU .50", 5: "IoU .75", 9: "IoU .95"}


def lines(result: DetectionResult) -> list[str]:
    """The numbers for a terminal."""
    numbers = result.evaluation.numbers
    told = [f"{name} {100 * value:.2f}" for name, value in numbers.items() if value >= 0]
    per_class = sorted(result.evaluation.per_class.items(), key=lambda each: each[1])
    worst = ", ".join(f"{name} {100 * value:.1f}" for name, value in per_class[:5] if value >= 0)
    return [", ".join(told[:6]), ", ".join(told[6:]), f"lowest AP by class: {worst}"]


def details_json(result: DetectionResult) -> str:
    """Everything but the detections, as JSON: the summary, and AP by class."""
    content = {**result.summary(), "AP_by_class": result.evaluation.per_class}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def write_report(result: DetectionResult, directory: epath.PathLike) -> epath.Path:
    """Writes `report.html` to a directory and returns its path. Creates the directory."""
    path = epath.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    write_whole(path / REPORT_NAME, report_html(result))
    return path / REPORT_NAME


def report_html(result: DetectionResult) -> str:
    """The report as HTML with embedded style, charts and images."""
    style = PAGE[: PAGE.index("</style>")].replace("$title", escape(_title(result)))
    known = {name: label for label, name in enumerate(result.source.class_names) if name}
    label_of = {
        label: known[name] for label, name in enumerate(result.class_names) if name in known
    }
    missed, alarms = mistakes(
        result.source, result.evaluation.detections, label_of, least_score=LEAST_SCORE
    )
    return (
        f"{style}.curves {{ max-width: 520px; }} .legend {{ margin-right: 18px; }}</style></head>"
        f"<body><main><h1>{escape(_title(result))}</h1>"
        f'<p class="settings">{result.evaluation.images:,} images, {result.source.num_boxes:,} '
        f'objects</p><div class="tiles">{_tiles(result)}</div>'
        f'<section id="curves"><h2>Precision and recall</h2>{_curves(result)}</section>'
        f'<section id="classes"><h2>Class by class</h2>{_classes(result)}</section>'
        f'<section id="missed"><h2>Missed objects</h2>'
        f'<p class="soft">The largest of {len(missed):,} objects that no detection with a score of '
        f"{LEAST_SCORE:g} or more overlaps by half.</p>"
        f'<div class="mistakes">{_figures(result, missed)}</div></section>'
        f'<section id="alarms"><h2>False alarms</h2>'
        f'<p class="soft">The surest of {len(alarms):,} detections that overlap no object of their '
        f'class by half.</p><div class="mistakes">{_figures(result, alarms)}</div></section>'
        "</main></body></html>\n"
    )


def _title(result: DetectionResult) -> str:
    return f"{result.model} on {result.dataset}"


def _tiles(result: DetectionResult) -> str:
    remarks = {
        "AP": "mean over IoU .50 to .95",
        "AP50": "IoU .50",
        "AP75": "IoU .75",
        "APs": "small: below 32² pixels",
        "APm": "medium",
        "APl": "large: above 96² pixels",
        "AR100": "recall, 100 detections",
    }
    return "".join(
        f'<div class="tile">{name}<b>{_percent(result.evaluation.numbers[name])}</b>'
        f"<small>{remark}</small></div>"
        for name, remark in remarks.items()
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if value >= 0 else "–"


def _curves(result: DetectionResult) -> str:
    """Precision over recall, the mean of all classes, at three IoUs."""
    precision = result.evaluation.precision
    present = (precision > -1).any(axis=(0, 1))
    width, height, left, bottom = 520, 260, 40, 28
    colors = ("#2f6fb2", "#2c8a5b", "#c4472f")
    grid = "".join(
        f'<line x1="{left}" x2="{width}" y1="{y}" y2="{y}"/>'
        f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{share:.1f}</text>'
        for share in np.linspace(0, 1, 6)
        for y in [round((1 - share) * (height - bottom), 1)]
    )
    paths, legend = "", ""
    for color, (row, name) in zip(colors, _CURVES.items(), strict=True):
        mean = precision[row][:, present].mean(axis=1) if present.any() else np.zeros(101)
        points = " ".join(
            f"{left + recall * (width - left):.1f},{(1 - value) * (height - bottom):.1f}"
            for recall, value in zip(np.linspace(0, 1, 101), mean, strict=True)
        )
        paths += f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'
        legend += (
            f'<span class="legend" style="color:{color}">{name}: {100 * mean.mean():.1f}</span>'
        )
    axis = f'<text x="{(width + left) / 2}" y="{height - 6}" text-anchor="middle">recall</text>'
    return (
        f'<p class="soft">Precision over recall, mean of the classes. {legend}</p>'
        f'<div class="curves"><svg viewBox="0 0 {width} {height}"><g class="grid">{grid}</g>'
        f"{paths}{axis}</svg></div>"
    )


def _classes(result: DetectionResult) -> str:
    per_class = sorted(result.evaluation.per_class.items(), key=lambda each: each[1])
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="wide">{bar(max(value, 0))}</td>'
        f'<td class="number">{_percent(value)}</td></tr>'
        for name, value in per_class[:_MOST_CLASSES]
    )
    return f'<table><tr><th>lowest first</th><th>AP</th><th class="number"></th></tr>{rows}</table>'


def _figures(result: DetectionResult, shown: Sequence[Mistake]) -> str:
    if not shown:
        return '<p class="soft">There are none.</p>'
    return "".join(_figure(result, each) for each in shown[:_SHOWN])


def _figure(result: DetectionResult, mistake: Mistake) -> str:
    example = result.source[mistake.image]
    image = decode_rgb(example.encoded, result.source.decoding)
    draw = ImageDraw.Draw(image)
    line = max(1, min(image.size) // 120)
    for box in example.boxes:
        draw.rectangle([float(side) for side in box], outline=(255, 255, 255), width=line)
    draw.rectangle([float(side) for side in mistake.box], outline=(255, 40, 20), width=line + 1)
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    name = escape(result.source.class_names[mistake.label])
    said = f" {mistake.score:.0%}" if mistake.score else ""
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{name}" style="object-fit:contain" '
        f'title="{escape(example.key)}"><span class="said">{name}</span>{said}</figure>'
    )
