"""Losses against timm's and the official script's, run in torch."""

import ast
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastervit_jax.augmentation.mixing import smooth_one_hot
from fastervit_jax.training.losses import mesa_divergence, soft_target_cross_entropy

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("timm.data")
pytest.importorskip("timm.loss")


def official_kdloss():
    """`kdloss` of the official script, which cannot be imported itself: it asks for a GPU."""
    package = importlib.util.find_spec("fastervit")
    if package is None:
        pytest.skip("the official package is not installed")
    source = Path(package.submodule_search_locations[0], "train.py").read_text()
    function = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "kdloss"
    )
    names = {"torch": torch, "kl_loss": torch.nn.KLDivLoss(reduction="batchmean")}
    exec(compile(ast.Module([function], []), "train.py", "exec"), names)
    return names["kdloss"]


def random_logits(seed):
    return np.random.default_rng(seed).normal(size=(16, 100)).astype(np.float32) * 3


def test_mesa_equals_the_official_kdloss_and_its_gradient():
    student, teacher = random_logits(0), random_logits(1)
    torch_student = torch.tensor(student, requires_grad=True)
    official = official_kdloss()(torch_student, torch.tensor(teacher))
    official.backward()
    ours, gradient = jax.value_and_grad(
        lambda student: 50 * mesa_divergence(student, jnp.array(teacher))
    )(jnp.array(student))
    np.testing.assert_allclose(ours, official.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, torch_student.grad.numpy(), atol=1e-6)
    # The order of the arguments matters, and would show.
    assert abs(50 * mesa_divergence(jnp.array(teacher), jnp.array(student)) - official.item()) > 0.1


def test_cross_entropy_equals_timm():
    logits = random_logits(0)
    targets = np.abs(random_logits(1))
    targets /= targets.sum(-1, keepdims=True)
    expected = timm.loss.SoftTargetCrossEntropy()(torch.tensor(logits), torch.tensor(targets))
    ours = soft_target_cross_entropy(jnp.array(logits), jnp.array(targets))
    np.testing.assert_allclose(ours, expected.item(), rtol=1e-6)


def test_smoothing_equals_timm_with_and_without_mixing():
    labels = np.random.default_rng(2).integers(0, 100, 16)
    expected = timm.data.mixup.mixup_target(torch.tensor(labels), 100, lam=1.0, smoothing=0.1)
    ours = smooth_one_hot(jnp.array(labels), 100, 0.1)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-6)
    # Without mixing the script takes another loss, which comes to the same.
    logits = random_logits(0)
    other = timm.loss.LabelSmoothingCrossEntropy(0.1)(torch.tensor(logits), torch.tensor(labels))
    loss = soft_target_cross_entropy(jnp.array(logits), ours)
    np.testing.assert_allclose(loss, other.item(), rtol=1e-6)
