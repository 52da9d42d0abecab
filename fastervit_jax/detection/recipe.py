"""What the recipes of DINO on COCO have in common: the official configuration."""

import ml_collections

from fastervit_jax.runs.config import default_config


def coco_recipe(model: str, *, epochs: int, drop_epoch: int) -> ml_collections.ConfigDict:
    """The official recipe: 8 GPUs with 2 images each, AdamW, one drop of the rate, no EMA.

    Args:
        model: name of the network.
        epochs: length of the run.
        drop_epoch: epochs after which the rate drops to a tenth.
    """
    config = default_config()
    config.task = "detection"
    config.model.name = model
    config.model.num_classes = 91  # COCO's ids as they are
    config.model.dtype = "float32"

    config.data.train = "coco:/data/coco@train2017"
    config.data.validation = "coco:/data/coco@val2017"
    config.batch_size = 16
    config.group_size = 2  # images of one GPU: batch norms, and groups of denoising queries

    config.epochs = epochs
    config.cooldown_epochs = 0
    config.optimizer.learning_rate = 1e-4
    config.optimizer.backbone_factor = 0.1
    config.optimizer.schedule = "step"
    config.optimizer.drop_epochs = (drop_epoch,)
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.warmup_start = 0.0
    config.optimizer.minimum = 0.0
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_all = True
    config.optimizer.clip_norm = 0.1
    config.mesa.weight = 0.0
    config.ema_decay = 0.0  # no EMA

    config.evaluation.batch_size = 16
    config.checkpoint.best_metric = "AP"
    return config
