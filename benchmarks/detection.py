"""DINO's forward pass and training step: ours against the same arithmetic in torch.

    pip install --no-deps mmdet==3.3.0 mmcv-lite==2.1.0 mmengine ftfy regex addict yapf \
        terminaltables platformdirs termcolor rich opencv-python-headless shapely pycocotools \
        wcwidth
    python benchmarks/detection.py --models 0 --sizes 256x320x2 480x640x1

Theirs is mmdet's DINO, with the official constants, on the official any_res backbone, channels-last
and eager. Deformable attention is mmcv's function in plain torch. Both have random weights and take
turns on one device; medians count. `forward` ends with the 300 best boxes. `step` is matching, all
losses, denoising queries included, their gradients, clipping and AdamW.

Both sides' multiply-adds are counted: torch's by torch, ours in the traced program.
"""

import sys
import types

import harness
import jax
import jax.numpy as jnp
import multiply_adds
import networks
import numpy as np
import torch
from flax import nnx
from torch.utils.flop_counter import FlopCounterMode

from fastervit_jax.detection.config import dino_config
from fastervit_jax.detection.dino import DINO
from fastervit_jax.detection.postprocess import best_detections
from fastervit_jax.models.pure_model import PureModel
from fastervit_jax.parallel.mesh import make_mesh, place_batch
from fastervit_jax.runs.recipes import load_recipe
from fastervit_jax.runs.state import abstract_state, place_state
from fastervit_jax.training.detection import Detection
from fastervit_jax.training.optimizers import make_optimizer
from fastervit_jax.training.step import StepSettings, compile_train_step, make_train_step

RATE, WEIGHT_DECAY, CLIP_NORM = 1e-4, 1e-4, 0.1
CLASSES, BOXES = 91, 8


class Backbone(torch.nn.Module):
    """The official network's maps of stages 2 to 4, each after a batch norm."""

    def __init__(self, number: int, size: tuple[int, int]):
        super().__init__()
        name = networks.name_of(number, any_res=True)
        self.network = networks.official(name, "cpu", resolution=list(size), num_classes=0)
        self.maps: list[torch.Tensor] = []
        for level in self.network.levels:
            if level.downsample is not None:
                level.downsample.register_forward_pre_hook(
                    lambda _, arguments: self.maps.append(arguments[0])
                )
        self.widths = dino_config(f"dino_4scale_faster_vit_{number}_224").backbone.widths[1:]
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(each) for each in self.widths)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[N, 3, H, W] → three maps."""
        self.maps.clear()
        x = self.network.patch_embed(images)
        for level in self.network.levels:
            x = level(x)
        maps = [*self.maps[1:], x]
        return tuple(norm(each) for norm, each in zip(self.norms, maps, strict=True))


def mmdet_dino(number: int, size: tuple[int, int]) -> torch.nn.Module:
    """mmdet's DINO with 4 scales on the official backbone."""
    # mmcv-lite has no compiled operators: an empty module stands in for them.
    empty = types.ModuleType("mmcv._ext")

    def operator(name: str):
        if name.startswith("__"):
            raise AttributeError(name)

    empty.__getattr__ = operator
    sys.modules["mmcv._ext"] = empty
    from mmdet.models.detectors import DINO as TheirDINO
    from mmdet.registry import MODELS

    backbone = Backbone(number, size)
    MODELS.register_module(name="Given", module=lambda init_cfg=None: backbone, force=True)
    attention = dict(embed_dims=256, num_levels=4, dropout=0.0)
    feedforward = dict(embed_dims=256, feedforward_channels=2048, ffn_drop=0.0)
    costs = [
        dict(type="FocalLossCost", weight=2.0),
        dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
        dict(type="IoUCost", iou_mode="giou", weight=2.0),
    ]
    return TheirDINO(
        num_queries=900,
        with_box_refine=True,
        as_two_stage=True,
        backbone=dict(type="Given"),
        neck=dict(
            type="ChannelMapper",
            in_channels=list(backbone.widths),
            kernel_size=1,
            out_channels=256,
            act_cfg=None,
            norm_cfg=dict(type="GN", num_groups=32),
            num_outs=4,
        ),
        encoder=dict(num_layers=6, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=feedforward)),
        decoder=dict(
            num_layers=6,
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.0),
                cross_attn_cfg=attention,
                ffn_cfg=feedforward,
            ),
            post_norm_cfg=None,
        ),
        positional_encoding=dict(num_feats=128, normalize=True, offset=0.0, temperature=20),
        bbox_head=dict(
            type="DINOHead",
            num_classes=CLASSES,
            sync_cls_avg_factor=True,
            loss_cls=dict(
                type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0
            ),
            loss_bbox=dict(type="L1Loss", loss_weight=5.0),
            loss_iou=dict(type="GIoULoss", loss_weight=2.0),
        ),
        dn_cfg=dict(
            label_noise_scale=0.5,
            box_noise_scale=0.4,
            group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=100),
        ),
        train_cfg=dict(assigner=dict(type="HungarianAssigner", match_costs=costs)),
        test_cfg=dict(max_per_img=300),
    )


def samples(boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int]) -> list:
    """What mmdet knows of each image; corner boxes in pixels."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    height, width = size
    centers, sides = boxes[..., :2], boxes[..., 2:]
    corners = np.concatenate([centers - sides / 2, centers + sides / 2], axis=-1)
    corners = corners * np.asarray([width, height, width, height], np.float32)
    made = []
    for own_boxes, own_labels in zip(corners, labels, strict=True):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=size, batch_input_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.from_numpy(own_boxes), labels=torch.from_numpy(own_labels).long()
        )
        made.append(sample)
    return made


def torch_step(model: torch.nn.Module, images: torch.Tensor, known: list) -> harness.Run:
    """A training step of torch."""
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY, foreach=True
    )

    def step() -> None:
        losses = model.loss(images, known)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return networks.torch_repeat(step)


def our_step(model: DINO, number: int, batch: dict[str, np.ndarray]) -> harness.Run:
    """A training step of ours on one device."""
    mesh = make_mesh(devices=jax.devices()[:1])
    config = load_recipe(f"dino_4scale_faster_vit_{number}_224_12ep")
    config.batch_size = len(batch["image"])
    config.model.dtype = str(model.dtype)
    objective = Detection().objective(config, epoch_steps=1, mixing_group=config.batch_size)
    settings = StepSettings(seed=0, ema_decay=0.0, objective=objective)
    optimizer = make_optimizer(
        "adamw", learning_rate=RATE, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM
    )
    held = [place_state(model, optimizer, mesh)]
    step = compile_train_step(
        make_train_step(PureModel(model), optimizer, settings, mesh),
        abstract_state(model, optimizer, mesh),
        mesh,
    )
    placed = place_batch(batch, mesh)

    def run(calls: int) -> None:
        for _ in range(calls):
            held[0], _ = step(held[0], placed)
        jax.block_until_ready(held[0])

    return run


def compare(record, arguments, device: str, number: int, size: tuple[int, int], n: int) -> None:
    """Times one model with n images of one size, and adds rows to the record."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0.3, 0.4, (n, BOXES, 4)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (n, BOXES)).astype(np.int32)
    name = f"dino_4scale_faster_vit_{number}_224"
    model = DINO(dino_config(name, drop_path_rate=0.0), rngs=nnx.Rngs(0))
    theirs = mmdet_dino(number, size).eval().to(memory_format=torch.channels_last)
    images = networks.images_of(n, size)
    tensor = networks.to_torch(images, device)
    known = samples(boxes, labels, size)
    row = {"model": name, "height": size[0], "width": size[1], "batch": n}
    model.eval()
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)

    def forward(leaves, images):
        out = nnx.merge(graph, jax.tree.unflatten(tree, leaves))(images)
        sizes = jnp.broadcast_to(jnp.asarray(size), (n, 2))
        return best_detections(out.logits[-1], out.boxes[-1], sizes)

    def torch_forward():
        with torch.inference_mode():
            return theirs.predict(tensor, known)

    function = jax.jit(forward)
    runs = {
        "torch": networks.torch_repeat(torch_forward),
        "ours": harness.repeat(function, leaves, jnp.asarray(images)),
    }
    with FlopCounterMode(display=False) as counter:
        torch_forward()
    traced = jax.make_jaxpr(forward)(leaves, jnp.asarray(images)).jaxpr
    counts = {
        "gmacs_torch": counter.get_total_flops() / 2e9 / n,
        "gmacs_ours": multiply_adds.traced(traced) / 1e9 / n,
    }
    timings = harness.take_turns(
        runs, rounds=arguments.rounds, seconds=arguments.seconds, device=device
    )
    seconds = {key: timing.counted for key, timing in timings.items()}
    ratio = seconds["torch"] / seconds["ours"]
    record.add(**row, program="forward", **seconds, ratio=ratio, **counts)
    batch = {
        "image": rng.integers(0, 256, (n, *size, 3), np.uint8),
        "size": np.tile(np.asarray(size, np.int32), (n, 1)),
        "labels": labels,
        "boxes": boxes,
        "count": np.full(n, BOXES, np.int32),
    }
    steps = {
        "torch": torch_step(theirs, tensor, known),
        "ours": our_step(model, number, batch),
    }
    timings = harness.take_turns(
        steps, rounds=arguments.rounds, seconds=arguments.seconds, device=device
    )
    seconds = {key: timing.counted for key, timing in timings.items()}
    ratio = seconds["torch"] / seconds["ours"]
    record.add(**row, program="step", **seconds, ratio=ratio)


def main() -> None:
    flags = harness.parser(__doc__)
    flags.add_argument("--sizes", nargs="+", default=["256x320x2"], help="height x width x batch")
    flags.set_defaults(models=[0])
    arguments = flags.parse_args()
    device = harness.start(arguments)
    record = harness.Record("detection", arguments, device)
    for number in arguments.models:
        for each in arguments.sizes:
            height, width, batch = map(int, each.split("x"))
            compare(record, arguments, device, number, (height, width), batch)
            harness.forget()
    record.show(["model", "height", "width", "batch", "program", "torch", "ours", "ratio"])


if __name__ == "__main__":
    main()
