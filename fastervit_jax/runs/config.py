"""The config of a run: all keys with their defaults, and the check of their values.

Recipes in `configs/` start from `default_config()` and change it. Flags change it further
(`--config.optimizer.learning_rate=1e-3`). None means the value of the model.
"""

import json
from typing import Any

import ml_collections
from ml_collections import config_dict

from fastervit_jax.models import FasterViTConfig, variant_config
from fastervit_jax.models.config import ATTENTION_STAGES

NEW_NAMES = {"average_decay": "ema_decay"}
"""Renamed keys. Old work directories and flags use the old names."""

# Keys that may differ between hosts.
_OF_ONE_HOST = ("data.data_dir", "data.num_workers")


def default_config() -> ml_collections.ConfigDict:
    """Returns the default config. Values are those of the official ImageNet-1K recipe."""
    optional = config_dict.placeholder
    config = ml_collections.ConfigDict()
    config.seed = 0  # seed of everything random: weights, order, augmentation, drop path

    config.model = ml_collections.ConfigDict(
        {
            "name": "faster_vit_0_224",
            "num_classes": 1000,
            "dtype": "bfloat16",  # dtype of the computation; parameters are float32
            # Options that change the named network (see FasterViTConfig); None keeps its value.
            "resolution": optional(object),  # one side or (height, width), in pixels
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
            # Initial weights: a converted directory, an official file or a work directory. "" means
            # new weights.
            "weights": "",
            "layer_decay": 1.0,  # factor of the learning rate from each block to the previous one
            # Modules that are not trained, for example ("stem", "stages.0"). Their statistics also
            # stay fixed. Linear probe: ("stem", "stages", "downsamples", "norm").
            "frozen": (),
        }
    )

    config.data = ml_collections.ConfigDict(
        {
            "train": "tfds:imagenet2012@train",
            "validation": "tfds:imagenet2012@validation",
            "data_dir": optional(
                str
            ),  # directory of the prepared TFDS data sets; None: TFDS's default
            "num_workers": 16,  # decoding processes per host; 0: a thread of the trainer
            # Allowed number of damaged images, divided by the images drawn. They are replaced. The
            # run stops if there are more.
            "max_damaged_share": 0.001,
        }
    )
    config.batch_size = 4096  # images per step, over all hosts

    # Augmentation of each image on the host.
    config.crop = ml_collections.ConfigDict(
        {
            "scale": (0.08, 1.0),  # area of the crop, divided by the image's area
            "ratio": (3 / 4, 4 / 3),  # width / height of the crop
            "interpolation": "random",  # bilinear, bicubic or random (one of the two)
        }
    )
    config.flip = 0.5  # probability of a horizontal flip
    config.rand_augment = "rand-m9-mstd0.5-inc1"  # "" disables it
    # Apply flip and RandAugment on the device, for hosts that are too slow for their devices. The
    # pixels may differ from the host's by one level (docs/training.md).
    config.distort_on_device = False

    # Augmentation of each batch on the device.
    config.mixup_alpha = 0.8
    config.cutmix_alpha = 1.0
    config.cutmix_probability = 0.5  # probability of CutMix if both are enabled
    config.mixing_probability = 1.0
    config.label_smoothing = 0.1
    config.erasing_probability = 0.25

    config.epochs = 310
    config.cooldown_epochs = 10  # additional epochs at the minimum learning rate
    # Stop after this epoch. The same command without this key resumes the run. 0: do not stop.
    config.stop_after_epochs = 0
    config.optimizer = ml_collections.ConfigDict(
        {
            "name": "adamw",  # adamw, lamb or sgd
            "learning_rate": 5e-3,  # peak learning rate
            "warmup_epochs": 20.0,
            "warmup_start": 1e-6,
            "minimum": 5e-6,
            "weight_decay": 0.005,
            "clip_norm": 5.0,  # maximum norm of the gradient; 0: no clipping
        }
    )
    config.ema_decay = 0.9998  # decay per step of the EMA of the weights
    config.mesa = ml_collections.ConfigDict(
        {
            "weight": 0.1,  # weight of the divergence from the EMA's predictions; 0: none
            "start": 0.25,  # MESA starts after this share of the epochs
        }
    )
    # Number of images that batch norm normalizes together and that are mixed together. 128 is the
    # batch of one GPU in the official recipe. Images are mixed within a device. If a device has
    # fewer images, it mixes all of them.
    config.group_size = 128
    config.accumulate = 1  # number of parts of a batch (gradient accumulation)
    # Stages, 1 to 4, whose activations are recomputed for the gradient to save memory: (1, 2).
    config.remat = ()
    # Run the attention blocks of a stage in one loop. Deep networks then compile in half the time
    # or less, and need more memory (benchmarks/NOTES.md).
    config.scan_blocks = False
    config.max_skipped_in_a_row = 10  # stop after this many steps with non-finite gradients

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
            "every_steps": 0,  # additional checkpoints within an epoch; 0: none
            "keep": 3,  # number of newest checkpoints to keep
            "keep_best": 1,  # number of best checkpoints to keep in addition
            "best_metric": "top1",  # top1, top5 or loss
        }
    )
    # Keys that may differ from the checkpoint when a run resumes: ("optimizer.learning_rate",)
    config.resume = ml_collections.ConfigDict({"allow_changes": ()})
    config.log_every_steps = 50
    config.profile_steps = (0, 0)  # first and last step of a profiler trace; (0, 0): none
    config.wandb_project = ""  # Weights & Biases project to log to; "": none
    return config


def by_dotted_key(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dictionaries: `{"mesh": {"data": 1}}` becomes `{"mesh.data": 1}`."""
    items: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            items |= by_dotted_key(value, f"{prefix}{key}.")
        else:
            items[prefix + key] = value
    return items


def shared_settings(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Returns the values that must be the same on all hosts, as JSON by flag name."""
    keys = by_dotted_key(config.to_dict())
    return {f"config.{k}": json.dumps(v) for k, v in keys.items() if k not in _OF_ONE_HOST}


def model_config(config: ml_collections.ConfigDict) -> FasterViTConfig:
    """Returns the configuration of the network of a run.

    Raises:
        ValueError: the configuration is invalid. The message says why.
    """
    try:
        return variant_config(config.model.name, **model_options(config))
    except ValueError as error:
        raise ValueError(f"Invalid config.model: {error}") from None


def model_options(config: ml_collections.ConfigDict) -> dict:
    """Returns the options that differ from the named network."""
    options = {key: value for key, value in config.model.items() if value is not None}
    del options["name"], options["dtype"]
    return options


def check_config(
    config: ml_collections.ConfigDict, *, batch_shards: int, hosts: int = 1, tensor: int = 1
) -> None:
    """Checks the values of a config before anything is compiled.

    Values that depend on the data (such as the number of classes) are checked when it is opened.

    Args:
        config: config of the run.
        batch_shards: number of parts into which the mesh splits a batch (`mesh.batch_shards`).
        hosts: number of processes of the run.
        tensor: size of the mesh axis `tensor`.

    Raises:
        ValueError: a value is invalid. The message says the key, the value and what is expected.
    """
    network = model_config(config)
    if network.num_classes < 1:
        raise _refused("model.num_classes", config.model.num_classes, "at least 1")
    if network.in_chans != 3:
        raise _refused("model.in_chans", network.in_chans, "3, because images are read as RGB")
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
    _check(config, "crop.scale", lambda value: value[1] <= 1, "numbers of at most 1")
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
        _check(config, key, lambda value: 0 <= value <= 1, "a number from 0 to 1")
    _check(
        config,
        "evaluation.crop_fraction",
        lambda value: 0 < value <= 1,
        "a number above 0 and at most 1",
    )
    for key in ("label_smoothing", "ema_decay"):
        _check(config, key, lambda value: 0 <= value < 1, "a number in [0, 1)")
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
        "different stages from 1 to 4, such as (1, 2)",
    )
    _check_tensor(network, tensor)
    _check_groups(config, batch_shards)
    for key in ("batch_size", "evaluation.batch_size"):
        for parts, what in ((batch_shards, "devices that share a batch"), (hosts, "hosts")):
            _check(
                config,
                key,
                lambda value, parts=parts: value % parts == 0,
                f"a multiple of the {parts} {what}",
            )


def _check_tensor(network: FasterViTConfig, tensor: int) -> None:
    """Checks that `tensor` divides the widths of the attention blocks."""
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
                    f"Invalid config.mesh.tensor={tensor}: must divide the {size} {what} of stage "
                    f"{stage + 1}."
                )


def batch_norm_group(config: ml_collections.ConfigDict) -> int:
    """Returns the number of images that batch norm normalizes together."""
    return min(config.group_size, config.batch_size // config.accumulate)


def mixing_group(config: ml_collections.ConfigDict, batch_shards: int) -> int:
    """Returns the number of images that are mixed together.

    `batch_shards` is the number of parts into which the mesh splits a batch.
    """
    return min(config.group_size, config.batch_size // batch_shards)


def _check_groups(config: ml_collections.ConfigDict, batch_shards: int) -> None:
    parts = batch_shards * config.accumulate
    if config.batch_size % parts:
        raise _refused(
            "batch_size",
            config.batch_size,
            f"a multiple of {parts}, which is {batch_shards} devices that share a batch × "
            f"config.accumulate={config.accumulate}",
        )
    part = config.batch_size // config.accumulate
    if part % batch_norm_group(config):
        raise _refused(
            "group_size",
            config.group_size,
            f"a divisor of {part}, the number of images that are processed together",
        )
    per_device = config.batch_size // batch_shards
    if per_device % mixing_group(config, batch_shards):
        raise _refused(
            "group_size", config.group_size, f"a divisor of {per_device}, the images per device"
        )


def _check(config, key: str, holds, wanted: str) -> None:
    value = config
    for part in key.split("."):
        value = value[part]
    if not holds(value):
        raise _refused(key, value, wanted)


def _refused(key: str, value, wanted: str) -> ValueError:
    return ValueError(f"Invalid config.{key}={value!r}: expected {wanted}.")
