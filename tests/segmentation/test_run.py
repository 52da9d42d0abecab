"""Whole runs of a tiny UperNet on scattered digits: training, resume, evaluation, prediction."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fastervit_jax import create_model, predict
from fastervit_jax.data.sources import scattered_digits
from fastervit_jax.runs.recipes import load_recipe
from fastervit_jax.runs.workdir import load_trained
from fastervit_jax.segmentation.report import details_json, report_html
from fastervit_jax.segmentation.run import evaluate_weights
from fastervit_jax.training import build
from fastervit_jax.training.loop import train
from fastervit_jax.training.reporting import read_metrics
from fastervit_jax.training.tasks import task_of
from tests.quick_compilation import quickest_compilation

CHANGES = {
    "model.resolution": (32, 32),
    "model.window_size": (2, 2, 2, 2),
    "model.hat": (False, False, False, False),
    "model.ct_size": 1,
    "model.dim": 8,
    "model.in_dim": 8,
    "model.depths": (1, 1, 1, 1),
    "model.num_heads": (1, 1, 2, 2),
    "model.channels": 8,
    "model.auxiliary_channels": 8,
    "segmentation.short_side": 32,
    "evaluation.short_side": 32,
    "optimizer.warmup_epochs": 0.5,
    "epochs": 2,
    "evaluation.every_epochs": 2,
    "checkpoint.every_epochs": 1,
    "log_every_steps": 1,
}


def _config(data_dir, **changes):
    config = load_recipe("segment_digits")
    config.update_from_flattened_dict({**CHANGES, **changes, "data.data_dir": str(data_dir)})
    return config


def _train(config, workdir):
    return train(task_of(config), config, str(workdir))


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Few images; and compiling takes longer than the few steps, so it need not optimize."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scattered_digits, "IMAGES", {"train": 32, "validation": 9})
        patch.setattr(build, "compiler_options", lambda mesh: quickest_compilation())
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory, quick):
    """A run of two epochs, on the eight devices of the tests."""
    root = tmp_path_factory.mktemp("segmentation")
    return root, _train(_config(root / "data"), root / "whole")


def test_training_leaves_what_it_should(runs):
    root, evaluation = runs
    losses = [each["loss"] for each in read_metrics(root / "whole") if "loss" in each]
    assert len(losses) == 8 and np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert 0 < evaluation.summary()["pixel_accuracy"] <= 1 and evaluation.images == 9
    for name in ("curves.png", "predictions.png"):
        assert np.asarray(Image.open(root / "whole" / name).convert("L")).std() > 5


@pytest.mark.slow
def test_resuming_ends_with_the_same_bits(runs):
    root, _ = runs
    _train(_config(root / "data", stop_after_epochs=1), root / "parts")
    _train(_config(root / "data"), root / "parts")
    for ema in (False, True):
        models = [load_trained(root / name, ema=ema).model for name in ("whole", "parts")]
        whole, parts = (nnx.to_pure_dict(nnx.state(model)) for model in models)
        assert jax.tree.leaves(whole)
        jax.tree.map(np.testing.assert_array_equal, whole, parts)
    told = [
        [each["loss"] for each in read_metrics(root / name) if "loss" in each]
        for name in ("whole", "parts")
    ]
    assert told[0] == told[1]


def test_evaluation_of_the_checkpoint_is_that_of_training(runs):
    root, evaluation = runs
    result = evaluate_weights(str(root / "whole"), None, data_dir=str(root / "data"), batch_size=4)
    assert result.evaluation.summary() == evaluation.summary()
    content = json.loads(details_json(result))
    assert content["images"] == 9 and len(content["confusion"]) == 11
    assert sum(map(sum, content["confusion"])) == int(result.evaluation.metrics.confusion.sum())
    page = report_html(result)
    assert page.count("data:image/jpeg;base64") == 18  # nine images, labels and prediction
    assert "background" in page and "mIoU" in page


def test_prediction_of_the_checkpoint_is_that_of_evaluation(runs):
    root, evaluation = runs
    model = create_model("upernet_faster_vit_0", weights=root / "whole")
    path = next((root / "data").rglob("validation/0000.png"))
    (found,) = predict(model, path)
    np.testing.assert_array_equal(found.classes, evaluation.maps[0])
    assert found.names[0] == "background"


def test_a_classifier_is_no_segmenter(runs):
    root, _ = runs
    with pytest.raises(ValueError, match="upernet_faster_vit_0"):
        create_model("faster_vit_0_224", weights=root / "whole")
