"""Your own folder of images, from official or converted weights.

You need one folder per class, in a training and a validation directory. The head is new; all other
weights start from the given ones. It reproduces no published result: it is a start for one GPU and
some thousand images. For a linear probe, set
--config.finetune.frozen="('stem','stages','downsamples','norm')". To freeze the convolution stages,
name 'stem', 'stages.0', 'stages.1', 'downsamples.0' and 'downsamples.1'.

    fastervit train --config=finetune_folder --workdir=DIR \
        --config.finetune.weights=fastervit_0_224_1k.pth.tar --config.model.num_classes=N \
        --config.data.train=folder:PATH/train --config.data.validation=folder:PATH/val
"""

from fastervit_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.model.name = "faster_vit_0_224"
    config.data.num_workers = 4
    config.batch_size = 64
    config.crop.scale = (0.35, 1.0)
    config.mixup_alpha = 0.0
    config.cutmix_alpha = 0.0
    config.epochs = 20
    config.cooldown_epochs = 0
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_epochs = 2.0
    config.optimizer.weight_decay = 0.05
    config.finetune.layer_decay = 0.8
    config.mesa.weight = 0.0
    config.ema_decay = 0.99
    config.evaluation.batch_size = 64
    return config
