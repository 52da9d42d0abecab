"""The 21k model at 384 pixels, from its official weights at 224.

It follows the route of the published faster_vit_4_21k_384 (87.6 % top-1). The windows grow with the
image, to 24 and 12, so all weights are used. The official repository has no recipe for it. The
learning rate, decay and epochs here are usual values for fine-tuning, not measured. Meant for a pod
slice of 32 chips.

    fastervit train --config=finetune_21k_384 --workdir=DIR \
        --config.finetune.weights=fastervit_4_21k_224_w14.pth.tar --config.data.data_dir=TFDS_DIR
"""

from fastervit_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.model.name = "faster_vit_4_21k_224"
    config.model.resolution = 384
    config.model.window_size = (7, 7, 24, 12)
    config.batch_size = 1024
    config.epochs = 30
    config.cooldown_epochs = 0
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.weight_decay = 1e-8
    config.finetune.layer_decay = 0.9
    config.mesa.weight = 0.0
    config.evaluation.crop_fraction = 1.0
    config.evaluation.crop_mode = "squash"
    return config
