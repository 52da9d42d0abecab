"""The check of a config's values, before anything is compiled."""

from collections.abc import Sequence
from typing import Any

import ml_collections

from fastervit_jax.models import FasterViTConfig
from fastervit_jax.models.config import ATTENTION_STAGES
from fastervit_jax.runs.config import batch_norm_group, check_types, mixing_group, model_config


def check_config(
    config: ml_collections.ConfigDict,
    *,
    batch_shards: int,
    hosts: int = 1,
    tensor: int = 1,
    metrics: Sequence[str] = ("top1", "top5", "loss"),
) -> None:
    """Checks the values of a config before anything is compiled: those that every task has.

    Values that depend on the data (such as the number of classes) are checked when it is opened.

    Args:
        config: config of the run.
        batch_shards: number of parts into which the mesh splits a batch (`mesh.batch_shards`).
        hosts: number of processes of the run.
        tensor: size of the mesh axis `tensor`.
        metrics: metrics of the task's evaluation.

    Raises:
        ValueError: a value is invalid. The message says the key, the value and what is expected.
    """
    check_types(config)
    network = model_config(config)
    if network.num_classes < 1:
        raise _refused("model.num_classes", config.model.num_classes, "at least 1")
    _check(config, "seed", lambda value: 0 <= value < 2**32, "an integer from 0 to 2**32 - 1")
    _check_sequences(config, network)
    _check_choices(config, metrics)
    _check_ranges(config)
    _check_optimizer(config)
    _check_tensor(network.backbone, tensor)
    _check_groups(config, batch_shards)
    for key in ("batch_size", "evaluation.batch_size"):
        for parts, what in (
            (batch_shards, "devices that share a batch (config.mesh)"),
            (hosts, "hosts"),
        ):
            _check(
                config,
                key,
                lambda value, parts=parts: value % parts == 0,
                f"a multiple of the {parts} {what}",
            )


def _check_sequences(config: ml_collections.ConfigDict, network: Any) -> None:
    """Checks the keys with several values, and those of one task."""
    for key in ("crop.scale", "crop.ratio", "segmentation.ratio"):
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
    _check(
        config,
        "resize.crop_sides",
        lambda value: len(value) == 2 and 1 <= value[0] <= value[1],
        "a pair (shortest, longest) of whole numbers of 1 or more",
    )
    for key in ("resize.short_sides", "resize.crop_short_sides"):
        _check(
            config,
            key,
            lambda value: len(value) > 0 and min(value) >= 1,
            "one or more whole numbers of 1 or more",
        )
    _check(
        config,
        "data.buckets",
        lambda value: len(value) > 0 and all(len(size) == 2 and min(size) >= 1 for size in value),
        "sizes such as ((800, 1344), (1344, 800), (1344, 1344))",
    )
    _check(
        config,
        "evaluation.scales",
        lambda value: len(value) > 0 and min(value) > 0,
        "one or more positive numbers",
    )
    _check(
        config,
        "evaluation.stride",
        lambda value: value is None or 1 <= value <= min(network.resolution),
        f"None, or 1 to {min(network.resolution)}, the shortest side of a window",
    )
    _check(
        config,
        "optimizer.drop_epochs",
        lambda value: all(epoch >= 0 for epoch in value),
        "numbers of 0 or more",
    )
    _check(
        config,
        "finetune.backbone",
        lambda value: not value or config.task != "classification",
        "empty, because a classifier starts from config.finetune.weights",
    )
    _check(
        config,
        "remat_transformer",
        lambda value: not value or config.task == "detection",
        f"False, because a network for {config.task} has no such transformer",
    )
    _check(
        config,
        "remat",
        lambda value: len(set(value)) == len(value) and set(value) <= {1, 2, 3, 4},
        "different stages from 1 to 4, such as (1, 2)",
    )


def _check_choices(config: ml_collections.ConfigDict, metrics: Sequence[str]) -> None:
    for key, choices in (
        ("model.dtype", ("float32", "bfloat16")),
        ("crop.interpolation", ("bilinear", "bicubic", "random")),
        ("data.transparency", ("drop", "white", "black")),
        ("data.exif", ("ignore", "apply")),
        ("optimizer.name", ("adamw", "lamb", "sgd")),
        ("evaluation.crop_mode", ("center", "squash")),
        ("evaluation.mode", ("slide", "whole")),
        ("optimizer.schedule", ("cosine", "poly", "step")),
        ("checkpoint.best_metric", metrics),
    ):
        _check(config, key, lambda value, choices=choices: value in choices, " or ".join(choices))


def _check_ranges(config: ml_collections.ConfigDict) -> None:
    for key in (
        "batch_size",
        "group_size",
        "accumulate",
        "max_skipped_in_a_row",
        "epochs",
        "log_every_steps",
        "evaluation.batch_size",
        "evaluation.every_epochs",
        "evaluation.short_side",
        "checkpoint.keep",
        "data.max_boxes",
        "data.bucket_window",
        "resize.long_side",
        "segmentation.short_side",
        "segmentation.long_side",
    ):
        _check(config, key, lambda value: value >= 1, "1 or more")
    for key in (
        "cooldown_epochs",
        "stop_after_epochs",
        "total_steps",
        "evaluation.every_steps",
        "checkpoint.every_epochs",
        "checkpoint.every_steps",
        "checkpoint.keep_best",
        "data.num_workers",
        "mixup_alpha",
        "cutmix_alpha",
        "denoising.queries",
        "denoising.box_noise",
        "segmentation.auxiliary_weight",
        "mesa.weight",
    ):
        _check(config, key, lambda value: value >= 0, "0 or more")
    for key in (
        "data.max_damaged_share",
        "flip",
        "cutmix_probability",
        "mixing_probability",
        "erasing_probability",
        "denoising.label_noise",
        "resize.crop_probability",
        "segmentation.max_class_share",
        "mesa.start",
        "finetune.layer_decay",
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


def _check_optimizer(config: ml_collections.ConfigDict) -> None:
    for key in (
        "learning_rate",
        "backbone_factor",
        "warmup_steps",
        "warmup_start",
        "minimum",
        "weight_decay",
        "clip_norm",
    ):
        _check(config, f"optimizer.{key}", lambda value: value >= 0, "0 or more")
    lowest = (
        ("warmup_start", "minimum") if config.optimizer.schedule != "step" else ("warmup_start",)
    )
    for key in lowest:
        _check(
            config,
            f"optimizer.{key}",
            lambda value: value <= config.optimizer.learning_rate,
            f"at most config.optimizer.learning_rate={config.optimizer.learning_rate}",
        )
    _check(
        config,
        "optimizer.warmup_epochs",
        lambda value: config.total_steps or 0 <= value <= config.epochs,
        f"0 to config.epochs={config.epochs}",
    )
    if config.total_steps:
        _check(
            config,
            "optimizer.warmup_steps",
            lambda value: value <= config.total_steps,
            f"0 to config.total_steps={config.total_steps}",
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


def _check_groups(config: ml_collections.ConfigDict, batch_shards: int) -> None:
    parts = batch_shards * config.accumulate
    if config.batch_size % parts:
        raise _refused(
            "batch_size",
            config.batch_size,
            f"a multiple of {parts}, which is {batch_shards} devices that share a batch "
            f"(config.mesh) × config.accumulate={config.accumulate}",
        )
    part = config.batch_size // config.accumulate
    if part % batch_norm_group(config):
        raise _refused(
            "group_size",
            config.group_size,
            f"a divisor of {part}, the images that are processed together: config.batch_size / "
            "config.accumulate",
        )
    per_device = config.batch_size // batch_shards
    if per_device % mixing_group(config, batch_shards):
        raise _refused(
            "group_size",
            config.group_size,
            f"a divisor of {per_device}, the images per device: config.batch_size / {batch_shards} "
            "devices that share a batch (config.mesh)",
        )


def _check(config, key: str, holds, wanted: str) -> None:
    value = config
    for part in key.split("."):
        value = value[part]
    try:
        held = holds(value)
    except (TypeError, IndexError):  # null in a `config.json`, or a value of another type
        held = False
    if not held:
        raise _refused(key, value, wanted)


def _refused(key: str, value, wanted: str) -> ValueError:
    return ValueError(f"Invalid config.{key}={value!r}: expected {wanted}.")
