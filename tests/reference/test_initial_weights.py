"""New weights are drawn from the official distributions, tensor by tensor."""

import fastervit.models.faster_vit
import numpy as np
import pytest
import torch
from flax import nnx
from scipy import stats

from fastervit_jax.models import VARIANTS, FasterViT, variant_config
from fastervit_jax.models.pure_model import flatten
from fastervit_jax.weights.names import from_torch_layout, torch_name
from tests.quick_compilation import quick_jit

NAME = "faster_vit_3_224"
OPTIONS = dict(dim=32, in_dim=16, depths=(1, 0, 1, 0), layer_scale_conv=0.1, num_classes=50)


@pytest.fixture(scope="module", params=["eager", "traced"])
def ours(request):
    """New weights by name: drawn by NumPy, and by JAX inside a traced function."""

    def make():
        return nnx.state(FasterViT(variant_config(NAME, **OPTIONS), rngs=nnx.Rngs(0)))

    state = make() if request.param == "eager" else quick_jit(make)()
    return {name: np.asarray(array) for name, array in flatten(state).items()}


def test_same_distributions(ours):
    torch.manual_seed(0)
    options = VARIANTS[NAME] | OPTIONS | dict(ct_size=2, mlp_ratio=4, window_size=(7,) * 4)
    theirs = fastervit.models.faster_vit.FasterViT(**options).state_dict()

    compared = 0
    for name, mine in ours.items():
        expected = from_torch_layout(theirs[torch_name(name)].numpy())
        if np.ptp(expected) == 0:
            np.testing.assert_array_equal(mine, expected, err_msg=name)
            continue
        compared += 1
        # Whether two samples are of one distribution; there are some thirty, hence so small a p.
        assert stats.ks_2samp(mine.ravel(), expected.ravel()).pvalue > 1e-5, name
        if mine.size > 1000:
            assert np.std(mine) == pytest.approx(np.std(expected), rel=0.1), name
            assert 0.7 < np.abs(mine).max() / np.abs(expected).max() < 1.4, name
    assert compared > 20


def test_no_two_tensors_are_drawn_with_the_same_key(ours):
    drawn = [array.tobytes() for array in ours.values() if np.ptp(array) > 0]
    assert len(set(drawn)) == len(drawn)
