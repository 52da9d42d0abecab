"""Odd but legal runs: one image, one class, batches of one, strange directories."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from fastervit_jax.evaluation.run import evaluate_weights
from fastervit_jax.runs.recipes import load_recipe
from fastervit_jax.training.loop import train
from fastervit_jax.training.reporting import read_metrics
from fastervit_jax.training.tasks import task_of
from tests.segmentation import test_run as segmentation_run
from tests.small import detection_run, killed_run


@pytest.fixture
def one_image(tmp_path, monkeypatch):
    """A home with one image, on one device."""
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *unused: first)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "images" / "=1+1, <b>ü</b>"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "0.png")
    return tmp_path


def _config(**changes):
    config = load_recipe("smoke")
    flags = {
        **killed_run.FLAGS,
        "model.num_classes": 1,
        "data.train": "folder:~/images",
        "data.validation": "folder:~/images",
        "batch_size": 1,
        "accumulate": 1,
        "evaluation.batch_size": 1,
        "mesa.weight": 0.0,
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
        "erasing_probability": 0.0,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    config.update_from_flattened_dict(flags)
    return config


def _steps(workdir) -> list[int]:
    return [record["step"] for record in read_metrics(workdir) if "loss" in record]


@pytest.mark.slow
def test_one_image_of_one_class_in_a_directory_with_any_name(one_image, capsys):
    """`~`, a symbolic link, spaces and non-ASCII letters; then relative, with a worker."""
    config = _config(stop_after_epochs=1)
    (one_image / "disk").mkdir()
    (one_image / "a link").symlink_to("disk")
    trained = train(task_of(config), config, "~/a link/läuft 中文")
    workdir = one_image / "disk" / "läuft 中文"
    assert (trained.images, trained.top1, trained.top5) == (1, 1.0, 1.0)
    assert _steps(workdir) == [1]
    assert (workdir / "predictions.png").is_file() and (workdir / "curves.png").is_file()

    result = evaluate_weights("~/a link/läuft 中文", None)
    assert result.evaluation.loss == pytest.approx(trained.loss, abs=1e-6)

    config = _config(epochs=3)
    with pytest.raises(ValueError, match="epochs: 2 in the checkpoint, 3 now"):
        train(task_of(config), config, "disk/läuft 中文")
    config = _config(data__num_workers=1)
    train(task_of(config), config, "disk/läuft 中文")
    assert "Resuming from step 1 of 2" in capsys.readouterr().out
    assert _steps(workdir) == [1, 2]


def test_fewer_images_than_a_batch(one_image):
    config = _config(batch_size=8)
    with pytest.raises(ValueError, match=r"batch_size=8: expected at most 1, .*config.batch_size"):
        train(task_of(config), config, one_image / "run")
    assert not (one_image / "run").exists()


@pytest.mark.slow
def test_one_image_per_class_and_another_batch_size_at_resume(one_image, capsys):
    """A changed batch size is refused by name; where it is allowed, the count of steps goes on."""
    other = one_image / "images" / "中"
    other.mkdir()
    Image.new("RGB", (30, 50), (200, 0, 0)).save(other / "0.png")
    config = _config(model__num_classes=2, stop_after_epochs=1)
    assert train(task_of(config), config, "run").images == 2
    assert _steps(one_image / "run") == [1, 2]

    changed = {"model__num_classes": 2, "batch_size": 2, "group_size": 2}
    config = _config(**changed)
    with pytest.raises(ValueError, match="batch_size: 1 in the checkpoint, 2 now"):
        train(task_of(config), config, "run")
    # Two steps of one image were an epoch; two steps of two images are the whole run.
    config = _config(**changed, resume__allow_changes=("batch_size", "group_size"), epochs=2)
    train(task_of(config), config, "run")
    assert "Resuming from step 2 of 2" in capsys.readouterr().out
    config = _config(**changed, resume__allow_changes=("batch_size", "group_size", "epochs"))
    config.epochs = 4
    assert train(task_of(config), config, "run").images == 2
    assert _steps(one_image / "run") == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_one_image_of_one_class_for_other_tasks(one_image, task):
    """A detector is trained. A segmenter needs two classes and two images, and says so."""
    (image,) = (one_image / "images").rglob("*.png")
    image = image.rename(one_image / "images" / "0.png")  # a path with a comma is no part of a spec
    small = {"model.num_classes": 1, "batch_size": 1, "group_size": 1, "epochs": 1}
    if task == "detection":
        box = {"id": 1, "image_id": 1, "category_id": 90, "bbox": [5, 5, 20, 30]}
        about = {"id": 1, "file_name": image.name, "width": 40, "height": 40}
        coco = {"images": [about], "annotations": [box]}
        coco["categories"] = [{"id": 90, "name": "<b>=1+1</b>"}]
        (one_image / "one.json").write_text(json.dumps(coco))
        recipe, flags = "detect_digits", {**detection_run.FLAGS, **small}
        data = f"coco:{image.parent},{one_image / 'one.json'}"
    else:
        (one_image / "masks").mkdir()
        Image.new("L", (40, 40)).save(one_image / "masks" / image.name)
        (one_image / "classes.txt").write_text("ü\nnothing\n")
        recipe, flags = "segment_digits", {**segmentation_run.CHANGES, **small}
        data = f"masks:{image.parent},{one_image / 'masks'},{one_image / 'classes.txt'}"
    config = load_recipe(recipe)
    flags |= {"data.train": data, "data.validation": data, "evaluation.batch_size": 1}
    config.update_from_flattened_dict(flags)
    if task == "segmentation":
        with pytest.raises(ValueError, match="num_classes=1: expected a whole number of 2 or more"):
            train(task_of(config), config, "run")
        config.model.num_classes = 2
        with pytest.raises(ValueError, match="group_size=1: expected at least 2 images"):
            train(task_of(config), config, "run")
        return
    train(task_of(config), config, "run")
    assert _steps(one_image / "run") == [1]
    assert (one_image / "run" / "predictions.png").is_file()
