"""The learning rate against the official scheduler, called as the official script calls it."""

import argparse

import jax
import numpy as np
import pytest

from fastervit_jax.training.schedules import warmup_cosine_schedule

torch = pytest.importorskip("torch")
scheduler_factory = pytest.importorskip("fastervit.scheduler.scheduler_factory")

STEPS_PER_EPOCH = 312


def official_scheduler(optimizer, **changes):
    """The official scheduler with the recipe's arguments, but for changes; its number of epochs."""
    arguments = {
        "sched": "cosine",
        "epochs": 310,
        "data_len": 1281167,
        "batch_size": 128,
        "world_size": 32,
        "cooldown_epochs": 10,
        "warmup_lr": 1e-6,
        "min_lr": 5e-6,
        "lr_ep": False,
        "lr_cycle_mul": 1.0,
        "lr_cycle_decay": 1.0,
        "lr_cycle_limit": 1,
        "lr_k_decay": 1.0,
    }
    return scheduler_factory.create_scheduler(
        argparse.Namespace(**{**arguments, **changes}), optimizer
    )


def official_rates(warmup_epochs, updates):
    """Rates that the official scheduler sets before the given 1-based updates."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.005)
    scheduler, epochs = official_scheduler(optimizer, warmup_epochs=warmup_epochs)
    assert epochs == 320
    rates = []
    for update in updates:
        # `train_one_epoch` counts epochs and batches from 0.
        epoch, batch = divmod(update - 1, STEPS_PER_EPOCH)
        scheduler.step_update(num_updates=epoch * STEPS_PER_EPOCH + batch + 1)
        rates.append(optimizer.param_groups[0]["lr"])
    return np.array(rates)


@pytest.mark.parametrize("warmup_epochs", [20, 35])
def test_rates_equal_the_official_ones(warmup_epochs):
    warmup, total = warmup_epochs * STEPS_PER_EPOCH, 310 * STEPS_PER_EPOCH
    updates = np.array(
        [
            *(1, 2, 100),
            *(warmup - 1, warmup, warmup + 1),
            *(total // 2, total - 100, total - 1, total, total + 1),
            *(total + 5 * STEPS_PER_EPOCH, total + 10 * STEPS_PER_EPOCH),
        ]
    )
    schedule = warmup_cosine_schedule(peak=0.005, warmup_steps=warmup, total_steps=total)
    ours = np.array([float(schedule(update - 1)) for update in updates])
    official = official_rates(warmup_epochs, updates)
    np.testing.assert_allclose(ours, official, rtol=6e-7)
    with jax.enable_x64(True):
        exact = np.array([float(schedule(update - 1)) for update in updates])
    np.testing.assert_allclose(exact, official, rtol=1e-10)
    # The comparison tells one update from the next, up to the cosine's flat end.
    shifted = np.array([float(schedule(update)) for update in updates])
    assert (np.abs(shifted - official) > 6e-7 * official)[:8].all()
