"""Transparency and EXIF orientation: options, their pixels, and the warning with the count."""

import io
import logging

import numpy as np
import pytest
from PIL import Image

from fastervit_jax.augmentation.host import TrainTransform
from fastervit_jax.data import Decoding, EvalTransform, eval_batches, open_source, train_batches
from fastervit_jax.data.images import decode_rgb, describe_seen, take_seen


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def half_transparent(mode="RGBA", kind="PNG"):
    """Left half opaque red, right half transparent, hiding blue."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = (255, 0, 0, 255)
    pixels[:, 4:] = (0, 0, 255, 0)
    image = Image.fromarray(pixels, "RGBA")
    if mode == "P":
        palette = Image.new("P", (8, 8))
        palette.putpalette([255, 0, 0, 0, 0, 255])
        palette.putdata([0, 0, 0, 0, 1, 1, 1, 1] * 8)
        return saved(palette, kind, transparency=1)
    if mode == "RGB":
        return saved(image.convert("RGB"), kind, transparency=(0, 0, 255))
    if mode == "WEBP":
        return saved(image, "WEBP", lossless=True, exact=True)
    return saved(image, kind)


@pytest.mark.parametrize("mode", ["RGBA", "P", "RGB", "WEBP"])
@pytest.mark.parametrize(
    "transparency, right", [("drop", (0, 0, 255)), ("white", (255,) * 3), ("black", (0,) * 3)]
)
def test_transparent_pixels(mode, transparency, right):
    take_seen()
    pixels = np.asarray(decode_rgb(half_transparent(mode), Decoding(transparency)))
    assert tuple(pixels[3, 1]) == (255, 0, 0)
    assert tuple(pixels[3, 6]) == right
    assert take_seen() == {"transparent": 1}


def test_an_alpha_channel_that_hides_nothing_is_not_reported():
    take_seen()
    opaque = saved(Image.new("RGBA", (4, 4), (1, 2, 3, 255)))
    assert tuple(np.asarray(decode_rgb(opaque, Decoding("white")))[0, 0]) == (1, 2, 3)
    assert take_seen() == {}


# What a camera stores for an upright picture that it holds in each orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_orientations(orientation, kind):
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))
    stored = upright.transpose(TURNS[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    encoded = saved(stored, kind, exif=exif, **options)
    take_seen()
    np.testing.assert_array_equal(decode_rgb(encoded), stored)
    np.testing.assert_array_equal(decode_rgb(encoded, Decoding(exif="apply")), upright)
    assert take_seen() == ({} if orientation == 1 else {"turned": 2})


def test_pillow_turns_tiff_files_by_itself():
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = saved(upright.transpose(TURNS[6]), "TIFF", exif=exif)
    for decoding in (Decoding(), Decoding(exif="apply")):
        np.testing.assert_array_equal(decode_rgb(encoded, decoding), upright)


@pytest.fixture
def folder(tmp_path):
    """Eight images of two classes: three transparent, one turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(8):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        if number < 3:
            path.write_bytes(half_transparent())
        elif number == 3:
            path.write_bytes(saved(Image.new("RGB", (8, 8)), exif=exif))
        else:
            path.write_bytes(saved(Image.new("RGB", (8, 8))))
    return f"folder:{tmp_path}"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_warns_once_with_the_counts(folder, num_workers, caplog):
    source = open_source(folder)
    transform = EvalTransform(8, 1.0, "center", Decoding("white"))
    take_seen()
    with caplog.at_level(logging.WARNING):
        batches = eval_batches(source, transform, batch_size=3, num_workers=num_workers)
        images = {int(i): x for b in batches for i, x in zip(b["index"], b["image"], strict=True)}
        batches.close()
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 2
    assert any("3 image(s) have transparent pixels. They were put on white." in w for w in warnings)
    assert any("1 image(s) have an EXIF orientation, which is ignored" in w for w in warnings)
    names = [source[i].key for i in range(8)]
    assert tuple(images[next(i for i in range(8) if "0.png" in names[i])][0, 7]) == (255,) * 3


def test_training_warns_once_after_an_epoch(folder, caplog):
    source = open_source(folder)
    take_seen()
    with caplog.at_level(logging.WARNING):
        transform = TrainTransform(8, decoding=Decoding(exif="apply"))
        with train_batches(source, transform, batch_size=8, seed=0, num_steps=3) as batches:
            for _ in batches:
                pass
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == 2
    assert any(w.startswith("3 image(s) have transparent pixels, whose hidden") for w in warnings)
    assert any("1 image(s) were turned according to their EXIF" in w for w in warnings)


def test_large_images_are_said_in_a_sentence(recwarn, monkeypatch):
    """Pillow warns above half of the size that it refuses. That warning does not get through."""
    monkeypatch.setattr("fastervit_jax.data.images._LARGE", 50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    take_seen()
    decode_rgb(saved(Image.new("RGB", (8, 8))))
    (sentence,) = describe_seen(take_seen(), Decoding())
    assert sentence.startswith("1 image(s) have more than 50 pixels. They are decoded in full.")


@pytest.mark.parametrize("options", [{"transparency": "pink"}, {"exif": "yes"}])
def test_unknown_options_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"Invalid {name}: expected one of .*, got"):
        Decoding(**options)
