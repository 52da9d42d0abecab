"""`import fastervit_jax` is light."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import fastervit_jax.models

FORBIDDEN = {"torch", "torchvision", "timm", "tensorflow", "tensorflow_datasets", "grain"}


def in_a_new_process(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout


def test_loads_no_heavy_library():
    program = "import sys, fastervit_jax; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(in_a_new_process(program).split())
    assert "fastervit_jax" in loaded
    assert not loaded & FORBIDDEN


def test_costs_at_most_a_second_beyond_jax_and_flax():
    program = """
import time
import jax
from flax import nnx
start = time.process_time()
import fastervit_jax
print(time.process_time() - start)
"""
    assert statistics.median(float(in_a_new_process(program)) for _ in range(3)) < 1


def test_models_import_only_jax_and_flax():
    allowed = {"jax", "flax", "numpy"} | set(sys.stdlib_module_names)
    when_called = [("fastervit.py", "fastervit_jax.weights.loading")]  # by FasterViT.save
    for path in Path(fastervit_jax.models.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                if (path.name, name) in when_called:
                    continue
                inside = name.startswith("fastervit_jax.models")
                assert inside or name.split(".")[0] in allowed, f"{path.name} imports {name}"
