"""Your own folder of images, from official or converted weights.

A folder a class, in a training and a validation directory; the head is new, all else starts from
the weights. Reproduces nothing: a start for one GPU that suits some thousand images. A linear probe
is --config.finetune.frozen="('stem','stages','downsamples','norm')"; to keep the convolution stages
as they are, name 'stem', 'stages.0', 'stages.1', 'downsamples.0' and 'downsamples.1'.

    python train.py --config=configs/finetune_folder.py --workdir=DIR \
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
