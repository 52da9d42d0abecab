"""A run goes on only from its own checkpoints."""

import json

import pytest

from fastervit_jax.runs.resume_check import check_same_run, code_version, run_identity
from tests.small.run import small_config


class _Images:
    class_names = ("cat", "dog")
    num_classes = 2

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count


def _identity(images: int = 10, class_names=("cat", "dog"), **changes) -> dict:
    training = _Images(images)
    training.class_names = class_names
    return run_identity(small_config("data", **changes), training, _Images(5))


def _saved(**changes) -> dict:
    return json.loads(json.dumps(_identity(**changes)))


def test_the_same_run_goes_on():
    check_same_run(3, _saved(), _identity(), ())


@pytest.mark.parametrize(
    "change",
    [
        {"data__num_workers": 7},
        {"data__data_dir": "elsewhere"},
        {"mesh__data": 4},
        {"log_every_steps": 9},
        {"checkpoint__every_steps": 9},
        {"stop_after_epochs": 1},
        {"resume__allow_changes": ("seed",)},
    ],
    ids=str,
)
def test_what_changes_no_result_may_differ(change):
    check_same_run(3, _saved(), _identity(**change), ())


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"model__dim": 12}, "model.dim: 8 in the checkpoint, 12 now"),
        ({"optimizer__learning_rate": 0.1}, "optimizer.learning_rate: 0.002 in the checkpoint"),
        ({"mixup_alpha": 0.3}, "mixup_alpha: 0.0 in the checkpoint, 0.3 now"),
        ({"epochs": 3}, "epochs: 1 in the checkpoint, 3 now"),
        ({"batch_size": 64}, "batch_size: 128 in the checkpoint, 64 now"),
        ({"data__train": "folder:x"}, "data.train: 'digits:train' in the checkpoint"),
        ({"images": 11}, "data.training_images: 10 in the checkpoint, 11 now"),
        ({"class_names": ("cat", "cow")}, "data.class_names: 'dog' in the checkpoint, 'cow' now"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_another_run_is_refused_with_the_differences(change, shown):
    with pytest.raises(ValueError, match="belongs to another run") as error:
        check_same_run(3, _saved(), _identity(**change), ())
    assert shown in str(error.value)
    assert "--config.resume.allow_changes=" in str(error.value)


def test_all_differences_are_listed_and_named_ones_are_allowed():
    run = _identity(model__dim=12, optimizer__learning_rate=0.1, optimizer__weight_decay=0.3)
    with pytest.raises(ValueError) as error:
        check_same_run(3, _saved(), run, ("optimizer.learning_rate",))
    assert "optimizer.weight_decay" in str(error.value)
    assert "model.dim" in str(error.value)
    assert "learning_rate" not in str(error.value)
    check_same_run(3, _saved(), run, ("model.dim", "optimizer"))


def test_a_key_that_is_newer_than_the_checkpoint_counts_as_its_default():
    saved = _saved()
    del saved["config"]["erasing_probability"]  # the digits' 0, by default 0.25
    with pytest.raises(ValueError, match=r"erasing_probability: 0.25 in the checkpoint, 0.0 now"):
        check_same_run(3, saved, _identity(), ())
    del saved["config"]["resume"]
    check_same_run(3, saved, _identity(erasing_probability=0.25), ())


def test_the_code_says_its_version():
    versions = code_version()
    assert versions["fastervit_jax"]
    assert versions["jax"]
