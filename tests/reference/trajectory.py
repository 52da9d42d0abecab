"""The steps that `test_trajectory` compares; a program, since JAX's widths are a process's.

    PYTHONPATH=. python tests/reference/trajectory.py float64 10

prints the largest relative differences over the steps, as JSON.
"""

import copy
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import tests.reference.conftest  # noqa: F401  (lets torchvision be imported)
from fastervit_jax.augmentation.device import AugmentationSettings, normalize
from fastervit_jax.augmentation.mixing import smooth_one_hot
from fastervit_jax.models import FasterViT
from fastervit_jax.models.pure_model import PureModel, arrays_of
from fastervit_jax.parallel.mesh import make_mesh, place_batch
from fastervit_jax.runs.state import new_state
from fastervit_jax.training.classification import ClassificationObjective
from fastervit_jax.training.optimizers import make_optimizer
from fastervit_jax.training.step import StepSettings, make_train_step
from fastervit_jax.weights.names import from_torch_layout, torch_name
from tests.quick_compilation import quick_jit
from tests.reference import official

NAME = "faster_vit_0_224"
# Layer scale without propagation, which the official code does in float32 whatever its type.
OPTIONS = dict(
    dim=16,
    in_dim=8,
    depths=[1, 1, 2, 1],
    resolution=64,
    window_size=[2, 2, 2, 2],
    num_classes=10,
    layer_scale=0.5,
    drop_path_rate=0.0,
)
BATCH, CLASSES, SMOOTHING = 8, 10, 0.1
RATE, DECAY, CLIP = 1e-3, 0.05, 5.0


def compare(dtype: str, steps: int) -> dict[str, float]:
    """Largest relative differences of losses, gradients and weights over the steps."""
    theirs = official.official_model(NAME, seed=3, **OPTIONS)
    # JAX may share memory with torch's tensors, which torch's steps change in place.
    ours = official.our_model(NAME, copy.deepcopy(theirs), dtype=jnp.dtype(dtype), **OPTIONS)
    theirs.to(getattr(torch, dtype))
    _exact_coordinates(theirs)
    rng = np.random.default_rng(5)
    batches = [
        {
            "image": rng.integers(0, 256, (BATCH, 64, 64, 3), np.uint8),
            "label": rng.integers(0, CLASSES, BATCH, np.int32),
        }
        for _ in range(steps)
    ]
    worst: dict[str, float] = {}
    pairs = zip(_torch_steps(theirs, batches, dtype), _our_steps(ours, batches, dtype), strict=True)
    for reference, result in pairs:
        for key, value in _step_differences(reference, result).items():
            worst[key] = max(worst.get(key, 0.0), value)
    return worst


def _step_differences(reference: dict, result: dict) -> dict[str, float]:
    found = {"loss": abs(result["loss"] - reference["loss"]) / abs(reference["loss"])}
    whole = np.sqrt(sum(np.square(g).sum() for g in reference["gradients"].values()))
    compared = 0
    for name, ours in result["gradients"].items():
        theirs = from_torch_layout(reference["gradients"][torch_name(name)])
        # The true gradient of some tensors is zero (a bias before batch norm): theirs is noise.
        if np.linalg.norm(theirs) > 1e-5 * whole:
            compared += 1
            difference = np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)
            found["gradients"] = max(found.get("gradients", 0.0), float(difference))
    assert compared > 0.8 * len(result["gradients"]), compared
    for name, ours in result["weights"].items():
        theirs = from_torch_layout(reference["weights"][torch_name(name)])
        difference = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
        found["weights"] = max(found.get("weights", 0.0), float(difference))
    return found


def _exact_coordinates(theirs: torch.nn.Module) -> None:
    """Derives the official coordinate tables anew in the type of the comparison."""
    for module in theirs.modules():
        if hasattr(module, "relative_coords_table"):
            table = module.relative_coords_table
            side = (table.shape[1] + 1) // 2
            steps = torch.arange(-(side - 1), side, dtype=torch.float64) / (side - 1) * 8
            steps = torch.sign(steps) * torch.log2(steps.abs() + 1) / 3
            grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)[None]
            module.relative_coords_table = grid.to(table.dtype)


def _torch_steps(model: torch.nn.Module, batches: list, dtype: str):
    model.train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=RATE, weight_decay=DECAY
    )
    kind = getattr(torch, dtype)
    for batch in batches:
        # Images and soft labels are float32 before they reach either network; both get the same.
        images = official.to_torch(np.asarray(normalize(batch["image"]))).to(kind)
        targets = np.asarray(smooth_one_hot(batch["label"], CLASSES, SMOOTHING))
        targets = torch.from_numpy(targets).to(kind)
        logits = model(images)
        loss = -(targets * torch.log_softmax(logits, 1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        gradients = {k: p.grad.numpy().copy() for k, p in _parameters(model)}
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        yield {
            "loss": loss.item(),
            "gradients": gradients,
            "weights": {k: v.numpy().copy() for k, v in model.state_dict().items()},
        }


def _parameters(model: torch.nn.Module):
    """Named parameters, the carrier tokens' convolution under both of its names."""
    return model.named_parameters(remove_duplicate=False)


def _our_steps(model: FasterViT, batches: list, dtype: str):
    settings = StepSettings(
        seed=0,
        ema_decay=0.9,
        objective=ClassificationObjective(
            AugmentationSettings(
                num_classes=CLASSES,
                group_size=BATCH,
                mixing_probability=0.0,
                smoothing=SMOOTHING,
                erasing_probability=0.0,
                dtype=jnp.dtype(dtype),
            )
        ),
    )
    # Keeps the gradients as they come, before they are clipped.
    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, *_: (grads, grads)
    )
    adamw = make_optimizer("adamw", learning_rate=RATE, weight_decay=DECAY, clip_norm=CLIP)
    optimizer = optax.chain(keep, adamw)
    state = new_state(*arrays_of(model), optimizer)
    mesh = make_mesh(devices=jax.devices()[:1])
    step = make_train_step(PureModel(model), optimizer, settings, mesh)
    step = quick_jit(step)
    for batch in batches:
        state, metrics = step(state, place_batch(batch, mesh))
        yield {
            "loss": float(metrics["loss"]),
            "gradients": state.optimizer[0],
            "weights": {**state.params, **state.statistics},
        }


if __name__ == "__main__":
    print(json.dumps(compare(sys.argv[1], int(sys.argv[2]))))
