"""UperNet's forward pass and training step: ours against the same network in torch.

    pip install transformers
    python benchmarks/segmentation.py --models 0 --side 512 --batch 2

Theirs is the official any_res backbone with the heads of `transformers`, channels-last, eager. Both
have the same weights and take turns on one device; medians count. `forward` gives logits of the
size of the image. `deployed` is ours with folded norms against the same torch network. `step` is
both losses, their gradients, and AdamW.
"""

import harness
import jax
import jax.numpy as jnp
import networks
import numpy as np
import torch
from flax import nnx
from torch.nn import functional

from fastervit_jax.models.pure_model import PureModel, arrays_of
from fastervit_jax.parallel.mesh import make_mesh, place_batch
from fastervit_jax.runs.state import abstract_state, place_state
from fastervit_jax.segmentation.config import BACKBONES, upernet_config
from fastervit_jax.segmentation.resize import resize
from fastervit_jax.segmentation.upernet import UPERNET, UperNet
from fastervit_jax.training.optimizers import make_optimizer
from fastervit_jax.training.segmentation import SegmentationObjective
from fastervit_jax.training.step import StepSettings, compile_train_step, make_train_step
from fastervit_jax.weights.to_torch import state_to_torch

RATE, WEIGHT_DECAY, AUXILIARY_WEIGHT = 6e-5, 0.01, 0.4


class TorchUperNet(torch.nn.Module):
    """The official backbone, a norm for each map, and transformers' heads."""

    def __init__(self, model: UperNet):
        super().__init__()
        from transformers import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

        config = model.config
        widths = list(config.backbone.widths)
        height, width = config.resolution
        self.backbone = networks.official(
            BACKBONES[model.name], "cpu", resolution=[height, width], num_classes=0
        )
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(each) for each in widths)
        heads = UperNetConfig(
            hidden_size=config.channels,
            num_labels=config.num_classes,
            auxiliary_channels=config.auxiliary_channels,
            auxiliary_num_convs=1,
            auxiliary_in_channels=widths[2],
        )
        self.decode_head = UperNetHead(heads, widths)
        self.auxiliary_head = UperNetFCNHead(heads, widths)
        self._maps: list[torch.Tensor] = []
        for level in self.backbone.levels:
            if level.downsample is not None:
                level.downsample.register_forward_pre_hook(self._keep)
        self._load(model)

    def _keep(self, _, arguments) -> None:
        self._maps.append(arguments[0])

    def _load(self, model: UperNet) -> None:
        arrays = {name: np.asarray(a) for part in arrays_of(model) for name, a in part.items()}
        state = {}
        for name, tensor in state_to_torch(arrays, model.config, UPERNET).items():
            name = name.replace("backbone.norm", "norms.")
            if "_head." in name:
                name = name.replace(".bn.", ".batch_norm.").replace("conv_seg", "classifier")
            state[name] = tensor
        missing, unexpected = self.load_state_dict(state, strict=False)
        wrong = [name for name in missing if not name.endswith(("num_batches_tracked",))]
        wrong = [name for name in wrong if not name.startswith(("backbone.norm", "backbone.head"))]
        assert not [name for name in wrong if "relative" not in name], wrong
        assert not unexpected, unexpected

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Scores of the decoder and of the auxiliary head."""
        self._maps.clear()
        x = self.backbone.patch_embed(images)
        for level in self.backbone.levels:
            x = level(x)
        maps = [
            norm(each.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for norm, each in zip(self.norms, [*self._maps, x], strict=True)
        ]
        scores = [self.decode_head(maps)]
        return [*scores, self.auxiliary_head(maps)] if self.training else scores


class TorchStep:
    """A training step of torch."""

    def __init__(self, model: TorchUperNet, images: torch.Tensor, labels: torch.Tensor):
        self.model = model.train()
        self.images, self.labels = images, labels
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY, foreach=True
        )

    def step(self) -> None:
        """Both losses, as mmsegmentation divides them, their gradients, and the update."""
        total = 0
        for scores, weight in zip(self.model(self.images), (1, AUXILIARY_WEIGHT), strict=True):
            resized = functional.interpolate(
                scores, size=self.labels.shape[1:], mode="bilinear", align_corners=False
            )
            total = total + weight * functional.cross_entropy(resized, self.labels)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def our_step(model: UperNet, images: np.ndarray, labels: np.ndarray) -> harness.Run:
    """A training step of ours on one device."""
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer("adamw", learning_rate=RATE, weight_decay=WEIGHT_DECAY)
    settings = StepSettings(
        seed=0, ema_decay=0.0, objective=SegmentationObjective(AUXILIARY_WEIGHT, jnp.float32)
    )
    state = place_state(model, optimizer, mesh)
    step = compile_train_step(
        make_train_step(PureModel(model), optimizer, settings, mesh),
        abstract_state(model, optimizer, mesh),
        mesh,
    )
    sizes = np.tile(np.asarray(images.shape[1:3], np.int32), (len(images), 1))
    batch = place_batch({"image": images, "mask": labels, "size": sizes}, mesh)
    held = [state]

    def run(calls: int) -> None:
        for _ in range(calls):
            held[0], _ = step(held[0], batch)
        jax.block_until_ready(held[0])

    return run


def main() -> None:
    flags = harness.parser(__doc__)
    flags.add_argument("--batch", type=int, default=2)
    flags.add_argument("--side", type=int, default=512)
    flags.set_defaults(models=[0])
    arguments = flags.parse_args()
    device = harness.start(arguments)
    record = harness.Record("segmentation", arguments, device)
    rng = np.random.default_rng(0)
    size = (arguments.side, arguments.side)
    for number in arguments.models:
        name = f"upernet_faster_vit_{number}"
        config = upernet_config(name, resolution=size, drop_path_rate=0.0, head_dropout=0.0)
        model = UperNet(config, rngs=nnx.Rngs(0))
        model.name = name
        model.eval()
        theirs = TorchUperNet(model).eval().to(memory_format=torch.channels_last)
        images = networks.images_of(arguments.batch, size)
        tensor = networks.to_torch(images, device)

        def torch_forward(theirs=theirs, tensor=tensor):
            with torch.inference_mode():
                return functional.interpolate(
                    theirs(tensor)[0], size=size, mode="bilinear", align_corners=False
                )

        runs, differences = {"torch": networks.torch_repeat(torch_forward)}, {}
        for key, each in (("ours", model), ("ours_deployed", model.deploy())):
            graph, state = nnx.split(each)
            leaves, tree = jax.tree.flatten(state)

            def forward(leaves, images, graph=graph, tree=tree):
                network = nnx.merge(graph, jax.tree.unflatten(tree, leaves))
                return resize(network.scores(images), size)

            function = jax.jit(forward)
            runs[key] = harness.repeat(function, leaves, jnp.asarray(images))
            logits = function(leaves, jnp.asarray(images))
            differences[key] = networks.difference(logits.transpose(0, 3, 1, 2), torch_forward())
        row = {"model": name, "side": arguments.side, "batch": arguments.batch}
        timings = harness.take_turns(
            runs, rounds=arguments.rounds, seconds=arguments.seconds, device=device
        )
        seconds = {key: timing.counted for key, timing in timings.items()}
        for what, key in (("forward", "ours"), ("deployed", "ours_deployed")):
            record.add(
                **row,
                program=what,
                torch=seconds["torch"],
                ours=seconds[key],
                ratio=seconds["torch"] / seconds[key],
                difference=differences[key],
            )
        pixels = rng.integers(0, 256, (arguments.batch, *size, 3), np.uint8)
        labels = rng.integers(0, 150, (arguments.batch, *size)).astype(np.uint8)
        torch_step = TorchStep(theirs, tensor, torch.from_numpy(labels).long())
        steps = {
            "torch": networks.torch_repeat(torch_step.step),
            "ours": our_step(model, pixels, labels),
        }
        timings = harness.take_turns(
            steps, rounds=arguments.rounds, seconds=arguments.seconds, device=device
        )
        seconds = {key: timing.counted for key, timing in timings.items()}
        record.add(**row, program="step", **seconds, ratio=seconds["torch"] / seconds["ours"])
        harness.forget()
    record.show(["model", "side", "batch", "program", "torch", "ours", "ratio"])


if __name__ == "__main__":
    main()
