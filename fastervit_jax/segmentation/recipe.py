"""What the recipes of UperNet on ADE20K have in common."""

import ml_collections

from fastervit_jax.runs.config import default_config


def ade20k_recipe(model: str, *, drop_path: float, backbone: str = "") -> ml_collections.ConfigDict:
    """The recipe of mmsegmentation's transformer backbones: 160,000 steps of 16 crops of 512 × 512.

    The paper of FasterViT reports results (mIoU 47.2, 48.7 and 49.1 for models 2, 3 and 4), but not
    its recipe. The values here are those of the same first author's later MambaVision, and those of
    mmsegmentation where that is silent. Drop path between 0.3 and 0.7 is chosen by model size.

    Args:
        model: name of the network.
        drop_path: drop path of the last block.
        backbone: weights of an ImageNet classifier to start from (`config.finetune.backbone`).
    """
    config = default_config()
    config.task = "segmentation"
    config.model.name = model
    config.model.num_classes = 150
    config.model.drop_path_rate = drop_path
    config.finetune.backbone = backbone

    config.data.train = "ade20k:/data/ADEChallengeData2016@training"
    config.data.validation = "ade20k:/data/ADEChallengeData2016@validation"
    config.batch_size = 16
    config.group_size = 16  # batch norm over the whole batch (SyncBN)

    config.total_steps = 160_000
    config.optimizer.learning_rate = 6e-5
    config.optimizer.schedule = "poly"
    config.optimizer.warmup_steps = 1500
    config.optimizer.warmup_start = 6e-11
    config.optimizer.minimum = 0.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 0.0  # no clipping
    config.mesa.weight = 0.0
    config.ema_decay = 0.0  # no EMA

    config.evaluation.every_steps = 16_000
    config.evaluation.batch_size = 16
    config.evaluation.short_side = 512
    config.checkpoint.every_epochs = 0
    config.checkpoint.every_steps = 16_000
    config.checkpoint.best_metric = "mIoU"
    return config
