"""The GPU measurements, rehearsed on a CPU with the packages of a GPU machine and no others."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from tests.small.network import small_model
from tests.small.run import ROOT

THERE = (f"jax=={jax.__version__}", "flax", "optax", "orbax-checkpoint", "torch==2.13.0")
THERE += ("huggingface_hub", "pillow", "pyyaml", "safetensors")
NOT_THERE = ("grain", "ml_collections", "tensorflow_datasets", "timm", "fastervit")
WORKERS = ("ours", "theirs", "ours_step", "theirs_step", "ours_step_graphs")


def test_padded_channels(monkeypatch):
    """A candidate of the script: 12 channels of the first stage become 16."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu

    plain = small_model(dim=12).deploy()
    padded = nnx.clone(plain)
    gpu.pad_first_stage(padded)
    assert padded.stem.conv2.kernel.shape[-1] == 16
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
    run = nnx.jit(lambda model, images: model.stages[0](model.stem(images)))
    np.testing.assert_allclose(run(padded, images), run(plain, images), atol=1e-5, rtol=0)


def _run(*command, **options) -> str:
    command = tuple(map(str, command))
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_rehearsal(tmp_path):
    tree, environment, out = (tmp_path / name for name in ("tree", "environment", "out"))
    _run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", *THERE)
    _run(python, "-m", "pip", "install", "--quiet", "--no-deps", "torchvision==0.28.0")
    for name in NOT_THERE:
        absent = f"import importlib.util as u; assert u.find_spec({name!r}) is None"
        _run(python, "-c", absent)
    _run("git", "clone", "--quiet", ROOT, tree)
    # The script of this checkout, which may differ from the last commit.
    shutil.copytree(ROOT / "benchmarks", tree / "benchmarks", dirs_exist_ok=True)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables["PATH"] = f"{environment / 'bin'}:{os.environ['PATH']}"
    variables |= {"OUT": str(out), "JAX_PLATFORMS": "cpu"}
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    out.mkdir()
    _run("bash", "benchmarks/gpu.sh", "wheels", version, cwd=tree, env=variables)
    _run("bash", "benchmarks/gpu.sh", "--tiny", "400", cwd=tree, env=variables)
    for worker in WORKERS:
        record = json.loads((out / f"gpu_{worker}.json").read_text())
        assert "failures" not in record, (worker, record["failures"])
        assert record["rows"], (out / f"{worker}.log").read_text()
        assert all(row["ms"] > 0 and row["turns"] == 5 for row in record["rows"])
    ours = json.loads((out / "gpu_ours.json").read_text())
    assert all(row["error"] < 0.05 for row in ours["rows"])  # bfloat16 beside float32
    # cuDNN is the one form of attention that no CPU has.
    failed = {row["form"] for row in ours["attention"] if "failure" in row}
    assert failed == {"cudnn"}
