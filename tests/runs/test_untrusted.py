"""What is read cannot run code, nor write outside the work directory.

Checkpoints, a run's config, images and class folders may come from anybody. Each test plants
something that would leave a mark if it were obeyed.
"""

import json
import os
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from fastervit_jax.data import open_source
from fastervit_jax.data.images import DamagedImageError, decode_rgb
from fastervit_jax.evaluation.evaluator import Predictions
from fastervit_jax.evaluation.pictures import draw_predictions
from fastervit_jax.evaluation.run import evaluate_weights
from fastervit_jax.runs.checkpoints import Checkpoints, DamagedCheckpointError
from fastervit_jax.runs.config import default_config
from fastervit_jax.runs.state import new_state
from fastervit_jax.runs.workdir import load_config, load_trained, save_config


class _Payload:
    """Unpickled, it makes a directory."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """The directory that obeying would make; it must not be there at the end."""
    path = tmp_path / "obeyed"
    pickle.loads(pickle.dumps(_Payload(path)))  # the payload works
    path.rmdir()
    yield path
    assert not path.exists()


def _state():
    params = {"layer.kernel": jnp.ones((4, 5))}
    return new_state(params, {"norm.mean": jnp.zeros(3)}, optax.adam(0.1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir)
    checkpoints.save(4, _state(), {"class_names": ["cat"]})
    checkpoints.close()
    save_config(default_config(), workdir)
    return workdir


def _files(workdir):
    return sorted(path for path in (workdir / "checkpoints").rglob("*") if path.is_file())


def test_a_pickle_in_place_of_any_file_of_a_checkpoint(saved, tmp_path, mark):
    names = [path.relative_to(saved) for path in _files(saved)]
    assert len(names) > 20
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), _state()
    )
    refused = 0
    for number, name in enumerate(names):
        workdir = tmp_path / str(number)
        shutil.copytree(saved, workdir)
        (workdir / name).write_bytes(pickle.dumps(_Payload(mark)))
        checkpoints = Checkpoints(workdir)
        try:
            checkpoints.restore_newest(shapes, lambda step, about: None)
        except DamagedCheckpointError:
            refused += 1
        checkpoints.close()
        assert not mark.exists(), name
    assert refused > 5  # the rest, such as _sharding, is not needed


CONFIGS = {
    "a pickle": None,
    "no JSON": b"__import__('os').mkdir('obeyed')",
    "not UTF-8": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "a number": b"7",
    "nested without end": b"[" * 100_000,
    "an unknown key": b'{"__class__": "os.system"}',
    "another type": b"{\"batch_size\": \"__import__('os').mkdir('obeyed')\"}",
    "a number without end": b'{"flip": 1' + b"0" * 400 + b"}",
    "a group that is a value": b'{"model": "x"}',
    "a value that is a group": b'{"seed": {"a": 1}}',
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_of_odd_content_is_refused(name, saved, tmp_path, mark, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = CONFIGS[name] or pickle.dumps(_Payload(mark))
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="expected the config of a run"):
        load_trained(tmp_path / "run")


@pytest.mark.parametrize("model", ["../../../etc/passwd", "os.system", "", "faster_vit_0_224/.."])
def test_a_config_names_a_model_of_the_table_or_none(model, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    config = json.loads((saved / "config.json").read_text())
    config["model"]["name"] = model
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert load_config(tmp_path / "run").model.name == model  # read as a word
    with pytest.raises(ValueError, match=r"config\.model"):
        load_trained(tmp_path / "run")


def test_a_config_does_not_decide_where_digits_are_written(saved, tmp_path, mark, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(saved, tmp_path / "run")
    config = json.loads((saved / "config.json").read_text())
    config["data"] |= {"validation": "digits:validation", "data_dir": str(mark)}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    # The checkpoint is of another network, which is found out after the config was read.
    with pytest.raises(ValueError):
        evaluate_weights(str(tmp_path / "run"), None)


@pytest.mark.parametrize("content", ["pickle", "postscript", "symbolic link"])
def test_an_image_that_is_none(content, tmp_path, mark):
    folder = tmp_path / "images" / "cat"
    folder.mkdir(parents=True)
    if content == "pickle":
        (folder / "a.png").write_bytes(pickle.dumps(_Payload(mark)))
    elif content == "postscript":  # Pillow would start Ghostscript
        (folder / "a.png").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
            + f"(%pipe%mkdir {mark}) (w) file\n%%EOF\n".encode()
        )
    else:
        (folder / "a.png").symlink_to("/etc/passwd")
    source = open_source(f"folder:{tmp_path}/images")
    with pytest.raises(DamagedImageError):
        decode_rgb(source[0].encoded)


NAMES = [
    "$\\frac{",
    "<script>alert(1)</script>",
    "; mkdir obeyed",
    "$(mkdir obeyed)",
    "a\nb",
    "%s{}",
]


def test_class_folders_of_odd_names(tmp_path, mark, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / "images" / name.replace("/", "∕")).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / name.replace("/", "∕") / "1.png")
    source = open_source(f"folder:{tmp_path}/images")
    count = len(source)
    assert count == len(NAMES)
    labels = np.arange(count)
    top = np.roll(labels, 1)[:, None]
    predictions = Predictions(
        index=labels,
        label=labels,
        top=top,
        probability=np.full((count, 1), 0.5),
        loss=np.ones(count),
        hit=top == labels[:, None],
        counted=np.ones(count, bool),
    )
    draw_predictions(source, predictions, tmp_path / "predictions.png")
    assert Image.open(tmp_path / "predictions.png").size[0] > 100
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, _state(), {"class_names": list(source.class_names)})
    checkpoints.close()
    assert tuple(Checkpoints(tmp_path / "run").about(1)["class_names"]) == source.class_names
    assert {path.name for path in tmp_path.iterdir()} == {"images", "predictions.png", "run"}
