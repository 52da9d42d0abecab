"""DINO with 4 scales on COCO, FasterViT-0, 36 epochs: the official configuration.

    fastervit train --config=dino_4scale_faster_vit_0_224_36ep --workdir=DIR \
        --config.finetune.backbone=faster_vit_0_224.pth.tar
"""

from fastervit_jax.detection.recipe import coco_recipe


def get_config():
    return coco_recipe("dino_4scale_faster_vit_0_224", epochs=36, drop_epoch=30)
