"""The attention weights that `commands.visualize` shows are the official network's."""

import numpy as np
import torch

from fastervit_jax.commands.visualize import attention_weights
from tests.reference.official import images, official_model, our_model, to_torch

SMALL = dict(dim=16, in_dim=8, depths=(0, 0, 2, 1), num_classes=20, window_size=(4, 4, 4, 4))


def test_attention_weights():
    options = SMALL | dict(resolution=(100, 170))
    theirs = official_model("faster_vit_3_any_res", **options)
    seen = {}

    def keep(name):
        def hook(_module, _inputs, output):
            seen[name] = output.detach().numpy()

        return hook

    for name, module in theirs.named_modules():
        if name.endswith("attn_drop"):
            module.register_forward_hook(keep(name))
    image = images(1, 100, 170)
    with torch.no_grad():
        theirs(to_torch(image))

    ours = our_model("faster_vit_3_any_res", theirs, **options)
    layers = attention_weights(ours, image[0].astype(np.float32))
    assert len(layers) == 3 and len(seen) == 5
    for layer in layers:
        block = f"levels.{layer.stage - 1}.blocks.{layer.block - 1}"
        expected = seen[f"{block}.attn.attn_drop"]
        np.testing.assert_allclose(layer.windows.reshape(expected.shape), expected, atol=1e-5)
        if layer.carriers is not None:
            expected = seen[f"{block}.hat_attn.attn_drop"][0]
            np.testing.assert_allclose(layer.carriers.reshape(expected.shape), expected, atol=1e-5)
