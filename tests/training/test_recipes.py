"""Every file of configs/ builds, is valid, and its whole step can be traced."""

import jax
import pytest

from fastervit_jax.parallel.mesh import make_mesh
from fastervit_jax.runs.config import mixing_group, model_config
from fastervit_jax.runs.recipes import load_recipe
from fastervit_jax.training import build, classification
from fastervit_jax.training.tasks import task_of
from tests.small.run import ROOT

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
BIG = [
    name
    for name in NAMES
    if name.startswith(("faster_vit_", "finetune_", "dino_", "upernet_"))
    or name in ("detect_folder", "segment_folder", "digits_recipe", "detect_digits")
]
# docs/reference/numbers.md, section 4:
# optimizer, decay, MESA, its first epoch, warm-up epochs, drop path
OFFICIAL = {
    "faster_vit_0_224": ("adamw", 0.005, 0.1, 78, 20, 0.2),
    "faster_vit_1_224": ("adamw", 0.005, 0.2, 78, 20, 0.2),
    "faster_vit_2_224": ("adamw", 0.005, 0.5, 78, 20, 0.2),
    "faster_vit_3_224": ("adamw", 0.005, 0.5, 94, 35, 0.3),
    "faster_vit_4_224": ("lamb", 0.12, 5.0, 78, 20, 0.3),
    "faster_vit_5_224": ("lamb", 0.12, 5.0, 78, 20, 0.3),
    "faster_vit_6_224": ("lamb", 0.12, 5.0, 78, 20, 0.5),
}


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_valid(name):
    config = load_recipe(name)
    task_of(config).check(config, batch_shards=min(8, config.batch_size), hosts=2, tensor=1)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_values(name):
    config = load_recipe(name)
    optimizer, decay, mesa, start, warmup, drop_path = OFFICIAL[name]
    assert config.model.name == name
    assert config.optimizer.name == optimizer
    assert config.optimizer.weight_decay == decay
    assert config.mesa.weight == mesa
    assert classification.mesa_start(config) == start
    assert config.optimizer.warmup_epochs == warmup
    assert model_config(config).drop_path_rate == drop_path
    assert (config.batch_size, config.epochs, config.cooldown_epochs) == (4096, 310, 10)
    assert config.group_size == 128
    assert config.rand_augment == "rand-m9-mstd0.5-inc1"


def test_distorting_on_the_device_leaves_it_to_the_device():
    config = load_recipe("faster_vit_0_224")
    host, device = (
        classification.train_transform(config),
        classification.augmentation_settings(config, mixing_group=8),
    )
    assert (host.flip, host.rand_augment) == (0.5, config.rand_augment)
    assert (device.flip_probability, device.rand_augment) == (0.0, None)
    config.distort_on_device = True
    host, device = (
        classification.train_transform(config),
        classification.augmentation_settings(config, mixing_group=8),
    )
    assert (host.flip, host.rand_augment) == (0.0, "")
    assert device.flip_probability == 0.5
    assert device.rand_augment is not None


def _trace(name: str, **changes) -> None:
    config = load_recipe(name)
    config.update(changes)
    devices = min(8, config.batch_size)
    task, mesh, steps = task_of(config), make_mesh(devices=jax.devices()[:devices]), 312
    program = build.program(task, config, mesh, epoch_steps=steps)
    step = build.train_step(
        task, config, mesh, program, epoch_steps=steps, mixing_group=mixing_group(config, devices)
    )
    # The step itself checks that the new state is like the old one.
    _, metrics = jax.eval_shape(step, program.state, task.batch_shapes(config))
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BIG])
def test_step_can_be_traced(name):
    _trace(name)


def test_step_that_distorts_on_the_device_can_be_traced():
    _trace("smoke", distort_on_device=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", BIG)
def test_step_of_a_big_network_can_be_traced(name):
    _trace(name)
