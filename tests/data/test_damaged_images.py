"""Damaged images: training replaces, counts, names and stops; evaluation stops."""

import struct
import zlib

import numpy as np
import pytest

from fastervit_jax.augmentation.host import TrainTransform
from fastervit_jax.data import (
    DamagedImageError,
    EvalTransform,
    Example,
    TooMuchDamageError,
    decode_eval,
    eval_batches,
    train_batches,
)
from fastervit_jax.data.images import decode_rgb
from tests.data.numbered import NUM_IMAGES, number_in, numbered_png
from tests.data.photographs import encode, photographs


def png(width, height, pixels, color_type):
    """A PNG put together by hand: a header, and compressed pixels that may not fit it."""

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_with_size(width, height):
    """A PNG whose header claims a size that its data does not hold."""
    return png(width, height, zlib.compress(b"\0" + bytes(3 * 10)), color_type=2)


def jpeg_with_size(encoded, width, height):
    """A JPEG whose frame header claims another size."""
    start = encoded.index(b"\xff\xc0") + 5
    return encoded[:start] + struct.pack(">HH", height, width) + encoded[start + 4 :]


def damaged_files():
    photo = photographs()["china"]
    jpeg, png = encode(photo, "JPEG"), encode(photo, "PNG")
    broken_png = bytearray(png)
    broken_png[len(png) // 2] ^= 0xFF
    return {
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "truncated png": png[: len(png) // 2],
        "truncated webp": encode(photo, "WEBP")[:5000],
        "png with a flipped byte": bytes(broken_png),
        "jpeg header alone": jpeg[:200],
        "text": b"<html>404 Not Found</html>",
        "no bytes": b"",
        "random bytes": np.random.default_rng(0).bytes(5000),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "png that lies about its size": png_with_size(4000, 3000),
        "jpeg that lies about its size": jpeg_with_size(jpeg, 65_000, 65_000),
        "20,000 x 20,000": png_with_size(20_000, 20_000),
        "1 x 65,000 scaled up": encode(photo.resize((1, 65_000)), "PNG"),
    }


@pytest.mark.parametrize("name", damaged_files())
def test_damage_is_recognised(name):
    with pytest.raises(DamagedImageError) as caught:
        decode_eval(damaged_files()[name], resolution=224, crop_fraction=0.05, crop_mode="center")
    assert str(caught.value).strip()


def test_a_complete_jpeg_with_a_taller_header_is_filled_up():
    """JPEG decoders pad what is missing before the end marker, and report no error: so does ours.

    timm's does the same; the size alone cannot tell such a file from a whole one.
    """
    photo = photographs()["china"]
    plain = decode_rgb(encode(photo, "JPEG"))
    taller = decode_rgb(jpeg_with_size(encode(photo, "JPEG"), photo.width, photo.height + 80))
    assert taller.size == (photo.width, photo.height + 80)
    box = (0, 0, photo.width, photo.height - 16)
    np.testing.assert_array_equal(np.asarray(taller.crop(box)), np.asarray(plain.crop(box)))


def test_a_bomb_is_refused_before_it_is_decoded():
    """20,000 × 20,000 gray pixels are 400 MB decoded, 1.2 GB as RGB, and 50 kB as a file."""
    import resource

    rows = zlib.compressobj(9)
    pixels = b"".join(rows.compress(bytes(20_001)) for _ in range(20_000)) + rows.flush()
    bomb = png(20_000, 20_000, pixels, color_type=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamagedImageError, match="decompression bomb"):
        decode_rgb(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


class NumberedSource:
    """101 numbered images in memory, some of them replaced by damaged bytes."""

    class_names = ("a", "b")
    num_classes = 2

    def __init__(self, damaged=(), labels=None):
        self.damaged = dict.fromkeys(damaged, b"not an image")
        self.labels = labels or {}

    def __len__(self):
        return NUM_IMAGES

    def __getitem__(self, index):
        encoded = self.damaged.get(index, numbered_png(index))
        return Example(encoded, self.labels.get(index, index % 2), f"image {index}")


def load(source, *, share=1.0, **options):
    options = {"batch_size": 12, "seed": 1, "num_steps": 16} | options
    return train_batches(source, TrainTransform(4, flip=0.0), max_damaged_share=share, **options)


def numbers(batches):
    return np.array([[number_in(image) for image in batch["image"]] for batch in batches])


def test_training_replaces_counts_and_names(caplog):
    damaged = (5, 50, 77)
    whole = numbers(load(NumberedSource()))
    loader = load(NumberedSource(damaged))
    with_damage = numbers(loader)
    bad = np.isin(whole, damaged)
    assert bad.sum() >= 4
    np.testing.assert_array_equal(with_damage[~bad], whole[~bad])
    assert not np.isin(with_damage, damaged).any()
    drawn_again = loader.damage.count - bad.sum()  # replacements that were damaged themselves
    assert 0 <= drawn_again <= 2
    assert loader.damage.drawn == whole.size + loader.damage.count
    assert set(loader.damage.reasons) == {f"image {n}" for n in damaged if n in whole}
    assert "not an image in JPEG, PNG" in loader.damage.reasons["image 5"]
    for key in loader.damage.reasons:
        assert sum(key + " " in record.getMessage() for record in caplog.records) == 1


def test_replacements_do_not_depend_on_hosts_workers_or_restarts():
    source = NumberedSource(range(0, NUM_IMAGES, 4))
    whole = numbers(load(source))
    loader = load(source, num_workers=1, start_step=6)
    np.testing.assert_array_equal(numbers(loader), whole[6:])
    assert loader.damage.count > 10
    hosts = [load(source, host_index=host, host_count=3) for host in range(3)]
    parts = [numbers(host) for host in hosts]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    single = load(source)
    numbers(single)
    assert sum(host.damage.count for host in hosts) == single.damage.count


def test_past_the_share_training_stops_and_says_why():
    source = NumberedSource(range(0, NUM_IMAGES, 10))  # 11 of 101
    numbers(load(source, share=0.3))
    loader = load(source, share=0.05)
    says = r"5 of the \d+ images .* allowed share is 0.05\. The last .* image \d+ \(not an image"
    with pytest.raises(TooMuchDamageError, match=says):
        numbers(loader)
    assert loader.damage.count == 5  # 0.05 of an epoch of 96 images is 4.8
    assert next(loader, "end") == "end"
    with pytest.raises(TooMuchDamageError):
        numbers(load(NumberedSource([3, 33, 63, 93]), share=0.0))


def test_a_data_set_of_nothing_but_damage_ends():
    with pytest.raises(DamagedImageError, match="100 images in a row"):
        numbers(load(NumberedSource(range(NUM_IMAGES))))


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_names_the_file_and_stops(workers):
    batches = eval_batches(
        NumberedSource([30]),
        EvalTransform(4, 1.0, "center"),
        batch_size=10,
        num_workers=workers,
    )
    seen = []
    with pytest.raises(DamagedImageError, match="Evaluation stopped: image 30 cannot be decoded"):
        for batch in batches:
            seen += batch["index"].tolist()
    assert seen == list(range(30))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_outside_the_classes_is_named(label):
    source = NumberedSource(labels={7: label})
    says = rf"Invalid label of image 7: expected 0 to 1, got {label}"
    with pytest.raises(ValueError, match=says):
        list(load(source))
    with pytest.raises(ValueError, match=says):
        list(eval_batches(source, EvalTransform(4, 1.0, "center"), batch_size=10))
