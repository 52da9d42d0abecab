"""Images with boxes from TFDS: the same as from a JSON file in COCO's format."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from fastervit_jax.data.coco_names import COCO_NAMES
from fastervit_jax.data.sources.coco import open_boxes

NAMES = sorted(name for name in COCO_NAMES if name)
SIZES = [(40, 60), (50, 30), (20, 20)]
# (image, class, x, y, width, height, crowd)
BOXES = [
    (0, "dog", 10, 5, 30, 20, False),
    (0, "person", 0, 0, 60, 40, True),
    (1, "zebra", 3, 10, 20, 30, False),
    (1, "dog", 5, 6, 8, 9, False),
]


def _jpeg(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (height, width, 0)).save(file, "JPEG")
    return file.getvalue()


def _prepare(data_dir) -> None:
    """A set with the features of TFDS's `coco/2017`. No TensorFlow is used."""
    import tensorflow_datasets as tfds

    class SmallCoco(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.1.0")

        def _info(self):
            objects = {
                "id": np.int64,
                "area": np.int64,
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(names=NAMES),
                "is_crowd": np.bool_,
            }
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "image/filename": tfds.features.Text(),
                "image/id": np.int64,
                "objects": tfds.features.Sequence(objects),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"validation": self._generate_examples()}

        def _generate_examples(self):
            for number, (height, width) in enumerate(SIZES):
                objects = []
                for image, name, x, y, w, h, crowd in BOXES:
                    if image == number:
                        box = (y / height, x / width, (y + h) / height, (x + w) / width)
                        one = {"id": len(objects), "area": w * h // 2, "is_crowd": crowd}
                        objects.append({**one, "bbox": tfds.features.BBox(*box), "label": name})
                record = {"image/filename": f"{number}.jpg", "image/id": number}
                yield number, {"image": _jpeg(height, width), **record, "objects": objects}

    class WithoutBoxes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(encoding_format="jpeg")
            features = tfds.features.FeaturesDict({"image": image})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"image": _jpeg(8, 8)}

    for builder in (SmallCoco, WithoutBoxes):
        builder(data_dir=data_dir).download_and_prepare(file_format="array_record")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds_boxes")
    _prepare(root)
    return root


def test_boxes(data_dir, tmp_path, monkeypatch):
    """Boxes in pixels, COCO's own ids, crowds left out; the second time without reading records."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = open_boxes("tfds:small_coco@validation", data_dir=str(data_dir))
    assert source.class_names == COCO_NAMES and len(source) == 3
    by_size = {source[index].size: source[index] for index in range(3)}
    assert set(by_size) == set(SIZES)
    for number, size in enumerate(SIZES):
        example = by_size[size]
        assert Image.open(io.BytesIO(example.encoded)).size == (size[1], size[0])
        wanted = [each for each in BOXES if each[0] == number and not each[6]]
        assert [COCO_NAMES[label] for label in example.labels] == [each[1] for each in wanted]
        corners = [[x, y, x + w, y + h] for _, _, x, y, w, h, _ in wanted]
        np.testing.assert_allclose(example.boxes, np.reshape(corners, (-1, 4)), atol=1e-4)
    assert source.dropped["crowds"] == 1
    (written,) = (tmp_path / "fastervit_jax" / "tfds_boxes").iterdir()
    time = written.stat().st_mtime_ns
    again = pickle.loads(pickle.dumps(source))
    assert again[1].encoded == source[1].encoded
    assert open_boxes("tfds:small_coco@validation", data_dir=str(data_dir)).num_boxes == 3
    assert written.stat().st_mtime_ns == time


def test_refusals(data_dir):
    with pytest.raises(ValueError, match="without_boxes is not a data set for detection: expected"):
        open_boxes("tfds:without_boxes@train", data_dir=str(data_dir))
    with pytest.raises(ValueError, match="has no split 'train'"):
        open_boxes("tfds:small_coco@train", data_dir=str(data_dir))
