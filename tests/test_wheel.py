"""The built package, used as a user would: from an empty environment, outside the repository."""

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A directory with the sdist and the wheel."""
    output = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(output), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return output


@pytest.mark.slow
def test_what_is_in_sdist_and_wheel(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "fastervit_jax").rglob("*.py")}
    recipes = {f"fastervit_jax/configs/{name}.py" for name in RECIPES}
    assert {name for name in names if name.endswith(".py")} == package | recipes
    assert "fastervit_jax/py.typed" in names
    assert {Path(name).parts[0] for name in names if ".dist-info" not in name} == {"fastervit_jax"}
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        inside = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    assert {"train.py", "configs/digits.py", "tests/conftest.py", "LICENSE", "NOTICE"} <= inside
    check = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)]
    subprocess.run(check, check=True)


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment(built, tmp_path):
    """Trains the digits for an epoch, evaluates, converts to torch and back, predicts."""
    venv.create(tmp_path / "venv", with_pip=True)
    (wheel,) = built.glob("*.whl")
    binaries = tmp_path / "venv" / "bin"
    # Nothing of this checkout, and no settings of these tests, reach the program.
    kept = {
        key: os.environ[key] for key in ("HOME", "PATH", "PIP_CONFIG_FILE") if key in os.environ
    }
    environment = {**kept, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(binaries / program), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("pip", "install", "--quiet", f"{wheel}[quickstart]", "torch==2.13.0")
    where = run("python", "-c", "import fastervit_jax; print(fastervit_jax.__file__)")
    assert str(binaries.parent) in where

    changes = ["--config.epochs=1", "--config.optimizer.warmup_epochs=0.5"]
    output = run("fastervit", "train", "--config=digits", "--workdir=run", *changes)
    assert "held-out images, top-1" in output
    trained = json.loads(run("fastervit", "eval", "--weights=run").splitlines()[-1])
    assert trained["images"] == 359
    assert trained["top1"] > 0.2

    # There: to an official file. Back: the digits' network has sizes that no flag names.
    run("fastervit", "convert", "--weights=run", "--to_torch=digits.pth.tar", "--ema")
    program = """
import json
from fastervit_jax.runs.config import model_options
from fastervit_jax.runs.workdir import load_config
from fastervit_jax.weights.convert import convert_checkpoint
options = model_options(load_config("run"))
convert_checkpoint("faster_vit_0_224", "digits.pth.tar", "back", **options)
"""
    run("python", "-c", program)
    digits = next((tmp_path / "cache").rglob("validation"))
    flags = ["--crop_mode=center", "--crop_fraction=1.0"]
    back = run("fastervit", "eval", "--weights=back", f"--dataset=folder:{digits}", *flags)
    back = json.loads(back.splitlines()[-1])
    assert (back["images"], back["top1"]) == (359, trained["top1"])
    assert back["loss"] == pytest.approx(trained["loss"], rel=1e-5)
    picture = next(digits.rglob("*.png"))
    assert "%" in run("fastervit", "predict", str(picture), "--weights=run")
    assert "usage: fastervit" in run("python", "-m", "fastervit_jax", "--help")
