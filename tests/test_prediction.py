"""`fastervit_jax.predict` and its command, on photographs of scikit-learn and scikit-image."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn.datasets
from flax import nnx
from PIL import Image

from fastervit_jax import predict, save_model
from fastervit_jax.data import decode_eval
from fastervit_jax.data.imagenet_names import IMAGENET_NAMES, NAME_OF_SYNSET
from fastervit_jax.evaluation.imagenet_classes import imagenet_1k
from fastervit_jax.prediction import class_names
from fastervit_jax.weights.loading import describe
from tests.small.network import small_model


@pytest.fixture(scope="module")
def model():
    """A small network with ten classes of its own."""
    model = small_model()
    describe(model, "faster_vit_0_224")
    model.class_names = ("n01440764", *(f"kind {number}" for number in range(1, 10)))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs in folders, a file that is none, and one that is broken off."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "deeper").mkdir()
    photographs = Path(sklearn.datasets.__file__).parent / "images"
    shutil.copy(photographs / "china.jpg", folder / "china.jpg")
    shutil.copy(photographs / "flower.jpg", folder / "deeper" / "flower.JPG")
    Image.fromarray(skimage.data.coffee()).save(folder / "coffee.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "broken.jpg").write_bytes((photographs / "china.jpg").read_bytes()[:20_000])
    return folder


def by_hand(model, path: Path) -> np.ndarray:
    """Probabilities of one file, from the parts that `predict` is made of."""
    crop = decode_eval(
        path.read_bytes(), resolution=(128, 128), crop_fraction=0.875, crop_mode="center"
    )
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = ((crop[None] / 255 - mean) / std).astype(np.float32)
    logits = np.asarray(nnx.jit(lambda model, x: model(x))(model, normalised), np.float64)
    odds = np.exp(logits[0] - logits.max())
    return odds / odds.sum()


def test_a_folder(model, folder):
    predictions = predict(model, folder, top=3, batch_size=2)
    names = ["broken.jpg", "china.jpg", "coffee.png", "deeper/flower.JPG"]
    assert [one.image for one in predictions] == [str(folder / name) for name in names]
    broken, *good = predictions
    assert broken.error and not broken.classes
    for one in good:
        expected = by_hand(model, Path(one.image))
        best = np.argsort(-expected)[:3]
        assert one.classes == tuple(best)
        assert one.names == tuple(class_names(model)[number] for number in best)
        np.testing.assert_allclose(one.probabilities, expected[best], atol=1e-5)
        assert one.error is None
    assert len({one.probabilities for one in good}) == 3


def test_every_kind_of_image(model, folder):
    path = folder / "coffee.png"
    image = Image.open(path)
    kinds = [path, str(path), path.read_bytes(), image, np.asarray(image)]
    first, *others = predict(model, kinds)
    assert first.image == str(path) and others[2].image == "image 1"
    for one in others:
        assert one.classes == first.classes
        # Rows of a batch may be summed in different orders.
        np.testing.assert_allclose(one.probabilities, first.probabilities, rtol=1e-5)
    (alone,) = predict(model, image)
    assert alone.classes == first.classes
    assert len(predict(model, np.zeros((5, 50, 60, 3), np.uint8))) == 5


def test_leaves_the_model_as_it_is(model, folder):
    """In training mode too, answers are those of evaluation mode, and nothing moves."""
    expected = predict(model, folder / "china.jpg")
    before = np.array(model.norm.mean[...])
    model.train()
    try:
        assert predict(model, folder / "china.jpg") == expected
        assert not model.norm.use_running_average
        np.testing.assert_array_equal(model.norm.mean[...], before)
    finally:
        model.eval()


def test_other_sizes_and_deployed(model, folder):
    resized = model.at_resolution((96, 160))
    assert predict(resized, folder / "china.jpg") != predict(model, folder / "china.jpg")
    (plain,), (deployed,) = (
        predict(one, folder / "china.jpg") for one in (resized, resized.deploy())
    )
    assert deployed.classes == plain.classes
    np.testing.assert_allclose(deployed.probabilities, plain.probabilities, atol=1e-5)


def test_names_of_imagenet():
    assert tuple(NAME_OF_SYNSET) == imagenet_1k()
    assert len(set(IMAGENET_NAMES)) > 990 and all(IMAGENET_NAMES)
    assert IMAGENET_NAMES[0].startswith("tench") and IMAGENET_NAMES[281].startswith("tabby")


def test_class_names(model):
    assert class_names(model)[:2] == ["tench, Tinca tinca", "kind 1"]
    assert class_names(small_model(num_classes=1000)) is IMAGENET_NAMES
    assert class_names(small_model(num_classes=3)) == ["class 0", "class 1", "class 2"]
    with pytest.raises(ValueError, match="no head"):
        class_names(small_model(num_classes=0))
    wrong = small_model(num_classes=3)
    wrong.class_names = ("one", "two")
    with pytest.raises(ValueError, match="expected 3 names, got 2"):
        class_names(wrong)


REFUSED = [
    (np.zeros((4, 4, 3), np.float32), {}, "For normalized arrays, call model(images)"),
    ([3], {}, "Invalid image of type int"),
    ([], {}, "expected at least one, got none"),
    (b"", dict(top=0), "top=0"),
]


@pytest.mark.parametrize(("images", "options", "message"), REFUSED)
def test_refusals(model, images, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        predict(model, images, **options)


def test_a_model_that_does_not_say_how_it_wants_images():
    with pytest.raises(ValueError, match="Make it with create_model"):
        predict(small_model(), b"")


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fastervit_jax", "predict", *map(str, arguments)],
        capture_output=True,
        text=True,
    )


def test_command(model, folder, tmp_path):
    save_model(model, tmp_path / "model")
    answer = command(
        folder,
        tmp_path / "missing.png",
        f"--weights={tmp_path / 'model'}",
        "--top=2",
        f"--json={tmp_path / 'answers.json'}",
        f"--picture={tmp_path / 'answers.png'}",
    )
    assert answer.returncode == 0, answer.stderr
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert [one["error"] is None for one in answers] == [False, True, True, True, False]
    for one in answers:
        if one["error"] is None:
            row = f"{one['image']} +{one['probabilities'][0]:.1%}  {one['names'][0]}"
            assert re.search(row, answer.stdout)
        else:
            assert f"could not read {one['image']}: " in answer.stderr
    picture = Image.open(io.BytesIO((tmp_path / "answers.png").read_bytes()))
    assert picture.width > 600 and len(np.unique(np.asarray(picture))) > 100


def test_command_without_images():
    answer = command("--weights=nowhere")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: Missing images")
