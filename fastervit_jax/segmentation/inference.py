"""Class maps of images of any size: whole images or sliding windows, several scales, flips.

All steps after the network are linear: its scores are resized to the window, windows are averaged
where they overlap, and the result is resized to the image's own size. Windows form a grid, so all
of it is one matrix for the rows of each window and one for its columns. The network runs on windows
of one size, and few programs serve images of all sizes.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fastervit_jax.augmentation.segmentation import Size, fitted, resize_image
from fastervit_jax.segmentation.resize import bilinear_matrix

Scores = Callable[[np.ndarray, np.ndarray], jax.Array]
"""(windows, sizes) → scores [B, h, w, classes] of any smaller size.

Windows are uint8 [B, H, W, 3]. Sizes, int32 [B, 2], are the (height, width) of the part of each
window that is no padding.
"""

_UNIT = 128
"""Class maps are computed at multiples of so many rows and columns, and cropped."""


@dataclasses.dataclass(frozen=True)
class InferenceSettings:
    """How class maps are made.

    Attributes:
        window: (height, width) of a window.
        stride: rows and columns from one window to the next; None means two thirds of the window,
            341 for 512.
        mode: "slide" averages windows; "whole" gives the network the whole image, and compiles a
            program for each size that occurs.
        short_side: length of the short side that images are resized to.
        long_side: largest length of the long side.
        scales: factors on both; with several, their probabilities are averaged.
        flip: also average over mirrored images.
    """

    window: Size
    stride: Size | None = None
    mode: Literal["slide", "whole"] = "slide"
    short_side: int = 512
    long_side: int = 2048
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self):
        if self.mode not in ("slide", "whole"):
            raise ValueError(f"Invalid mode={self.mode!r}: expected slide or whole.")
        if self.stride is not None:
            steps = zip(self.stride, self.window, strict=True)
            if not all(0 < step <= side for step, side in steps):
                raise ValueError(
                    f"Invalid stride={self.stride}: expected from 1 to the window's sides, "
                    f"{self.window}."
                )
        if not self.scales or not all(scale > 0 for scale in self.scales):
            raise ValueError(f"Invalid scales={self.scales}: expected positive factors.")


@dataclasses.dataclass(frozen=True)
class View:
    """One resized, perhaps mirrored image as a grid of windows.

    Attributes:
        windows: uint8 [I · J, H, W, 3], row by row.
        sizes: int32 [I · J, 2], the part of each window that is no padding.
        tops: first row of each row of windows.
        lefts: first column of each column of windows.
        size: (height, width) of the resized image.
        mirrored: whether it is mirrored.
    """

    windows: np.ndarray
    sizes: np.ndarray
    tops: list[int]
    lefts: list[int]
    size: Size
    mirrored: bool


def class_maps(
    scores: Scores, images: Sequence[Image.Image], settings: InferenceSettings, *, batch_size: int
) -> Iterator[np.ndarray]:
    """Segments images.

    Args:
        scores: the network.
        images: RGB, of any sizes.
        settings: how.
        batch_size: number of windows that the network sees at once.

    Yields:
        For each image the class of each of its pixels, int32 [H, W].
    """
    views = [list(_views(image, settings)) for image in images]
    found = _in_batches(scores, [view for of_image in views for view in of_image], batch_size)
    for image, of_image in zip(images, views, strict=True):
        total = None
        for view in of_image:
            rows, columns = _matrices(view, next_scores := next(found), (image.height, image.width))
            if len(of_image) == 1:
                total = _argmax_of_logits(next_scores, rows, columns)
            else:
                share = _probabilities(next_scores, rows, columns)
                total = share if total is None else total + share
        assert total is not None
        if total.ndim == 3:
            total = jnp.argmax(total, axis=-1)
        yield np.asarray(total)[: image.height, : image.width]


def _views(image: Image.Image, settings: InferenceSettings) -> Iterator[View]:
    for scale in settings.scales:
        size = fitted(
            (image.height, image.width),
            short_side=max(1, round(settings.short_side * scale)),
            long_side=max(1, round(settings.long_side * scale)),
        )
        pixels = np.asarray(resize_image(image, size))
        window = settings.window if settings.mode == "slide" else size
        stride = settings.stride or (max(1, window[0] * 2 // 3), max(1, window[1] * 2 // 3))
        tops, lefts = (starts(size[axis], window[axis], stride[axis]) for axis in (0, 1))
        for mirrored in (False, True) if settings.flip else (False,):
            shown = pixels[:, ::-1] if mirrored else pixels
            windows = np.zeros((len(tops) * len(lefts), *window, 3), np.uint8)
            corners = [(top, left) for top in tops for left in lefts]
            for number, (top, left) in enumerate(corners):
                part = shown[top : top + window[0], left : left + window[1]]
                windows[number, : part.shape[0], : part.shape[1]] = part
            valid = [min(window[axis], size[axis]) for axis in (0, 1)]
            sizes = np.tile(np.asarray(valid, np.int32), (len(corners), 1))
            yield View(windows, sizes, tops, lefts, size, mirrored)


def starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis; the last one ends with it (mmsegmentation's grid)."""
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(0, min(index * stride, size - window)) for index in range(count)]


def _in_batches(scores: Scores, views: list[View], batch_size: int) -> Iterator[jax.Array]:
    """Scores [I, J, h, w, classes] of each view, its windows batched with those of the others."""
    pending: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for number, view in enumerate(views):
        for window in range(len(view.windows)):
            pending.setdefault(view.windows.shape[1:3], []).append((number, window))
    found: list[list[jax.Array | None]] = [[None] * len(view.windows) for view in views]
    for shape, places in pending.items():
        for start in range(0, len(places), batch_size):
            chunk = places[start : start + batch_size]
            windows = np.zeros((batch_size, *shape, 3), np.uint8)
            sizes = np.ones((batch_size, 2), np.int32)
            for row, (number, window) in enumerate(chunk):
                windows[row] = views[number].windows[window]
                sizes[row] = views[number].sizes[window]
            result = scores(windows, sizes)
            for row, (number, window) in enumerate(chunk):
                found[number][window] = result[row]
    for view, parts in zip(views, found, strict=True):
        stacked = jnp.stack(parts)  # type: ignore[arg-type]
        yield stacked.reshape(len(view.tops), len(view.lefts), *stacked.shape[1:])


def _matrices(view: View, scores: jax.Array, original: Size) -> tuple[np.ndarray, np.ndarray]:
    """Weights from the scores of windows to pixels: [I, rows, h] and [J, columns, w], float32."""
    rows = _axis_matrix(
        view.tops, view.windows.shape[1], scores.shape[2], view.size[0], original[0]
    )
    columns = _axis_matrix(
        view.lefts, view.windows.shape[2], scores.shape[3], view.size[1], original[1]
    )
    if view.mirrored:
        columns[:, : original[1]] = columns[:, : original[1]][:, ::-1].copy()
    return rows, columns


def _axis_matrix(
    begins: Sequence[int], window: int, small: int, size: int, original: int
) -> np.ndarray:
    """Weights along one axis, float32 [windows, original rounded up, small]."""
    valid = min(window, size)
    to_window = bilinear_matrix(small, window)[:valid]
    to_original = bilinear_matrix(size, original)
    covering = np.zeros(size)
    for begin in begins:
        covering[begin : begin + valid] += 1
    matrix = np.zeros((len(begins), -(-original // _UNIT) * _UNIT, small), np.float32)
    for number, begin in enumerate(begins):
        share = to_window / covering[begin : begin + valid, None]
        matrix[number, :original] = to_original[:, begin : begin + valid] @ share
    return matrix


def _logits(scores: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    wide = jnp.einsum("iah,ijhwk->jawk", rows, scores, precision="highest")
    return jnp.einsum("jbw,jawk->abk", columns, wide, precision="highest")


@jax.jit
def _argmax_of_logits(scores: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return jnp.argmax(_logits(scores, rows, columns), axis=-1).astype(jnp.int32)


@jax.jit
def _probabilities(scores: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return jax.nn.softmax(_logits(scores, rows, columns), axis=-1)
