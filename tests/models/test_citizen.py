"""The examples of docs/guides/backbone.md, run on a small network, and what they must have done."""

import functools
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import fastervit_jax
from tests.small.network import small_model

DOCUMENT = Path(__file__).parents[2] / "docs" / "guides" / "backbone.md"


def examples() -> dict[str, str]:
    """The Python code under each heading of the document."""
    sections = re.split(r"^#+ (.*)$", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    return {
        heading: "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
        for heading, text in zip(sections[::2], sections[1::2], strict=True)
    }


@pytest.fixture(autouse=True)
def small_models(monkeypatch):
    """Whatever model an example asks for, it gets a small one."""
    monkeypatch.setattr(fastervit_jax, "create_model", small_model)


@functools.cache
def example(heading: str) -> dict:
    """The names that an example leaves behind, after the document's first one has run."""
    names = {}
    for part in (next(iter(examples())), heading):
        exec(compile(examples()[part], f"{DOCUMENT.name}: {part}", "exec"), names)
    return names


def parameters(model) -> dict[tuple, np.ndarray]:
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {path: np.asarray(variable.get_value()) for path, variable in state}


def test_inference():
    names = example("Inference")
    assert names["logits"].shape == (4, 10)
    np.testing.assert_allclose(names["logits"], names["pure_logits"], atol=1e-6)


def test_training():
    names = example("Training")
    model, losses = names["model"], names["losses"]
    assert losses[-1] < losses[0]
    statistics = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert all((np.asarray(array) % 1 != 0).any() for array in statistics), "they moved"

    evaluation = names["evaluation"]
    assert evaluation.norm.scale is model.norm.scale
    forward = nnx.jit(lambda model, images: model(images))
    out = forward(evaluation, names["images"])
    np.testing.assert_allclose(out, forward(model, names["images"]), atol=1e-6)


def test_head_and_freezing():
    names = example("Another head, and freezing")
    model = names["model"]
    untouched = small_model("faster_vit_0_224")
    before, after = parameters(untouched), parameters(model)
    changed = {path for path in after if not np.array_equal(before.get(path), after[path])}
    assert changed == {("head", "kernel"), ("head", "bias")}
    assert after["head", "kernel"].shape == (64, 5)
    assert (after["head", "bias"] != 0).all()
    statistics = (nnx.state(one, nnx.BatchStat) for one in (model, untouched))
    jax.tree.map(np.testing.assert_array_equal, *statistics)


def test_backbone():
    names = example("As a backbone")
    backbone = names["pyramid"].backbone
    assert backbone.channels == (8, 16, 32, 64)
    assert backbone.strides == (4, 8, 16, 32)
    sides = [128 // stride for stride in backbone.strides]
    assert [x.shape for x in names["levels"]] == [(4, side, side, 32) for side in sides]


def test_without_a_head():
    """`num_classes=0` and `head = None` both give the pooled features."""
    headless = small_model("faster_vit_0_224", num_classes=0)
    model = small_model("faster_vit_0_224")
    model.head = None
    images = jax.ShapeDtypeStruct((2, 128, 128, 3), np.float32)
    for one in (model, headless):
        assert nnx.eval_shape(lambda m, x: m(x), one, images).shape == (2, one.num_features)
    headless.head = nnx.Linear(64, 3, rngs=nnx.Rngs(0))
    assert nnx.eval_shape(lambda m, x: m(x), headless, images).shape == (2, 3)


def test_any_size():
    names = example("Any image size")
    model = names["model"]
    assert names["by_size"][96, 160].head.kernel is model.head.kernel, "shared, not copied"
    for (height, width), maps in names["maps_by_size"].items():
        sides = [(-(-height // stride), -(-width // stride)) for stride in model.strides]
        assert [x.shape[1:3] for x in maps] == sides
        assert all(np.isfinite(x).all() for x in maps)

    gradients = dict(nnx.to_flat_state(names["gradients"]))
    assert gradients.keys() == parameters(model).keys()
    largest = {path: np.abs(gradient.get_value()).max() for path, gradient in gradients.items()}
    # A wide grid of windows has no positions of carrier tokens.
    assert {path for path, size in largest.items() if size == 0} == {
        path for path in largest if "carrier_position" in path
    }


def test_ready_to_serve():
    names = example("Ready to serve")
    assert names["served_logits"].shape == (4, 10)
    assert not parameters(names["served"])
