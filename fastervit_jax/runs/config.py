"""The config of a run: all keys with their defaults. `config_checks` checks their values.

Recipes in `configs/` start from `default_config()` and change it. Flags change it further
(`--config.optimizer.learning_rate=1e-3`). None means the value of the model.
"""

import json
from collections.abc import Sequence
from typing import Any

import ml_collections
from jax.sharding import Mesh
from ml_collections import config_dict

from fastervit_jax.models import network_config
from fastervit_jax.parallel.mesh import make_mesh
from fastervit_jax.runs import config_types

NEW_NAMES = {"average_decay": "ema_decay"}
"""Renamed keys. Old work directories and flags use the old names."""

# Keys that may differ between hosts.
_OF_ONE_HOST = ("data.data_dir", "data.num_workers")


def default_config() -> ml_collections.ConfigDict:
    """The keys of a run. The values are the official ImageNet-1K recipe where it has one.

    The comment at a key is its documentation (docs/hooks/generated.py).
    """
    optional = config_dict.placeholder
    config = ml_collections.ConfigDict()
    config.task = "classification"  # what is trained: a name of `training.tasks.TASKS`
    config.seed = 0  # seed of everything random: weights, order, augmentation, drop path

    config.model = ml_collections.ConfigDict(
        {
            "name": "faster_vit_0_224",  # a name of `list_models()`
            "num_classes": 1000,  # number of classes
            "dtype": "bfloat16",  # type of the computation; parameters are float32
            "resolution": optional(object),  # image size in pixels: one side, or (height, width)
            "depths": optional(tuple),  # number of blocks of each stage
            "num_heads": optional(tuple),  # attention heads of each stage
            "window_size": optional(tuple),  # side of the attention windows of each stage
            "hat": optional(tuple),  # for each stage, whether it has carrier tokens
            "dim": optional(int),  # width of the first stage; it doubles at each stage
            "in_dim": optional(int),  # width between the two convolutions of the stem
            "ct_size": optional(int),  # side of the square of carrier tokens of a window
            "mlp_ratio": optional(float),  # hidden width of the MLPs over the token width
            "layer_scale": optional(float),  # initial layer scale of the attention blocks
            "do_propagation": optional(bool),  # add carrier tokens to the map in a last block
            "drop_path_rate": optional(float),  # drop path of the last block; linear from 0
            "drop_rate": optional(float),  # dropout after projections and inside MLPs
            "attn_drop_rate": optional(float),  # dropout of attention weights
            "hidden": optional(int),  # detectors: width of the tokens
            "heads": optional(int),  # detectors: attention heads of encoder and decoder
            "feedforward": optional(int),  # detectors: hidden width of the feed-forward layers
            "encoder_layers": optional(int),  # detectors: layers of the encoder
            "decoder_layers": optional(int),  # detectors: layers of the decoder
            "queries": optional(int),  # detectors: boxes that are returned for each image
            "channels": optional(int),  # segmenters: width of the decoder
            "auxiliary_channels": optional(int),  # segmenters: width of the auxiliary head; 0: none
            "map_norms": optional(bool),  # segmenters: a layer norm on each map of the backbone
            "head_dropout": optional(float),  # segmenters: dropout of channels before classifiers
        }
    )

    config.finetune = ml_collections.ConfigDict(
        {
            # Initial weights: a converted directory, an official file or a work directory. Empty:
            # new weights.
            "weights": "",
            # Initial weights of the FasterViT in a larger network: weights of a classifier. Empty:
            # new weights.
            "backbone": "",
            "layer_decay": 1.0,  # factor on the learning rate from each block to the block before
            # Modules that are not trained, such as ("stem", "stages.0"); their batch norms keep
            # their statistics. A linear probe: ("stem", "stages", "downsamples", "norm").
            "frozen": (),
        }
    )

    config.data = ml_collections.ConfigDict(
        {
            "train": "tfds:imagenet2012@train",  # training set
            "validation": "tfds:imagenet2012@validation",  # validation set
            "data_dir": optional(str),  # directory of prepared TFDS sets; None: TFDS's default
            "num_workers": 16,  # decoding processes per host; 0: a thread of the trainer
            "transparency": "drop",  # transparent pixels: drop (as timm), white or black
            "exif": "ignore",  # EXIF orientation of photographs: ignore (as timm) or apply
            # Damaged images that a run replaces, as a share of the images drawn. Above it the run
            # stops.
            "max_damaged_share": 0.001,
            # Detection: sizes (height, width) that batches are padded to. A program is compiled for
            # each size that occurs. Each must hold the largest image of its aspect.
            "buckets": ((800, 1344), (1344, 800), (1088, 1088), (1344, 1344)),
            "bucket_window": 16,  # detection: steps whose images are sorted by aspect together
            "max_boxes": 100,  # detection: boxes of an image that a batch has room for
        }
    )
    config.batch_size = 4096  # images per step, over all hosts

    config.crop = ml_collections.ConfigDict(
        {
            "scale": (0.08, 1.0),  # area of the random crop, as a share of the image
            "ratio": (3 / 4, 4 / 3),  # width / height of the random crop
            "interpolation": "random",  # bilinear, bicubic, or random for either
        }
    )
    config.flip = 0.5  # probability of a horizontal flip
    config.resize = ml_collections.ConfigDict(  # detection: sizes of training images
        {
            "short_sides": tuple(range(480, 801, 32)),  # lengths of the short side, one is drawn
            "long_side": 1333,  # largest length of the long side, also in evaluation
            "crop_probability": 0.5,  # probability of a crop before
            "crop_short_sides": (400, 500, 600),  # lengths of the short side before a crop
            "crop_sides": (384, 600),  # shortest and longest side of a crop
        }
    )
    config.denoising = ml_collections.ConfigDict(
        {
            "queries": 200,  # detection: about how many denoising queries; 0: none
            "label_noise": 0.25,  # probability that the class of one is redrawn
            "box_noise": 0.4,  # largest move of a corner, as a share of half the side
        }
    )
    config.segmentation = ml_collections.ConfigDict(
        {
            # Length of the short side of training images, times a drawn factor. Crops of the
            # model's resolution are cut out.
            "short_side": 512,
            "long_side": 2048,  # largest length of the long side, also in evaluation
            "ratio": (0.5, 2.0),  # smallest and largest factor on the sides
            "max_class_share": 0.75,  # largest share of one class in a crop, within ten draws
            "distort": True,  # change brightness, contrast, saturation and hue
            "auxiliary_weight": 0.4,  # weight of the auxiliary head's loss
        }
    )
    config.rand_augment = "rand-m9-mstd0.5-inc1"  # RandAugment in timm's notation; empty: none
    # Flip and RandAugment on the device instead of the host, for hosts that are too slow. An image
    # can differ from the host's by one level of 256 per operation.
    config.distort_on_device = False

    config.mixup_alpha = 0.8  # Beta parameter of mixup; 0: no mixup
    config.cutmix_alpha = 1.0  # Beta parameter of CutMix; 0: no CutMix
    config.cutmix_probability = 0.5  # probability of CutMix where both are on
    config.mixing_probability = 1.0  # probability that a group is mixed at all
    config.label_smoothing = 0.1  # share of the label spread over all classes
    config.erasing_probability = 0.25  # probability that a rectangle of an image is erased

    config.epochs = 310  # epochs of warm-up and cosine
    config.cooldown_epochs = 10  # epochs at the lowest rate, after the others
    config.total_steps = 0  # steps of the run; 0: as many as the epochs have
    # Stop after so many epochs. The same command without this key resumes the run. 0: do not stop.
    config.stop_after_epochs = 0
    config.optimizer = ml_collections.ConfigDict(
        {
            "name": "adamw",  # adamw, lamb or sgd
            "learning_rate": 5e-3,  # the highest rate
            "backbone_factor": 1.0,  # factor on the rate of the FasterViT in a larger network
            # After the warm-up: cosine, poly (linear to 0), or step (a tenth after drop_epochs).
            "schedule": "cosine",
            "drop_epochs": (),  # epochs after which the schedule `step` drops, also fractions
            "warmup_epochs": 20.0,  # length of the linear warm-up
            "warmup_steps": 0,  # the same in steps; 0: warmup_epochs
            "warmup_start": 1e-6,  # rate at the start of the warm-up
            "minimum": 5e-6,  # rate at the end of the cosine, and in the cooldown
            "weight_decay": 0.005,  # decay of matrices and kernels
            "decay_all": False,  # also decay biases and the scales of norms
            "clip_norm": 5.0,  # largest global norm of the gradients; 0: no clipping
        }
    )
    config.ema_decay = 0.9998  # decay of the EMA of weights and statistics, per step
    config.mesa = ml_collections.ConfigDict(
        {
            "weight": 0.1,  # weight of the divergence from the answers of the EMA; 0: no MESA
            "start": 0.25,  # MESA starts after this share of the epochs
        }
    )
    # Images that batch norm normalizes together, and that are mixed together: the images of one GPU
    # in the official recipe. A device that holds fewer mixes those that it holds.
    config.group_size = 128
    config.accumulate = 1  # parts of a batch, which go through the network one after the other
    # Stages, 1 to 4, whose blocks are computed again for the gradient, to save memory: (1, 2).
    config.remat = ()
    # Detection: compute the layers of encoder and decoder again for the gradient, to save memory.
    config.remat_transformer = False
    # Run the attention blocks of a stage as one loop. Deep networks compile in half the time or
    # less, and need more memory.
    config.scan_blocks = False
    config.max_skipped_in_a_row = 10  # consecutive non-finite steps that stop the run

    config.mesh = ml_collections.ConfigDict(
        {
            "data": -1,  # devices that split the batch; -1: all that remain
            "fsdp": 1,  # devices that split the batch, the parameters and the optimizer state
            "tensor": 1,  # devices that split the attention blocks
        }
    )

    config.evaluation = ml_collections.ConfigDict(
        {
            "every_epochs": 1,  # epochs from one evaluation to the next
            "every_steps": 0,  # steps from one evaluation to the next; 0: every_epochs
            "batch_size": 1024,  # images per batch, over all hosts
            "crop_fraction": 0.875,  # share of the resized image that is cropped
            "crop_mode": "center",  # center keeps the aspect; squash ignores it
            "short_side": 800,  # detection and segmentation: length of the short side
            "mode": "slide",  # segmentation: slide (windows of the model's size) or whole
            "stride": optional(
                int
            ),  # segmentation: pixels between windows; None: 2/3 of their side
            "scales": (1.0,),  # segmentation: factors on the sides; several are averaged
            "flip": False,  # segmentation: also average over mirrored images
        }
    )
    config.checkpoint = ml_collections.ConfigDict(
        {
            "every_epochs": 1,  # epochs from one checkpoint to the next; 0: by every_steps alone
            "every_steps": 0,  # also save after so many steps; 0: do not
            "keep": 3,  # number of newest checkpoints to keep
            "keep_best": 1,  # number of best checkpoints to keep beside them
            "best_metric": "top1",  # the metric that decides: top1, top5 or loss; those of the task
        }
    )
    config.resume = ml_collections.ConfigDict(
        {
            # Keys that may differ from those of the checkpoint: ("optimizer.learning_rate",)
            "allow_changes": (),
        }
    )
    config.log_every_steps = 50  # steps from one record to the next
    config.profile_steps = (0, 0)  # first and last step of a profiler trace; (0, 0): no trace
    config.wandb_project = ""  # Weights & Biases project to log to; empty: none
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
    return {
        f"config.{key}": json.dumps(value, default=repr)
        for key, value in keys.items()
        if key not in _OF_ONE_HOST
    }


def check_types(config: ml_collections.ConfigDict) -> None:
    """Checks the keys of a config, and the types of their values (`config_types.check_types`)."""
    model = config.get("model")
    if model is not None and "in_chans" in model:
        raise ValueError(
            f"Invalid config.model.in_chans={model.in_chans!r}: expected no such key: images are "
            "read as RGB."
        )
    config_types.check_types(config, default_config(), NEW_NAMES)


def mesh_of(config: ml_collections.ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of a run, `config.mesh`.

    Args:
        config: config of the run.
        devices: the devices to use; by default all devices of all hosts.

    Raises:
        ValueError: the sizes are invalid, or do not fit the number of devices.
    """
    check_types(config)
    try:
        return make_mesh(**config.mesh, devices=devices)
    except ValueError as error:
        raise ValueError(f"Invalid config.mesh: {error}") from None


def model_config(config: ml_collections.ConfigDict) -> Any:
    """Returns the configuration of the network of a run, a `models.NetworkConfig`.

    Raises:
        ValueError: the configuration is invalid. The message says why.
    """
    try:
        return network_config(config.model.name, **model_options(config))
    except ValueError as error:
        raise ValueError(f"Invalid config.model: {error}") from None


def model_options(config: ml_collections.ConfigDict) -> dict:
    """Returns the options that differ from the named network."""
    options = {key: value for key, value in config.model.items() if value is not None}
    del options["name"], options["dtype"]
    return options


def batch_norm_group(config: ml_collections.ConfigDict) -> int:
    """Returns the number of images that batch norm normalizes together."""
    return min(config.group_size, config.batch_size // config.accumulate)


def mixing_group(config: ml_collections.ConfigDict, batch_shards: int) -> int:
    """Returns the number of images that are mixed together.

    `batch_shards` is the number of parts into which the mesh splits a batch.
    """
    return min(config.group_size, config.batch_size // batch_shards)
