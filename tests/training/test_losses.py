"""Losses against float64 computations by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastervit_jax.augmentation.mixing import smooth_one_hot
from fastervit_jax.training.losses import mesa_divergence, soft_target_cross_entropy


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32) * 4


@pytest.fixture
def targets():
    raw = np.random.default_rng(1).uniform(size=(6, 10)).astype(np.float32)
    return raw / raw.sum(-1, keepdims=True)


def test_smooth_one_hot_values():
    got = np.asarray(smooth_one_hot(jnp.array([2, 0]), 4, 0.1))
    np.testing.assert_allclose(
        got, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6
    )
    assert got.dtype == np.float32
    np.testing.assert_array_equal(smooth_one_hot(jnp.array([1]), 3), [[0, 1, 0]])


def test_label_outside_the_classes_shows_in_the_loss():
    targets = smooth_one_hot(jnp.array([0, 10, -1]), 10, 0.1)
    assert np.isnan(np.asarray(targets)).any(axis=1).tolist() == [False, True, True]
    assert np.isnan(soft_target_cross_entropy(jnp.zeros((3, 10)), targets))


def test_cross_entropy(logits, targets):
    expected = -(targets * log_softmax(logits)).sum(-1)
    np.testing.assert_allclose(
        soft_target_cross_entropy(jnp.array(logits), jnp.array(targets)), expected.mean(), rtol=1e-6
    )


def test_bfloat16_logits_are_worked_on_in_float32(logits, targets):
    half = jnp.array(logits, jnp.bfloat16)
    expected = -(targets * log_softmax(np.asarray(half.astype(jnp.float32)))).sum(-1).mean()
    got = soft_target_cross_entropy(half, jnp.array(targets))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert mesa_divergence(half, half * 2).dtype == jnp.float32


def test_mesa_divergence_and_its_gradient(logits):
    teacher = np.roll(logits, 1, axis=0)
    p, q = np.exp(log_softmax(logits / 3)), np.exp(log_softmax(teacher / 3))
    expected = (q * (np.log(q) - np.log(p))).sum(-1).mean()
    np.testing.assert_allclose(
        mesa_divergence(jnp.array(logits), jnp.array(teacher)), expected, rtol=1e-5
    )
    student_gradient, teacher_gradient = jax.grad(mesa_divergence, argnums=(0, 1))(
        jnp.array(logits), jnp.array(teacher)
    )
    # d KL / d student = (p - q) / temperature, a mean over the batch.
    np.testing.assert_allclose(student_gradient, (p - q) / 3 / 6, atol=1e-7)
    assert not np.asarray(teacher_gradient).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smooth_one_hot(jnp.array([0.0]), 3), "Invalid labels: expected integers"),
        (lambda: smooth_one_hot(jnp.array([[0]]), 3), "Invalid labels: expected integers"),
        (lambda: smooth_one_hot(jnp.array([0]), 3, 1.0), r"in \[0, 1\), got 1.0"),
        (lambda: smooth_one_hot(jnp.array([0]), 3, -0.1), r"in \[0, 1\), got -0.1"),
        (lambda: smooth_one_hot(jnp.array([0]), 0), "num_classes"),
        (lambda: soft_target_cross_entropy(jnp.zeros((2, 3)), jnp.zeros((2, 4))), "same|both"),
        (lambda: mesa_divergence(jnp.zeros((2, 3)), jnp.zeros((1, 3))), "both have the shape"),
        (lambda: mesa_divergence(*[jnp.zeros((2, 3))] * 2, temperature=0), "temperature"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
