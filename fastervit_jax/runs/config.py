"""What a run is: every key a recipe may set, with its default, and the check of their values.

Recipes in `configs/` start from `default_config()` and change it; flags change it further
(`--config.optimizer.learning_rate=1e-3`). None means the model's own value.
"""

import json
from typing import Any

import ml_collections
from ml_collections import config_dict

from fastervit_jax.models import FasterViTConfig, variant_config
from fastervit_jax.models.config import ATTENTION_STAGES

NEW_NAMES = {"average_decay": "ema_decay"}
"""Keys that have changed their names: old run directories and flags use the old ones."""

# Keys that may differ from host to host.
_OF_ONE_HOST = ("data.data_dir", "data.num_workers")


def default_config() -> ml_collections.ConfigDict:
    """The keys of a run. The values are the official ImageNet-1K recipe where it has one."""
    optional = config_dict.placeholder
    config = ml_collections.ConfigDict()
    config.seed = 0  # of weights, order, distortions, drop path: of everything random

    config.model = ml_collections.ConfigDict(
        {
            "name": "faster_vit_0_224",
            "num_classes": 1000,
            "dtype": "bfloat16",  # of the computation; parameters are float32
            # Changes to the named network (see FasterViTConfig); None keeps its value.
            "resolution": optional(object),  # one side, or (height, width)
            "depths": optional(tuple),
            "num_heads": optional(tuple),
            "window_size": optional(tuple),
            "hat": optional(tuple),
            "dim": optional(int),
            "in_dim": optional(int),
            "ct_size": optional(int),
            "mlp_ratio": optional(float),
            "layer_scale": optional(float),
            "do_propagation": optional(bool),
            "drop_path_rate": optional(float),
            "drop_rate": optional(float),
            "attn_drop_rate": optional(float),
        }
    )

    config.finetune = ml_collections.ConfigDict(
        {
            # Where to start: a converted directory, an official file, a work directory. "": anew.
            "weights": "",
            "layer_decay": 1.0,  # of the learning rate, from each block to the one before it
            # Modules that stay as they are, their statistics too: ("stem", "stages.0"). A linear
            # probe: ("stem", "stages", "downsamples", "norm").
            "frozen": (),
        }
    )

    config.data = ml_collections.ConfigDict(
        {
            "train": "tfds:imagenet2012@train",
            "validation": "tfds:imagenet2012@validation",
            "data_dir": optional(str),  # where TFDS sets are prepared; None: TFDS's own default
            "num_workers": 16,  # processes a host that decode; 0: a thread of the trainer
            # Damaged images that a run replaces, as a share of the images drawn. Above it stops.
            "max_damaged_share": 0.001,
        }
    )
    config.batch_size = 4096  # images a step, over all hosts

    # Host: what happens to a decoded image.
    config.crop = ml_collections.ConfigDict(
        {
            "scale": (0.08, 1.0),  # the crop's share of the image's area
            "ratio": (3 / 4, 4 / 3),  # its width / height
            "interpolation": "random",  # bilinear, bicubic, or random for either
        }
    )
    config.flip = 0.5
    config.rand_augment = "rand-m9-mstd0.5-inc1"  # "" for none
    # Flip and RandAugment in the step instead, for hosts that are too slow for their devices; there
    # an image may differ from the host's by a level (docs/training.md).
    config.distort_on_device = False

    # Device: what happens to a batch.
    config.mixup_alpha = 0.8
    config.cutmix_alpha = 1.0
    config.cutmix_probability = 0.5  # CutMix instead of mixup, where both are on
    config.mixing_probability = 1.0
    config.label_smoothing = 0.1
    config.erasing_probability = 0.25

    config.epochs = 310
    config.cooldown_epochs = 10  # at the lowest rate, after the epochs
    # Stop here and leave the rest for later: the same command without it goes on. 0: do not stop.
    config.stop_after_epochs = 0
    config.optimizer = ml_collections.ConfigDict(
        {
            "name": "adamw",  # adamw, lamb or sgd
            "learning_rate": 5e-3,  # the peak
            "warmup_epochs": 20.0,
            "warmup_start": 1e-6,
            "minimum": 5e-6,
            "weight_decay": 0.005,
            "clip_norm": 5.0,  # 0: no clipping
        }
    )
    config.ema_decay = 0.9998  # of the EMA of weights, a step
    config.mesa = ml_collections.ConfigDict(
        {
            "weight": 0.1,  # of the divergence from the EMA's answers; 0: none
            "start": 0.25,  # on from the first epoch beyond this share of the epochs
        }
    )
    # Images that are normalised (batch norm) and mixed together: what a GPU held in the official
    # recipe. Mixing stays within a device: where one holds fewer, it mixes those it holds.
    config.group_size = 128
    config.accumulate = 1  # parts of a batch that go through the network one after the other
    # Stages, 1 to 4, whose blocks are computed again for the gradient, to save memory: (1, 2).
    config.remat = ()
    # Whether the attention blocks of a stage run as one loop: deep networks compile in half the
    # time or less, and take more memory (benchmarks/NOTES.md).
    config.scan_blocks = False
    config.max_skipped_in_a_row = 10  # steps with non-finite gradients, after which a run stops

    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    config.evaluation = ml_collections.ConfigDict(
        {
            "every_epochs": 1,
            "batch_size": 1024,
            "crop_fraction": 0.875,
            "crop_mode": "center",
        }
    )
    config.checkpoint = ml_collections.ConfigDict(
        {
            "every_epochs": 1,
            "every_steps": 0,  # also within an epoch; 0: not
            "keep": 3,  # the newest
            "keep_best": 1,  # and the best by a metric of the evaluations
            "best_metric": "top1",  # top1, top5 or loss
        }
    )
    # Keys that may differ from the checkpoint that a run goes on from: ("optimizer.learning_rate",)
    config.resume = ml_collections.ConfigDict({"allow_changes": ()})
    config.log_every_steps = 50
    config.profile_steps = (0, 0)  # first and last step of a profiler trace; (0, 0): none
    config.wandb_project = ""  # also log to this Weights & Biases project; "": do not
    return config


def by_dotted_key(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries (`config.to_dict()`) as one: `{"mesh": {"data": 1}}` → `mesh.data`."""
    items: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            items |= by_dotted_key(value, f"{prefix}{key}.")
        else:
            items[prefix + key] = value
    return items


def shared_settings(config: ml_collections.ConfigDict) -> dict[str, str]:
    """What must be the same on all hosts of a run, as JSON by the name of its flag."""
    keys = by_dotted_key(config.to_dict())
    return {f"config.{k}": json.dumps(v) for k, v in keys.items() if k not in _OF_ONE_HOST}


def model_config(config: ml_collections.ConfigDict) -> FasterViTConfig:
    """The network of a run.

    Raises:
        ValueError: it cannot be built; the message says why.
    """
    try:
        return variant_config(config.model.name, **model_options(config))
    except ValueError as error:
        raise ValueError(f"config.model: {error}") from None


def model_options(config: ml_collections.ConfigDict) -> dict:
    """The changes to the named network."""
    options = {key: value for key, value in config.model.items() if value is not None}
    del options["name"], options["dtype"]
    return options


def check_config(
    config: ml_collections.ConfigDict, *, batch_shards: int, hosts: int = 1, tensor: int = 1
) -> None:
    """Refuses values that no run can have, before anything is compiled.

    What needs the data (such as its number of classes) is checked when it is opened.

    Args:
        config: the run's.
        batch_shards: parts into which the mesh splits a batch (`mesh.batch_shards`).
        hosts: processes of the run.
        tensor: size of the mesh axis `tensor`.

    Raises:
        ValueError: names the key, its value and what would do.
    """
    network = model_config(config)
    if network.num_classes < 1:
        raise _refused("model.num_classes", config.model.num_classes, "at least one class")
    if network.in_chans != 3:
        raise _refused("model.in_chans", network.in_chans, "3: images are read as RGB")
    if not 0 <= config.seed < 2**32:
        raise _refused("seed", config.seed, "an integer from 0 to 2**32 - 1")

    for key in ("crop.scale", "crop.ratio"):
        _check(
            config,
            key,
            lambda value: len(value) == 2 and 0 < value[0] <= value[1],
            "a pair (smallest, largest) of positive numbers",
        )
    _check(
        config,
        "profile_steps",
        lambda value: (
            len(value) == 2 and 0 <= value[0] <= value[1] and bool(value[0]) == bool(value[1])
        ),
        "a pair (first step, last step), counted from 1, or (0, 0)",
    )
    _check(config, "crop.scale", lambda value: value[1] <= 1, "shares of at most 1")
    for key, choices in (
        ("model.dtype", ("float32", "bfloat16")),
        ("crop.interpolation", ("bilinear", "bicubic", "random")),
        ("optimizer.name", ("adamw", "lamb", "sgd")),
        ("evaluation.crop_mode", ("center", "squash")),
        ("checkpoint.best_metric", ("top1", "top5", "loss")),
    ):
        _check(config, key, lambda value, choices=choices: value in choices, " or ".join(choices))

    for key in (
        "batch_size",
        "group_size",
        "accumulate",
        "max_skipped_in_a_row",
        "epochs",
        "log_every_steps",
        "evaluation.batch_size",
        "evaluation.every_epochs",
        "checkpoint.every_epochs",
        "checkpoint.keep",
    ):
        _check(config, key, lambda value: value >= 1, "1 or more")
    for key in (
        "cooldown_epochs",
        "stop_after_epochs",
        "checkpoint.every_steps",
        "checkpoint.keep_best",
        "data.num_workers",
        "mixup_alpha",
        "cutmix_alpha",
    ):
        _check(config, key, lambda value: value >= 0, "0 or more")
    for key in (
        "data.max_damaged_share",
        "flip",
        "cutmix_probability",
        "mixing_probability",
        "erasing_probability",
    ):
        _check(config, key, lambda value: 0 <= value <= 1, "a probability, 0 to 1")
    _check(config, "evaluation.crop_fraction", lambda value: 0 < value <= 1, "above 0, at most 1")
    for key in ("label_smoothing", "ema_decay"):
        _check(config, key, lambda value: 0 <= value < 1, "0 or more, below 1")
    for key in ("learning_rate", "warmup_start", "minimum", "weight_decay", "clip_norm"):
        _check(config, f"optimizer.{key}", lambda value: value >= 0, "0 or more")
    _check(
        config,
        "optimizer.warmup_epochs",
        lambda value: 0 <= value <= config.epochs,
        f"0 to config.epochs={config.epochs}",
    )
    _check(
        config,
        "remat",
        lambda value: len(set(value)) == len(value) and set(value) <= {1, 2, 3, 4},
        "different stages, 1 to 4, such as (1, 2)",
    )
    _check_tensor(network, tensor)
    _check_groups(config, batch_shards)
    for key in ("batch_size", "evaluation.batch_size"):
        for parts, what in ((batch_shards, "devices that split a batch"), (hosts, "hosts")):
            _check(
                config,
                key,
                lambda value, parts=parts: value % parts == 0,
                f"a multiple of the {parts} {what}",
            )


def _check_tensor(network: FasterViTConfig, tensor: int) -> None:
    """Refuses to split attention blocks that do not come out even."""
    for stage in ATTENTION_STAGES if tensor > 1 else ():
        width = network.widths[stage]
        sizes = {
            "attention heads": network.num_heads[stage],
            "channels": width,
            "hidden channels of its MLPs": int(width * network.mlp_ratio),
        }
        for what, size in sizes.items():
            if network.depths[stage] and size % tensor:
                raise ValueError(
                    f"config.mesh.tensor={tensor} cannot be: it does not divide the {size} {what} "
                    f"of stage {stage + 1}."
                )


def batch_norm_group(config: ml_collections.ConfigDict) -> int:
    """How many images batch norm normalises together."""
    return min(config.group_size, config.batch_size // config.accumulate)


def mixing_group(config: ml_collections.ConfigDict, batch_shards: int) -> int:
    """How many images are mixed together, where the mesh splits a batch into `batch_shards`."""
    return min(config.group_size, config.batch_size // batch_shards)


def _check_groups(config: ml_collections.ConfigDict, batch_shards: int) -> None:
    parts = batch_shards * config.accumulate
    if config.batch_size % parts:
        raise _refused(
            "batch_size",
            config.batch_size,
            f"a multiple of {parts}: {batch_shards} devices that split a batch × "
            f"config.accumulate={config.accumulate}",
        )
    part = config.batch_size // config.accumulate
    if part % batch_norm_group(config):
        raise _refused(
            "group_size",
            config.group_size,
            f"a number that divides the {part} images that go through the network together",
        )
    per_device = config.batch_size // batch_shards
    if per_device % mixing_group(config, batch_shards):
        raise _refused(
            "group_size", config.group_size, f"a number that divides a device's {per_device} images"
        )


def _check(config, key: str, holds, wanted: str) -> None:
    value = config
    for part in key.split("."):
        value = value[part]
    if not holds(value):
        raise _refused(key, value, wanted)


def _refused(key: str, value, wanted: str) -> ValueError:
    return ValueError(f"config.{key}={value!r} cannot be: give {wanted}.")
