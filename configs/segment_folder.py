"""Segmentation of your own images and masks, from the weights of an ImageNet classifier.

    fastervit train --config=segment_folder --workdir=runs/mine \
        --config.data.train=masks:IMAGES,MASKS,CLASSES.txt \
        --config.data.validation=masks:IMAGES,MASKS,CLASSES.txt \
        --config.model.num_classes=N --config.finetune.backbone=faster_vit_0.pth.tar
"""

from fastervit_jax.segmentation.recipe import ade20k_recipe


def get_config():
    config = ade20k_recipe("upernet_faster_vit_0", drop_path=0.3)
    config.data.train = "masks:/data/images/train,/data/masks/train,/data/classes.txt"
    config.data.validation = "masks:/data/images/val,/data/masks/val,/data/classes.txt"
    config.model.num_classes = 2
    config.data.num_workers = 4

    config.total_steps = 20_000
    config.optimizer.warmup_steps = 500
    config.evaluation.every_steps = 2_000
    config.checkpoint.every_steps = 2_000
    return config
