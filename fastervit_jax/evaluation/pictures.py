"""Picture of the predictions of a network."""

import io

import numpy as np
from etils import epath
from PIL import Image

from fastervit_jax.data import Source
from fastervit_jax.evaluation.evaluator import Predictions

_COLUMNS, _ROWS = 8, 5


def draw_predictions(source: Source, predictions: Predictions, path: epath.PathLike) -> None:
    """Draws images with their predictions.

    Wrong predictions come first, sorted by descending probability. Correct predictions follow,
    sorted by ascending probability.

    Args:
        source: the data set of the predictions.
        predictions: predictions of `evaluate`.
        path: path of the PNG file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wrong = predictions.top[:, 0] != predictions.label
    sure = predictions.probability[:, 0]
    order = np.lexsort((np.where(wrong, -sure, sure), ~wrong))[: _COLUMNS * _ROWS]

    figure, axes = plt.subplots(_ROWS, _COLUMNS, figsize=(12, 8.6), constrained_layout=True)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, row in zip(axes.flat, order, strict=False):
        example = source[int(predictions.index[row])]
        axis.imshow(Image.open(io.BytesIO(example.encoded)).convert("RGB"))
        answer = source.class_names[predictions.top[row, 0]]
        text = f"{answer}  ({sure[row]:.0%})"
        if wrong[row]:
            text += f"\nis {source.class_names[predictions.label[row]]}"
        color = "crimson" if wrong[row] else "seagreen"
        # Class names can contain dollar signs, which are not formulas.
        axis.set_title(text, fontsize=9, color=color, parse_math=False)
    figure.suptitle(
        f"{wrong.sum()} of {len(wrong)} images wrong. Wrong predictions first (red), then the "
        "least confident correct ones"
    )
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
