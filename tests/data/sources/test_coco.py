"""Data sets in COCO's format: what is read, what is left out, what is refused."""

import copy
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from fastervit_jax.data.sources.coco import open_boxes
from fastervit_jax.data.sources.scattered_digits import IMAGES, write_scattered_digits

CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 60, "height": 40},
        {"id": 3, "file_name": "b.png", "width": 30, "height": 50},
        {"id": 5, "file_name": "c.png", "width": 20, "height": 20},
    ],
    "categories": [{"id": 10, "name": "dog"}, {"id": 4, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 10, "bbox": [5, 6, 10, 20]},
        {"id": 2, "image_id": 7, "category_id": 4, "bbox": [50, 30, 30.5, 30]},
        {"id": 3, "image_id": 3, "category_id": 4, "bbox": [-3, -2, 8, 9], "area": 72},
        {"id": 4, "image_id": 3, "category_id": 4, "bbox": [5, 5, 10, 10], "iscrowd": 1},
        {"id": 5, "image_id": 3, "category_id": 4, "bbox": [5, 5, 0, 10]},
        {"id": 6, "image_id": 7, "category_id": 4, "bbox": [100, 10, 10, 10]},
    ],
}


def write(root, content=CONTENT, split="train"):
    (root / split).mkdir(exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for image in CONTENT["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(root / split / image["file_name"])
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return f"coco:{root}@{split}"


def test_reading(tmp_path):
    """Images without boxes stay; crowds, empty boxes and boxes outside are left out; by hand."""
    source = open_boxes(write(tmp_path))
    assert len(source) == 3
    assert source.class_names == ("cat", "dog"), "in the order of their ids, without gaps"
    assert source.category_ids == (4, 10)
    assert source.image_ids == (7, 3, 5)
    first, second, third = (source[i] for i in range(3))
    assert first.key == "a.png"
    assert first.size == (40, 60)
    np.testing.assert_array_equal(first.boxes, [[50, 30, 60, 40]])
    np.testing.assert_array_equal(first.labels, [0])
    np.testing.assert_array_equal(second.boxes, [[5, 6, 15, 26], [0, 0, 5, 7]])
    np.testing.assert_array_equal(second.labels, [1, 0])
    assert third.boxes.shape == (0, 4)
    assert source.dropped == {"crowds": 1, "boxes without area": 2}
    assert source.num_boxes == 3
    assert source.most_boxes == (2, "b.png")
    again = pickle.loads(pickle.dumps(source))
    assert again[1].encoded == second.encoded


def test_directory_and_file(tmp_path):
    write(tmp_path)
    spec = f"coco:{tmp_path}/train,{tmp_path}/annotations/instances_train.json"
    np.testing.assert_array_equal(open_boxes(spec)[0].boxes, [[50, 30, 60, 40]])


def test_ids_of_coco_stay_as_they_are(tmp_path):
    """80 categories with ids of 1 to 90 are COCO's; the labels are the ids."""
    content = copy.deepcopy(CONTENT)
    ids = sorted({*range(1, 91)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
    content["categories"] = [{"id": each, "name": f"class {each}"} for each in ids]
    source = open_boxes(write(tmp_path, content))
    assert source.num_classes == 91
    assert source.class_names[12] == ""
    assert source.class_names[90] == "class 90"
    np.testing.assert_array_equal(source[1].labels, [10, 4])


def _without_file(content, root):
    (root / "train" / "b.png").unlink()


def _with_corners(content, root):
    content["annotations"] = [
        {"id": i, "image_id": 7, "category_id": 4, "bbox": [10 + i, 10, 50 + i, 35]}
        for i in range(5)
    ]


REFUSALS = {
    "missing images": (_without_file, "Missing images: 1 of 3 in {root}/train, beginning with b."),
    "corners": (_with_corners, "5 of 5 boxes leave their image as [x, y, width, height], but all"),
    "unknown category": (
        lambda content, root: content["annotations"][0].update(category_id=99),
        "annotation 1 has the unknown category 99. Known: 4, 10",
    ),
    "unknown image": (
        lambda content, root: content["annotations"][0].update(image_id=99),
        "annotation 1 belongs to image 99, which is not listed.",
    ),
    "masks only": (
        lambda content, root: content["annotations"][0].pop("bbox"),
        "annotation 1 has no bbox. A data set of masks alone cannot train a detector.",
    ),
    "no numbers": (
        lambda content, root: content["annotations"][0].update(bbox=[1, 2, float("nan"), 4]),
        "annotation 1: invalid bbox",
    ),
    "no size": (lambda content, root: content["images"][0].pop("width"), "image 7 has no width."),
    "two ids": (
        lambda content, root: content["images"][0].update(id=3),
        "two images have the same id.",
    ),
    "image that is text": (
        lambda content, root: content["images"].insert(1, "b.png"),
        "invalid entry 1 of images: expected an object with keys, got 'b.png'.",
    ),
    "category that is null": (
        lambda content, root: content["categories"].append(None),
        "of categories: expected an object with keys, got None.",
    ),
    "id that is a list": (
        lambda content, root: content["annotations"][0].update(image_id=[7]),
        "annotation 1 belongs to image [7], which is not listed.",
    ),
    "image whose id is a list": (
        lambda content, root: content["images"][0].update(id=[7]),
        "invalid id of an image: [7].",
    ),
    "size without end": (
        lambda content, root: content["images"][0].update(width=10**400),
        "invalid height and width of image 7: expected pixels, 1 or more, got (",
    ),
    "box without end": (
        lambda content, root: content["annotations"][0].update(bbox=[1, 2, 10**400, 4]),
        "annotation 1: invalid bbox [1, 2, 1000",
    ),
    "name that is too long for a file": (
        lambda content, root: content["images"][0].update(file_name="x" * 5000),
        "Missing images: 1 of 3 in {root}/train, beginning with xxx",
    ),
    "no images": (lambda content, root: content.update(images=[]), "lists no images."),
    "no categories": (lambda content, root: content.pop("categories"), "categories is missing."),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals(kind, tmp_path):
    alter, message = REFUSALS[kind]
    content = copy.deepcopy(CONTENT)
    spec = write(tmp_path, content)
    alter(content, tmp_path)
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        open_boxes(spec)
    assert message.format(root=tmp_path) in str(error.value)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize("spec", ["coco:", "coco:/data/coco", "folder:/data", "coco"])
def test_invalid_names(spec):
    with pytest.raises(ValueError, match="Invalid data set"):
        open_boxes(spec)


def test_no_json(tmp_path):
    with pytest.raises(ValueError, match=r"Cannot read .*instances_train\.json: No such file"):
        open_boxes(f"coco:{tmp_path}@train")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="is not a JSON file"):
        open_boxes(f"coco:{tmp_path},{tmp_path}/x.json")


@pytest.fixture(scope="module")
def scattered(tmp_path_factory):
    pytest.importorskip("skimage")
    root = tmp_path_factory.mktemp("data") / "scattered"
    write_scattered_digits(root)
    return root


def test_scattered_digits(scattered):
    """Every box is the bounding box of its digit's visible pixels in the mask."""
    for split, count in IMAGES.items():
        source = open_boxes(f"coco:{scattered}@{split}")
        assert len(source) == count
        assert source.class_names == tuple("0123456789")
        assert 2 < source.num_boxes / count < 4
        for index in range(0, count, 17):
            example = source[index]
            mask = np.asarray(Image.open(scattered / "masks" / split / example.key))
            assert mask.shape == example.size
            inside = np.zeros(mask.shape, bool)
            for label, (left, top, right, bottom) in zip(
                example.labels, example.boxes.astype(int), strict=True
            ):
                part = mask[top:bottom, left:right] == label + 1
                inside[top:bottom, left:right] |= part
                # Another digit of the class can touch; each edge has a pixel of this one.
                assert part[0].any() and part[-1].any()
                assert part[:, 0].any() and part[:, -1].any()
            assert (inside == (mask > 0)).all()


def test_scattered_digits_are_the_same_everywhere(scattered, tmp_path):
    write_scattered_digits(tmp_path / "again")
    for path in ("train/0003.png", "annotations/instances_validation.json"):
        assert (tmp_path / "again" / path).read_bytes() == (scattered / path).read_bytes()
    write_scattered_digits(scattered)  # does nothing
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="does not contain the scattered digits"):
        write_scattered_digits(tmp_path / "other")
