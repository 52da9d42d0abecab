"""Images with masks from ADE20K's folders, folders of one's own and TFDS."""

import io

import numpy as np
import pytest
from PIL import Image

from fastervit_jax.data.ade20k_names import ADE20K_NAMES
from fastervit_jax.data.images import DamagedImageError
from fastervit_jax.data.sources.masks import IGNORE, MaskedExample, open_masks, read_class_names
from tests.data.test_damaged_images import png_with_size

VALUES = np.asarray([[0, 1, 2], [2, 255, 0]], np.uint8)


def _write(path, array, *, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image = image.convert("P") if image.mode != "L" else image
        image.putpalette([channel for value in range(256) for channel in (value, 7, 9)])
    image.save(path)


@pytest.fixture
def folders(tmp_path):
    """Two images with masks, one in a subfolder, and a file of class names."""
    for name in ("a", "deep/b"):
        _write(tmp_path / f"images/{name}.png", np.zeros((2, 3, 3), np.uint8))
        _write(tmp_path / f"masks/{name}.png", VALUES, palette=name == "a")
    (tmp_path / "classes.txt").write_text("sky\nsea\nsand\n\n")
    return tmp_path


def _spec(root, *extra) -> str:
    parts = [str(root / "images"), str(root / "masks"), str(root / "classes.txt"), *extra]
    return "masks:" + ",".join(parts)


def test_grayscale_and_palette_masks_are_read_as_indices(folders):
    source = open_masks(_spec(folders))
    assert source.class_names == ("sky", "sea", "sand") and len(source) == 2
    for example in (source[0], source[1]):
        image, mask = source.read(example)
        assert image.size == (3, 2)
        np.testing.assert_array_equal(mask, VALUES)


def test_another_value_can_be_ignored(folders):
    _, mask = open_masks(_spec(folders, "2")).read(open_masks(_spec(folders))[0])
    np.testing.assert_array_equal(mask, np.where(VALUES == 2, IGNORE, VALUES))


def test_ade20k_as_it_is_unpacked(tmp_path):
    """0 means no class, and the classes begin at 1."""
    root = tmp_path / "ADEChallengeData2016"
    values = np.asarray([[0, 1], [150, 13]], np.uint8)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(_made(root / "images/validation/1.jpg"))
    Image.fromarray(values).save(_made(root / "annotations/validation/1.png"))
    source = open_masks(f"ade20k:{root}@validation")
    assert source.class_names == ADE20K_NAMES and len(ADE20K_NAMES) == 150
    _, mask = source.read(source[0])
    np.testing.assert_array_equal(mask, [[IGNORE, 0], [149, 12]])
    assert [ADE20K_NAMES[label] for label in (0, 12, 149)] == ["wall", "person", "flag"]
    with pytest.raises(ValueError, match="expected ade20k:ROOT@training or"):
        open_masks(f"ade20k:{root}@train")
    with pytest.raises(ValueError, match=r"Directory not found: .*images/training"):
        open_masks(f"ade20k:{root}@training")


def _made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_scattered_digits_have_masks(tmp_path, monkeypatch):
    from fastervit_jax.data.sources import scattered_digits

    monkeypatch.setattr(scattered_digits, "IMAGES", {"train": 3, "validation": 2})
    source = open_masks("scattered_digits:train", data_dir=str(tmp_path))
    assert source.class_names == ("background", *map(str, range(10)))
    seen = set()
    for index in range(len(source)):
        image, mask = source.read(source[index])
        assert mask.shape == (image.height, image.width)
        seen |= set(np.unique(mask).tolist())
    assert 0 in seen and len(seen) > 2 and max(seen) <= 10


def test_missing_pairs_are_listed(folders):
    _write(folders / "images/alone.png", np.zeros((2, 3, 3), np.uint8))
    _write(folders / "masks/ghost.png", VALUES)
    with pytest.raises(
        ValueError, match=r"1 images have no mask: alone; 1 masks have no image: ghost\."
    ):
        open_masks(_spec(folders))


@pytest.mark.parametrize(
    "mask, message",
    [
        (np.zeros((3, 3), np.uint8), r"Invalid mask of .*a\.png: expected 2 × 3 pixels .* 3 × 3"),
        (np.zeros((2, 3, 3), np.uint8), "expected one value per pixel .* mode RGB"),
        (np.full((2, 3), 9, np.uint8), "expected values 0 to 2, .* or 255 to ignore; got 9"),
    ],
)
def test_masks_that_do_not_fit_are_refused(folders, mask, message):
    _write(folders / "masks/a.png", mask)
    source = open_masks(_spec(folders))
    with pytest.raises(ValueError, match=message):
        source.read(source[0])


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 3 2
%%EndComments
%ImageData: 3 2 8 1 0 1 1 "beginimage"
beginimage
%%EOF
"""


def test_a_damaged_mask_is_a_damaged_image(folders, monkeypatch):
    def ghostscript(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ghostscript)
    source = open_masks(_spec(folders))
    example = source[0]
    for mask in (
        example.mask[:20],
        png_with_size(20_000, 20_000),  # a decompression bomb
        POSTSCRIPT,
    ):
        with pytest.raises(DamagedImageError, match="its mask cannot be decoded"):
            source.read(example._replace(mask=mask))


def test_a_mask_without_labels_is_named(folders, caplog):
    _write(folders / "masks/a.png", np.full((2, 3), IGNORE, np.uint8))
    source = open_masks(_spec(folders))
    _, mask = source.read(source[0])
    assert (mask == IGNORE).all()
    assert "All pixels of the mask of" in caplog.text and "a.png are ignored" in caplog.text


@pytest.mark.parametrize(
    "names, message", [("one\n", "got 1"), ("a\na\n", r"got 2 \(1 different\)"), ("", "got 0")]
)
def test_class_names_are_checked(tmp_path, names, message):
    (tmp_path / "classes.txt").write_text(names)
    with pytest.raises(ValueError, match=message):
        read_class_names(tmp_path / "classes.txt")


@pytest.mark.parametrize("spec", ["masks:a,b", "folder:/x", "tfds:oxford_iiit_pet@train", "ade20k"])
def test_unknown_specifications_say_what_is_expected(spec):
    with pytest.raises(ValueError, match="expected ade20k:ROOT@SPLIT, masks:IMAGES,MASKS,CLASSES"):
        open_masks(spec)


def test_scene_parse150_is_refused():
    with pytest.raises(ValueError, match="holds the 100-category instance annotations, not ADE20K"):
        open_masks("tfds:scene_parse150@train")


def _png(array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_16_bit_masks_are_read(folders):
    source = open_masks(_spec(folders))
    example = MaskedExample(
        _png(np.zeros((2, 3, 3), np.uint8)), _png(VALUES.astype(np.uint16)), "x"
    )
    _, mask = source.read(example)
    np.testing.assert_array_equal(mask, VALUES)


def test_tfds_sets_with_masks_are_read(tmp_path):
    """A set of a real TFDS builder, prepared without TensorFlow."""
    import tensorflow_datasets as tfds

    class Pets(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="png"),
                        "segmentation_mask": tfds.features.Image(
                            shape=(None, None, 1), encoding_format="png"
                        ),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number in range(3):
                pixels = np.full((2, 3, 3), number, np.uint8)
                yield number, {"image": _png(pixels), "segmentation_mask": _png(VALUES)}

    Pets(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    (tmp_path / "classes.txt").write_text("pet\nbackground\nborder\n")
    source = open_masks(f"tfds:pets@train,{tmp_path}/classes.txt", data_dir=str(tmp_path))
    assert len(source) == 3
    seen = set()
    for index in range(3):
        image, mask = source.read(source[index])
        np.testing.assert_array_equal(mask, VALUES)
        seen.add(image.getpixel((0, 0))[0])
    assert seen == {0, 1, 2}
    import pickle

    copy = pickle.loads(pickle.dumps(source))
    assert copy[1].mask == source[1].mask
