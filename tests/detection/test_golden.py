"""Every intermediate result of the official DINO on known weights and images."""

import functools

import numpy as np
import pytest
from flax import nnx

from fastervit_jax.detection import Inputs
from fastervit_jax.detection.postprocess import best_detections
from tests.detection import golden_files
from tests.quick_compilation import quick_jit

TOLERANCE = 1e-5  # of the largest value; float32 against the official float64
EXACT = ("mask", "topk_proposals", "labels")


@functools.cache
def ours(levels: int) -> dict[str, np.ndarray]:
    """Our results, by the names of the golden file."""
    about, _ = golden_files.golden(levels)
    model, inputs = golden_files.network(about), golden_files.inputs()
    graph, state = nnx.split(model)

    @quick_jit
    def run(state, images, sizes):
        model, inputs = nnx.merge(graph, state), Inputs(images, sizes)
        maps = model.maps(images)
        tokens, known = model.tokens(maps, inputs)
        memory = model.encoder(tokens, known)
        selected = model.selection(memory, known)
        decoded = model.decoder(selected.content, selected.references, memory, known)
        kept = about["config"]["num_select"]
        best = best_detections(decoded.logits[-1], decoded.boxes[-1], sizes, kept)
        return maps, tokens, known, memory, selected, decoded, best, model(inputs)

    results = run(state, inputs.images, inputs.sizes)
    maps, tokens, known, memory, selected, decoded, best, outputs = results
    by_name = {f"backbone_{i}": each.transpose(0, 3, 1, 2) for i, each in enumerate(maps)}
    start = 0
    for level, (height, width) in enumerate(known.shapes):
        part = slice(start, start + height * width)
        start = part.stop
        by_name[f"mask_{level}"] = known.padding[:, part].reshape(2, height, width)
        projected = tokens[:, part].reshape(2, height, width, -1)
        by_name[f"projected_{level}"] = projected.transpose(0, 3, 1, 2)
    by_name |= {
        "memory": memory,
        "memory_every_11th": memory[:, ::11],
        "enc_output": selected.tokens,
        "topk_proposals": selected.index,
        "topk_scores": selected.scores,
        "decoder_layer_0": decoded.content[0].swapaxes(0, 1),
        "decoder_layer_1": decoded.content[1].swapaxes(0, 1),
        "pred_logits": outputs.logits[-1],
        "pred_boxes": outputs.boxes[-1],
        "aux_0_logits": outputs.logits[0],
        "aux_0_boxes": outputs.boxes[0],
        "interm_logits": outputs.selected_logits,
        "interm_boxes": outputs.selected_boxes,
    }
    for image in range(2):
        for name, array in best._asdict().items():
            by_name[f"result_{image}_{name}"] = array[image]
    return {name: np.asarray(array) for name, array in by_name.items()}


def names(levels: int) -> list[str]:
    return [name for name in golden_files.golden(levels)[1] if not name.startswith("image")]


@pytest.mark.parametrize(
    ("levels", "name"), [(levels, name) for levels in (4, 5) for name in names(levels)]
)
def test_intermediate(levels, name):
    expected, got = golden_files.golden(levels)[1][name], ours(levels)[name]
    assert got.shape == expected.shape
    if any(part in name for part in EXACT):
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_options_of_the_backbone_change_the_maps():
    """The two differences from any_res: the golden maps need both."""
    import dataclasses

    from fastervit_jax.models import abstract_model
    from fastervit_jax.models.pure_model import arrays_of, unflatten

    about, arrays = golden_files.golden(4)
    model, images = golden_files.network(about), golden_files.inputs().images
    for option in ("pad_all_stages", "position_by_tokens"):
        config = dataclasses.replace(golden_files.BACKBONE, **{option: False})
        config = dataclasses.replace(config, resolution=images.shape[1:3])
        other = abstract_model(config)
        other.norm = nnx.data(None)
        for part in arrays_of(model.backbone):
            nnx.update(other, unflatten(part))
        other.eval()
        changed = nnx.clone(model)
        changed.backbone = other
        graph, state = nnx.split(changed)
        run = quick_jit(lambda state, images, graph=graph: nnx.merge(graph, state).maps(images)[-1])
        last = np.asarray(run(state, images)).transpose(0, 3, 1, 2)
        expected = arrays["backbone_2"]
        assert np.abs(last - expected).max() > 0.01 * np.abs(expected).max(), option
