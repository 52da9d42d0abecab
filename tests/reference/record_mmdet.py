"""Records what mmdet's DINO computes, for tests/detection/test_mmdet.py.

mmdet 3.3.0 needs an environment of its own:

    pip install --no-deps --target MMDET mmdet==3.3.0 mmcv-lite==2.1.0 mmengine ftfy regex addict \
        yapf terminaltables platformdirs termcolor rich opencv-python-headless shapely pycocotools \
        wcwidth
    PYTHONPATH=MMDET python tests/reference/record_mmdet.py tests/detection/golden/mmdet.npz

mmcv-lite has no compiled operators, so an empty module stands in for them. DETECTION's official
constants replace mmdet's where the two differ: noise of boxes 0.4 (mmdet: 1.0), and groups of
2 · boxes in 200 queries (mmdet: boxes in 100, which is the same number).
"""

import sys
import types

import numpy as np
import torch

CLASSES, QUERIES, LAYERS = 11, 20, 3
COUNTS = (4, 0, 2)


def _without_compiled_operators() -> None:
    empty = types.ModuleType("mmcv._ext")

    def operator(name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    empty.__getattr__ = operator
    sys.modules["mmcv._ext"] = empty


def main(path: str) -> None:
    _without_compiled_operators()
    from mmdet.models.dense_heads import DINOHead
    from mmdet.models.layers import CdnQueryGenerator
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    torch.set_default_dtype(torch.float64)
    generator = np.random.default_rng(0)
    images = len(COUNTS)
    centers = [generator.uniform(0.2, 0.8, (n, 2)) for n in COUNTS]
    boxes = [np.concatenate([c, generator.uniform(0.05, 0.4, c.shape)], axis=1) for c in centers]
    labels = [generator.integers(0, CLASSES, n) for n in COUNTS]
    height, width = 120, 200
    scale = np.array([width, height, width, height])

    samples = []
    for own_boxes, own_labels in zip(boxes, labels, strict=True):
        corners = np.concatenate(
            [own_boxes[:, :2] - own_boxes[:, 2:] / 2, own_boxes[:, :2] + own_boxes[:, 2:] / 2], 1
        )
        sample = DetDataSample(metainfo=dict(img_shape=(height, width)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(corners * scale), labels=torch.tensor(own_labels)
        )
        samples.append(sample)

    record = {f"boxes_{i}": each for i, each in enumerate(boxes)}
    record |= {f"labels_{i}": each for i, each in enumerate(labels)}

    # Denoising queries, with the noise of boxes beside them. Random draws are replaced by our own.
    noise = CdnQueryGenerator(
        num_classes=CLASSES,
        embed_dims=1,
        num_matching_queries=QUERIES,
        label_noise_scale=0.5,
        box_noise_scale=0.4,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=10),
    )
    noise.label_embedding.weight.data = torch.arange(1.0, CLASSES + 1)[:, None]
    torch.rand_like = lambda x: torch.tensor(generator.random(tuple(x.shape)))
    torch.randint_like = lambda x, low, high, dtype=None: torch.tensor(
        generator.integers(low, high, tuple(x.shape)), dtype=dtype or x.dtype
    )
    moves = []
    multiply = torch.mul

    def remember(a, b):
        moves.append(a)
        return multiply(a, b)

    torch.mul = remember
    queries, references, mask, meta = noise(samples)
    torch.mul = multiply
    slots = meta["num_denoising_queries"]
    index = torch.cat([torch.full((n,), i) for i, n in enumerate(COUNTS)]).long()
    groups = meta["num_denoising_groups"]
    _, collated = noise.collate_dn_queries(
        torch.zeros(len(moves[0]), 1), moves[0], index, images, groups
    )
    record |= {
        "noisy_labels": queries[..., 0].detach().numpy(),
        "noisy_references": references.numpy(),
        "moves": collated.numpy(),
        "mask": mask.numpy(),
        "groups": np.array(groups),
    }

    # Outputs, losses, and their gradients.
    def draw(*shape):
        return torch.tensor(generator.standard_normal(shape), requires_grad=True)

    logits = draw(LAYERS, images, slots + QUERIES, CLASSES)
    raw = draw(LAYERS, images, slots + QUERIES, 4)
    selected_logits, selected_raw = draw(images, QUERIES, CLASSES), draw(images, QUERIES, 4)
    head = DINOHead(
        num_classes=CLASSES,
        embed_dims=32,
        sync_cls_avg_factor=True,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=5.0),
        loss_iou=dict(type="GIoULoss", loss_weight=2.0),
        train_cfg=dict(
            assigner=dict(
                type="HungarianAssigner",
                match_costs=[
                    dict(type="FocalLossCost", weight=2.0),
                    dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
                    dict(type="IoUCost", iou_mode="giou", weight=2.0),
                ],
            )
        ),
        num_pred_layer=LAYERS + 1,
        as_two_stage=True,
        share_pred_layer=False,
    )
    pairs = []
    assign = head.assigner.assign

    def remember_pairs(*args, **kwargs):
        result = assign(*args, **kwargs)
        pairs.append((result.gt_inds - 1).numpy())
        return result

    head.assigner.assign = remember_pairs
    losses = head.loss_by_feat(
        logits,
        raw.sigmoid(),
        selected_logits,
        selected_raw.sigmoid(),
        [sample.gt_instances for sample in samples],
        [dict(img_shape=(height, width)) for _ in samples],
        meta,
    )
    total = sum(losses.values())
    total.backward()
    record |= {f"loss_{name}": value.detach().numpy() for name, value in losses.items()}
    for name, array in dict(
        logits=logits, raw=raw, selected_logits=selected_logits, selected_raw=selected_raw
    ).items():
        record[name] = array.detach().numpy()
        record[f"gradient_{name}"] = array.grad.numpy()
    record["pairs"] = np.stack(pairs)  # outputs × images, in mmdet's order
    np.savez_compressed(path, **record)
    for name, value in losses.items():
        print(name, float(value))
    print({name: array.shape for name, array in record.items() if "loss" not in name})


if __name__ == "__main__":
    main(sys.argv[1])
