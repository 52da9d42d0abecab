"""Segmentation from scratch in minutes: a small UperNet finds handwritten digits on photographs.

It reproduces no published result. It shows every part of segmentation at work on real images.

    fastervit train --config=segment_digits --workdir=runs/segment_digits
"""

from fastervit_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.task = "segmentation"
    config.model.name = "upernet_faster_vit_0"
    config.model.num_classes = 11  # the background and ten digits
    config.model.dtype = "float32"
    # The maps of stages 3 and 4 have 6 × 6 and 3 × 3 positions: windows of 3 × 3.
    config.model.resolution = (96, 96)
    config.model.window_size = (7, 7, 3, 3)
    config.model.ct_size = 1
    config.model.depths = (1, 1, 2, 1)
    config.model.dim = 24
    config.model.in_dim = 16
    config.model.drop_path_rate = 0.0
    config.model.channels = 48
    config.model.auxiliary_channels = 32

    config.data.train = "scattered_digits:train"
    config.data.validation = "scattered_digits:validation"
    config.data.num_workers = 0
    config.batch_size = 8
    config.group_size = 8
    config.segmentation.short_side = 104
    config.segmentation.ratio = (0.9, 1.25)
    config.segmentation.max_class_share = 1.0
    config.segmentation.distort = False
    config.flip = 0.0  # digits are not mirrored

    config.epochs = 44
    config.cooldown_epochs = 0
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.schedule = "poly"
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.minimum = 0.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 5.0
    config.mesa.weight = 0.0
    config.ema_decay = 0.99  # the last hundred steps

    config.evaluation.batch_size = 16
    config.evaluation.short_side = 104
    config.evaluation.every_epochs = 11
    config.checkpoint.every_epochs = 11
    config.checkpoint.best_metric = "mIoU"
    config.log_every_steps = 25
    return config
