"""Compiling for pods that are not there. What needs libtpu is skipped where it is not installed."""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from fastervit_jax.analysis import hlo, topology, tpu_cost
from fastervit_jax.analysis.chips import GPUS, TPUS
from fastervit_jax.analysis.compilation import Compilation
from fastervit_jax.analysis.compile_for import CompiledStep, Memory, step_multiply_adds
from fastervit_jax.analysis.compile_report import describe
from fastervit_jax.analysis.multiply_adds import multiply_adds
from fastervit_jax.runs.config import model_config
from fastervit_jax.runs.recipes import load_recipe
from tests.gpu_compiler import needs_gpu_compiler
from tests.small.run import ROOT

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install libtpu"
)


def _step(**changes) -> CompiledStep:
    cost = tpu_cost.TpuCost(
        cycles=15_000_000,
        multiply_adds=100_000_000_000,
        collectives={("all-reduce", 256): (3, 60_000_000)},
        moved_bytes=0,
        prefetched_bytes=819_000_000,
        small=5,
        unknown=(),
    )
    fields = dict(
        topology="v5e:16x16",
        device_kind="TPU v5 lite",
        chip=TPUS["TPU v5 lite"],
        mesh={"data": 256, "fsdp": 1, "tensor": 1},
        batch_size=4096,
        accumulate=1,
        remat=(),
        state_bytes=2**29,
        state_whole_bytes=2**29,
        multiply_adds_by_hand=110_000_000_000,
        compile_seconds=60.0,
        memory=Memory(2**29, 2**29),
        cost=cost,
        refusal="",
    )
    return CompiledStep(**{**fields, **changes})


def test_time_is_cycles_beside_or_before_copying():
    """15 M cycles at 1.503 GHz; 819 MB at 819 GB/s; 60 MB all-reduced over links of 200 GB/s."""
    fast, slow = _step().seconds
    computing = 15e6 / (197e12 / (2 * 4 * 128**2))
    copying = 1e-3 + 2 * 255 / 256 * 60e6 / 200e9
    assert fast == pytest.approx(computing)
    assert slow == pytest.approx(computing + copying)
    assert _step().images_per_second()[1] == pytest.approx(4096 / slow)
    assert _step().peak_share()[1] == pytest.approx(200e9 / slow / 197e12)
    with_zeros = _step(multiply_adds_by_hand=90_000_000_000)
    assert with_zeros.peak_share()[1] == pytest.approx(180e9 / slow / 197e12)


def test_what_is_unknown_stays_unknown():
    import dataclasses

    cost = dataclasses.replace(_step().cost, unknown=("1 × custom call my_kernel",))
    step = _step(cost=cost)
    assert step.seconds is step.images_per_second() is step.peak_share() is None
    assert "unknown: 1 × custom call my_kernel" in describe(step)
    assert "TPU v99 is not in the table" in describe(_step(device_kind="TPU v99", chip=None))


@pytest.mark.parametrize(
    "changes, remedy",
    [
        (dict(state_bytes=20 * 2**30), "--config.mesh.fsdp=16"),
        (dict(), "--config.remat=(1,2,3,4)"),
        (dict(remat=(1, 2, 3, 4)), "--config.accumulate=2"),
    ],
)
def test_what_does_not_fit_says_what_would_help(changes, remedy):
    refusal = "RESOURCE_EXHAUSTED: E1: Ran out of memory on HBM (20.0G) exceeds (15.75G). HLO.\nSee"
    text = describe(_step(memory=None, cost=None, refusal=refusal, **changes))
    assert "does not fit    Ran out of memory on HBM (20.0G) exceeds (15.75G)" in text
    assert remedy in text


def test_multiply_adds_of_a_step():
    """Of a plain step: three passes without the first gradient to the images."""
    config = load_recipe("faster_vit_0_224")
    config.mesa.weight = 0.0
    count = multiply_adds(model_config(config))
    plain = step_multiply_adds(config, 256)
    first_convolution = 112 * 112 * 9 * 3 * 64
    assert plain == 16 * (3 * count.per_image - first_convolution) + 3 * count.per_pass
    config.mesa.weight = 0.1
    with_teacher = step_multiply_adds(config, 256)
    assert with_teacher - plain == 16 * count.per_image + count.per_pass
    config.remat = (1,)
    assert step_multiply_adds(config, 256) - with_teacher == 16 * count.stages[0]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    "name, kind",
    [("v5e:1x1", "TPU v5 lite"), ("v5p:2x2x1", "TPU v5"), ("v6e:1x1", "TPU v6 lite")],
)
def test_the_compiler_agrees_with_the_multiply_adds_a_cycle(name, kind):
    """A large product should take about as long as at the chip's peak, never less."""
    device = topology.devices(name)[0]
    assert device.device_kind == kind
    sharding = SingleDeviceSharding(device)
    matrix = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=sharding)
    compiled = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    cost = tpu_cost.cost(hlo.parse(compiled.as_text()))
    assert cost.multiply_adds == 4096**3
    assert cost.unknown == ()
    share = cost.multiply_adds / cost.cycles / TPUS[kind].multiply_adds_per_cycle
    assert 0.85 < share <= 1


@needs_libtpu
@pytest.mark.slow
def test_train_py_compiles_for_a_pod_without_training():
    command = [sys.executable, "train.py", "--config=configs/smoke.py", "--compile_for=v5e:2x2"]
    command += ["--config.batch_size=32", "--config.group_size=8", "--config.accumulate=2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "v5e:2x2: 4 × TPU v5 lite, mesh data=4 × fsdp=1 × tensor=1" in result.stdout
    assert "fits  " in result.stdout
    assert " ms: " in result.stdout


def test_an_unknown_topology_is_refused():
    command = [sys.executable, "train.py", "--config=configs/smoke.py", "--compile_for=v5e:9x9x9"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: Invalid --compile_for=v5e:9x9x9: ")


@pytest.mark.parametrize("name", ["gtx1080", "h100:0", "h100:x", "h100:8:2"])
def test_an_unknown_gpu_lists_those_known(name):
    with pytest.raises(ValueError, match=f"Invalid --compile_for={name}: .* a100, h100"):
        topology.devices(name)


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is not None, reason="the GPU compiler is there"
)
def test_a_missing_gpu_compiler_is_named():
    with pytest.raises(ValueError, match=r"Run pip install jax-cuda13-plugin==\d"):
        topology.devices("h100")


def test_a_step_larger_than_the_gpu_does_not_fit():
    card = GPUS["h100"]
    on_gpu = dict(device_kind=card.name, chip=card, cost=None)
    text = describe(_step(memory=Memory(2**30, 80 * 2**30), **on_gpu))
    assert "does not fit    81.00 GiB of 79.10 GiB per chip" in text
    assert "--config.remat=(1,2,3,4)" in text
    text = describe(_step(memory=Memory(2**30, 69 * 2**30), **on_gpu))
    assert "fits            70.00 GiB of 79.10 GiB per chip" in text
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in text


def test_memory_is_known_before_the_program():
    """Of a program on a CPU: the compiler's report and the compiled program name one number."""
    lowered = jax.jit(lambda a: jnp.sort(a @ a, axis=0) @ a).lower(jnp.ones((128, 128)))
    compilation = Compilation(lowered)
    total = compilation.memory_bytes()
    analysis = compilation.result().memory_analysis()
    parts = ("argument_size_in_bytes", "temp_size_in_bytes", "output_size_in_bytes")
    assert total == pytest.approx(sum(getattr(analysis, part) for part in parts), rel=0.01)
    assert compilation.memory_bytes() is None  # the report is removed


def test_options_reach_the_compiler():
    lowered = jax.jit(lambda a: a + 1).lower(1.0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        Compilation(lowered, {"xla_no_such_option": 1}).result()


@pytest.mark.slow
@needs_gpu_compiler
def test_train_py_compiles_for_gpus_without_training(tmp_path):
    command = [sys.executable, "train.py", "--config=configs/smoke.py", "--compile_for=h100:2"]
    command += ["--config.batch_size=32", "--config.group_size=16"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "h100:2: 2 × NVIDIA H100 80GB HBM3, mesh data=2 × fsdp=1 × tensor=1" in result.stdout
    assert "all-reduce of 2 chips" in result.stdout
    assert " ms: every kernel at the limit" in result.stdout
    assert "Compiling it for 2 × NVIDIA H100" in result.stderr
