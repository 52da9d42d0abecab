"""Says why JAX leaves an NVIDIA GPU idle. JAX itself then computes on the CPU."""

import importlib.util
import re
from pathlib import Path

import jax

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_OLDEST_DRIVERS = {"13": 580, "12": 525}
"""For each version of CUDA, newest first, the oldest driver that it works with (JAX's guide)."""


def why_idle(driver_file: Path = _DRIVER_FILE) -> str | None:
    """Returns a sentence if this machine has an NVIDIA GPU that JAX does not use, else None.

    Nothing is said if `JAX_PLATFORMS` or `jax_platforms` chose the CPU.

    Args:
        driver_file: where the driver states its version.
    """
    try:
        version = re.search(r"Kernel Module.*?\s(\d+)\.([\d.]+)", driver_file.read_text())
    except OSError:
        return None
    if jax.config.values["jax_platforms"] or jax.default_backend() != "cpu":
        return None
    start = "This machine has an NVIDIA GPU, but JAX computes on the CPU"
    installed = [c for c in _OLDEST_DRIVERS if importlib.util.find_spec(f"jax_cuda{c}_plugin")]
    if not installed:
        return f"{start}: JAX is installed without CUDA. Run pip install 'fastervit-jax[gpu]'."
    cuda = installed[-1]
    if version and int(version[1]) < _OLDEST_DRIVERS[cuda]:
        works_with_12 = cuda != "12" and int(version[1]) >= _OLDEST_DRIVERS["12"]
        return (
            f"{start}: the driver is {version[1]}.{version[2]}, and CUDA {cuda} needs "
            f"{_OLDEST_DRIVERS[cuda]} or newer. Update the driver"
            + (", or run pip install 'jax[cuda12]'." if works_with_12 else ".")
        )
    return f"{start}. Run JAX_PLATFORMS=cuda python -c 'import jax; jax.devices()' for the reason."
