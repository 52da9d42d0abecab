"""A whole run of the official recipe in torch, on a CPU, from the official pieces.

    python -m tests.reference.official_run '{"data": DIR, "seed": 0, …}'

The network, the learning rates and MESA's divergence are the official package's. Images, mixing,
erasing, the optimizer and the EMA are timm's, called as the official script calls them. That script
asks for a GPU, so its loop is followed here. The last line of output is one JSON object.
"""

import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch

import tests.reference.conftest  # noqa: F401  (lets torchvision be imported)
from fastervit_jax.models import VARIANTS
from tests.reference.test_losses import official_kdloss
from tests.reference.test_schedules import official_scheduler


def run(options: dict) -> dict:
    """Trains; returns losses by step and the final answers.

    Args:
        options: as `whole_runs.RECIPE`, with `data` (a directory with `train` and `validation`),
            `seed`, and possibly `weights` (a torch file to start from) and `save` (where to save).
    """
    import timm.data
    import timm.loss
    import timm.optim
    import timm.utils
    from fastervit.models.faster_vit import FasterViT

    torch.set_num_threads(1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(options["seed"])
    model = FasterViT(**network_options(options))
    optimizer = timm.optim.create_optimizer_v2(
        model,
        opt=options["optimizer"],
        lr=options["learning_rate"],
        weight_decay=options["weight_decay"],
        momentum=0.9,
        eps=1e-8,
        betas=(0.9, 0.999),
    )
    ema = timm.utils.ModelEmaV2(model, decay=options["ema_decay"])
    if options.get("weights"):
        load_what_fits(options["weights"], model, ema.module)
    training, validation = loaders(options)
    scheduler, epochs = official_scheduler(
        optimizer,
        epochs=options["epochs"],
        warmup_epochs=options["warmup_epochs"],
        cooldown_epochs=0,
        data_len=len(training) * options["batch_size"],
        batch_size=options["batch_size"],
        world_size=1,
    )
    cross_entropy, divergence = timm.loss.SoftTargetCrossEntropy(), official_kdloss()
    losses, mesa = [], []
    for epoch in range(epochs):
        model.train()
        for batch, (images, targets) in enumerate(training):
            scheduler.step_update(num_updates=epoch * len(training) + batch + 1)
            logits = model(images)
            loss = cross_entropy(logits, targets)
            losses.append(loss.item())
            mesa.append(0.0)
            if options["mesa"] and epoch / options["epochs"] > options["mesa_start"]:
                with torch.no_grad():
                    teacher = ema.module(images)
                added = options["mesa"] * divergence(logits, teacher)
                mesa[-1] = added.item()
                loss = loss + added
            optimizer.zero_grad()
            loss.backward()
            timm.utils.dispatch_clip_grad(model.parameters(), value=5.0, mode="norm")
            optimizer.step()
            ema.update(model)
    if options.get("save"):
        torch.save({"state_dict": ema.module.state_dict()}, options["save"])
    return {
        "cross_entropy": losses,
        "mesa": mesa,
        "ema": evaluate(ema.module, validation),
        "plain": evaluate(model, validation),
    }


def network_options(options: dict) -> dict:
    """Arguments of the official class."""
    small = {name: options[name] for name in ("dim", "in_dim", "depths", "ct_size", "resolution")}
    return {
        **{"mlp_ratio": 4, **VARIANTS["faster_vit_0_224"]},
        **small,
        "window_size": options["window_size"],
        "num_classes": options["num_classes"],
        "drop_path_rate": options["drop_path"],
    }


def load_what_fits(path: str, *models: torch.nn.Module) -> None:
    """The weights of a file whose names and shapes are the model's, as the official script does."""
    stored = torch.load(path, weights_only=True)["state_dict"]
    for model in models:
        own = model.state_dict()
        fitting = {k: v for k, v in stored.items() if k in own and own[k].shape == v.shape}
        assert len(fitting) >= len(own) - 2, len(fitting)  # all but the head
        model.load_state_dict(fitting, strict=False)


def loaders(options: dict):
    """timm's loaders of training and validation images."""
    import timm.data
    from timm.data import auto_augment

    from tests.reference.test_host_augmentation import timm_posterize

    # timm's calls Pillow's, which refuses to keep 0 bits since it was released.
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = timm_posterize
    shared = dict(
        input_size=(3, options["resolution"], options["resolution"]),
        use_prefetcher=True,
        num_workers=0,
        device=torch.device("cpu"),
        persistent_workers=False,
    )
    root = Path(options["data"])
    mixing = timm.data.FastCollateMixup(
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        prob=1.0,
        switch_prob=0.5,
        mode="batch",
        label_smoothing=0.1,
        num_classes=options["num_classes"],
    )
    training = timm.data.create_loader(
        timm.data.create_dataset("", root=str(root / "train")),
        batch_size=options["batch_size"],
        is_training=True,
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        scale=options["scale"],
        ratio=options["ratio"],
        hflip=0.0,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="random",
        collate_fn=mixing,
        **shared,
    )
    validation = timm.data.create_loader(
        timm.data.create_dataset("", root=str(root / "validation")),
        batch_size=128,
        is_training=False,
        interpolation="bicubic",
        crop_pct=1.0,
        **shared,
    )
    return training, validation


def evaluate(model: torch.nn.Module, batches) -> dict[str, float]:
    """Accuracy in percent, and mean cross-entropy."""
    model.eval()
    right, loss, count = 0, 0.0, 0
    with torch.no_grad():
        for images, labels in batches:
            logits = model(images)
            right += int((logits.argmax(1) == labels).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    return {"top1": 100 * right / count, "loss": loss / count}


if __name__ == "__main__":
    started = time.monotonic()
    result = run(json.loads(sys.argv[1]))
    result["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(result))
