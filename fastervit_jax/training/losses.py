"""Losses of the recipe.

All are computed in float32 or wider, whatever the type of the logits.
"""

import jax
import jax.numpy as jnp
import optax

# torch's kdloss in the official `train.py` divides both logits by this.
MESA_TEMPERATURE = 3.0


def soft_target_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross-entropy against soft targets, as timm's `SoftTargetCrossEntropy`.

    Args:
        logits: shape `[N, K]`, any float dtype.
        targets: class probabilities, shape `[N, K]`.

    Returns:
        A scalar, float32 or higher.

    Raises:
        ValueError: if the shapes do not fit.
    """
    _check_same_shape("logits", logits, "targets", targets)
    logits, targets = _at_least_float32(logits), _at_least_float32(targets)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def mesa_divergence(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    temperature: float = MESA_TEMPERATURE,
) -> jax.Array:
    """KL(teacher || student) of the class distributions at a temperature, mean over the batch.

    The distance in the official script's `kdloss` (`MESA <https://arxiv.org/abs/2205.14083>`_,
    trajectory loss); there is no factor of temperature squared. The script's factors, its constant
    50 and the recipe's MESA weight, are the caller's. No gradient reaches the teacher.

    Args:
        student_logits: shape `[N, K]`.
        teacher_logits: shape `[N, K]`.
        temperature: divides both logits.

    Returns:
        A scalar, float32 or higher.

    Raises:
        ValueError: if the shapes do not fit, or for a temperature of 0 or less.
    """
    _check_same_shape("student_logits", student_logits, "teacher_logits", teacher_logits)
    if not temperature > 0:
        raise ValueError(f"Invalid temperature={temperature}: expected a positive number.")
    student = jax.nn.log_softmax(_at_least_float32(student_logits) / temperature)
    teacher = jax.nn.log_softmax(_at_least_float32(teacher_logits) / temperature)
    teacher = jax.lax.stop_gradient(teacher)
    return jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1))


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check_same_shape(name: str, x: jax.Array, other_name: str, other: jax.Array) -> None:
    if x.ndim != 2 or x.shape != other.shape:
        raise ValueError(
            f"Invalid shapes: {name} and {other_name} must both have the shape [N, K], got "
            f"{x.shape} and {other.shape}."
        )
