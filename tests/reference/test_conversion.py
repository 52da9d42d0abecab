"""Conversion of files that the official code writes, and of ours that it reads."""

import argparse
import copy

import fastervit.models.faster_vit
import fastervit.models.faster_vit_any_res
import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from fastervit_jax import create_model, save_model
from fastervit_jax.data.preprocessing import default_preprocessing
from fastervit_jax.models import VARIANTS
from fastervit_jax.models.pure_model import arrays_of
from fastervit_jax.weights.convert import convert_checkpoint, export_to_torch
from fastervit_jax.weights.names import from_torch_layout, torch_name
from fastervit_jax.weights.to_torch import state_to_torch
from fastervit_jax.weights.torch_files import read_torch_checkpoint
from tests.reference.official import images, largest_difference, our_outputs, randomise, to_torch

SMALL = dict(dim=16, in_dim=8, depths=(1, 1, 1, 1), num_classes=10)
NAME = "faster_vit_3_224"


def official_network(name=NAME, **options):
    """An official network, float32, with informative weights, from its own function."""
    any_res = name.endswith("any_res")
    module = fastervit.models.faster_vit_any_res if any_res else fastervit.models.faster_vit
    network = getattr(module, name)(**{**SMALL, **options}).eval()
    randomise(network, seed=0)
    return network


def our_arrays(model):
    return {key: np.asarray(array) for part in arrays_of(model) for key, array in part.items()}


def assert_holds(model, state, scale=1.0):
    """Our model has exactly the official tensors."""
    for key, array in our_arrays(model).items():
        theirs = from_torch_layout(state[torch_name(key)].float().numpy())
        np.testing.assert_array_equal(array, theirs * np.float32(scale), err_msg=key)


@pytest.fixture(scope="module")
def network():
    return official_network()


@pytest.fixture(scope="module")
def state(network):
    return network.state_dict()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.pth.tar"


FORMS = {
    "state_dict": lambda state: {"state_dict": state},
    "model": lambda state: {"model": state},
    "bare tensors": lambda state: state,
    "module.": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "encoder.": lambda state: {"model": {f"encoder.{k}": v for k, v in state.items()}},
    "module.encoder.": lambda state: {f"module.encoder.{k}": v for k, v in state.items()},
    "half precision": lambda state: {
        "state_dict": {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    },
    "bfloat16": lambda state: {
        "state_dict": {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    },
    "parameters": lambda state: {
        k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("error::UserWarning:fastervit_jax")
def test_every_form_of_a_checkpoint(form, state, file):
    torch.save(FORMS[form](state), file)
    precision = {"half precision": torch.float16, "bfloat16": torch.bfloat16}.get(form)
    expected = {k: v.to(precision) if precision else v for k, v in state.items()}
    assert_holds(create_model(NAME, weights=file, **SMALL), expected)


def test_a_file_in_torchs_old_format(state, file):
    torch.save({"state_dict": state}, file, _use_new_zipfile_serialization=False)
    assert_holds(create_model(NAME, weights=file, **SMALL), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors(dtype, network, tmp_path):
    half = copy.deepcopy(network).to(dtype)
    # This drops one of the two names of the carrier-token convolution.
    safetensors.torch.save_model(half, str(tmp_path / "one.safetensors"))
    both = {k: v.clone().contiguous() for k, v in half.state_dict().items()}
    safetensors.torch.save_file(both, tmp_path / "both.safetensors")
    for name in ("one", "both"):
        model = create_model(NAME, weights=tmp_path / f"{name}.safetensors", **SMALL)
        assert_holds(model, half.state_dict())


def test_float64_is_rounded_and_says_so(network, file):
    torch.save(copy.deepcopy(network).double().state_dict(), file)
    with pytest.warns(UserWarning, match="Rounded from float64 to float32"):
        model = create_model(NAME, weights=file, **SMALL)
    assert_holds(model, network.state_dict())


@pytest.fixture
def training_checkpoint(tmp_path):
    """What the official training script writes, by the saver it uses; and its two state dicts.

    The average has followed a model that moved, over 40 steps.
    """
    network = official_network().train()
    average = timm.utils.ModelEmaV2(network, decay=0.9998)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for _ in range(40):
        average.update(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network(torch.randn(2, 3, 224, 224)).sum().backward()
    optimizer.step()
    saver = timm.utils.CheckpointSaver(
        network,
        optimizer,
        args=argparse.Namespace(model=NAME, lr=5e-3, opt_betas=None, mean=(0.5,), resume=""),
        model_ema=average,
        amp_scaler=timm.utils.NativeScaler(),
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(epoch=3, metric=81.5)
    return tmp_path / "last.pth.tar", network.state_dict(), average.module.state_dict()


def test_training_checkpoints_plain_and_averaged(training_checkpoint, tmp_path):
    file, plain, averaged = training_checkpoint
    lines = []
    convert_checkpoint(NAME, file, tmp_path / "plain", say=lines.append, compare=False, **SMALL)
    assert any("also contains an EMA" in line for line in lines)
    assert not any("Stored coordinates" in line for line in lines)
    assert_holds(create_model(NAME, weights=tmp_path / "plain"), plain)

    lines.clear()
    convert_checkpoint(NAME, file, tmp_path / "average", ema=True, say=lines.append, **SMALL)
    assert_holds(create_model(NAME, weights=tmp_path / "average"), averaged)
    # Averaging has moved the coordinates; the logits still agree, as the tool itself found.
    assert any(line.startswith("Stored coordinates differ") for line in lines)
    assert any(line.startswith("Compared with the official network") for line in lines)
    assert open_source_of(tmp_path / "average")["weights"] == "state_dict_ema"


def open_source_of(directory):
    from fastervit_jax.weights.loading import open_weights

    return open_weights(directory).info.source


def test_no_average_to_take(state, file):
    torch.save({"state_dict": state, "epoch": 3}, file)
    with pytest.raises(ValueError, match=r"no EMA\. Its keys are state_dict, epoch"):
        convert_checkpoint(NAME, file, file.parent / "out", ema=True, **SMALL)


def test_what_the_encoder_does_not_cover_is_named(state, file):
    content = {f"encoder.{k}": v for k, v in state.items()}
    torch.save({**content, "decoder.weight": torch.zeros(3)}, file)
    with pytest.warns(
        UserWarning,
        match="Skipped, because the name does not begin with `encoder.`: decoder.weight",
    ):
        create_model(NAME, weights=file, **SMALL)


def test_stored_coordinates_of_another_kind_are_reported(state, file):
    name = "levels.2.blocks.0.attn.pos_emb_funct.relative_coords_table"
    torch.save({**state, name: state[name] + 1e-3}, file)
    with pytest.warns(UserWarning, match=r"differ from the derived ones in 1 tensors, by up to 1"):
        create_model(NAME, weights=file, **SMALL)
    index = name.replace("relative_coords_table", "relative_position_index")
    torch.save({**state, index: state[index].flip(0)}, file)
    with pytest.warns(UserWarning, match=r"differ from the derived ones in 1 tensors.*index"):
        create_model(NAME, weights=file, **SMALL)


def test_preprocessing_is_the_official_one():
    for name in VARIANTS:
        any_res = name.endswith("any_res")
        module = fastervit.models.faster_vit_any_res if any_res else fastervit.models.faster_vit
        theirs, ours = module.default_cfgs[name], default_preprocessing(name)
        assert ours.crop_mode == theirs["crop_mode"], name
        assert ours.crop_fraction == theirs["crop_pct"], name
        assert (ours.mean, ours.std) == (theirs["mean"], theirs["std"]), name
        if not any_res:
            assert ours.resolution == theirs["input_size"][1:], name


OUTWARDS = {
    "square": (NAME, {}),
    "no layer scale": ("faster_vit_0_224", {}),
    "wide": ("faster_vit_3_any_res", dict(resolution=(112, 232), window_size=(7, 7, 4, 3))),
    "one window": ("faster_vit_1_any_res", dict(resolution=(100, 90))),
    "21k": ("faster_vit_4_21k_384", dict(dim=32, num_classes=0)),
}


@pytest.mark.parametrize("case", OUTWARDS)
def test_outwards_is_the_official_state_dict_bit_by_bit(case, file):
    name, options = OUTWARDS[case]
    network = official_network(name, **options)
    torch.save(network.state_dict(), file)
    model = create_model(name, weights=file, **{**SMALL, **options})
    ours = state_to_torch(our_arrays(model), model.config)

    # The official network fills its position biases in a forward pass.
    with torch.no_grad():
        network(torch.zeros(1, 3, *model.config.resolution))
    theirs = network.state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype, key
        assert torch.equal(ours[key], tensor), key
    for key in ours:
        if "global_tokenizer.pos_embed" in key:
            other = key.replace("pos_embed", "to_global_feature.pos")
            assert ours[key].data_ptr() == ours[other].data_ptr()


def test_there_and_back_through_files(network, state, tmp_path):
    torch.save({"state_dict": state}, tmp_path / "in.pth.tar")
    lines = []
    convert_checkpoint(NAME, tmp_path / "in.pth.tar", tmp_path / "ours", say=lines.append, **SMALL)
    export_to_torch(NAME, tmp_path / "ours", tmp_path / "out.pth.tar", say=lines.append)
    assert sum(line.startswith("Compared with the official") for line in lines) == 2

    # As the official package reads it: its own loader, and torch's with strict=True.
    reader = official_network()
    reader._load_state_dict(str(tmp_path / "out.pth.tar"), strict=True)
    reader.load_state_dict(
        torch.load(tmp_path / "out.pth.tar", weights_only=True)["state_dict"], strict=True
    )
    for key, tensor in state.items():
        if not key.endswith(("relative_bias", "num_batches_tracked")):
            assert torch.equal(reader.state_dict()[key], tensor), key
    noise = images(2, 224, 224)
    with torch.no_grad():
        theirs = reader(to_torch(noise).float()).numpy()
        assert np.array_equal(theirs, network(to_torch(noise).float()).numpy())
        # Deployed, it takes the position biases from the file.
        for module in reader.modules():
            if hasattr(module, "switch_to_deploy"):
                module.switch_to_deploy()
        assert np.array_equal(theirs, reader(to_torch(noise).float()).numpy())
    ours = create_model(NAME, weights=tmp_path / "ours")
    assert largest_difference(our_outputs(ours, noise)[0], theirs) < 1e-5


TRANSFERS = {
    "wide": dict(resolution=(112, 240)),
    "square, larger": dict(resolution=(300, 300)),
    "one window": dict(resolution=(96, 96)),
    "other windows": dict(resolution=(256, 384), window_size=(7, 7, 8, 4)),
    "ct_size": dict(resolution=(224, 224), ct_size=3),
    "no carrier tokens": dict(resolution=(224, 352), hat=(False,) * 4),
}


@pytest.mark.parametrize("case", TRANSFERS)
def test_any_res_models_start_as_the_official_ones_do(case, state, file):
    """The official any_res network reads a 224 file non-strictly; ours computes the same."""
    torch.save({"state_dict": state}, file)
    options = {**SMALL, **TRANSFERS[case]}
    theirs = fastervit.models.faster_vit_any_res.faster_vit_3_any_res(**options).eval()
    incompatible = theirs.state_dict().keys() ^ state.keys()
    theirs.load_state_dict(
        {k: v for k, v in state.items() if v.shape == theirs.state_dict().get(k, v[None]).shape},
        strict=False,
    )
    with pytest.warns(UserWarning) as caught:
        ours = create_model("faster_vit_3_any_res", weights=file, **options)
    said = str(caught[0].message)
    assert_holds(ours, theirs.state_dict())
    if case in ("wide", "other windows"):
        noise = images(2, *ours.config.resolution)
        with torch.no_grad():
            logits = theirs(to_torch(noise).float()).numpy()
        assert largest_difference(our_outputs(ours, noise)[0], logits) < 1e-5
    # Every weight that only one of the two has is named; and those alone.
    buffers = ("relative_bias", "relative_coords_table", "relative_position_index")
    differing = {k for k in incompatible if not k.endswith(buffers) and "r.pos_embed" not in k}
    listed = said.replace(".\n", ", ").replace(": ", ", ").rstrip(".").split(", ")
    named = {word for word in listed if word.endswith((".weight", ".bias", *"1234"))}
    assert {name for name in named if name.startswith("levels")} == differing


def test_another_number_of_classes_keeps_all_but_the_head(state, file, tmp_path):
    torch.save({"state_dict": state}, file)
    lines = []
    options = {**SMALL, "num_classes": 7}
    convert_checkpoint(NAME, file, tmp_path / "out", say=lines.append, **options)
    ours = our_arrays(create_model(NAME, weights=tmp_path / "out"))
    assert f"Loaded {len(ours) - 2} of {len(ours)} tensors." in lines
    assert "New, with initial values (2): head.bias, head.weight." in lines
    assert "Not loaded (2): head.bias, head.weight." in lines
    assert any(line.startswith("Compared with the official network") for line in lines)
    assert open_source_of(tmp_path / "out")["new"] == ["head.bias", "head.weight"]

    assert ours.pop("head.kernel").shape == (128, 7)
    ours.pop("head.bias")
    for key, array in ours.items():
        theirs = from_torch_layout(state[torch_name(key)].numpy())
        np.testing.assert_array_equal(array, theirs)


def test_a_network_that_computes_something_else_is_not_written(state, file, tmp_path):
    """Stored coordinates that the official network uses, and ours does not, give it away."""
    name = "levels.2.blocks.0.attn.pos_emb_funct.relative_coords_table"
    torch.save({**state, name: -state[name]}, file)
    with pytest.raises(ValueError, match="The logits differ from the official network"):
        convert_checkpoint(NAME, file, tmp_path / "out", say=lambda line: None, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_fine_tuned_models_go_out(tmp_path):
    from tests.small.weights import random_model

    model = random_model("faster_vit_3_any_res", resolution=(96, 160), num_classes=3)
    save_model(model, tmp_path / "ours", class_names=["a", "b", "c"])
    export_to_torch(None, tmp_path / "ours", tmp_path / "out.pth.tar", say=lambda line: None)
    stored = read_torch_checkpoint(tmp_path / "out.pth.tar")
    assert stored.tensors["head.weight"].shape == (3, 128)
