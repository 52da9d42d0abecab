"""Records what the UperNet heads of mmsegmentation and transformers compute.

For tests/segmentation/test_heads.py.

They need an environment of their own, beside torch 2.13:

    pip install --no-deps --target HEADS mmsegmentation==1.2.2 mmcv-lite==2.1.0 mmengine ftfy \
        regex addict yapf terminaltables platformdirs termcolor rich opencv-python-headless \
        prettytable wcwidth transformers tokenizers safetensors huggingface_hub filelock fsspec
    PYTHONPATH=HEADS python tests/reference/record_upernet.py tests/segmentation/upernet.npz

mmcv-lite has no compiled operators, so an empty module stands in for them.
"""

import importlib.machinery
import sys
import types

import numpy as np
import torch

WIDTHS, SIZES = (8, 12, 16, 20), ((13, 17), (7, 9), (4, 5), (2, 3))
CHANNELS, AUXILIARY_CHANNELS, CLASSES = 8, 6, 5
IMAGE = (50, 66)
IGNORE = 255


def without_compiled_operators() -> None:
    """Puts an empty module in the place of mmcv's compiled one."""
    empty = types.ModuleType("mmcv._ext")
    empty.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)

    def operator(name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    empty.__getattr__ = operator
    sys.modules["mmcv._ext"] = empty


def fill(module: torch.nn.Module, generator: np.random.Generator) -> None:
    """Random parameters and statistics."""
    state = module.state_dict()
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        value = generator.normal(size=tuple(tensor.shape)) * 0.3
        if name.endswith("running_var") or name.endswith("bn.weight"):
            value = 0.5 + np.abs(value)
        state[name] = torch.tensor(value)
    module.load_state_dict(state)


def transformers_heads(decoder: dict, auxiliary: dict):
    """transformers' heads with mmsegmentation's weights."""
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    config = UperNetConfig(
        hidden_size=CHANNELS,
        pool_scales=(1, 2, 3, 6),
        num_labels=CLASSES,
        auxiliary_channels=AUXILIARY_CHANNELS,
        auxiliary_num_convs=1,
        auxiliary_in_channels=WIDTHS[2],
    )
    heads = UperNetHead(config, list(WIDTHS)), UperNetFCNHead(config, list(WIDTHS))
    for head, state in zip(heads, (decoder, auxiliary), strict=True):
        renamed = {
            name.replace(".bn.", ".batch_norm.").replace("conv_seg", "classifier"): tensor
            for name, tensor in state.items()
        }
        head.load_state_dict(renamed)
    return heads


def main(path: str) -> None:
    """Writes the record."""
    without_compiled_operators()
    from mmengine.structures import PixelData
    from mmseg.models.decode_heads import FCNHead, UPerHead
    from mmseg.structures import SegDataSample

    torch.set_default_dtype(torch.float64)
    generator = np.random.default_rng(0)
    common = dict(
        num_classes=CLASSES,
        dropout_ratio=0,
        norm_cfg=dict(type="BN"),
        align_corners=False,
    )
    decoder = UPerHead(
        in_channels=list(WIDTHS),
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=CHANNELS,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        **common,
    )
    auxiliary = FCNHead(
        in_channels=WIDTHS[2],
        in_index=2,
        channels=AUXILIARY_CHANNELS,
        num_convs=1,
        concat_input=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
        **common,
    )
    heads = {"decode_head": decoder, "auxiliary_head": auxiliary}
    record: dict[str, np.ndarray] = {}
    for prefix, head in heads.items():
        fill(head, generator)
        for name, tensor in head.state_dict().items():
            record[f"weights.{prefix}.{name}"] = tensor.numpy().copy()
    maps = [
        torch.tensor(generator.normal(size=(2, width, *size))).requires_grad_()
        for width, size in zip(WIDTHS, SIZES, strict=True)
    ]
    labels = generator.integers(0, CLASSES, (2, *IMAGE))
    labels[generator.random(labels.shape) < 0.2] = IGNORE
    record["labels"] = labels
    for index, each in enumerate(maps):
        record[f"map_{index}"] = each.detach().numpy().copy()

    others = transformers_heads(decoder.state_dict(), auxiliary.state_dict())
    for mode in ("infer", "train"):
        for name, head, other in zip(("decoder", "auxiliary"), heads.values(), others, strict=True):
            head.train(mode == "train")
            other.train(mode == "train")
            record[f"{mode}.{name}"] = head(maps).detach().numpy().copy()
            record[f"{mode}.{name}.transformers"] = other(maps).detach().numpy().copy()

    # The losses and gradients in training mode, with the statistics as they were.
    for prefix, head in heads.items():
        head.load_state_dict(
            {name: torch.tensor(record[f"weights.{prefix}.{name}"]) for name in head.state_dict()}
        )
        head.train()
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=torch.tensor(each[None]))) for each in labels
    ]
    total = 0
    for name, head in zip(("decoder", "auxiliary"), heads.values(), strict=True):
        loss = head.loss_by_feat(head(maps), samples)["loss_ce"]
        record[f"loss.{name}"] = loss.detach().numpy().copy()
        total = total + loss
    total.backward()
    for prefix, head in heads.items():
        for name, parameter in head.named_parameters():
            record[f"gradient.{prefix}.{name}"] = parameter.grad.numpy().copy()
    for index, each in enumerate(maps):
        record[f"gradient.map_{index}"] = each.grad.numpy().copy()
    # transformers' loss, of the decoder: the mean over labeled pixels.
    resized = torch.nn.functional.interpolate(
        others[0](maps), size=IMAGE, mode="bilinear", align_corners=False
    )
    loss = torch.nn.CrossEntropyLoss(ignore_index=IGNORE)(resized, torch.tensor(labels))
    record["loss.decoder.transformers"] = loss.detach().numpy().copy()
    np.savez_compressed(path, **record)


if __name__ == "__main__":
    main(sys.argv[1])
