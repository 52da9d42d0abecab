"""The quickstart: a small FasterViT learns handwritten digits from scratch.

It reproduces no published result. It shows every part at work on real images. It should reach
98.5 % top-1 or more on 359 held-out digits, in two minutes on two CPU cores.

    fastervit train --config=digits --workdir=runs/digits
"""

from fastervit_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.model.num_classes = 10
    config.model.dtype = "float32"
    # 8 × 8 scans are enlarged to 64 × 64, so that the third stage's map of 4 × 4 makes four windows
    # of 2 × 2, each with one carrier token.
    config.model.resolution = 64
    config.model.window_size = (2, 2, 2, 2)
    config.model.ct_size = 1
    config.model.depths = (1, 1, 2, 1)
    config.model.dim = 24
    config.model.in_dim = 16
    config.model.drop_path_rate = 0.1

    config.data.train = "digits:train"
    config.data.validation = "digits:validation"
    config.data.num_workers = 0
    config.batch_size = 64

    # Digits are neither mirrored nor seen in small parts.
    config.crop.scale = (0.6, 1.0)
    config.crop.ratio = (0.85, 1.18)
    config.flip = 0.0
    config.rand_augment = ""
    config.mixup_alpha = 0.0
    config.cutmix_alpha = 0.0
    config.erasing_probability = 0.0

    config.epochs = 20
    config.cooldown_epochs = 0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_epochs = 3.0
    config.optimizer.weight_decay = 0.05
    config.mesa.weight = 0.0
    config.ema_decay = 0.98  # the last fifty steps

    config.evaluation.batch_size = 128
    config.evaluation.crop_fraction = 1.0
    config.evaluation.every_epochs = 2
    config.checkpoint.every_epochs = 10
    config.log_every_steps = 20
    return config
