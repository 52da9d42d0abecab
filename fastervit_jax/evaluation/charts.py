"""Small charts for the report, as inline SVG with escaped text."""

from collections.abc import Sequence
from html import escape

import numpy as np

from fastervit_jax.evaluation.metrics import Calibration


def skyline(shares: np.ndarray, names: Sequence[str], *, mean: float) -> str:
    """Draws one bar per class, sorted by accuracy.

    Args:
        shares: accuracy of each class, 0 to 1, `[C]`.
        names: names of the classes.
        mean: accuracy over all images, drawn as a line.
    """
    width, height, left, bottom = 960, 220, 40, 18
    order = np.argsort(shares, kind="stable")
    step = (width - left) / len(order)
    bars = []
    for place, number in enumerate(order):
        tall = shares[number] * (height - bottom)
        bars.append(
            f'<rect x="{left + place * step:.2f}" y="{height - bottom - tall:.2f}" '
            f'width="{max(step * 0.9, 0.4):.2f}" height="{max(tall, 0.5):.2f}">'
            f"<title>{escape(names[number])}: {shares[number]:.1%}</title></rect>"
        )
    level = height - bottom - mean * (height - bottom)
    lines = _percent_lines(left, width, height - bottom)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Accuracy of every class, '
        f'sorted">{lines}<g class="bars">{"".join(bars)}</g>'
        f'<line class="mean" x1="{left}" x2="{width}" y1="{level:.1f}" y2="{level:.1f}"/>'
        f'<text class="mean" x="{left + 6}" y="{level - 6:.1f}">all images {mean:.1%}</text>'
        f'<text x="{left}" y="{height - 3}">worst class</text>'
        f'<text x="{width}" y="{height - 3}" text-anchor="end">best class</text></svg>'
    )


def reliability(calibration: Calibration) -> str:
    """Draws accuracy by confidence (bars), mean confidence (marks), and image counts below."""
    side, left, low, bottom = 300, 40, 70, 34
    height = side + low + bottom
    bins = len(calibration.images)
    step = side / bins
    bars, marks, counts = [], [], []
    most = max(int(calibration.images.max()), 1)
    for place, images in enumerate(calibration.images):
        if not images:
            continue
        x = left + place * step
        right, sure = calibration.accuracy[place], calibration.confidence[place]
        title = f"<title>{int(images)} images: confidence {sure:.1%}, accuracy {right:.1%}</title>"
        bars.append(_box(x, side * (1 - right), step, side * right, title))
        y = side * (1 - sure)
        marks.append(
            f'<line x1="{x + 0.5:.2f}" x2="{x + step - 0.5:.2f}" y1="{y:.2f}" y2="{y:.2f}"/>'
        )
        tall = low * 0.9 * images / most
        counts.append(_box(x, side + low - tall + 4, step, tall, title))
    return (
        f'<svg viewBox="0 0 {side + left + 10} {height}" role="img" aria-label="Accuracy over '
        f'confidence">{_percent_lines(left, side + left, side)}'
        f'<g class="bars">{"".join(bars)}</g>'
        f'<line class="ideal" x1="{left}" y1="{side}" x2="{left + side}" y2="0"/>'
        f'<g class="marks">{"".join(marks)}</g>'
        f'<g class="counts">{"".join(counts)}</g>'
        f'<text x="{left}" y="{side + low + 18}">0 %</text>'
        f'<text x="{left + side}" y="{side + low + 18}" text-anchor="end">100 %</text>'
        f'<text x="{left + side / 2}" y="{side + low + 18}" text-anchor="middle">confidence</text>'
        f"</svg>"
    )


def bar(share: float, *, kind: str = "share") -> str:
    """Returns a bar as HTML. `share` is its length, from 0 to 1. The report styles it."""
    return f'<span class="bar {kind}"><i style="width:{100 * share:.2f}%"></i></span>'


def _box(x: float, y: float, width: float, height: float, title: str) -> str:
    return (
        f'<rect x="{x + 0.5:.2f}" y="{y:.2f}" width="{width - 1:.2f}" '
        f'height="{max(height, 0.3):.2f}">{title}</rect>'
    )


def _percent_lines(left: float, right: float, bottom: float) -> str:
    """Draws horizontal lines at every quarter, with their percentages."""
    lines = []
    for percent in (0, 25, 50, 75, 100):
        y = bottom * (1 - percent / 100)
        lines.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        # Without the limit, the topmost label would be outside the chart.
        lines.append(
            f'<text x="{left - 6}" y="{max(y + 4, 11):.1f}" text-anchor="end">{percent}</text>'
        )
    return f'<g class="grid">{"".join(lines)}</g>'
