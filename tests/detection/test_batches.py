"""Training and evaluation batches of images of different sizes."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from fastervit_jax.augmentation.detection import ResizeSettings
from fastervit_jax.data.images import DamagedImageError, Decoding
from fastervit_jax.data.order import example_index
from fastervit_jax.data.sources.coco import open_boxes
from fastervit_jax.detection.batches import (
    BatchSettings,
    TrainBatch,
    eval_batches,
    train_batches,
)

SETTINGS = BatchSettings(
    buckets=((64, 96), (96, 64), (96, 96)),
    max_boxes=3,
    resize=ResizeSettings(
        short_sides=(40, 50, 60), long_side=90, crop_short_sides=(50,), crop_sides=(30, 45)
    ),
    eval_short_side=56,
    window=4,
)
COUNT = 23


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Images of one gray each, wide and tall, with a box that is the middle half."""
    root = tmp_path_factory.mktemp("coco")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(COUNT):
        height, width = (int(side) for side in rng.integers(40, 80, 2))
        name = f"{index:03d}.png"
        Image.new("RGB", (width, height), (10 * index + 5,) * 3).save(root / "images" / name)
        images.append({"id": index, "file_name": name, "width": width, "height": height})
        if index % 5:
            box = [width / 4, height / 4, width / 2, height / 2]
            annotations.append({"id": index, "image_id": index, "category_id": 1, "bbox": box})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "middle"}],
    }
    (root / "all.json").write_text(json.dumps(content))
    return open_boxes(f"coco:{root}/images,{root}/all.json")


def batches(source, settings=SETTINGS, **options):
    defaults = dict(batch_size=4, seed=7, num_steps=10)
    with train_batches(source, settings, **{**defaults, **options}) as loader:
        return list(loader)


def index_of(batch) -> list[int]:
    """Which images a batch holds, from their gray."""
    return [int(image[0, 0, 0]) // 10 for image in batch["image"]]


def test_batches(source):
    got = batches(source)
    assert len(got) == 10
    for batch in got:
        assert batch["image"].shape[1:3] in SETTINGS.buckets
        for image, (height, width), boxes, count in zip(
            batch["image"], batch["size"], batch["boxes"], batch["count"], strict=True
        ):
            assert (image[:height, :width] > 0).all()
            assert not image[height:].any() and not image[:, width:].any()
            assert (boxes[count:] == 0).all()
            assert ((boxes[:count] > 0) & (boxes[:count] <= 1)).all()
    uncropped = dataclasses.replace(
        SETTINGS, resize=dataclasses.replace(SETTINGS.resize, crop_probability=0.0)
    )
    for batch in batches(source, uncropped):
        real = batch["boxes"][batch["count"] > 0, 0]
        np.testing.assert_allclose(real, [[0.5, 0.5, 0.5, 0.5]] * len(real), atol=1e-6)


def test_each_image_once_in_an_epoch(source):
    """A window changes the order of images, not which there are; positions name them."""
    epoch = batches(source, num_steps=5)
    seen = [index for batch in epoch for index in index_of(batch)]
    assert len(set(seen)) == len(seen) == 20
    plain = batches(source, dataclasses.replace(SETTINGS, window=1), num_steps=5)
    assert sorted(seen) == sorted(index for batch in plain for index in index_of(batch))
    for batch in epoch:
        for index, position in zip(index_of(batch), batch["position"], strict=True):
            assert index == example_index(COUNT, seed=7, epoch=0, position=int(position))


def test_windows_need_smaller_batches(source):
    def area(settings):
        return sum(np.prod(batch["image"].shape[1:3]) for batch in batches(source, settings))

    assert area(SETTINGS) < area(dataclasses.replace(SETTINGS, window=1))


def test_resumes_and_hosts(source):
    whole = batches(source)
    for start in (3, 7):
        for ours, theirs in zip(batches(source, start_step=start), whole[start:], strict=True):
            for name, array in theirs.items():
                np.testing.assert_array_equal(ours[name], array)
    hosts = [batches(source, host_index=host, host_count=2) for host in range(2)]
    for first, second, theirs in zip(*hosts, whole, strict=True):
        for name, array in theirs.items():
            np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), array)


def test_workers(source):
    one, two = batches(source, num_steps=3), batches(source, num_steps=3, num_workers=2)
    for ours, theirs in zip(two, one, strict=True):
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array)


def test_damaged_images_are_replaced(source, tmp_path):
    """Also one whose size is not that of the JSON file; the replacement fits the bucket."""
    make = TrainBatch(
        source=_Damaged(source),
        settings=SETTINGS,
        batch_size=4,
        seed=7,
        host_index=0,
        host_count=1,
        shared=False,
    )
    damaged = [each for step in range(5) for each in make(step)[1]]
    assert damaged
    assert all("but the JSON file says" in reason for _, reason in damaged)


class _Damaged:
    """Every third image has another size than the JSON file says."""

    def __init__(self, source):
        self._source = source
        self.sizes = source.sizes
        self.decoding = source.decoding

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        example = self._source[index]
        return example._replace(size=(1, 1)) if index % 3 == 0 else example


def test_evaluation_has_each_image_once(source):
    for hosts in (1, 2):
        indices: list[int] = []
        for host in range(hosts):
            loader = eval_batches(source, SETTINGS, batch_size=4, host_index=host, host_count=hosts)
            with loader:
                for batch in loader:
                    for row, index in enumerate(batch["index"]):
                        if index >= 0:
                            indices.append(int(index))
                            height, width = batch["size"][row]
                            assert min(height, width) == 56 or max(height, width) in (89, 90)
                            assert tuple(batch["original"][row]) == tuple(source.sizes[index])
                            assert batch["image"][row, 0, 0, 0] // 10 == index
        assert sorted(indices) == list(range(COUNT))


def test_orientation_and_transparency(tmp_path):
    """As the config says: a photograph that lies on its side, and a transparent image."""
    wide = Image.new("RGB", (60, 40), (200, 100, 50))
    exif = wide.getexif()
    exif[0x0112] = 6  # to be turned clockwise: 40 pixels wide, 60 high
    wide.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (40, 60), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    files = ("turned.jpg", "clear.png")
    images = [{"id": i, "file_name": f, "width": 40, "height": 60} for i, f in enumerate(files)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "none"}]}
    (tmp_path / "all.json").write_text(json.dumps(content))
    spec = f"coco:{tmp_path},{tmp_path}/all.json"
    source = open_boxes(spec, decoding=Decoding(transparency="white", exif="apply"))
    with eval_batches(source, SETTINGS, batch_size=2) as loader:
        (batch,) = loader
    assert batch["image"][0, :80, :56].mean() > 100, "a whole image"
    assert (batch["image"][1, :80, :56] == 255).all()
    ignored = eval_batches(open_boxes(spec), SETTINGS, batch_size=2)
    with ignored, pytest.raises(DamagedImageError, match="40×60 pixels, but the JSON"):
        list(ignored)


def test_refusals(source):
    with pytest.raises(ValueError, match=r"Invalid config.data.max_boxes=0: 001.png of .* has 1"):
        batches(source, dataclasses.replace(SETTINGS, max_boxes=0))
    with pytest.raises(ValueError, match=r"none holds images of up to \d+×\d+. Add \("):
        batches(source, dataclasses.replace(SETTINGS, buckets=((32, 32),)))
    with pytest.raises(ValueError, match="Invalid buckets"):
        dataclasses.replace(SETTINGS, buckets=())
