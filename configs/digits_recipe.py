"""The digits with the whole ImageNet recipe.

It reproduces no published result. It shows that mixing, erasing, RandAugment, MESA and the EMA work
together on real images. RandAugment is weaker than in the ImageNet recipe, because scans of 8 × 8
pixels do not survive that.

    fastervit train --config=digits_recipe --workdir=runs/digits_recipe
"""

from fastervit_jax.runs.recipes import load_recipe


def get_config():
    config = load_recipe("digits")
    config.rand_augment = "rand-m3-mstd0.5-inc1"
    config.mixup_alpha = 0.8
    config.cutmix_alpha = 1.0
    config.erasing_probability = 0.25
    config.mesa.weight = 0.1
    config.epochs = 40
    config.ema_decay = 0.99
    return config
