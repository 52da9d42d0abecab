"""The 21k model at 384 pixels, from its official weights at 224.

Reproduces the route of the published faster_vit_4_21k_384 (87.6 % top-1; windows grow with the
image, 24 and 12, so every weight is taken over). The official repository publishes no recipe for
it: rate, decay and epochs here are the usual ones of fine-tuning, not measured. One pod slice of 32
chips.

    python train.py --config=configs/finetune_21k_384.py --workdir=DIR \
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
