"""The report of an evaluation: one HTML file without external resources."""

import base64
import io
from collections.abc import Iterator
from html import escape
from string import Template

import numpy as np
from etils import epath
from PIL import Image, ImageOps

from fastervit_jax.data.images import decode_rgb
from fastervit_jax.data.paths import write_whole
from fastervit_jax.evaluation.charts import bar, reliability, skyline
from fastervit_jax.evaluation.imagenet_classes import spoken
from fastervit_jax.evaluation.metrics import calibration, class_accuracy, confused_pairs
from fastervit_jax.evaluation.report_page import PAGE
from fastervit_jax.evaluation.result import Result

REPORT_NAME = "report.html"

# Up to this many classes are all listed. Otherwise only the worst and the best are.
_ALL_CLASSES = 40
_WORST_AND_BEST = 12
_PAIRS = 15
_MISTAKES = 24
_THUMBNAIL = 200
# A larger difference in points cannot be explained by rounding. The table marks it, too.
_NEAR = 0.1


def check_report_directory(directory: epath.PathLike | None) -> None:
    """Raises ValueError if the report cannot be written."""
    if directory is None:
        return
    path = epath.Path(directory)
    if path.exists() and not path.is_dir():
        raise ValueError(f"Invalid --report={path}: expected a directory, got a file.")


def write_report(result: Result, directory: epath.PathLike) -> epath.Path:
    """Writes `report.html` to a directory and returns its path. Creates the directory."""
    path = epath.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    write_whole(path / REPORT_NAME, report_html(result))
    return path / REPORT_NAME


def report_html(result: Result) -> str:
    """Returns the report as HTML with embedded style, charts and images."""
    return Template(PAGE).substitute(
        title=escape(f"{result.model} on {result.evaluation_set.title}"),
        settings=escape(_settings(result)),
        tiles="".join(_tiles(result)),
        classes=_classes(result),
        pairs=_pairs(result),
        calibration=reliability(calibration(result.evaluation.predictions)),
        mistakes=_mistakes(result),
    )


def _settings(result: Result) -> str:
    told = result.settings()
    height, width = told["resolution"]
    parts = [
        f"{width} × {height} pixels",
        f"{told['crop_mode']} crop {told['crop_fraction']:g}",
        told["dtype"] + (", deployed" if told["deployed"] else ""),
        f"{told['classes']} classes",
        f"weights {told['weights']}",
        f"data {told['dataset']}",
    ]
    return " · ".join(parts)


def _tiles(result: Result) -> Iterator[str]:
    evaluation, published = result.evaluation, result.published
    for title, share, expected in (
        ("top-1", evaluation.top1, published and published.top1),
        ("top-5", evaluation.top5, published and published.top5),
    ):
        beside = ""
        if expected:
            difference = 100 * share - expected
            kind = "far" if abs(difference) > _NEAR else "near"
            beside = (
                f"published {expected:.1f} %, "
                f'<span class="{kind}">{_signed(difference)} points</span>'
            )
        yield _tile(title, f"{share:.2%}", beside)
    yield _tile("loss", f"{evaluation.loss:.4f}", "mean cross-entropy")
    error = calibration(evaluation.predictions).error
    yield _tile("calibration error", f"{error:.2%}", "expected, 15 bins")
    counted = int(evaluation.predictions.counted.sum())
    remark = "each image once"
    if counted != evaluation.images:
        remark = f"{counted:,} with a correct class count"
    yield _tile("images", f"{evaluation.images:,}", remark)


def _tile(title: str, number: str, remark: str) -> str:
    return f'<div class="tile">{title}<b>{number}</b><small>{remark}</small></div>'


def _signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "−")


def _classes(result: Result) -> str:
    names = [spoken(name) for name in result.evaluation_set.source.class_names]
    accuracy = class_accuracy(result.evaluation.predictions, len(names))
    present = np.flatnonzero(accuracy.images)
    order = present[np.argsort(accuracy.share[present], kind="stable")]

    def table(title: str, numbers: np.ndarray) -> str:
        rows = "".join(
            f"<tr><td>{escape(names[number])}</td>"
            f'<td class="wide">{bar(accuracy.share[number])}</td>'
            f'<td class="number">{accuracy.share[number]:.1%}</td>'
            f'<td class="number">{accuracy.correct[number]} of {accuracy.images[number]}</td></tr>'
            for number in numbers
        )
        return (
            f"<table><tr><th>{title}</th><th>accuracy</th><th></th>"
            f'<th class="number">images</th></tr>{rows}</table>'
        )

    if len(order) <= _ALL_CLASSES:
        half = -(-len(order) // 2)
        tables = table("worst first", order[:half]) + table("best last", order[half:])
        return f'<div class="halves">{tables}</div>'
    chart = skyline(
        accuracy.share[order], [names[number] for number in order], mean=result.evaluation.top1
    )
    worst, best = order[:_WORST_AND_BEST], order[: -_WORST_AND_BEST - 1 : -1]
    return f'{chart}<div class="halves">{table("worst", worst)}{table("best", best)}</div>'


def _pairs(result: Result) -> str:
    predictions = result.evaluation.predictions
    names = [spoken(name) for name in result.evaluation_set.source.class_names]
    pairs = confused_pairs(predictions, limit=_PAIRS)
    if not pairs:
        return '<p class="soft">No prediction was wrong.</p>'
    images = class_accuracy(predictions, len(names)).images
    rows = "".join(
        f"<tr><td>{escape(names[pair.label])}</td><td>{escape(names[pair.answer])}</td>"
        f'<td class="wide">{bar(pair.images / images[pair.label], kind="wrong")}</td>'
        f'<td class="number">{pair.images} of {images[pair.label]}</td></tr>'
        for pair in pairs
    )
    return (
        f"<table><tr><th>class</th><th>predicted as</th><th>share of its images</th>"
        f'<th class="number">images</th></tr>{rows}</table>'
    )


def _mistakes(result: Result) -> str:
    predictions = result.evaluation.predictions
    wrong = np.flatnonzero(predictions.counted & ~predictions.hit[:, 0])
    if not len(wrong):
        return '<p class="soft">No prediction was wrong.</p>'
    surest = wrong[np.argsort(-predictions.probability[wrong, 0], kind="stable")][:_MISTAKES]
    figures = "".join(_mistake(result, row) for row in surest)
    return (
        f'<p class="soft">The {len(surest)} of {len(wrong):,} wrong predictions with the highest '
        f'confidence.</p><div class="mistakes">{figures}</div>'
    )


def _mistake(result: Result, row: int) -> str:
    source, predictions = result.evaluation_set.source, result.evaluation.predictions
    example = source[int(predictions.index[row])]
    said = escape(spoken(source.class_names[predictions.top[row, 0]]))
    label = escape(spoken(source.class_names[predictions.label[row]]))
    return (
        f'<figure><img src="{_thumbnail(example.encoded)}" alt="{label}" '
        f'title="{escape(example.key)}"><span class="said">{said}</span> '
        f'{predictions.probability[row, 0]:.0%}<br><span class="is">is {label}</span></figure>'
    )


def _thumbnail(encoded: bytes) -> str:
    """Returns a small square JPEG of the center of an image, as a data URL."""
    square = ImageOps.fit(decode_rgb(encoded), (_THUMBNAIL,) * 2, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    square.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
