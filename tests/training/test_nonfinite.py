"""Steps that were not finite: counted, logged, and what is left behind when they end a run."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fastervit_jax.data import open_source
from fastervit_jax.data.order import example_index
from fastervit_jax.runs.recipes import load_recipe
from fastervit_jax.training import classification, loop
from fastervit_jax.training.loop import train
from fastervit_jax.training.nonfinite import BatchPlace, SkippedSteps, TooManySkippedError
from tests.small import killed_run

TASK = classification.Classification()


def _found(skipped, *, newest=True):
    return list(skipped.found(newest=newest))


def test_the_newest_step_is_not_waited_for():
    skipped = SkippedSteps(3, 0)
    skipped.add(1, jnp.int32(1))
    skipped.add(2, jnp.int32(1))
    assert _found(skipped, newest=False) == [1]
    assert _found(skipped) == [2]
    assert _found(skipped) == []


def test_only_steps_in_a_row_end_a_run():
    skipped = SkippedSteps(3, 0)
    for number, bad in enumerate([1, 1, 0, 1, 1, 0], 1):
        skipped.add(number, jnp.int32(bad))
    assert _found(skipped) == [1, 2, 4, 5]
    for number in (7, 8, 9):
        skipped.add(number, jnp.int32(1))
    with pytest.raises(TooManySkippedError) as error:
        _found(skipped)
    assert error.value.steps == [7, 8, 9]


def test_those_before_an_interruption_count():
    skipped = SkippedSteps(3, 2)
    skipped.add(8, jnp.int32(1))
    with pytest.raises(TooManySkippedError) as error:
        _found(skipped)
    assert (error.value.in_a_row, error.value.steps) == (3, [8])


def test_places_count_positions_of_an_epoch():
    assert BatchPlace.of(1, epoch_steps=5, batch_size=8) == BatchPlace(1, 0, 0, 7)
    assert BatchPlace.of(5, epoch_steps=5, batch_size=8) == BatchPlace(5, 0, 32, 39)
    assert BatchPlace.of(6, epoch_steps=5, batch_size=8) == BatchPlace(6, 1, 0, 7)


def _config(data, **changes):
    config = load_recipe("smoke")
    flags = {**killed_run.FLAGS, "accumulate": 1, "mesa.weight": 0.0, "mesh.data": 1, "epochs": 1}
    flags |= {"data.train": f"folder:{data}/train", "data.validation": f"folder:{data}/validation"}
    config.update_from_flattened_dict({**flags, **changes})
    return config


@pytest.fixture
def poison(monkeypatch):
    """Makes the images of chosen batches NaN on the device; returns (steps, labels seen)."""
    steps, seen, count = set(), [], [0]
    true_augment, true_place = classification.augment, loop.place_batch
    monkeypatch.setattr(loop, "make_mesh", lambda **_: _one_device())

    def augment(key, images, labels, settings, **options):
        mixed, targets = true_augment(key, images, labels, settings, **options)
        return jnp.where(jnp.all(images == 255), jnp.nan, mixed), targets

    def place_batch(batch, mesh):
        count[0] += 1
        seen.append(batch["label"].tolist())
        if count[0] in steps:
            batch = {**batch, "image": np.full_like(batch["image"], 255)}
        return true_place(batch, mesh)

    monkeypatch.setattr(classification, "augment", augment)
    monkeypatch.setattr(loop, "place_batch", place_batch)
    return steps, seen, count


def _one_device():
    import jax

    from fastervit_jax.parallel.mesh import make_mesh

    return make_mesh(devices=jax.devices()[:1])


@pytest.mark.slow
def test_bad_batches_change_nothing_and_too_many_end_the_run(poison, tmp_path):
    steps, seen, count = poison
    killed_run.write_images(tmp_path / "data")
    train(TASK, _config(tmp_path / "data"), tmp_path / "clean")
    clean_order = seen.copy()

    # One: the order of what follows is the same, and the EMA stays finite.
    seen.clear()
    count[0] = 0
    steps.add(2)
    train(TASK, _config(tmp_path / "data"), tmp_path / "one")
    assert seen == clean_order
    records = killed_run.records(tmp_path / "one")
    assert {"step": 2, "skipped_step": 2, "skipped_epoch": 0, "skipped_first": 8,
            "skipped_last": 15} in records  # fmt: skip
    losses = [r["loss"] for r in records if "loss" in r]
    clean = [r["loss"] for r in killed_run.records(tmp_path / "clean") if "loss" in r]
    assert losses[0] == clean[0]
    assert losses[1] is None
    assert all(np.isfinite(losses[2:]))
    assert [r["skipped"] for r in records if "loss" in r] == [0, 1, 1, 1, 1]
    assert np.isfinite(records[-1]["validation_loss"])
    state = killed_run.final_state(tmp_path / "one", 5)
    assert all(np.all(np.isfinite(array)) for array in state.values())

    # Three in a row end the run.
    count[0] = 0
    steps |= {3, 4, 5}
    with pytest.raises(ValueError, match=r"the last 3 steps, up to step 4, .* not finite"):
        train(
            classification.Classification(),
            _config(tmp_path / "data", max_skipped_in_a_row=3),
            tmp_path / "three",
        )
    evidence = json.loads((tmp_path / "three/not_finite/step_4.json").read_text())
    assert [batch["step"] for batch in evidence["batches"]] == [2, 3, 4]
    assert [image["position"] for image in evidence["images"]] == list(range(24, 32))
    source = open_source(f"folder:{tmp_path}/data/train")
    for image in evidence["images"]:
        index = example_index(len(source), seed=0, epoch=0, position=image["position"])
        assert (image["image"], image["label"]) == (source[index].key, source[index].label)
    assert [image["label"] for image in evidence["images"]] == clean_order[3]
    assert np.asarray(Image.open(tmp_path / "three/not_finite/step_4.png")).std() > 5
    assert (tmp_path / "three" / "checkpoints" / "2").is_dir()
