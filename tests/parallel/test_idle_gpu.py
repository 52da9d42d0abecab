"""What is said of an NVIDIA GPU that JAX does not use."""

import importlib.util

import jax
import pytest

from fastervit_jax.parallel.idle_gpu import why_idle

DRIVERS = {
    "old": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27",
    "middle": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build",
    "new": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build",
    "odd": "something else",
}


@pytest.mark.parametrize(
    ("driver", "plugins", "said"),
    [
        (None, ("13",), None),
        ("new", (), "without CUDA. Run pip install 'fastervit-jax[gpu]'"),
        ("old", ("13",), "is 470.82.01, and CUDA 13 needs 580 or newer. Update the driver."),
        ("middle", ("13",), "580 or newer. Update the driver, or run pip install 'jax[cuda12]'."),
        ("old", ("12",), "CUDA 12 needs 525 or newer. Update the driver."),
        ("middle", ("12",), "for the reason"),
        ("new", ("13",), "for the reason"),
        ("odd", ("13",), "for the reason"),
    ],
)
def test_one_sentence(tmp_path, monkeypatch, driver, plugins, said):
    file = tmp_path / "version"
    if driver:
        file.write_text(DRIVERS[driver])
    found = {f"jax_cuda{version}_plugin" for version in plugins}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in found else None)
    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    try:
        answer = why_idle(file)
    finally:
        jax.config.update("jax_platforms", platforms)
    if said is None:
        assert answer is None
    else:
        assert answer.startswith("This machine has an NVIDIA GPU, but JAX computes on the CPU")
        assert said in answer


def test_nothing_is_said_of_a_choice(tmp_path):
    file = tmp_path / "version"
    file.write_text(DRIVERS["old"])
    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", "cpu")
    try:
        assert why_idle(file) is None
    finally:
        jax.config.update("jax_platforms", platforms)
