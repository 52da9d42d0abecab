"""Files that are refused: damaged, foreign or malicious ones, and those that do not fit.

`pytest -rP` prints each message.
"""

import argparse
import contextlib
import datetime
import io
import os
import pathlib
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from fastervit_jax import create_model
from fastervit_jax.models import abstract_model, variant_config
from fastervit_jax.models.pure_model import arrays_of
from fastervit_jax.weights.names import to_torch_layout, torch_name
from fastervit_jax.weights.to_torch import state_to_torch
from fastervit_jax.weights.torch_files import read_torch_checkpoint
from tests.small.weights import SMALL, arrays, random_model

NAME = "faster_vit_3_224"


@pytest.fixture(scope="module")
def state():
    model = random_model(NAME)
    return state_to_torch(arrays(model), model.config)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.pth.tar"


def refusal(path, name=NAME, error=ValueError, **options):
    """The message with which a file is refused; it begins with the file's name."""
    with pytest.raises(error) as caught:
        create_model(name, weights=path, **{**SMALL, **options})
    message = str(caught.value)
    print(message)
    assert str(path) in message
    return message


def stored(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


class Writes:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class Runs(Writes):
    """Unpickling this runs a command."""

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["zip", "old torch format", "plain pickle"])
@pytest.mark.parametrize("payload", [Writes, Runs])
def test_nothing_in_a_file_runs(payload, kind, state, file, tmp_path):
    trap = tmp_path / "trap"
    content = {"state_dict": dict(state), "epoch": payload(trap)}
    if kind == "plain pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        file.write_bytes(stored(content, _use_new_zipfile_serialization=kind == "zip"))
    # Beside the weights, a placeholder takes its place, or torch refuses the module.
    with contextlib.suppress(ValueError), warnings.catch_warnings(action="ignore"):
        create_model(NAME, weights=file, **SMALL)
    assert not trap.exists()
    content["state_dict"]["levels.0.extra"] = payload(trap)
    if kind == "plain pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        file.write_bytes(stored(content, _use_new_zipfile_serialization=kind == "zip"))
    assert "No code was run" in refusal(file)
    assert not trap.exists()
    # The trap is a real one.
    pickle.loads(pickle.dumps(payload(trap)))
    assert trap.exists()


def test_the_refused_function_is_named(file, tmp_path):
    file.write_bytes(stored({"state_dict": {}, "x": Runs(tmp_path / "trap")}))
    assert "reading it would run posix.system" in refusal(file)


class Settings(dict):
    """A class of the script that saved a checkpoint."""


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old torch format"])
def test_what_stands_beside_the_weights_is_not_needed(zipped, state, file, tmp_path):
    settings = Settings(a=1)
    settings.note = "x"
    trap = Writes(tmp_path / "trap")
    content = {
        "state_dict": state,
        "args": argparse.Namespace(output=pathlib.PosixPath("runs"), model=trap),
        "best": np.float64(0.5),
        "array": np.arange(3),
        "settings": settings,
        "parser": argparse.ArgumentParser,
        "when": datetime.datetime(2026, 1, 1),
    }
    file.write_bytes(stored(content, _use_new_zipfile_serialization=zipped))
    before = set(torch.serialization.get_safe_globals())
    model = create_model(NAME, weights=file, **SMALL)
    kernel = state["patch_embed.conv_down.0.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(model.stem.conv1.kernel[...], kernel)
    assert not (tmp_path / "trap").exists()
    # Nothing is allowed to others.
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_pickled_module_is_refused_with_what_to_do(file):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    file.write_bytes(stored(module))
    message = refusal(file)
    assert "instead of weights" in message
    assert "torch.save(model.state_dict()," in message
    file.write_bytes(stored({"model": module}))
    assert "torch.save(model.state_dict()," in refusal(file)


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.", "model._orig_mod."],
)
def test_prefixes_of_wrappers_are_removed(prefix, state, file):
    file.write_bytes(stored({"state_dict": {prefix + name: each for name, each in state.items()}}))
    with pytest.warns(UserWarning, match=f"Removed the prefix `{prefix}` of all names"):
        model = create_model(NAME, weights=file, **SMALL)
    bias = state["head.bias"].numpy()
    np.testing.assert_array_equal(model.head.bias[...], bias)


@pytest.mark.parametrize("entry", ["model_state_dict", "net", "weights"])
def test_the_one_entry_that_holds_tensors_is_taken(entry, state, file):
    file.write_bytes(stored({"epoch": 3, entry: state, "optimizer": {"lr": 0.1}}))
    with pytest.warns(UserWarning, match=f"The weights are the entry '{entry}'"):
        create_model(NAME, weights=file, **SMALL)


@pytest.mark.parametrize("entry", ["state_dict_ema", "model_ema"])
def test_a_file_with_only_an_ema(entry, state, file):
    file.write_bytes(stored({"epoch": 3, entry: state}))
    with pytest.warns(UserWarning, match=rf"only an EMA \({entry}\)"):
        create_model(NAME, weights=file, **SMALL)
    assert read_torch_checkpoint(file, ema=True).weights == entry


def test_several_entries_with_tensors_are_named(state, file):
    file.write_bytes(stored({"student": state, "teacher": state}))
    assert "several entries with tensors: student, teacher" in refusal(file)


def test_counters_of_a_profiler_are_skipped(state, file):
    counters = {f"levels.{i}.total_ops": torch.zeros(1) for i in range(4)}
    counters |= {"total_params": torch.zeros(1)}
    file.write_bytes(stored({"state_dict": {**state, **counters}}))
    with pytest.warns(UserWarning, match="Skipped 5 counters of a profiler"):
        create_model(NAME, weights=file, **SMALL)


def test_a_refusal_is_short_and_the_rest_is_in_a_file(state, file):
    others = dict(list(state.items())[20:])
    file.write_bytes(stored({"state_dict": others}))
    message = refusal(file)
    lines = message.splitlines()
    assert len(lines) <= 10
    assert "18 missing" in lines[0]  # two of the twenty are counters of batch norms
    assert "Likely cause" in lines[1]
    path = pathlib.Path(lines[-1].removeprefix("All names: "))
    assert len(path.read_text().splitlines()) == 18
    path.unlink()


def test_an_old_file_that_ends_within_a_name_is_refused(state, file):
    whole = stored({"state_dict": state}, _use_new_zipfile_serialization=False)
    name = whole.index(b"state_dict")
    file.write_bytes(whole[: name - 2])  # within the length of the name
    assert "is damaged (unpack requires a buffer of 4 bytes)" in refusal(file)


@pytest.mark.parametrize("old", [False, True])
def test_a_cut_off_file_is_refused_wherever_it_ends(old, state, file):
    whole = stored({"state_dict": state}, _use_new_zipfile_serialization=not old)
    for size in (1, 2, 10, 100, 1000, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        file.write_bytes(whole[:size])
        message = refusal(file)
        assert any(word in message for word in ("truncated", "damaged", "not a torch")), message


def test_a_changed_bit_anywhere_in_the_weights_is_noticed(state, file):
    whole = bytearray(stored({"state_dict": state}))
    generator = np.random.default_rng(0)
    for position in generator.integers(len(whole) // 4, 3 * len(whole) // 4, 10):
        whole[position] ^= 16
        file.write_bytes(whole)
        assert "damaged" in refusal(file)
        whole[position] ^= 16


def test_files_of_other_kinds(file):
    def refused(content, *words):
        file.write_bytes(content)
        message = refusal(file)
        assert all(word in message for word in words), message

    refused(b"", "is empty")
    refused(b"<!DOCTYPE html><title>404</title>", "It looks like a web page")
    refused(b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer")
    refused(b"\x89PNG\r\n\x1a\n....", "not a torch or safetensors file")
    refused(b"\x80\x02nonsense", "No code was run")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as other:
        other.writestr("word/document.xml", "<w/>")
    refused(archive.getvalue(), "zip archive that torch.save did not write", "word/document.xml")
    archive = io.BytesIO()
    np.savez(archive, a=np.zeros(3))
    refused(archive.getvalue(), "zip archive that torch.save did not write", "a.npy")
    archive = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), archive)
    refused(archive.getvalue(), "TorchScript")
    refused(stored([1, 2]), "expected a dictionary of tensors, got list")
    refused(
        stored({"state_dict": [1, 2]}),
        "invalid 'state_dict': expected a dictionary of tensors, got list",
    )
    refused(stored({"epoch": 3, "lr": 0.1}), "'epoch' is a int, not a tensor")
    refused(stored({"state_dict": {}}), "no tensors")


def test_a_directory_or_nothing_in_a_files_place(tmp_path):
    assert "No weights" in refusal(tmp_path)
    assert "File not found" in refusal(tmp_path / "nowhere.pth", error=FileNotFoundError)


def test_damaged_safetensors(state, file):
    whole = safetensors.torch.save({"a": torch.ones(1000)})
    for size in (9, 20, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert "damaged" in refusal(file)
    with pytest.raises(ValueError, match="no state_dict_ema"):
        read_torch_checkpoint(file, ema=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_name(value, state, file):
    for name in ("head.bias", "levels.0.blocks.0.norm1.running_var"):
        changed = state[name].clone()
        changed[2] = value
        file.write_bytes(stored({**state, name: changed}))
        assert f"{name} contains 1 NaN or infinite values" in refusal(file)


def test_a_weight_that_is_no_floating_point(state, file):
    file.write_bytes(stored({**state, "head.bias": torch.zeros(10, dtype=torch.int64)}))
    assert "dtype of head.bias: expected floating point, got int64" in refusal(file)
    file.write_bytes(stored({**state, "head.bias": torch.zeros(10).to_sparse()}))
    assert "head.bias is not a weight" in refusal(file)


def test_two_copies_that_differ(state, file):
    name = "levels.2.global_tokenizer.pos_embed.weight"
    file.write_bytes(stored({**state, name: state[name] + 1e-6}))
    assert f"{name} and levels.2.global_tokenizer.to_global_feature.pos.weight" in refusal(file)
    assert "differ here" in refusal(file)


def test_every_tensor_is_missed_and_every_stranger_noticed(state, file):
    weights = {torch_name(name) for name in arrays(random_model(NAME))}
    copies = {n.replace("to_global_feature.pos", "pos_embed") for n in weights if "tokenizer" in n}
    for name in sorted(weights)[::20]:
        twins = {name, name.replace("to_global_feature.pos", "pos_embed")}
        file.write_bytes(stored({k: v for k, v in state.items() if k not in twins}))
        assert f"missing (1): {name}" in refusal(file)
    file.write_bytes(stored({**state, "levels.2.blocks.0.extra.weight": torch.ones(2)}))
    assert "unexpected (1): levels.2.blocks.0.extra.weight" in refusal(file)
    # A buffer is known by its module, not by the end of its name alone.
    file.write_bytes(stored({**state, "extra.relative_bias": torch.ones(2)}))
    assert "unexpected (1): extra.relative_bias" in refusal(file)
    # Derived buffers are not needed, nor is the second copy.
    file.write_bytes(stored({k: v for k, v in state.items() if k in weights}))
    create_model(NAME, weights=file, **SMALL)
    file.write_bytes(
        stored(
            {
                k: v
                for k, v in state.items()
                if k in weights | copies and "to_global_feature" not in k
            }
        )
    )
    create_model(NAME, weights=file, **SMALL)


def test_wrong_shapes_are_shown_both(state, file):
    name = "levels.3.blocks.0.mlp.fc1.weight"
    file.write_bytes(stored({**state, name: state[name].T.contiguous()}))
    assert f"{name} (expected 512×128, got 128×512)" in refusal(file)


def save_state(file, name, **options):
    model = random_model(name, **options)
    file.write_bytes(stored({"state_dict": state_to_torch(arrays(model), model.config)}))


def test_another_models_file(file):
    shapes = {
        torch_name(name): to_torch_layout(np.broadcast_to(np.float32(0), array.shape)).shape
        for part in arrays_of(abstract_model(variant_config("faster_vit_1_224")))
        for name, array in part.items()
    }
    zero = torch.zeros(1)
    file.write_bytes(stored({name: zero.expand(shape) for name, shape in shapes.items()}))
    message = refusal(file)
    assert "sizes are those of faster_vit_1_224 or faster_vit_1_any_res" in message
    save_state(file, NAME)
    assert "missing" in refusal(file, depths=(1, 1, 2, 3))


def test_another_networks_file(file):
    content = {"features.0.weight": torch.ones(64, 3, 7, 7), "classifier.bias": torch.ones(10)}
    file.write_bytes(stored(content))
    assert "Its names are not FasterViT's" in refusal(file)


def test_other_windows(file):
    save_state(file, "faster_vit_4_21k_384", dim=32)
    message = refusal(file, "faster_vit_4_21k_224", dim=32)
    assert "other windows. The checkpoint has window_size=(7, 7, 24, 12)" in message
    # Also for any_res, which keeps the windows unless others are asked for.
    assert "other windows" in refusal(file, "faster_vit_4_21k_224_any_res", dim=32)


def test_other_classes(state, file):
    file.write_bytes(stored(state))
    with pytest.raises(
        ValueError, match=r"has 10 classes, the model has 1000\. Pass num_classes=10 to keep"
    ):
        create_model(NAME, weights=file, **{k: v for k, v in SMALL.items() if k != "num_classes"})


def test_carrier_tokens_that_are_not_there(file):
    save_state(file, "faster_vit_4_21k_224", dim=32, window_size=(7, 7, 7, 7))
    message = refusal(file, "faster_vit_4_224", dim=32)
    assert "carrier tokens in other stages. The checkpoint has them in no stage" in message
    # Asked for, they start anew.
    with pytest.warns(UserWarning, match=r"New, with initial values \(\d+\): .*hat_attn"):
        options = {**SMALL, "dim": 32, "hat": (False, False, True, False)}
        create_model("faster_vit_4_224", weights=file, **options)
