"""Using a model on images: `fastervit_jax.predict`."""

import dataclasses
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image
from tqdm import tqdm

from fastervit_jax.data.imagenet_names import IMAGENET_NAMES, NAME_OF_SYNSET
from fastervit_jax.data.images import (
    IMAGE_SUFFIXES,
    DamagedImageError,
    Decoding,
    EvalTransform,
    decode_rgb,
    describe_seen,
    take_seen,
)
from fastervit_jax.data.preprocessing import check_rgb, normalize
from fastervit_jax.detection import DINO
from fastervit_jax.detection import run as detection
from fastervit_jax.models import FasterViT
from fastervit_jax.segmentation import UperNet
from fastervit_jax.segmentation import run as segmentation

Decoded = TypeVar("Decoded")
ImageLike = str | Path | bytes | Image.Image | np.ndarray
"""A file or a folder, an encoded image, a Pillow image, or uint8 pixels [height, width(, 3)]."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best classes of one image, best first.

    Attributes:
        image: the file, or "image 3" for the fourth image that came from no file.
        classes: numbers of the best classes.
        names: their names.
        probabilities: their probabilities, by softmax.
        error: why the image could not be read; the other attributes are empty then.
    """

    image: str
    classes: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class DetectedObjects:
    """The objects on one image, best first.

    Attributes:
        image: the file, or "image 3" for the fourth image that came from no file.
        classes: numbers of their classes.
        names: names of their classes.
        scores: how sure the detector is, from 0 to 1.
        boxes: (left, top, right, bottom) in pixels of the image.
        error: why the image could not be read; the other attributes are empty then.
    """

    image: str
    classes: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """The class of each pixel of one image.

    Attributes:
        image: the file, or "image 3" for the fourth image that came from no file.
        classes: int32 [height, width], in the image's own pixels.
        names: names of all classes of the model, in the order of their numbers.
        error: why the image could not be read; the other attributes are empty then.
    """

    image: str
    classes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int32))
    names: tuple[str, ...] = ()
    error: str | None = None

    def shares(self) -> dict[str, float]:
        """Share of the image of each class that it shows, largest first."""
        labels, counts = np.unique(self.classes, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {self.names[labels[i]]: float(counts[i] / self.classes.size) for i in order}


def predict(
    model: Any,
    images: ImageLike | Iterable[ImageLike],
    *,
    top: int = 5,
    least_score: float = 0.3,
    batch_size: int = 32,
    show_progress: bool = False,
    transparency: Literal["drop", "white", "black"] = "drop",
    exif: Literal["ignore", "apply"] = "apply",
    mode: Literal["slide", "whole"] = "slide",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> list[Any]:
    """Classifies images, detects objects or segments images, each with the model's own names.

    An image that cannot be read does not stop the others. Its prediction has an `error`.

    Args:
        model: from `create_model`, in any mode; it is used in evaluation mode.
        images: one image or several. A folder means all images in it and in its subfolders.
        top: classifiers: number of classes per image.
        least_score: detectors: objects with a lower score are left out.
        batch_size: classifiers: number of images per batch. A detector takes one image at a time.
        show_progress: show a progress bar, on a terminal.
        transparency: what becomes of transparent pixels (`fastervit_jax.data.Decoding`).
        exif: "apply" turns photographs upright, according to their EXIF orientation. "ignore"
            classifies them as they are stored, as evaluation does by default.
        mode: segmenters: "slide" averages windows of the model's size; "whole" segments an image
            at once.
        scales: segmenters: factors on the image size; with several, the results are averaged.
        flip: segmenters: also average over mirrored images.

    Returns:
        One `Prediction` of a classifier, `DetectedObjects` of a detector or `ClassMap` of a
        segmenter per image, in order; the images of a folder are sorted by path.

    Raises:
        ValueError: there is no image, an item is not an image, or the model has no head.
    """
    if top < 1 or batch_size < 1:
        raise ValueError(f"Invalid top={top} or batch_size={batch_size}: expected 1 or more.")
    check_rgb(model.config.backbone.in_chans)
    items = list(_items(images))
    if not items:
        raise ValueError("Invalid images: expected at least one, got none.")
    decoding = Decoding(transparency, exif)
    if isinstance(model, DINO):
        return _detected(model, items, least_score, show_progress, decoding)
    if isinstance(model, UperNet):
        settings = segmentation.inference_settings(
            model, mode=mode, scales=tuple(scales), flip=flip
        )
        return _segmented(model, items, settings, show_progress, decoding)
    names = class_names(model)
    transform = dataclasses.replace(_transform(model), decoding=decoding)
    take_seen()
    batch_size = min(batch_size, len(items))

    predictions: list[Prediction] = []
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(items), unit=" images", disable=None if show_progress else True) as bar,
    ):
        for start in range(0, len(items), batch_size):
            chunk = items[start : start + batch_size]
            decoded = list(pool.map(lambda item: _readable(item[1], transform), chunk))
            readable = [pixels for pixels in decoded if not isinstance(pixels, str)]
            probabilities = iter(_probabilities_of(model, readable, batch_size))
            for (name, _), pixels in zip(chunk, decoded, strict=True):
                if isinstance(pixels, str):
                    predictions.append(Prediction(name, error=pixels))
                else:
                    predictions.append(_prediction(name, next(probabilities), names, top))
            bar.update(len(chunk))
    for sentence in describe_seen(take_seen(), decoding):
        warnings.warn(sentence, stacklevel=2)
    return predictions


def _detected(
    model: DINO,
    items: Sequence[tuple[str, ImageLike]],
    least_score: float,
    show_progress: bool,
    decoding: Decoding,
) -> list[DetectedObjects]:
    names = detection.class_names(model)
    results = []
    take_seen()
    for name, item in tqdm(items, unit=" images", disable=None if show_progress else True):
        image = _decoded(item, decoding)
        if isinstance(image, str):
            results.append(DetectedObjects(name, error=image))
            continue
        ((_, found),) = detection.detect_on_images(model, [image])
        kept = found.scores >= least_score
        classes = found.labels[kept].tolist()
        results.append(
            DetectedObjects(
                image=name,
                classes=tuple(classes),
                names=tuple(names[each] or f"class {each}" for each in classes),
                scores=tuple(found.scores[kept].tolist()),
                boxes=tuple(tuple(box) for box in found.boxes[kept].tolist()),
            )
        )
    for sentence in describe_seen(take_seen(), decoding):
        warnings.warn(sentence, stacklevel=3)
    return results


def _segmented(
    model: UperNet,
    items: Sequence[tuple[str, ImageLike]],
    settings: segmentation.InferenceSettings,
    show_progress: bool,
    decoding: Decoding,
) -> list[ClassMap]:
    names = tuple(segmentation.class_names(model))
    results = []
    take_seen()
    for name, item in tqdm(items, unit=" images", disable=None if show_progress else True):
        image = _decoded(item, decoding)
        if isinstance(image, str):
            results.append(ClassMap(name, error=image))
            continue
        (classes,) = segmentation.segment_images(model, [image], settings, batch_size=1)
        results.append(ClassMap(name, classes, names))
    for sentence in describe_seen(take_seen(), decoding):
        warnings.warn(sentence, stacklevel=3)
    return results


def class_names(model: FasterViT) -> Sequence[str]:
    """The names of the model's classes: its own, or ImageNet's for 1000 classes.

    Identifiers of ImageNet's classes (n01440764) are replaced by words. Without names, classes are
    numbered.

    Raises:
        ValueError: the model has no head.
    """
    if model.head is None:
        raise ValueError("Invalid model: it has no head (num_classes=0), so it has no classes.")
    count = getattr(model.head, "out_features", model.config.num_classes)
    own = getattr(model, "class_names", None)
    if own is not None:
        if len(own) != count:
            raise ValueError(f"Invalid model.class_names: expected {count} names, got {len(own)}.")
        return [NAME_OF_SYNSET.get(name, name) for name in own]
    return IMAGENET_NAMES if count == 1000 else [f"class {number}" for number in range(count)]


def preprocessed(model: FasterViT, image: ImageLike) -> np.ndarray:
    """An image as the model gets it, before normalization: uint8 [height, width, 3].

    Raises:
        DamagedImageError, OSError: it cannot be read.
    """
    return _transform(model)(_encoded(image))


def normalized(model: FasterViT, pixels: np.ndarray | jax.Array) -> jax.Array:
    """uint8 pixels [..., 3] → the floating-point values that the model takes."""
    return normalize(jnp.asarray(pixels), model.preprocessing.mean, model.preprocessing.std)


def _items(images: Any) -> Iterator[tuple[str, ImageLike]]:
    """Each image with its name for people. A folder is replaced by its images."""
    single = isinstance(images, (str, Path, bytes, Image.Image))
    if single or (isinstance(images, np.ndarray) and images.ndim < 4):
        images = [images]
    number = 0
    for image in images:
        if not isinstance(image, (str, Path)):
            yield f"image {number}", image
            number += 1
        elif Path(image).is_dir():
            yield from ((str(path), path) for path in _images_in(Path(image)))
        else:
            yield str(image), image


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _transform(model: FasterViT) -> EvalTransform:
    preprocessing = getattr(model, "preprocessing", None)
    if preprocessing is None:
        raise ValueError(
            "Invalid model: it has no preprocessing for images. Make it with create_model, or "
            "set model.preprocessing (fastervit_jax.data.preprocessing.Preprocessing)."
        )
    return EvalTransform(
        model.config.resolution, preprocessing.crop_fraction, preprocessing.crop_mode
    )


def _encoded(image: ImageLike) -> bytes:
    """The bytes of an image file; pixels become a lossless one."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        image = _from_pixels(image)
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"Invalid image of type {type(image).__name__}: expected a file, a folder, a Pillow "
            f"image, encoded bytes, or uint8 pixels [height, width, 3]."
        )
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ValueError(
            f"Invalid image {pixels.shape} of {pixels.dtype}: expected uint8 pixels "
            f"[height, width, 3]. For normalized arrays, call model(images)."
        )
    return Image.fromarray(pixels)


def _decoded(image: ImageLike, decoding: Decoding) -> Image.Image | str:
    """The RGB image, or the reason why it cannot be read."""
    return _readable(image, lambda encoded: decode_rgb(encoded, decoding))


def _readable(image: ImageLike, decode: Callable[[bytes], Decoded]) -> Decoded | str:
    """What `decode` makes of an image, or the reason why it cannot be read."""
    try:
        return decode(_encoded(image))
    except DamagedImageError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _probabilities_of(
    model: FasterViT, pixels: Sequence[np.ndarray], batch_size: int
) -> np.ndarray:
    """Probabilities [N, num_classes] for N ≤ batch_size images; one program serves every N."""
    if not pixels:
        return np.empty((0, model.config.num_classes))
    padded = np.zeros((batch_size, *pixels[0].shape), np.uint8)
    padded[: len(pixels)] = np.stack(pixels)
    if not model.deployed:
        model = nnx.view(model, deterministic=True, use_running_average=True)
    return np.asarray(_run(model, padded))[: len(pixels)]


@nnx.jit
def _run(model: FasterViT, pixels: np.ndarray | jax.Array) -> jax.Array:
    return jax.nn.softmax(model(normalized(model, pixels)), axis=-1)


def _prediction(
    image: str, probabilities: np.ndarray, names: Sequence[str], top: int
) -> Prediction:
    best = np.argsort(-probabilities, kind="stable")[:top]
    return Prediction(
        image=image,
        classes=tuple(best.tolist()),
        names=tuple(names[number] for number in best),
        probabilities=tuple(probabilities[best].tolist()),
    )
