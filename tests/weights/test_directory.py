"""Converted directories: what is saved comes back, and nothing damaged or foreign is accepted."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx

from fastervit_jax import create_model, save_model
from fastervit_jax.weights.loading import open_weights
from tests.small.weights import arrays, assert_same, random_model

CLASSES = ("cat", "dog", "Ünïcode", *"abcdefg")


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def saved(model, tmp_path):
    save_model(model, tmp_path / "saved", class_names=CLASSES)
    return tmp_path / "saved"


def test_a_model_comes_back_with_its_classes(model, saved):
    again = create_model("faster_vit_3_224", weights=saved)
    assert_same(model, again)
    assert again.config == model.config
    assert again.class_names == CLASSES
    assert again.name == "faster_vit_3_224"


def test_a_model_saves_itself(model, tmp_path):
    save_model(model, tmp_path / "saved", class_names=CLASSES)
    again = create_model("faster_vit_3_224", weights=tmp_path / "saved")
    assert_same(model, again)
    assert again.class_names == CLASSES
    with pytest.raises(FileExistsError, match="saved"):
        save_model(model, tmp_path / "saved")
    save_model(model, tmp_path / "saved", overwrite=True)


def test_class_names_survive_split_and_merge(saved):
    again = create_model("faster_vit_3_224", weights=saved)
    merged = nnx.merge(*nnx.split(again))
    assert (merged.name, merged.class_names) == ("faster_vit_3_224", CLASSES)
    assert merged.preprocessing == again.preprocessing


@pytest.mark.parametrize(
    "name, options",
    [
        ("faster_vit_0_any_res", dict(resolution=(100, 180), ct_size=1, hat=(False,) * 4)),
        ("faster_vit_4_21k_224", dict(dim=32, num_classes=0, layer_scale_conv=0.5)),
        ("faster_vit_1_224", dict(resolution=128, window_size=(4,) * 4, layer_norm_last=True)),
    ],
)
def test_options_come_back(name, options, tmp_path):
    model = random_model(name, **options)
    save_model(model, tmp_path / "saved")
    again = create_model(name, weights=tmp_path / "saved")
    assert_same(model, again)
    assert again.config == model.config
    assert again.preprocessing.resolution == model.config.resolution


def test_a_model_that_was_built_by_hand_finds_a_name(tmp_path):
    model = random_model("faster_vit_4_21k_384", dim=32)
    del model.name, model.preprocessing, model.class_names
    save_model(model, tmp_path / "saved")
    again = create_model(open_weights(tmp_path / "saved").info.model, weights=tmp_path / "saved")
    assert again.config == model.config


def test_another_models_weights_are_an_error_that_names_both(saved):
    with pytest.raises(ValueError, match="weights of faster_vit_3_224, not of faster_vit_1_224"):
        create_model("faster_vit_1_224", weights=saved)


def test_more_classes_replace_the_head_and_say_so(model, saved):
    with pytest.warns(UserWarning, match=r"New, with initial values \(2\): head.bias, head.kernel"):
        again = create_model("faster_vit_3_224", weights=saved, num_classes=11)
    ours, theirs = arrays(model), arrays(again)
    assert theirs["head.kernel"].shape == (128, 11)
    assert again.class_names is None
    for key in ours:
        if not key.startswith("head."):
            np.testing.assert_array_equal(ours[key], theirs[key])


def test_other_sizes_are_refused_with_what_was_saved(saved):
    with pytest.raises(ValueError, match=r"faster_vit_3_224, .*dim=16.*\n.*wrong shape"):
        create_model("faster_vit_3_224", weights=saved, dim=32)


def test_every_damaged_array_is_named(saved):
    path = saved / "weights.safetensors"
    whole = path.read_bytes()
    header_size = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:header_size])
    generator = np.random.default_rng(0)
    for name in generator.choice(sorted(header), 8, replace=False):
        start, end = header[name]["data_offsets"]
        position = header_size + int(generator.integers(start, end))
        changed = bytearray(whole)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=f"damaged: the SHA-256 of {name} differs"):
            create_model("faster_vit_3_224", weights=saved)


def test_a_cut_off_file_names_what_is_lost(saved):
    path = saved / "weights.safetensors"
    whole = path.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    last = max(header, key=lambda name: header[name]["data_offsets"])
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"truncated. Missing arrays: 1, beginning with {last}"):
        create_model("faster_vit_3_224", weights=saved)
    for size in (0, 7, 100):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged"):
            create_model("faster_vit_3_224", weights=saved)
    path.unlink()
    with pytest.raises(ValueError, match="damaged"):
        create_model("faster_vit_3_224", weights=saved)


def test_damaged_metadata_is_refused(saved):
    path = saved / "metadata.json"
    whole = json.loads(path.read_text())

    def refused(match, **changes):
        path.write_text(json.dumps({**whole, **changes}))
        with pytest.raises(ValueError, match=match):
            create_model("faster_vit_3_224", weights=saved)

    refused("Invalid format version .* expected 1, got 99", format_version=99)
    refused("Invalid model option 'dims'", overrides={"dims": 3})
    refused("metadata.json is damaged", arrays=None)
    refused("metadata.json is damaged.*overrides", overrides="none")
    refused("metadata.json is damaged.*class_names", class_names=[1, 2])
    for name, value in {
        "resolution": [224, -1],
        "crop_fraction": "0.9",
        "crop_mode": None,
        "mean": [0.5, "0.5", 0.5],
        "std": 10**400,
        "short_side": "800",
    }.items():
        changed = {**whole["preprocessing"], name: value}
        refused(f"metadata.json is damaged.*Invalid {name}", preprocessing=changed)
    refused("does not list head.kernel", arrays=_without(whole["arrays"], "head.kernel"))
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"metadata.json is damaged"):
        create_model("faster_vit_3_224", weights=saved)


def _without(entries, key):
    return {name: value for name, value in entries.items() if name != key}


def test_nothing_is_overwritten_unasked(model, saved):
    other = random_model(seed=1)
    with pytest.raises(FileExistsError, match="exists"):
        save_model(other, saved)
    assert_same(model, create_model("faster_vit_3_224", weights=saved))
    save_model(other, saved, overwrite=True)
    assert_same(other, create_model("faster_vit_3_224", weights=saved))
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


def test_only_converted_directories_are_overwritten(model, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(FileExistsError, match="not a converted directory"):
        save_model(model, tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "irreplaceable"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_saved(value, tmp_path):
    model = random_model()
    kernel = model.head.kernel
    kernel.set_value(kernel.get_value().at[3, 4].set(value))
    with pytest.raises(
        ValueError, match=r"head.kernel contains 1 NaN or infinite values out of 1280"
    ):
        save_model(model, tmp_path / "saved")
    assert not any(tmp_path.iterdir())


def test_class_names_must_be_as_many_as_classes(model, tmp_path):
    with pytest.raises(ValueError, match=r"Invalid class_names: expected 10 names, .* got 2"):
        save_model(model, tmp_path / "saved", class_names=["a", "b"])


def test_a_path_without_weights_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"expected a converted directory \(metadata.json\) or"):
        create_model("faster_vit_0_224", weights=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"File not found: .*nowhere"):
        create_model("faster_vit_0_224", weights=tmp_path / "nowhere")


KILLED = """
import pathlib, sys
import numpy as np
from fastervit_jax.weights.directory import WeightsInfo, save_arrays
from fastervit_jax.data.preprocessing import default_preprocessing

info = WeightsInfo("faster_vit_0_224", {}, default_preprocessing("faster_vit_0_224"))
print("ready", flush=True)
value = 0
while True:
    value += 1
    arrays = {name: np.full((256, 256), value, np.float32) for name in "abcdefgh"}
    save_arrays(sys.argv[1], arrays, info, overwrite=True)
"""


def test_killed_at_any_moment_it_leaves_a_whole_directory_or_none(tmp_path):
    directory = tmp_path / "saved"
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(2):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(directory)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        ) as process:
            assert process.stdout.readline() == "ready\n"
            for _ in range(10):
                time.sleep(float(generator.uniform(0.01, 0.1)))
                process.send_signal(signal.SIGSTOP)  # as good as dead, as the disk sees it
                found += _whole(directory)
                process.send_signal(signal.SIGCONT)
            process.kill()
        found += _whole(directory)
    assert found >= 5


def _whole(directory) -> bool:
    """Whether a directory stands there; then it must be whole, with arrays of one save."""
    if not directory.exists():
        return False
    tensors = open_weights(directory).tensors
    values = {float(value) for name in "abcdefgh" for value in np.unique(tensors[name].read())}
    assert len(values) == 1
    return True


def test_reading_keeps_no_hold_on_the_file(model, saved):
    again = create_model("faster_vit_3_224", weights=saved)
    (saved / "weights.safetensors").write_bytes(b"\0" * 1000)
    assert_same(model, again)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(again)))
