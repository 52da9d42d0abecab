"""Images a second, and memory, of a training step: ours against the official network in torch.

    python benchmarks/training_step.py --models 0 --batches 8

A step is: normalize uint8 images, forward in training mode with drop path, cross entropy with soft
labels, backward, clip the gradients' norm at 5, AdamW, moving average of weights and statistics.
Mixing, erasing and MESA are left out of both. Theirs: channels-last, fused AdamW, a moving average
by `torch._foreach` operations, `torch.autocast` to bfloat16 on a GPU; eager and by `torch.compile`
of the network. Ours is the step of `fastervit_jax.training`.

Memory is that of the step with its state: for torch the allocator's peak (on a GPU alone), for ours
what the compiled program reserves: arguments, results that do not replace them, temporaries.
"""

import harness
import jax
import jax.numpy as jnp
import networks
import numpy as np
import torch

from fastervit_jax.augmentation.device import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentationSettings,
)
from fastervit_jax.models import FasterViT
from fastervit_jax.models.pure_model import PureModel
from fastervit_jax.parallel.mesh import make_mesh, place_batch
from fastervit_jax.runs.state import abstract_state, place_state
from fastervit_jax.training.classification import ClassificationObjective
from fastervit_jax.training.optimizers import make_optimizer
from fastervit_jax.training.step import StepSettings, compile_train_step, make_train_step

DECAY, RATE, WEIGHT_DECAY, CLIP, SMOOTHING = 0.9998, 1e-4, 0.005, 5.0, 0.1
THEIRS = ("eager", "compiled")


class TorchStep:
    """A step of the official network; `run` for the harness."""

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, compiled: bool, dtype):
        self.place = "cuda" if torch.cuda.is_available() else "cpu"
        device = "gpu" if self.place == "cuda" else "cpu"
        self.model = networks.official(name, device).train()
        # Parameters and running statistics. The other buffers are positions that are computed anew.
        self.averaged = [
            tensor
            for key, tensor in self.model.state_dict(keep_vars=True).items()
            if isinstance(tensor, torch.nn.Parameter) or "running" in key
        ]
        self.averages = [tensor.detach().clone() for tensor in self.averaged]
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": others, "weight_decay": 0.0}],
            lr=RATE,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        self.forward = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.autocast = torch.autocast(
            self.place, dtype=torch.bfloat16, enabled=dtype == "bfloat16"
        )
        self.images = torch.from_numpy(images).to(self.place)
        self.labels = torch.from_numpy(labels).to(self.place).long()
        scale = 255 * torch.tensor([IMAGENET_MEAN, IMAGENET_STD], device=self.place)
        self.mean, self.std = scale.view(2, 1, 3, 1, 1)
        self.loss = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)

    def step(self) -> None:
        images = (self.images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        with self.autocast:
            logits = self.forward(images)
        self.loss(logits.float(), self.labels).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.averaged, 1 - DECAY)


class OurStep:
    """A step of ours on one device; the state goes from step to step, as in training."""

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, dtype: str, options=None):
        theirs = networks.official(name, "cpu")
        model: FasterViT = networks.ours(name, theirs, dtype=dtype)
        model.set_attributes(group_size=len(images))
        mesh = make_mesh(devices=jax.devices()[:1])
        optimizer = make_optimizer(
            "adamw", learning_rate=RATE, weight_decay=WEIGHT_DECAY, clip_norm=CLIP
        )
        settings = StepSettings(
            seed=0,
            ema_decay=DECAY,
            objective=ClassificationObjective(
                AugmentationSettings(
                    num_classes=model.config.num_classes,
                    group_size=len(images),
                    mixup_alpha=0.0,
                    cutmix_alpha=0.0,
                    smoothing=SMOOTHING,
                    erasing_probability=0.0,
                    dtype=jnp.dtype(dtype),
                )
            ),
        )
        self.state = place_state(model, optimizer, mesh)
        shapes = abstract_state(model, optimizer, mesh)
        step = make_train_step(PureModel(model), optimizer, settings, mesh)
        self.batch = place_batch({"image": images, "label": labels}, mesh)
        self.step = compile_train_step(step, shapes, mesh, options)

    def run(self, calls: int) -> None:
        for _ in range(calls):
            self.state, _ = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)

    def memory(self) -> float:
        """GB that the compiled step reserves, its state included."""
        found = self.step.lower(self.state, self.batch).compile().memory_analysis()
        reserved = found.argument_size_in_bytes + found.temp_size_in_bytes
        return (reserved + found.output_size_in_bytes - found.alias_size_in_bytes) / 1e9


def torch_memory(run: harness.Run, before: int) -> float | None:
    """GB that torch holds at most during a call, beyond the bytes held before."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    run(1)
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def held() -> int:
    """Bytes that torch holds on the GPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def main() -> None:
    flags = harness.parser(__doc__)
    flags.add_argument("--batches", type=int, nargs="*", default=[8])
    flags.add_argument("--theirs", nargs="*", choices=THEIRS, default=THEIRS)
    arguments = flags.parse_args()
    device = harness.start(arguments)
    record = harness.Record("training_step", arguments, device)
    rng = np.random.default_rng(0)
    for number in arguments.models:
        name = networks.name_of(number)
        for batch in arguments.batches:
            images = rng.integers(0, 256, (batch, 224, 224, 3), np.uint8)
            labels = rng.integers(0, 1000, batch, np.int32)
            runs, memory, first = {}, {}, {}
            for key in arguments.theirs:
                before = held()
                theirs = TorchStep(name, images, labels, key == "compiled", arguments.dtype)
                runs[key] = networks.torch_repeat(theirs.step)
                first[key] = harness.first_seconds(runs[key])
                memory[key] = torch_memory(runs[key], before)
            ours = OurStep(name, images, labels, arguments.dtype)
            runs["ours"] = ours.run
            first["ours"] = harness.first_seconds(ours.run)
            memory["ours"] = ours.memory()
            timings = harness.take_turns(
                runs, rounds=arguments.rounds, seconds=arguments.seconds, device=device
            )
            rates = {key: batch / timing.counted for key, timing in timings.items()}
            record.add(
                model=name,
                batch=batch,
                **rates,
                **{f"ratio_{key}": rates["ours"] / rates[key] for key in arguments.theirs},
                **{f"gb_{key}": value for key, value in memory.items()},
                first_seconds=first,
                spread={key: timing.spread for key, timing in timings.items()},
            )
            del theirs, ours, runs
            harness.forget()
    ratios = [f"ratio_{key}" for key in arguments.theirs]
    record.show(["model", "batch", *THEIRS, "ours", *ratios, "gb_eager", "gb_compiled", "gb_ours"])


if __name__ == "__main__":
    main()
