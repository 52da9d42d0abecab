"""Every published network against the official function of its name: tensors, sizes and rates."""

import fastervit.models.faster_vit
import fastervit.models.faster_vit_any_res
import pytest
import timm.layers
import torch

from fastervit_jax.models import VARIANTS, abstract_model, variant_config
from fastervit_jax.weights.names import TOKENIZER_COPY, torch_name
from tests.reference.official import DERIVED, flat_state


@pytest.fixture
def official_shapes(monkeypatch):
    """Builds official networks without allocating their weights."""
    linspace = torch.linspace
    # Drop-path rates are read as numbers, which the meta device has none of.
    monkeypatch.setattr(torch, "linspace", lambda *args: linspace(*args, device="cpu"))

    def build(name):
        package = fastervit.models
        module = package.faster_vit_any_res if "any_res" in name else package.faster_vit
        with torch.device("meta"):
            return getattr(module, name)()

    return build


def test_names():
    package = fastervit.models
    official = {*package.faster_vit.default_cfgs, *package.faster_vit_any_res.default_cfgs}
    assert set(VARIANTS) == official


@pytest.mark.parametrize("name", VARIANTS)
def test_same_tensors_sizes_and_rates(name, official_shapes):
    theirs = official_shapes(name)
    ours = abstract_model(variant_config(name))

    their_shapes = {
        key: tuple(tensor.shape)
        for key, tensor in theirs.state_dict().items()
        if not key.endswith((*DERIVED, "num_batches_tracked")) and TOKENIZER_COPY not in key
    }
    our_shapes = {torch_name(key): _torch_shape(var.shape) for key, var in flat_state(ours).items()}
    assert our_shapes == their_shapes

    for stage, level in enumerate(theirs.levels):
        blocks = list(zip(ours.stages[stage].blocks, level.blocks, strict=True))
        for ours_block, their_block in blocks:
            our_rate = 1 - _drop_path(ours_block).keep
            assert our_rate == pytest.approx(_rate(their_block.drop_path), abs=1e-7)
        if stage < 2:
            continue
        assert ours.stages[stage].window_size == level.window_size
        for ours_block, their_block in blocks:
            hierarchical = ours_block.carrier_layer is not None
            assert hierarchical == hasattr(their_block, "hat_attn")
            assert ours.stages[stage].geometry.hierarchical == hierarchical
            if hierarchical:
                assert ours_block.ct_size == their_block.cr_window
                propagates = their_block.last and their_block.do_propagation
                assert ours_block.propagates == propagates


def _torch_shape(shape):
    if len(shape) == 4:
        return (shape[3], shape[2], *shape[:2])
    return tuple(reversed(shape))


def _drop_path(block):
    return block.drop_path if hasattr(block, "drop_path") else block.window_layer.drop_path


def _rate(module):
    return module.drop_prob if isinstance(module, timm.layers.DropPath) else 0.0
