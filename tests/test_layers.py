"""The contracts on imports (`make lint`) hold, and a planted upward import breaks them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _lint(root: Path) -> subprocess.CompletedProcess:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=root, capture_output=True, text=True
    )


PLANTED = [
    (
        "models/windows.py",
        "import fastervit_jax.data.images",
        "fastervit_jax.models.windows -> fastervit_jax.data.images",
    ),
    (
        "data/order.py",
        "def late():\n    from fastervit_jax.training import step",
        "fastervit_jax.data.order -> fastervit_jax.training.step",
    ),
    ("models/layouts.py", "import optax", "fastervit_jax.models.layouts -> optax"),
]


@pytest.mark.parametrize(("file", "line", "message"), [("", "", ""), *PLANTED])
def test_contracts(tmp_path, file, line, message):
    """Also an import inside a function counts."""
    pytest.importorskip("importlinter")
    shutil.copytree(ROOT / "fastervit_jax", tmp_path / "fastervit_jax")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if file:
        with (tmp_path / "fastervit_jax" / file).open("a") as module:
            module.write(f"\n{line}\n")
    result = _lint(tmp_path)
    if not file:
        assert result.returncode == 0, result.stdout
        assert "Contracts: 2 kept, 0 broken" in result.stdout
    else:
        assert result.returncode == 1
        assert message in result.stdout
