"""AdamW, LAMB and SGD as timm 0.9.16 builds them for the official script, composed from optax.

As in optax, a mask or scale is a tree like the parameters, or a function that makes such a tree
from the parameters. `by_path` makes that function from a function of a parameter's path.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any
ByParameter = PyTree | Callable[[PyTree], PyTree]

# timm's `Lamb` clips the global gradient norm to this value, whatever the script clips.
LAMB_INNER_CLIP_NORM = 1.0


def by_path(value_of: Callable[[str], Any]) -> Callable[[PyTree], PyTree]:
    """Makes a mask or scale from a function of each parameter's path.

    Args:
        value_of: from a dotted path, such as `"stages.2.blocks.0.window_layer.mlp.expand.kernel"`,
            to the value there.

    Returns:
        A function from a tree of parameters to a tree of values.
    """

    def tree_of_values(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, _: value_of(_path_name(path)), params)

    return tree_of_values


def decay_mask(params: PyTree) -> PyTree:
    """True for the parameters that weight decay applies to: matrices and kernels, not biases.

    The rule of timm's `param_groups_weight_decay`: a parameter decays if it has more than one
    dimension and is not a bias. Scales of norms and layer-scale gammas have one dimension.

    Args:
        params: tree of parameters.

    Returns:
        A tree of booleans.
    """

    def decays(path: tuple, param: jax.Array) -> bool:
        return jnp.ndim(param) > 1 and _path_name(path).split(".")[-1] != "bias"

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    name: str,
    *,
    learning_rate: optax.Schedule | float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    momentum: float = 0.9,
    clip_norm: float | None = 5.0,
    decay_mask: ByParameter = decay_mask,
    layer_scales: ByParameter | None = None,
    frozen: ByParameter | None = None,
) -> optax.GradientTransformation:
    """Builds an optimizer of the official recipe.

    - `"adamw"`: `torch.optim.AdamW`; decay is rate x decay x weight.
    - `"lamb"`: `timm.optim.lamb.Lamb` 0.9.16, a LAMB (https://arxiv.org/abs/1904.00962) that
      clips the global gradient norm to 1 once more, corrects the moments' bias, adds decay before
      the trust ratio, does not clip that ratio and applies it only to decayed parameters.
    - `"sgd"`: what timm calls sgd, `torch.optim.SGD` with Nesterov momentum; decay is added to
      the gradient.

    Moments have the dtype of the parameters; the state is a plain pytree. The updates are to be
    added to the parameters (`optax.apply_updates`).

    Args:
        name: "adamw", "lamb" or "sgd".
        learning_rate: a rate, or a schedule from the number of updates made to the next one's rate.
        weight_decay: decay of the parameters that `decay_mask` names. As in timm, LAMB without
            decay has no trust ratio either.
        betas: decay of the first and second moment (adamw, lamb).
        epsilon: added to the root of the second moment (adamw, lamb).
        momentum: momentum (sgd).
        clip_norm: largest global norm of the gradients; None for no clipping.
        decay_mask: True where weight decay applies.
        layer_scales: multiplies each parameter's rate, its decay included (layer-wise rate decay);
            None for 1 everywhere.
        frozen: True where a parameter stays as it is: it gets no update, has no moments and does
            not count in the gradients' norm. None for nowhere.

    Returns:
        The gradient transformation; its `update` needs the parameters.

    Raises:
        ValueError: for an unknown name or a setting out of range.
    """
    _check_settings(weight_decay, betas, epsilon, momentum, clip_norm)
    decayed = decay_mask if weight_decay > 0 else by_path(lambda _: False)

    if name == "adamw":
        transforms = [
            optax.scale_by_adam(*betas, eps=epsilon),
            optax.add_decayed_weights(weight_decay, mask=decayed),
        ]
    elif name == "lamb":
        transforms = [
            optax.clip_by_global_norm(LAMB_INNER_CLIP_NORM),
            optax.scale_by_adam(*betas, eps=epsilon),
            optax.add_decayed_weights(weight_decay, mask=decayed),
            optax.masked(optax.scale_by_trust_ratio(), decayed),
        ]
    elif name == "sgd":
        transforms = [
            optax.add_decayed_weights(weight_decay, mask=decayed),
            optax.trace(decay=momentum, nesterov=True),
        ]
    else:
        raise ValueError(f"Invalid optimizer {name!r}: expected adamw, lamb or sgd.")

    if clip_norm is not None:
        transforms.insert(0, clip_by_global_norm_like_torch(clip_norm))
    optimizer = optax.chain(*transforms, optax.scale_by_learning_rate(learning_rate))
    if frozen is not None:
        optimizer = _train_only_unfrozen(optimizer, frozen)
    if layer_scales is not None:
        optimizer = optax.chain(optimizer, _scale_by_parameter(layer_scales))
    return optimizer


def clip_by_global_norm_like_torch(max_norm: float) -> optax.GradientTransformation:
    """Clips gradients to a global norm as `torch.nn.utils.clip_grad_norm_` does.

    Multiplies by `min(1, max_norm / (norm + 1e-6))`; `optax.clip_by_global_norm` has no 1e-6.

    Args:
        max_norm: the largest norm.

    Returns:
        A stateless gradient transformation.
    """

    def clip(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda update: update * factor.astype(update.dtype), updates)

    return optax.stateless(clip)


def _scale_by_parameter(scales: ByParameter) -> optax.GradientTransformation:
    def scale(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        tree = scales(updates) if callable(scales) else scales
        return jax.tree.map(lambda update, factor: update * factor, updates, tree)

    return optax.stateless(scale)


def _train_only_unfrozen(
    optimizer: optax.GradientTransformation, frozen: ByParameter
) -> optax.GradientTransformation:
    def labels(params: PyTree) -> PyTree:
        mask = frozen(params) if callable(frozen) else frozen
        return jax.tree.map(lambda is_frozen: "frozen" if is_frozen else "trained", mask)

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def _path_name(path: tuple) -> str:
    # An nnx.State holds its arrays as the `value` of a variable.
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _check_settings(
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    momentum: float,
    clip_norm: float | None,
) -> None:
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"Invalid weight_decay={weight_decay}: expected 0 or more.")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"Invalid betas={betas}: expected two numbers, 0 ≤ beta < 1.")
    if not epsilon >= 0:
        raise ValueError(f"Invalid epsilon={epsilon}: expected 0 or more.")
    if not 0 <= momentum < 1:
        raise ValueError(f"Invalid momentum={momentum}: expected 0 ≤ momentum < 1.")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(
            f"Invalid clip_norm={clip_norm}: expected a positive number, or None for no clipping."
        )
