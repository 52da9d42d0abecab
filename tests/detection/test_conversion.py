"""Files with the official names, to our directories and back."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastervit_jax import create_model, list_models, save_model
from fastervit_jax.detection.dino import FAMILY
from fastervit_jax.models.pure_model import arrays_of
from fastervit_jax.runs.recipes import load_recipe
from fastervit_jax.training.detection import Detection
from fastervit_jax.weights.convert import convert_checkpoint, export_to_torch
from fastervit_jax.weights.torch_buffers import SUFFIXES
from tests.detection import golden_files
from tests.small.run import ROOT

torch = pytest.importorskip("torch")

from fastervit_jax.weights.to_torch import state_to_torch  # noqa: E402

NAME = "dino_4scale_faster_vit_4_21k_224"
TINY = dict(
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 2, 4),
    dim=16,
    in_dim=8,
    num_classes=11,
    queries=30,
    feedforward=128,
    encoder_layers=2,
    decoder_layers=2,
)


def arrays(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(a) for part in arrays_of(model) for name, a in part.items()}


@pytest.fixture(scope="module")
def official() -> dict:
    """The golden weights as an official file has them: tensors with several names are shared."""
    about, _ = golden_files.golden(4)
    made: dict = {}
    state = {}
    for name, recipe in about["weights"].items():
        if recipe["seed"] not in made:
            values = golden_files.official_tensor(recipe).astype(np.float32)
            made[recipe["seed"]] = torch.from_numpy(values)
        state[name] = made[recipe["seed"]]
    return state


@pytest.fixture(scope="module")
def file(official, tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "checkpoint.pth"
    torch.save({"model": official, "epoch": 11}, path)
    return path


@pytest.fixture(scope="module")
def converted(file, tmp_path_factory):
    directory = tmp_path_factory.mktemp("converted") / "dino"
    convert_checkpoint(NAME, file, directory, say=lambda line: None, **TINY)
    return directory


def test_there(converted):
    """The converted network is the one that the golden tests compare."""
    model = create_model(NAME, weights=converted)
    expected = arrays(golden_files.network(golden_files.golden(4)[0]))
    ours = arrays(model)
    assert ours.keys() == expected.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name])
    assert model.config.backbone == golden_files.BACKBONE.__class__(
        **{**golden_files.BACKBONE.options(), "do_propagation": True, "drop_path_rate": 0.1}
    )


def test_back(converted, official, tmp_path):
    """Every official tensor comes back to the bit, under all of its names."""
    path = tmp_path / "back.pth"
    export_to_torch(NAME, converted, path, say=lambda line: None)
    state = torch.load(path, weights_only=True)["state_dict"]
    derived = {name for name in state if name.endswith(SUFFIXES)}
    assert set(state) - derived == set(official)
    for name, tensor in official.items():
        assert torch.equal(state[name], tensor), name
    heads = [name for name in official if "class_embed." in name and "weight" in name]
    shared = {state[name].data_ptr() for name in heads if "enc_out" not in name}
    assert len(heads) == 5
    assert len(shared) == 1, "stored once"


def test_back_and_there_again(converted, tmp_path):
    export_to_torch(NAME, converted, tmp_path / "back.pth", say=lambda line: None)
    again = tmp_path / "again"
    convert_checkpoint(NAME, tmp_path / "back.pth", again, say=lambda line: None, **TINY)
    first, second = (arrays(create_model(NAME, weights=path)) for path in (converted, again))
    jax.tree.map(np.testing.assert_array_equal, first, second)


CHANGES = {
    "a tensor is missing": (
        lambda state: state.pop("transformer.enc_output.bias"),
        "missing (1): transformer.enc_output.bias",
    ),
    "a tensor is unknown": (
        lambda state: state.update({"transformer.enc_output.gain": torch.ones(3)}),
        "unexpected (1): transformer.enc_output.gain",
    ),
    "a copy differs": (
        lambda state: state.update({"class_embed.1.bias": torch.ones(11)}),
        "are the same tensor in the official model, but differ here",
    ),
    "another shape": (
        lambda state: state.update({"transformer.tgt_embed.weight": torch.ones(256, 30)}),
        "transformer.tgt_embed.weight (expected 30×256, got 256×30)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_refusals(change, official, tmp_path):
    alter, message = CHANGES[change]
    state = dict(official)
    alter(state)
    torch.save({"model": state}, tmp_path / "file.pth")
    with pytest.raises(ValueError) as error:
        convert_checkpoint(NAME, tmp_path / "file.pth", tmp_path / "out", **TINY)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_other_classes(file, official, tmp_path):
    """Another number of classes: new heads and label embedding, everything else as it was."""
    with pytest.warns(UserWarning, match="selection|enc_out_class_embed"):
        model = create_model(NAME, weights=file, **{**TINY, "num_classes": 3})
    ours, full = arrays(model), arrays(golden_files.network(golden_files.golden(4)[0]))
    assert ours["decoder.class_head.kernel"].shape == (256, 3)
    assert ours["label_embedding.embedding"].shape == (4, 256)
    new = {name for name in full if "class_head" in name or name.startswith("label_embedding")}
    for name in full.keys() - new:
        np.testing.assert_array_equal(ours[name], full[name])


def test_fine_tuning_from_a_converted_directory(converted, capsys):
    """`config.finetune.weights` with three classes: what is new is named, the rest is loaded."""
    config = load_recipe("detect_folder")
    config.update_from_flattened_dict({f"model.{key}": value for key, value in TINY.items()})
    config.model.num_classes = 3
    config.finetune.weights = str(converted)
    ours = arrays(Detection().initial_network(config))
    said = capsys.readouterr().out
    full = arrays(create_model(NAME, weights=converted))
    assert ours.keys() == full.keys()
    assert ours["decoder.class_head.bias"].shape == (3,)
    for name, array in ours.items():
        if "class_head" in name or name.startswith("label_embedding"):
            assert name in said
        else:
            np.testing.assert_array_equal(array, full[name])


def test_more_boxes_than_queries():
    config = load_recipe("detect_folder")
    config.data.max_boxes = 901
    with pytest.raises(ValueError, match="max_boxes=901: expected at most the 900 queries"):
        Detection().check(config, batch_shards=1, hosts=1, tensor=1)


def test_a_classifier_is_no_detector_and_the_other_way_round(file, tmp_path):
    classifier = create_model("faster_vit_4_21k_224", **{k: TINY[k] for k in list(TINY)[:5]})
    state = state_to_torch(arrays(classifier), classifier.config)
    torch.save({"state_dict": state}, tmp_path / "classifier.pth")
    for name, path, options, message in (
        (NAME, tmp_path / "classifier.pth", TINY, "belongs to a classifier. Expected weights of a"),
        ("faster_vit_4_21k_224", file, {}, "belongs to a detector. Expected weights of a class"),
    ):
        with pytest.raises(ValueError) as error:
            convert_checkpoint(name, path, tmp_path / "out", **options)
        assert message in str(error.value)
        assert not (tmp_path / "out").exists()
    save_model(classifier, tmp_path / "converted")
    with pytest.raises(ValueError, match="contains weights of faster_vit_4_21k_224, not of dino"):
        create_model(NAME, weights=tmp_path / "converted")


@pytest.mark.slow
def test_full_size(tmp_path):
    """The published network's file (random weights) through the command, there and back."""
    model = FAMILY.abstract(FAMILY.config(NAME))
    generator = np.random.default_rng(0)
    drawn = {
        name: generator.standard_normal(array.shape, np.float32)
        for part in arrays_of(model)
        for name, array in part.items()
    }
    state = state_to_torch(drawn, model.config, FAMILY)
    path, directory, back = tmp_path / "dino.pth", tmp_path / "converted", tmp_path / "back.pth"
    torch.save({"model": state}, path)
    _run([f"--model={NAME}", f"--checkpoint={path}", f"--output={directory}"])
    stored = json.loads((directory / "metadata.json").read_text())
    assert stored["model"] == NAME
    assert stored["arrays"].keys() == drawn.keys()
    _run([f"--model={NAME}", f"--weights={directory}", f"--to_torch={back}"])
    again = torch.load(back, weights_only=True, mmap=True)["state_dict"]
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def _run(argv: list[str]) -> None:
    program = [sys.executable, ROOT / "convert_torch_weights.py", *argv]
    subprocess.run(program, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})


NAMES = list_models("dino_*")


@pytest.mark.parametrize(
    "name",
    [
        "dino_4scale_faster_vit_0_224",
        *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:]),
    ],
)
def test_every_name_makes_a_network(name):
    assert len(NAMES) == 12 and NAMES[0] == "dino_4scale_faster_vit_0_224"
    model = FAMILY.abstract(FAMILY.config(name), dtype=jnp.bfloat16)
    assert model.config.levels == (5 if "5scale" in name else 4)
