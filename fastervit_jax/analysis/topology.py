"""Devices that are not there, for the compilers of TPUs and GPUs.

libtpu and JAX's CUDA plugin compile without a device. The TPU compiler knows its topologies by
name. The GPU compiler takes a description of the card (`chips.Gpu`).
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator

import jax

from fastervit_jax.analysis.chips import GPUS, TPUS, Chip


def devices(topology: str) -> list:
    """Returns the devices of a topology.

    Args:
        topology: a GPU and, optionally, the number of GPUs in one machine, such as `h100` or
            `h100:8`; or libtpu's name of a TPU topology, such as `v5e:16x16`.

    Raises:
        ValueError: the topology is unknown, or its compiler is not installed.
    """
    jax.config.update("jax_platforms", "cpu")
    if re.fullmatch(r"v\d+\w*:[\dx]+", topology):
        return _tpus(topology)
    name, _, count = topology.partition(":")
    if name not in GPUS or not re.fullmatch(r"[1-9]\d*", count or "1"):
        raise ValueError(
            f"Invalid --compile_for={topology}: expected a GPU out of {', '.join(GPUS)} and the "
            "number of them, such as h100 or h100:8, or a TPU topology, such as v5e:16x16, "
            "v5p:4x4x4 or v6e:16x16. Another GPU is one more entry of GPUS in "
            "fastervit_jax/analysis/chips.py."
        )
    return _gpus(topology, name, int(count or 1))


def chip_of(device) -> Chip | None:
    """Returns the specification of a device; None if it is not in the tables of `chips`."""
    by_kind: dict[str, Chip] = {**TPUS, **{gpu.name: gpu for gpu in GPUS.values()}}
    return by_kind.get(device.device_kind)


def _tpus(topology: str) -> list:
    from jax.experimental import topologies

    # Without these variables, libtpu queries the network for the type of the machine.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    # No chip is used, so several compilations may run at the same time.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:
        hint = (
            "expected a kind and a shape, such as v5e:16x16, v5p:4x4x4 or v6e:16x16."
            if importlib.util.find_spec("libtpu")
            else "the TPU compiler is not installed. Run pip install libtpu."
        )
        raise ValueError(
            f"Invalid --compile_for={topology}: {hint} ({str(error).splitlines()[0]})"
        ) from None


def _gpus(topology: str, name: str, count: int) -> list:
    from jax.experimental import topologies

    plugins = [f"jax_cuda{major}_plugin" for major in (13, 12)]
    if not any(map(importlib.util.find_spec, plugins)):
        version = jax.__version__
        raise ValueError(
            f"Invalid --compile_for={topology}: the GPU compiler is not installed. Run pip install "
            f"jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}."
        )
    description = GPUS[name].description()
    try:
        return topologies.get_topology_desc(
            platform="cuda", target_config=description, topology=f"1x1x{count}"
        ).devices
    except Exception as error:
        raise ValueError(
            f"Invalid --compile_for={topology}: the installed CUDA plugin of JAX refuses the "
            f"description of the card. Update jax. ({str(error).splitlines()[0]})"
        ) from None


def compiler_options(device) -> dict[str, int]:
    """Returns the options to compile with for a device that is not there.

    The GPU compiler would compile other forms of every fusion, to measure them. Without a GPU it
    takes the first form in any case, and the time is lost.
    """
    return {} if device.platform == "tpu" else {"xla_gpu_autotune_level": 0}


@contextlib.contextmanager
def lowering_for(device) -> Iterator[None]:
    """Lets Pallas lower kernels for a GPU that is not there.

    Newer versions of JAX ask the local GPU for its kind when they lower a Triton kernel.
    """
    try:
        from jax._src.pallas.triton import gpu_info  # type: ignore[attr-defined]
    except ImportError:
        yield
        return
    asked = gpu_info.get_device_kind, gpu_info.get_device_platform
    gpu_info.get_device_kind = lambda: device.device_kind
    gpu_info.get_device_platform = lambda: device.platform
    try:
        yield
    finally:
        gpu_info.get_device_kind, gpu_info.get_device_platform = asked
