"""DINO with 4 scales on COCO, FasterViT-3, 12 epochs: the official configuration.

    fastervit train --config=dino_4scale_faster_vit_3_224_12ep --workdir=DIR \
        --config.finetune.backbone=faster_vit_3_224.pth.tar
"""

from fastervit_jax.detection.recipe import coco_recipe


def get_config():
    config = coco_recipe("dino_4scale_faster_vit_3_224", epochs=12, drop_epoch=11)
    # Memory: layers are computed again for the gradient.
    config.remat = (1, 2, 3, 4)
    config.remat_transformer = True
    return config
