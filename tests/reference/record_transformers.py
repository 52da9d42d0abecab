"""Records the deformable attention of transformers, for tests/detection/test_sampling.py.

pip install --no-deps --target HF transformers tokenizers huggingface_hub regex
PYTHONPATH=HF python tests/reference/record_transformers.py tests/detection/golden/sampling.npz
"""

import sys

import numpy as np
import torch

SHAPES = ((7, 9), (4, 5), (2, 3))
BATCH, QUERIES, HEADS, POINTS, WIDTH = 2, 11, 3, 4, 5


def main(path: str) -> None:
    # A torchvision for CUDA needs these operators declared where torch has no CUDA.
    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from transformers.models.deformable_detr import modeling_deformable_detr

    generator = np.random.default_rng(0)
    positions = sum(height * width for height, width in SHAPES)
    values = generator.standard_normal((BATCH, positions, HEADS, WIDTH))
    # Some points lie outside, and some at the centers of pixels, where the gradient has a kink.
    points = generator.uniform(-0.2, 1.2, (BATCH, QUERIES, HEADS, len(SHAPES), POINTS, 2))
    for level, (height, width) in enumerate(SHAPES):
        centers = (generator.integers(0, (width, height), (BATCH, HEADS, POINTS, 2)) + 0.5) / (
            width,
            height,
        )
        points[:, 0, :, level] = centers
    weights = generator.random((BATCH, QUERIES, HEADS, len(SHAPES), POINTS))
    gradient = generator.standard_normal((BATCH, QUERIES, HEADS * WIDTH))

    tensors = [torch.tensor(each, requires_grad=True) for each in (values, points, weights)]
    sizes = torch.tensor(SHAPES)
    starts = torch.tensor([0, *np.cumsum([h * w for h, w in SHAPES])[:-1]])
    module = modeling_deformable_detr.MultiScaleDeformableAttention()
    out = module(tensors[0], sizes, list(SHAPES), starts, tensors[1], tensors[2], 64)
    out.backward(torch.tensor(gradient))
    record = dict(values=values, points=points, weights=weights, gradient=gradient)
    record["out"] = out.detach().numpy()
    for name, tensor in zip(("values", "points", "weights"), tensors, strict=True):
        record[f"gradient_{name}"] = tensor.grad.numpy()
    np.savez_compressed(path, **record)


if __name__ == "__main__":
    main(sys.argv[1])
