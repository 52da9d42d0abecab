"""UperNet's weights: mmsegmentation's and transformers' names, deployment."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax import create_model, list_models
from fastervit_jax.models import family_of
from fastervit_jax.models.pure_model import arrays_of
from fastervit_jax.weights.convert import convert_checkpoint, export_to_torch
from fastervit_jax.weights.torch_buffers import SUFFIXES
from tests.quick_compilation import quick_jit

torch = pytest.importorskip("torch")

NAME = "upernet_faster_vit_0"
TINY = dict(
    resolution=64,
    depths=(1, 1, 1, 1),
    num_heads=(1, 1, 2, 2),
    dim=8,
    in_dim=8,
    channels=8,
    auxiliary_channels=8,
    window_size=(2, 2, 2, 2),
    ct_size=1,
    num_classes=5,
)


def arrays(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(a) for part in arrays_of(model) for name, a in part.items()}


@pytest.fixture(scope="module")
def model():
    """With random statistics and scales, as after training."""
    model = create_model(NAME, **TINY)
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        if path[-1] in ("scale", "var"):
            variable.set_value(jnp.asarray(rng.uniform(0.5, 1.5, variable.shape), jnp.float32))
        elif path[-1] in ("bias", "mean"):
            variable.set_value(jnp.asarray(rng.normal(0, 0.2, variable.shape), jnp.float32))
    return model


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """A file with mmsegmentation's names."""
    root = tmp_path_factory.mktemp("weights")
    from fastervit_jax import save_model

    save_model(model, root / "ours")
    export_to_torch(NAME, root / "ours", root / "file.pth", say=lambda line: None)
    return root / "file.pth"


def test_names_are_mmsegmentations(file):
    state = torch.load(file, weights_only=True)["state_dict"]
    for name in (
        "backbone.patch_embed.conv_down.0.weight",
        "backbone.norm0.weight",
        "decode_head.psp_modules.3.1.conv.weight",
        "decode_head.psp_modules.0.1.bn.running_mean",
        "decode_head.bottleneck.conv.weight",
        "decode_head.lateral_convs.2.bn.weight",
        "decode_head.fpn_convs.1.conv.weight",
        "decode_head.fpn_bottleneck.bn.running_var",
        "decode_head.conv_seg.bias",
        "auxiliary_head.convs.0.conv.weight",
        "auxiliary_head.conv_seg.weight",
    ):
        assert name in state, name
    # The recorded heads of mmsegmentation have the same names.
    with np.load(Path(__file__).parent / "upernet.npz") as recorded:
        theirs = {name.removeprefix("weights.") for name in recorded if name.startswith("weights.")}
    assert {name for name in state if "_head" in name} == theirs


def _read(path, directory):
    convert_checkpoint(NAME, path, directory, say=lambda line: None, **TINY)
    return arrays(create_model(NAME, weights=directory))


def test_there_and_back(model, file, tmp_path):
    again = _read(file, tmp_path / "converted")
    jax.tree.map(np.testing.assert_array_equal, arrays(model), again)


def test_transformers_names_are_read(model, file, tmp_path):
    state = torch.load(file, weights_only=True)["state_dict"]
    renamed = {
        name.replace(".bn.", ".batch_norm.").replace("conv_seg", "classifier")
        if "_head." in name
        else name: tensor
        for name, tensor in state.items()
    }
    assert set(renamed) != set(state)
    torch.save({"state_dict": renamed}, tmp_path / "file.pth")
    again = _read(tmp_path / "file.pth", tmp_path / "converted")
    jax.tree.map(np.testing.assert_array_equal, arrays(model), again)


def test_other_classes_make_new_classifiers(model, file):
    with pytest.warns(UserWarning, match=r"classifier|conv_seg"):
        other = create_model(NAME, weights=file, **{**TINY, "num_classes": 3})
    new, old = arrays(other), arrays(model)
    assert new["decoder.classifier.kernel"].shape == (1, 1, 8, 3)
    for name in old:
        if "classifier" not in name:
            np.testing.assert_array_equal(new[name], old[name])


def test_a_classifier_is_no_segmenter(tmp_path):
    from fastervit_jax import save_model

    small = {k: TINY[k] for k in ("depths", "num_heads", "dim", "in_dim")}
    classifier = create_model("faster_vit_0_224", **small)
    save_model(classifier, tmp_path / "converted")
    with pytest.raises(ValueError, match=f"contains weights of faster_vit_0_224, not of {NAME}"):
        create_model(NAME, weights=tmp_path / "converted")
    export_to_torch(
        "faster_vit_0_224", tmp_path / "converted", tmp_path / "file.pth", say=lambda line: None
    )
    with pytest.raises(ValueError, match="classifier"):
        convert_checkpoint(NAME, tmp_path / "file.pth", tmp_path / "out", **TINY)
    assert not (tmp_path / "out").exists()


def test_deployed_scores_are_the_same(model):
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 64, 64, 3)), jnp.float32)
    graph, state = nnx.split(model)
    expected = quick_jit(lambda state, x: nnx.merge(graph, state).scores(x))(state, images)
    deployed = model.deploy()
    graph_d, state_d = nnx.split(deployed)
    found = quick_jit(lambda state, x: nnx.merge(graph_d, state).scores(x))(state_d, images)
    assert not any(True for _ in nnx.to_flat_state(nnx.state(deployed, nnx.Param)))
    largest = float(jnp.abs(expected).max())
    assert float(jnp.abs(found - expected).max()) <= 1e-5 * largest
    with pytest.raises(ValueError, match="already deployed"):
        deployed.deploy()


def test_all_names():
    names = list_models("upernet_*")
    assert len(names) == 11 and {f"upernet_faster_vit_{n}" for n in range(7)} < set(names)
    for name in names:
        assert family_of(name).config(name).num_classes == 150


def test_derived_tensors_are_named(file):
    state = torch.load(file, weights_only=True)["state_dict"]
    assert any(name.endswith(SUFFIXES) for name in state)
