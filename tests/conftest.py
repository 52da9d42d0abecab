"""Every test sees eight CPU devices, so that meshes can be tested anywhere."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

# What one test has compiled the others read, workers and the programs they start too: most of the
# time is spent compiling.
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_OWN_CACHE = None
if _CACHE not in os.environ:
    os.environ[_CACHE] = _OWN_CACHE = tempfile.mkdtemp(prefix="fastervit_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"


# Files of half a minute and more: begun first, so that neither worker is left with one at the end.
_LONG = {"test_run", "test_step", "test_trajectory", "test_conversion_command", "test_meshes"}
_LONG |= {"test_workers", "test_parity", "test_evaluator", "test_training"}


# Compiles in two thirds of the time. The second flag is experimental: XLA may drop it.
_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config):
    """Lets XLA optimize less, here and in the programs that tests start: few of them run for long.

    Except for `make test-slow`, whose programs run for minutes.
    """
    if config.option.markexpr == "slow" or _QUICK in os.environ["XLA_FLAGS"]:
        return
    variables = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {_QUICK}"}
    known = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"], env=variables, capture_output=True
    )
    if known.returncode == 0:
        os.environ["XLA_FLAGS"] = variables["XLA_FLAGS"]


def pytest_collection_modifyitems(items):
    """Puts the long files first (with xdist's own order by number of tests switched off)."""
    items.sort(key=lambda item: item.path.stem not in _LONG)


def pytest_unconfigure():
    """Removes the compiled programs, in the process that made their directory."""
    if _OWN_CACHE:
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    """Says at the end what was not compared (tests/reference is left out then)."""
    official = ("torch", "timm", "fastervit")
    missing = [name for name in official if importlib.util.find_spec(name) is None]
    if missing:
        terminalreporter.write_line(
            "NOT COMPARED with the official FasterViT (tests/reference was left out): "
            f"{', '.join(missing)} not installed."
        )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """One whole tiny run, for all tests that interrupt others.

    A directory with images (`data`), compiled programs (`cache`) and the run (`whole`).
    """
    from tests.small import killed_run

    root = tmp_path_factory.mktemp("tiny")
    killed_run.write_images(root / "data")
    result = killed_run.run(root / "whole", root / "data", root / "cache")
    assert result.returncode == 0, result.stderr
    steps = [record["step"] for record in killed_run.records(root / "whole") if "loss" in record]
    assert steps == list(range(1, killed_run.STEPS + 1))
    return root


@pytest.fixture(scope="session")
def numbered_folder(tmp_path_factory) -> Path:
    """101 numbered images in 3 classes; number = place in the source's order."""
    from tests.data.numbered import NUM_CLASSES, NUM_IMAGES, numbered_png

    root = tmp_path_factory.mktemp("numbered")
    for number in range(NUM_IMAGES):
        folder = root / f"class_{number * NUM_CLASSES // NUM_IMAGES}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number:03d}.png").write_bytes(numbered_png(number))
    return root
