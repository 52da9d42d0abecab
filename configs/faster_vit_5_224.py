"""faster_vit_5_224 on ImageNet-1K from scratch, by the official training guide.

Should reach the published 85.6 % top-1 (957.5 M parameters). The official run used 32 GPUs with 128
images each. The guide and the config file of the official repository agree on weight decay 0.12 and
MESA 5.0.

    fastervit train --config=faster_vit_5_224 --workdir=DIR --config.data.data_dir=TFDS_DIR
"""

from fastervit_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.model.name = "faster_vit_5_224"
    config.model.drop_path_rate = 0.3
    config.optimizer.name = "lamb"
    config.optimizer.weight_decay = 0.12
    config.optimizer.warmup_epochs = 20.0
    config.mesa.weight = 5.0
    config.mesa.start = 0.25
    return config
