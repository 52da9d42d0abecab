"""A few steps of the whole ImageNet recipe on a tiny network, to check a machine.

It reproduces no published result. RandAugment, mixing, erasing, drop path, MESA and the EMA are on.
Two epochs take seconds to minutes.

    fastervit train --config=smoke --workdir=DIR --config.data.train=SPEC \
        --config.data.validation=SPEC --config.model.num_classes=N
"""

from fastervit_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.model.dtype = "float32"
    config.model.resolution = 64
    config.model.window_size = (2, 2, 2, 2)
    config.model.depths = (1, 1, 1, 1)
    config.model.dim = 16
    config.model.in_dim = 8
    config.data.num_workers = 2
    config.batch_size = 8
    config.epochs = 2
    config.cooldown_epochs = 0
    config.optimizer.warmup_epochs = 0.5
    config.mesa.start = 0.0
    config.ema_decay = 0.9
    config.evaluation.batch_size = 8
    config.log_every_steps = 1
    return config
