"""Class folders get the labels that timm's folder reader gives them."""

import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder

from fastervit_jax.data import open_source
from fastervit_jax.data.sources import describe_classes
from fastervit_jax.evaluation.label_space import label_space

NUMBERED = [str(number) for number in range(1, 13)]
MIXED_CASE = ["apple", "Banana", "cherry", "Date"]
ORDERS = {
    "numbered": NUMBERED,
    "mixed case": MIXED_CASE,
    "numbers inside": ["img2", "img10", "img1b", "IMG1a", "x"],
    "identifiers": ["n01440764", "n02119789", "n15075141"],
}


def _write(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / name / "image.png")


@pytest.mark.parametrize("names", ORDERS.values(), ids=ORDERS)
def test_labels_are_timms(tmp_path, names):
    _write(tmp_path, names)
    theirs = ReaderImageFolder(str(tmp_path)).class_to_idx
    ours = open_source(f"folder:{tmp_path}")
    assert {name: index for index, name in enumerate(ours.class_names)} == theirs
    for index in range(len(ours)):
        example = ours[index]
        assert theirs[example.key.split("/")[-2]] == example.label


def test_expected_orders(tmp_path):
    _write(tmp_path / "numbered", NUMBERED)
    assert open_source(f"folder:{tmp_path}/numbered").class_names == tuple(NUMBERED)
    _write(tmp_path / "mixed", MIXED_CASE)
    assert open_source(f"folder:{tmp_path}/mixed").class_names == tuple(MIXED_CASE)


def test_the_log_says_which_classes_there_are():
    assert describe_classes(["a", "b"]) == "2 classes: 0 = a, 1 = b"
    assert describe_classes(NUMBERED) == (
        "12 classes: 0 = 1, 1 = 2, 2 = 3, …, 9 = 10, 10 = 11, 11 = 12"
    )


def test_matching_by_order_warns_where_there_are_two_orders():
    warned = label_space(NUMBERED, None, 12).remark
    assert "Warning" in warned and "(1, 2, …)" in warned and "(1, 10, …)" in warned
    assert "Warning" not in label_space(["a", "b", "c"], None, 3).remark


def test_a_run_with_plain_sorted_names_is_evaluated_by_name():
    stored = sorted(NUMBERED)  # as versions before had it
    space = label_space(NUMBERED, stored, 12)
    assert space.class_names == tuple(stored)
    assert [stored[answer] for answer in space.answer] == NUMBERED
