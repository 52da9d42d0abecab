"""A UperNet for inference only: batch norms folded, positions computed."""

from typing import Any

from flax import nnx

from fastervit_jax.models.deploy import Identity, fold_norm, make_constant
from fastervit_jax.models.deploy import deployed as deployed_backbone


def deployed(model: Any) -> Any:
    """A copy of a UperNet that computes the same with less; the model itself is not changed.

    It takes images of the size that the model was built for. The scores agree to rounding (1e-5 of
    the largest in float32). The auxiliary head, which inference does not use, is left out.

    Raises:
        ValueError: the model is already deployed.
    """
    if model.deployed:
        raise ValueError("Invalid call of deploy(): the model is already deployed.")
    model = nnx.clone(model)
    model.eval()
    model.auxiliary = nnx.data(None)
    model.backbone = deployed_backbone(model.backbone)
    decoder = model.decoder
    for block in (
        *decoder.pyramid,
        *decoder.laterals,
        *decoder.levels,
        decoder.bottleneck,
        decoder.fusion,
    ):
        fold_norm(block.conv, block.norm)
        block.norm = Identity()
    backbone, model.backbone = model.backbone, nnx.data(None)  # its arrays are constants already
    make_constant(model)
    model.backbone = backbone
    model.deployed = True
    return model
