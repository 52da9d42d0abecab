"""DINO with 4 scales on COCO, FasterViT-4-21K-224, 36 epochs: the official configuration.

    fastervit train --config=dino_4scale_faster_vit_4_21k_224_36ep --workdir=DIR \
        --config.finetune.backbone=faster_vit_4_21k_224.pth.tar
"""

from fastervit_jax.detection.recipe import coco_recipe


def get_config():
    config = coco_recipe("dino_4scale_faster_vit_4_21k_224", epochs=36, drop_epoch=30)
    # Memory: layers are computed again for the gradient.
    config.remat = (1, 2, 3, 4)
    config.remat_transformer = True
    return config
