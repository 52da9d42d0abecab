"""What `fastervit eval` says of a segmenter: lines, JSON, and a page without external resources."""

import base64
import io
import json
from html import escape

import numpy as np
from etils import epath

from fastervit_jax.data.paths import write_whole
from fastervit_jax.evaluation.charts import bar
from fastervit_jax.evaluation.report import REPORT_NAME
from fastervit_jax.evaluation.report_page import PAGE
from fastervit_jax.segmentation.pictures import with_legend
from fastervit_jax.segmentation.run import SegmentationResult

_MOST_CONFUSIONS = 20
_WORST = 12
_SIDE = 320


def lines(result: SegmentationResult) -> list[str]:
    """The numbers for a terminal."""
    by_class = result.evaluation.metrics.per_class()
    found = {name: iou for name, iou in by_class.items() if iou is not None}
    worst = sorted(found.items(), key=lambda each: each[1])[:5]
    numbers = result.evaluation.summary()
    told = ", ".join(f"{name} {100 * value:.2f} %" for name, value in numbers.items())
    return [told, f"lowest IoU by class: {', '.join(f'{n} {100 * v:.1f} %' for n, v in worst)}"]


def details_json(result: SegmentationResult) -> str:
    """The summary, IoU by class and the confusion matrix (rows: labels), as JSON."""
    metrics = result.evaluation.metrics
    content = {
        **result.summary(),
        "IoU_by_class": metrics.per_class(),
        "confusion": metrics.confusion.tolist(),
    }
    return json.dumps(content, allow_nan=False) + "\n"


def write_report(result: SegmentationResult, directory: epath.PathLike) -> epath.Path:
    """Writes `report.html` to a directory and returns its path. Creates the directory."""
    path = epath.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    write_whole(path / REPORT_NAME, report_html(result))
    return path / REPORT_NAME


def report_html(result: SegmentationResult) -> str:
    """The report as HTML with embedded style, charts and images."""
    title = escape(f"{result.model} on {result.dataset}")
    style = PAGE[: PAGE.index("</style>")].replace("$title", title)
    pixels = int(result.evaluation.metrics.confusion.sum())
    return (
        f"{style}.mistakes {{ grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }} "
        "figure img { aspect-ratio: auto; }</style></head>"
        f'<body><main><h1>{title}</h1><p class="settings">{result.evaluation.images:,} images, '
        f'{pixels:,} labeled pixels</p><div class="tiles">{_tiles(result)}</div>'
        f'<section id="classes"><h2>Class by class</h2>{_classes(result)}</section>'
        f'<section id="pairs"><h2>Most confused</h2>{_confusions(result)}</section>'
        f'<section id="mistakes"><h2>Worst images</h2><p class="soft">The images with the smallest '
        "share of right pixels. Left: the labels. Right: the prediction.</p>"
        f'<div class="mistakes">{_worst(result)}</div></section></main></body></html>\n'
    )


def _tiles(result: SegmentationResult) -> str:
    remarks = {
        "mIoU": "intersection over union, mean of the classes",
        "mean_accuracy": "share of a class's pixels, mean of the classes",
        "pixel_accuracy": "share of all pixels",
    }
    numbers = result.evaluation.summary()
    return "".join(
        f'<div class="tile">{name.replace("_", " ")}<b>{100 * numbers[name]:.2f}</b>'
        f"<small>{remark}</small></div>"
        for name, remark in remarks.items()
    )


def _classes(result: SegmentationResult) -> str:
    metrics = result.evaluation.metrics
    share = metrics.confusion.sum(axis=1) / max(1, metrics.confusion.sum())
    order = np.argsort(np.nan_to_num(metrics.iou, nan=2.0), kind="stable")
    rows = "".join(
        f'<tr><td>{escape(metrics.class_names[k])}</td><td class="wide">'
        f"{bar(float(np.nan_to_num(metrics.iou[k])))}</td>"
        f'<td class="number">{_percent(metrics.iou[k])}</td>'
        f'<td class="number">{_percent(metrics.accuracy[k])}</td>'
        f'<td class="number">{_percent(share[k])}</td></tr>'
        for k in order
    )
    return (
        '<table><tr><th>lowest first</th><th>IoU</th><th class="number"></th>'
        '<th class="number">accuracy</th><th class="number">of all pixels</th></tr>'
        f"{rows}</table>"
    )


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f}"


def _confusions(result: SegmentationResult) -> str:
    metrics = result.evaluation.metrics
    wrong = metrics.confusion - np.diag(np.diag(metrics.confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    rows = ""
    for label, said in zip(*np.unravel_index(order, wrong.shape), strict=True):
        count = int(wrong[label, said])
        if not count:
            break
        of_label = count / int(metrics.confusion[label].sum())
        rows += (
            f"<tr><td>{escape(metrics.class_names[label])}</td>"
            f"<td>{escape(metrics.class_names[said])}</td>"
            f'<td class="wide">{bar(of_label, kind="wrong")}</td>'
            f'<td class="number">{100 * of_label:.1f} %</td></tr>'
        )
    if not rows:
        return '<p class="soft">There are none.</p>'
    return (
        "<table><tr><th>class</th><th>predicted as</th><th>share of the class's pixels</th>"
        f'<th class="number"></th></tr>{rows}</table>'
    )


def _worst(result: SegmentationResult) -> str:
    accuracies = result.evaluation.accuracies
    worst = sorted(accuracies, key=lambda index: (accuracies[index], index))[:_WORST]
    figures = ""
    for index in worst:
        example = result.source[index]
        image, mask = result.source.read(example, result.evaluation.decoding)
        (predicted,) = result.segment([image])
        names = result.source.class_names
        pictures = "".join(
            f'<img src="data:image/jpeg;base64,{_jpeg(with_legend(image, classes, names))}" '
            f'alt="{what}">'
            for classes, what in ((mask, "labels"), (predicted, "prediction"))
        )
        figures += (
            f'<figure><div class="halves">{pictures}</div>{escape(example.key)}<br>'
            f'<span class="said">{accuracies[index]:.1%}</span> right</figure>'
        )
    return figures


def _jpeg(picture) -> str:
    picture.thumbnail((_SIDE, 2 * _SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()
