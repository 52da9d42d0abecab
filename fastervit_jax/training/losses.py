"""Losses of the recipe and the counts behind accuracy.

All are computed in float32 at least, whatever the logits' dtype.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

# torch's kdloss in the official `train.py` divides both logits by this.
MESA_TEMPERATURE = 3.0


def smooth_one_hot(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """One-hot targets with label smoothing, as timm's ``mixup_target`` makes them.

    Every class gets ``smoothing / num_classes``, the label's class ``1 - smoothing`` on top.

    Args:
      labels: integer classes, shape ``[N]``. A label outside ``0 .. num_classes - 1`` cannot raise
        in compiled code: its row is NaN, so that the loss shows it.
      num_classes: number of classes ``K``.
      smoothing: share of the target spread over all classes, 0 <= smoothing < 1.

    Returns:
      Float32 targets, shape ``[N, K]``; rows sum to 1.

    Raises:
      ValueError: if `labels` are no integer vector, or for a smoothing or class count out of range.
    """
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"Labels must be one integer class an image, shape [N]; got {labels.dtype} of shape "
            f"{labels.shape}."
        )
    if not 0 <= smoothing < 1:
        raise ValueError(f"Label smoothing must be at least 0 and below 1; got {smoothing}.")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1; got {num_classes}.")
    off_value = smoothing / num_classes
    on_value = 1.0 - smoothing + off_value
    targets = jnp.where(jax.nn.one_hot(labels, num_classes, dtype=bool), on_value, off_value)
    known = (labels >= 0) & (labels < num_classes)
    return jnp.where(known[:, None], targets, jnp.nan).astype(jnp.float32)


def soft_target_cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Mean cross-entropy against soft targets, as timm's ``SoftTargetCrossEntropy``.

    Args:
      logits: shape ``[N, K]``, any float dtype.
      targets: class probabilities, shape ``[N, K]``.
      weights: optional weight of each example, shape ``[N]`` (0 leaves it out, whatever it holds);
        the mean is then the weighted one. With all weights 0 the loss is 0.

    Returns:
      A scalar, float32 or higher.

    Raises:
      ValueError: if the shapes do not fit.
    """
    _check_same_shape("logits", logits, "targets", targets)
    logits, targets = _at_least_float32(logits), _at_least_float32(targets)
    return _mean(optax.softmax_cross_entropy(logits, targets), weights)


def mesa_divergence(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    weights: jax.Array | None = None,
    temperature: float = MESA_TEMPERATURE,
) -> jax.Array:
    """KL(teacher || student) of the class distributions at a temperature, mean over the batch.

    The distance in the official script's ``kdloss`` (`MESA <https://arxiv.org/abs/2205.14083>`_,
    trajectory loss); there is no factor of temperature squared. The script's factors, its constant
    50 and the recipe's MESA weight, are the caller's. No gradient reaches the teacher.

    Args:
      student_logits: shape ``[N, K]``.
      teacher_logits: shape ``[N, K]``.
      weights: optional weight of each example, as in `soft_target_cross_entropy`.
      temperature: divides both logits.

    Returns:
      A scalar, float32 or higher.

    Raises:
      ValueError: if the shapes do not fit, or for a temperature of 0 or less.
    """
    _check_same_shape("student_logits", student_logits, "teacher_logits", teacher_logits)
    if not temperature > 0:
        raise ValueError(f"The temperature must be above 0; got {temperature}.")
    student = jax.nn.log_softmax(_at_least_float32(student_logits) / temperature)
    teacher = jax.nn.log_softmax(_at_least_float32(teacher_logits) / temperature)
    teacher = jax.lax.stop_gradient(teacher)
    return _mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1), weights)


def top_k_correct(
    logits: jax.Array,
    labels: jax.Array,
    ks: Sequence[int] = (1, 5),
    weights: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Counts the examples whose label is among the `k` highest logits, for every `k`.

    Equal logits rank in the order of their class. A row that holds a NaN is never correct.

    Args:
      logits: shape ``[N, K]``.
      labels: integer classes, shape ``[N]``; one outside the classes is never correct.
      ks: the ranks asked for; above ``K`` every known label counts.
      weights: optional weight of each example, shape ``[N]``.

    Returns:
      One float32 scalar for each `k`: the (weighted) number of correct examples.

    Raises:
      ValueError: if the shapes do not fit.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"Logits of shape [N, K] need labels of shape [N]; got {logits.shape} and "
            f"{labels.shape}."
        )
    classes = jnp.arange(logits.shape[1])
    is_label = classes == labels[:, None]
    score = jnp.sum(jnp.where(is_label, logits, 0), axis=1, keepdims=True)
    ahead = (logits > score) | ((logits == score) & (classes < labels[:, None]))
    rank = jnp.sum(ahead, axis=1)
    valid = is_label.any(axis=1) & ~jnp.isnan(logits).any(axis=1)
    if weights is None:
        weights = jnp.ones(labels.shape, jnp.float32)
    return tuple(jnp.sum(jnp.where(valid & (rank < k), weights, 0.0)) for k in ks)


def _mean(values: jax.Array, weights: jax.Array | None) -> jax.Array:
    if weights is None:
        return jnp.mean(values)
    if weights.shape != values.shape:
        raise ValueError(
            f"Weights must be one number an example, shape {values.shape}; got {weights.shape}."
        )
    weights = weights.astype(values.dtype)
    # An example of weight 0 may hold anything, NaN included.
    total = jnp.sum(jnp.where(weights == 0, 0, values * weights))
    return total / jnp.where(jnp.sum(weights) == 0, 1, jnp.sum(weights))


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check_same_shape(name: str, x: jax.Array, other_name: str, other: jax.Array) -> None:
    if x.ndim != 2 or x.shape != other.shape:
        raise ValueError(
            f"{name} and {other_name} must both have the shape [N, K]; got {x.shape} and "
            f"{other.shape}."
        )
