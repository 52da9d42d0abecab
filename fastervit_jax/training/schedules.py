"""The learning rate: a linear warm-up, then a cosine or a line to the minimum.

The official script sets the rate of an update from that update's 1-based number, just before the
update (`fastervit/train.py`, `train_one_epoch`; `fastervit/scheduler/cosine_lr.py`).
An optax schedule gets the number of updates already made, so it adds one.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax


def warmup_cosine_schedule(
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    warmup_start: float = 1e-6,
    minimum: float = 5e-6,
) -> optax.Schedule:
    """Builds the official learning-rate schedule.

    With `t` the 1-based number of an update:

    - `t < warmup_steps`: linear from `warmup_start` (at 0) towards `peak` (at `warmup_steps`);
    - `t <= total_steps`: cosine from `peak` at 0 to `minimum` at `total_steps`. It is counted
      from step 0 and not from the warm-up's end, so the rate steps down slightly there;
    - afterwards, the cooldown: `minimum`.

    Args:
        peak: the highest rate (0.005 in the recipe); the cosine's value at step 0.
        warmup_steps: length of the warm-up, in updates; 0 for none.
        total_steps: length of the cosine, in updates, cooldown not counted (310 epochs x 312).
        warmup_start: the rate that the warm-up starts from.
        minimum: the rate at the cosine's end and in the cooldown.

    Returns:
        A function from the number of updates made so far (scalar, 0 before the first one) to the
        rate of the next update, float32 (float64 under `jax_enable_x64`).

    Raises:
        ValueError: for negative or infinite rates, for step counts that do not fit each other.
    """
    _check_schedule(peak, warmup_steps, total_steps, warmup_start, minimum)

    # The two pieces are written out where optax has both: in float32 `optax.linear_schedule` and
    # `optax.cosine_decay_schedule` lose the small rates to cancellation (2e-4 relative at the
    # warm-up's start, 6e-5 at the cosine's end).
    def warmup(update: jax.Array) -> jax.Array:
        slope = (peak - warmup_start) / max(warmup_steps, 1)
        return warmup_start + update * slope

    def cosine(update: jax.Array) -> jax.Array:
        # (1 + cos(pi t / T)) / 2 = sin(pi / 2 (T - t) / T)^2, exact near t = T too.
        remaining = jnp.maximum(total_steps - update, 0) / total_steps
        return minimum + (peak - minimum) * jnp.sin(0.5 * math.pi * remaining) ** 2

    def cosine_after_warmup(updates_since_warmup: jax.Array) -> jax.Array:
        return cosine(updates_since_warmup + warmup_steps)

    rate_of_update = optax.join_schedules([warmup, cosine_after_warmup], [warmup_steps])

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return rate_of_update(jnp.asarray(count) + 1)

    return schedule


def warmup_poly_schedule(
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    warmup_start: float = 0.0,
    minimum: float = 0.0,
) -> optax.Schedule:
    """Builds mmsegmentation's schedule of transformer backbones: warm-up, then a line.

    With `i` the 0-based number of an update: linear from `warmup_start` (at 0) to `peak` (at
    `warmup_steps - 1`); then linear from `peak` (at `warmup_steps`) to `minimum` (at
    `total_steps - 1`). That is `LinearLR` followed by `PolyLR` of power 1 in mmengine 0.10.

    Arguments, result and errors are those of `warmup_cosine_schedule`.
    """
    _check_schedule(peak, warmup_steps, total_steps, warmup_start, minimum)
    length = max(total_steps - warmup_steps - 1, 1)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        update = jnp.asarray(count)
        rising = warmup_start + update * ((peak - warmup_start) / max(warmup_steps - 1, 1))
        remaining = jnp.maximum(total_steps - 1 - update, 0) / length
        falling = minimum + (peak - minimum) * jnp.minimum(remaining, 1)
        return jnp.where(update < warmup_steps, rising, falling)

    return schedule


def warmup_step_schedule(
    *,
    peak: float,
    warmup_steps: int,
    drops: Sequence[int],
    total_steps: int,
    warmup_start: float = 0.0,
    factor: float = 0.1,
) -> optax.Schedule:
    """Builds a schedule in steps: after the warm-up `peak`, then lower by a factor at each drop.

    With `i` the 0-based number of an update: linear from `warmup_start` (at 0) to `peak` (at
    `warmup_steps`); then `peak` times `factor` to the number of drops at or before `i`, as
    `torch.optim.lr_scheduler.MultiStepLR`.

    Further arguments, result and errors are those of `warmup_cosine_schedule`.
    """
    _check_schedule(peak, warmup_steps, total_steps, warmup_start, 0.0)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        update = jnp.asarray(count)
        rising = warmup_start + update * ((peak - warmup_start) / max(warmup_steps, 1))
        passed = sum((update >= drop).astype(jnp.int32) for drop in drops)
        return jnp.where(update < warmup_steps, rising, peak * factor**passed)

    return schedule


def _check_schedule(
    peak: float, warmup_steps: int, total_steps: int, warmup_start: float, minimum: float
) -> None:
    rates = {"peak": peak, "warmup_start": warmup_start, "minimum": minimum}
    for name, rate in rates.items():
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(f"Invalid learning rate {name}={rate}: expected 0 or more.")
    for name, rate in list(rates.items())[1:]:
        if rate > peak:
            raise ValueError(
                f"Invalid learning rate {name}={rate}: expected at most the peak, {peak}."
            )
    if total_steps < 1:
        raise ValueError(f"Invalid total_steps={total_steps}: expected 1 or more.")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"Invalid warmup_steps={warmup_steps}: expected 0 to total_steps={total_steps}. "
            "Shorten the warm-up or train longer."
        )
