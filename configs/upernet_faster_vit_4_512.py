"""UperNet with FasterViT-4 on ADE20K: 160,000 steps of 16 crops of 512 × 512."""

from fastervit_jax.segmentation.recipe import ade20k_recipe


def get_config():
    # Start from ImageNet: --config.finetune.backbone=PATH of FasterViT-4's weights.
    return ade20k_recipe("upernet_faster_vit_4", drop_path=0.7)
