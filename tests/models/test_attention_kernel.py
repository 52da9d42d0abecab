"""The GPU kernels of window attention against the formula, interpreted on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fastervit_jax.models import FasterViT, FasterViTConfig, attention_kernel, layouts

# (windows, tokens, heads, channels): a window with carriers, one without, carriers by themselves,
# FasterViT-4's heads.
SHAPES = [(5, 53, 4, 32), (3, 49, 2, 32), (2, 16, 4, 40), (3, 53, 2, 49)]


def inputs(n, tokens, heads, channels, dtype):
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((n, tokens, 3, heads, channels))
    bias = 4 * rng.standard_normal((heads, tokens, tokens))
    gradient = rng.standard_normal((n, tokens, heads, channels))
    return jnp.asarray(qkv, dtype), jnp.asarray(bias, jnp.float32), jnp.asarray(gradient, dtype)


def by_hand(qkv, bias, gradient, scale):
    """Values and gradients in NumPy, float64."""
    qkv, bias, gradient = (np.asarray(array, np.float64) for array in (qkv, bias, gradient))
    q, k, v = (qkv[:, :, part] for part in range(3))
    logits = np.einsum("nqhd,nkhd->nhqk", q, k) * scale + bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    to_weights = np.einsum("nqhd,nkhd->nhqk", gradient, v)
    to_logits = weights * (to_weights - (weights * to_weights).sum(-1, keepdims=True))
    to_qkv = [
        np.einsum("nhqk,nkhd->nqhd", to_logits, k) * scale,
        np.einsum("nhqk,nqhd->nkhd", to_logits, q) * scale,
        np.einsum("nhqk,nqhd->nkhd", weights, gradient),
    ]
    return np.einsum("nhqk,nkhd->nqhd", weights, v), np.stack(to_qkv, 2), to_logits.sum(0)


def distance(a, b):
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


def forward_and_gradients(qkv, bias, gradient, scale):
    values, backward = jax.vjp(
        lambda qkv, bias: attention_kernel.window_attention(qkv, bias, scale, True), qkv, bias
    )
    return values, *backward(gradient)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype, bound", [(jnp.float32, 5e-7), (jnp.bfloat16, 5e-3)])
def test_kernels_compute_the_formula(shape, dtype, bound):
    arrays = inputs(*shape, dtype)
    scale = shape[-1] ** -0.5
    found = forward_and_gradients(*arrays, scale)
    for ours, exact in zip(found, by_hand(*arrays, scale), strict=True):
        assert distance(ours, exact) < bound


def test_many_windows_per_program(monkeypatch):
    monkeypatch.setattr(attention_kernel, "_PROGRAMS", 4)
    arrays = inputs(5, 16, 2, 32, jnp.float32)
    found = forward_and_gradients(*arrays, 0.2)
    for ours, exact in zip(found, by_hand(*arrays, 0.2), strict=True):
        assert distance(ours, exact) < 5e-7


def test_devices_compute_their_own_windows_and_heads():
    """On a mesh nothing but the gradient of the bias crosses devices."""
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "tensor"))
    arrays = inputs(8, 16, 4, 32, jnp.float32)
    specs = P("data", None, None, "tensor"), P("tensor"), P("data", None, "tensor")
    places = [NamedSharding(mesh, spec) for spec in specs]
    step = jax.jit(lambda *arrays: forward_and_gradients(*arrays, 0.2), in_shardings=places)
    for ours, exact in zip(step(*arrays), by_hand(*arrays, 0.2), strict=True):
        assert distance(ours, exact) < 5e-7
    program = step.lower(*arrays).compile().as_text()
    assert "all-gather" not in program
    assert "all-reduce" in program


def test_network_with_kernels(monkeypatch):
    """A whole network takes the kernels where it is lowered for CUDA, and gives the same logits."""
    config = FasterViTConfig(
        dim=16, in_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 4), resolution=(224, 224)
    )
    model = FasterViT(config, rngs=nnx.Rngs(0))
    model.eval()
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 224, 224, 3)), jnp.float32)
    expected = nnx.jit(lambda model, images: model(images))(model, images)
    calls = []

    def interpreted(qkv, bias, scale):
        calls.append(qkv.shape)
        return attention_kernel._forward.fun(qkv, bias, scale, True)

    monkeypatch.setattr(layouts.attention_kernel, "window_attention", interpreted)
    with layouts.traced_for("cuda"):
        found = nnx.jit(lambda model, images: model(images) + 0)(model, images)
    assert [shape[1] for shape in calls] == [16, 53, 49]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
