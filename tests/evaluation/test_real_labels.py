"""ImageNet-ReaL: several right answers, or none; from TFDS's set and from real.json."""

import dataclasses
import json

import numpy as np
import pytest

from fastervit_jax.data import Example
from fastervit_jax.evaluation.dataset import open_evaluation_set
from fastervit_jax.evaluation.evaluator import Evaluation, Predictions
from fastervit_jax.evaluation.imagenet_classes import imagenet_1k
from fastervit_jax.evaluation.real_labels import judged_by
from tests.data.photographs import encode, photographs

# Validation images: number in the file's name, its label, and all right answers.
IMAGES = [(1, 5, [5, 6]), (2, 5, []), (7, 6, [9]), (11, 9, [9]), (50_000, 9, [1, 2, 3])]
FILE_NAME = "ILSVRC2012_val_{:08d}.JPEG"


@pytest.fixture(scope="module")
def jpeg():
    return encode(photographs()["coffee"].resize((60, 40)), "JPEG")


def _folder(root, jpeg):
    for number, label, _ in IMAGES:
        path = root / "val" / imagenet_1k()[label] / FILE_NAME.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
    by_number = [[]] * 50_000
    for number, _, right in IMAGES:
        by_number[number - 1] = right
    (root / "real.json").write_text(json.dumps(by_number))
    return f"imagenet-real:folder:{root / 'val'}", dict(real_labels=str(root / "real.json"))


def _tfds(root, jpeg):
    """The features of TFDS's own builder, which wants ImageNet's archive and TensorFlow."""
    import tensorflow_datasets as tfds

    class Imagenet2012Real(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        # TFDS would look for files beside the code, with a package that only preparing needs.
        code_path = None

        def _info(self):
            label = tfds.features.ClassLabel(names=list(imagenet_1k()))
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="jpeg"),
                        "original_label": label,
                        "real_label": tfds.features.Sequence(label),
                        "file_name": tfds.features.Text(),
                    }
                ),
                supervised_keys=("image", "real_label"),
            )

        def _split_generators(self, dl_manager):
            return {"validation": self._generate_examples()}

        def _generate_examples(self):
            for number, label, right in IMAGES:
                name = FILE_NAME.format(number)
                record = {"image": jpeg, "original_label": label, "real_label": right}
                yield name, record | {"file_name": name}

    Imagenet2012Real(data_dir=root).download_and_prepare(file_format="array_record")
    return "imagenet-real", dict(data_dir=str(root))


@pytest.mark.parametrize("make", [_folder, _tfds], ids=["folder", "tfds"])
def test_right_answers(tmp_path, jpeg, make):
    spec, options = make(tmp_path, jpeg)
    task = open_evaluation_set(spec, model_classes=None, num_logits=1000, **options)
    assert task.crop is None and task.logits is None
    numbers = [
        int(task.source[index].key.split("val_")[1][:8]) for index in range(len(task.source))
    ]
    by_number = {number: (label, right) for number, label, right in IMAGES}
    assert sorted(numbers) == sorted(by_number)
    # The same answers for all: 9 first, then 6.
    labels = np.array([by_number[number][0] for number in numbers])
    top = np.tile(np.array([9, 6, 100, 101, 102]), (len(numbers), 1))
    plain = Evaluation.of(
        Predictions(
            index=np.arange(len(numbers)),
            label=labels,
            top=top,
            probability=np.full((len(numbers), 5), 0.1),
            loss=np.arange(5.0),
            hit=top == labels[:, None],
            counted=np.ones(len(numbers), bool),
        )
    )
    assert plain.top1 == 2 / 5 and plain.top5 == 3 / 5
    real = judged_by(task.real_labels, plain)
    # 1: 6 is right, second; 2: does not count; 7 and 11: 9 is right; 50000: wrong.
    assert real.top1 == 2 / 4 and real.top5 == 3 / 4
    assert real.images == 5 and real.predictions.counted.sum() == 4
    assert real.loss == plain.loss


def test_right_answers_of_a_network_with_its_own_order(tmp_path, jpeg):
    """Right answers are mapped by identifier, as labels are."""
    spec, options = _folder(tmp_path, jpeg)
    backwards = imagenet_1k()[::-1]
    task = open_evaluation_set(spec, model_classes=backwards, num_logits=1000, **options)
    answers = dict(
        zip(
            [task.source[i].key[-13:] for i in range(5)],
            task.real_labels.of(np.arange(5)),
            strict=True,
        )
    )
    assert {backwards[place] for place in answers["00000001.JPEG"]} == {
        imagenet_1k()[5],
        imagenet_1k()[6],
    }


def test_refusals(tmp_path, jpeg):
    spec, options = _folder(tmp_path, jpeg)
    model = dict(model_classes=None, num_logits=1000)
    (tmp_path / "short.json").write_text("[[1], [2]]")
    with pytest.raises(ValueError, match="expected a list of labels of ImageNet's 50,000"):
        open_evaluation_set(spec, real_labels=str(tmp_path / "short.json"), **model)
    with pytest.raises(
        ValueError, match="Invalid --real_labels: it requires --dataset=imagenet-real"
    ):
        open_evaluation_set(spec.removeprefix("imagenet-real:"), **options, **model)
    task = open_evaluation_set(spec, **options, **model)
    renamed = dataclasses.replace(task.real_labels, source=[Example(jpeg, 0, "photo.jpg")])
    with pytest.raises(ValueError, match=r"photo.jpg has no ReaL labels"):
        renamed.of(np.array([0]))
