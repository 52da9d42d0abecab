"""FasterViT-0 for images that are not square, from its official weights at 224.

All weights are used but the position embeddings of the carrier tokens, which a window grid that is
not square does not have. It reproduces no published result. Meant for a pod slice of 8 chips.

    fastervit train --config=finetune_any_res --workdir=DIR \
        --config.finetune.weights=fastervit_0_224_1k.pth.tar --config.data.data_dir=TFDS_DIR
"""

from fastervit_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.model.name = "faster_vit_0_any_res"
    config.model.resolution = (256, 384)
    config.batch_size = 1024
    config.epochs = 30
    config.cooldown_epochs = 0
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_epochs = 5.0
    config.finetune.layer_decay = 0.8
    config.mesa.weight = 0.0
    return config
