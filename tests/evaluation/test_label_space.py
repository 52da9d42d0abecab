"""Label spaces: one-to-one, complete, and refused where classes do not fit."""

import numpy as np
import pytest

from fastervit_jax.evaluation.benchmarks import BENCHMARKS, PUBLISHED
from fastervit_jax.evaluation.dataset import open_evaluation_set
from fastervit_jax.evaluation.imagenet_classes import IMAGENET_A, IMAGENET_R, imagenet_1k, spoken
from fastervit_jax.evaluation.label_space import label_space
from tests.evaluation.photo_folders import write_folder


def test_identifiers():
    for classes, count in ((imagenet_1k(), 1000), (IMAGENET_A, 200), (IMAGENET_R, 200)):
        assert len(classes) == len(set(classes)) == count
        assert list(classes) == sorted(classes)
        assert all(name[0] == "n" and len(name) == 9 and name[1:].isdecimal() for name in classes)
        assert set(classes) <= set(imagenet_1k())
    # Hendrycks et al.: ImageNet-A and -R share some of their classes, not all.
    assert 0 < len(set(IMAGENET_A) & set(IMAGENET_R)) < 200
    assert imagenet_1k()[0] == "n01440764" and spoken("n01440764") == "tench"


@pytest.mark.parametrize("over", [IMAGENET_A, IMAGENET_R], ids=["A", "R"])
def test_subset_is_one_to_one_and_complete(over):
    space = label_space(over, imagenet_1k(), 1000, over=over)
    assert space.class_names == over
    assert sorted(space.answer) == list(range(200))
    assert len(set(space.logits)) == 200
    for label, name in enumerate(over):
        assert imagenet_1k()[space.logits[space.answer[label]]] == name


def test_all_declared_classes_of_tfds():
    """TFDS declares 1000 classes for ImageNet-A: 200 of them are answered, the others nowhere."""
    space = label_space(imagenet_1k(), imagenet_1k(), 1000, over=IMAGENET_A, strict=False)
    answered = [label for label, place in enumerate(space.answer) if place >= 0]
    assert [imagenet_1k()[label] for label in answered] == list(IMAGENET_A)
    assert [space.logits[space.answer[label]] for label in answered] == answered


def test_classes_in_another_order():
    model = ("cat", "dog", "eel", "fox")
    space = label_space(("fox", "cat"), model, 4)
    assert space.class_names == model and space.logits is None
    assert space.answer == (3, 0)
    assert space.remark == "2 of the 4 classes have images."
    assert label_space(model, model, 4).answer == (0, 1, 2, 3)
    by_place = label_space(("a", "b"), None, 2)
    assert by_place.answer == (0, 1) and "by their order" in by_place.remark


@pytest.mark.parametrize(
    "data, model, outputs, over, message",
    [
        (("cat", "gnu"), ("cat", "dog"), 2, None, "1 of the 2 classes .* not among the 2 .*'gnu'"),
        (("a", "b", "c"), None, 2, None, "expected 2 classes, .* got 3"),
        (("a",), ("a", "b"), 3, None, "expected 3 class names, .* got 2"),
        (("a",), ("a", "a"), 2, None, "network has the class 'a' twice"),
        (("a", "a"), ("a", "b"), 2, None, "data set has the class 'a' twice"),
        (IMAGENET_A, ("a", "b"), 2, IMAGENET_A, "does not have the class 'n01498041'.*ImageNet-1K"),
        (("n00000001",), imagenet_1k(), 1000, IMAGENET_A, "not among the 200 .*'n00000001'"),
    ],
)
def test_refusals(data, model, outputs, over, message):
    with pytest.raises(ValueError, match=message):
        label_space(data, model, outputs, over=over)


@pytest.fixture(scope="module")
def folder_of_a(tmp_path_factory):
    """Two classes of ImageNet-A."""
    root = tmp_path_factory.mktemp("a") / "imagenet-a"
    return write_folder(root, [IMAGENET_A[7], IMAGENET_A[100]], 2)


def test_a_folder_of_a_benchmark(folder_of_a):
    task = open_evaluation_set(
        f"imagenet-a:folder:{folder_of_a}", model_classes=None, num_logits=1000
    )
    assert task.title == "ImageNet-A" and task.crop == ("center", 0.875)
    assert [imagenet_1k()[place] for place in task.logits] == list(IMAGENET_A)
    assert [task.source[index].label for index in range(4)] == [7, 7, 100, 100]
    assert task.source.class_names == IMAGENET_A
    plain = open_evaluation_set(f"folder:{folder_of_a}", model_classes=None, num_logits=1000)
    assert plain.logits is None and plain.crop is None and plain.source.num_classes == 1000
    assert imagenet_1k()[plain.source[0].label] == IMAGENET_A[7]


def test_v2_folders_are_numbers(tmp_path):
    """Sorted as text they come 0, 10, 9: each must find its own class nevertheless."""
    root = write_folder(tmp_path / "v2", ["0", "9", "10", "999"], 1)
    task = open_evaluation_set(f"imagenet-v2:folder:{root}", model_classes=None, num_logits=1000)
    found = {task.source[index].key.split("/")[-2]: task.source[index].label for index in range(4)}
    assert found == {"0": 0, "9": 9, "10": 10, "999": 999}
    write_folder(tmp_path / "bad", ["1000"], 1)
    with pytest.raises(ValueError, match=r"Invalid class folder '1000' .* expected 0 to 999"):
        open_evaluation_set(
            f"imagenet-v2:folder:{tmp_path / 'bad'}", model_classes=None, num_logits=1000
        )


@pytest.mark.parametrize(
    "spec, num_logits, message",
    [
        ("imagenet-r:folder:{}", 1000, "not among the 200"),
        ("folder:{}", 10, "expected 10 classes, .* got 2"),
        ("folder:{}", 0, "no head"),
        ("imagenet-a:", 1000, "Invalid data set 'imagenet-a:'"),
        ("imagenet-b", 1000, "Invalid data set 'imagenet-b'"),
        ("imagenet-a", 1000, "the directory /nowhere does not exist"),
        ("imagenet-real:folder:{}", 1000, "--real_labels=real.json"),
    ],
)
def test_refused_tasks(folder_of_a, spec, num_logits, message):
    with pytest.raises(ValueError, match=message):
        open_evaluation_set(
            spec.format(folder_of_a), model_classes=None, num_logits=num_logits, data_dir="/nowhere"
        )


def test_published_table():
    """Its corners and sums, as the README prints them."""
    assert set(BENCHMARKS) > {"imagenet", "imagenet-a", "imagenet-r", "imagenet-v2"}
    assert PUBLISHED["faster_vit_0_224"]["imagenet"] == (82.1, 95.9)
    assert PUBLISHED["faster_vit_6_224"]["imagenet-v2"] == (76.1, 93.0)
    assert PUBLISHED["faster_vit_4_21k_768"] == {"imagenet": (87.9, 98.5)}
    cells = np.array([cell for row in PUBLISHED.values() for cell in row.values()])
    assert len(cells) == 7 * 4 + 4 and (cells[:, 0] < cells[:, 1]).all()
