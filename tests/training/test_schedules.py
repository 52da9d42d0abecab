"""The learning rate's own properties; tests/reference compares it with the official scheduler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastervit_jax.training.schedules import warmup_cosine_schedule

RECIPE = dict(peak=0.005, warmup_steps=20 * 312, total_steps=310 * 312)


def rate_of_update(schedule, update):
    """The rate of the `update`-th update; optax asks with the number made before it."""
    return float(schedule(update - 1))


def test_landmarks_of_the_recipe():
    schedule = warmup_cosine_schedule(**RECIPE)
    first = 1e-6 + (0.005 - 1e-6) / 6240
    assert rate_of_update(schedule, 1) == pytest.approx(first, rel=1e-6)
    assert rate_of_update(schedule, 310 * 312) == pytest.approx(5e-6, rel=1e-6)
    assert rate_of_update(schedule, 320 * 312) == pytest.approx(5e-6, rel=1e-6)


def test_rate_steps_down_where_the_warmup_ends():
    """The cosine is counted from step 0, so the peak itself is never reached."""
    schedule = warmup_cosine_schedule(**RECIPE)
    rates = np.array([rate_of_update(schedule, 6239 + i) for i in range(3)])
    assert rates[0] > rates[1] > rates[2]
    cosine_there = 5e-6 + (0.005 - 5e-6) * (1 + np.cos(np.pi * 20 / 310)) / 2
    assert rates[1] == pytest.approx(cosine_there, rel=1e-6)


def test_float32_keeps_small_rates_exact():
    """optax's own pieces lose digits here; see the comment in the module."""
    schedule = warmup_cosine_schedule(**RECIPE)
    updates = np.arange(1, 320 * 312 + 1)
    ours = np.asarray(jax.vmap(schedule)(jnp.asarray(updates - 1)), np.float64)
    warmup = 1e-6 + updates * (0.005 - 1e-6) / 6240
    cosine = 5e-6 + (0.005 - 5e-6) * (1 + np.cos(np.pi * updates / 96720)) / 2
    exact = np.where(updates < 6240, warmup, np.where(updates < 96720, cosine, 5e-6))
    np.testing.assert_allclose(ours, exact, rtol=6e-7)


def test_without_warmup_and_in_compiled_code():
    schedule = warmup_cosine_schedule(peak=1.0, warmup_steps=0, total_steps=10, minimum=0.0)
    rates = [float(jax.jit(schedule)(count)) for count in range(12)]
    np.testing.assert_allclose(
        rates, [max(0, (1 + np.cos(np.pi * min(t, 10) / 10)) / 2) for t in range(1, 13)], atol=1e-7
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(peak=-1.0), "peak=-1.0"),
        (dict(peak=float("nan")), "peak=nan"),
        (dict(minimum=0.1), "minimum=0.1: expected at most the peak"),
        (dict(warmup_start=0.1), "warmup_start=0.1: expected at most the peak"),
        (dict(total_steps=0, warmup_steps=0), "total_steps=0: expected 1 or more"),
        (dict(warmup_steps=-1), "warmup_steps=-1"),
        (dict(warmup_steps=10**6), "warmup_steps=1000000"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        warmup_cosine_schedule(**{**RECIPE, **change})
