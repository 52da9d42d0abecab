"""Training mode without drop path: outputs, batch-norm statistics and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from fastervit_jax.models.pure_model import flatten
from fastervit_jax.weights.names import from_torch_layout, torch_name
from tests.quick_compilation import quick_jit
from tests.reference.official import (
    images,
    largest_difference,
    official_model,
    our_model,
    to_torch,
)

SMALL = dict(dim=16, in_dim=8, depths=(1, 0, 2, 1), num_classes=20, drop_path_rate=0.0)
CASES = {
    "square": ("faster_vit_3_224", dict(layer_scale_conv=0.7)),
    "wide any_res, layer norm last": (
        "faster_vit_3_any_res",
        dict(resolution=(192, 250), layer_norm_last=True, ct_size=1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_statistics_and_gradients(case):
    name, options = CASES[case]
    options = SMALL | options
    theirs = official_model(name, **options).train()
    ours = our_model(name, theirs, **options)
    ours.train()
    batch = images(3, *ours.config.resolution)
    weights = np.random.default_rng(2).standard_normal((3, 20))

    their_logits = theirs(to_torch(batch))
    (their_logits * torch.from_numpy(weights)).sum().backward()

    graph, parameters, statistics = nnx.split(ours, nnx.Param, nnx.BatchStat)

    def loss(parameters, statistics):
        model = nnx.merge(graph, parameters, statistics, copy=True)
        logits = model(jnp.asarray(batch, jnp.float32))
        return (logits * weights).sum(), (logits, nnx.state(model, nnx.BatchStat))

    compute = quick_jit(jax.grad(loss, has_aux=True))
    gradients, (logits, statistics) = compute(parameters, statistics)

    assert largest_difference(logits, their_logits.detach().numpy()) < 1e-5

    their_state = theirs.state_dict()
    statistics = {torch_name(name): value for name, value in flatten(statistics).items()}
    assert set(statistics) == {key for key in their_state if "running_" in key}
    for key, value in statistics.items():
        assert largest_difference(value, their_state[key]) < 1e-5, key

    for name, gradient in flatten(gradients).items():
        key = torch_name(name)
        expected = from_torch_layout(theirs.get_parameter(key).grad.numpy())
        # A bias before a batch norm has no effect in training: its gradient is rounding alone.
        tolerance = 1e-4 * np.abs(expected).max() + 1e-5
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=tolerance, err_msg=key)
