"""Compile a training step for a TPU topology without a TPU: does it fit, and how fast is it?

`train.py --config=… --compile_for=v5e:16x16` builds the same step as training, with shapes instead
of arrays. The TPU compiler (`pip install libtpu`) compiles it and does not need a TPU. All numbers
are estimates of the compiler. Nothing is run.
"""

import dataclasses
import math
import os
import re
import time

import jax
import ml_collections
from jax.sharding import Mesh

from fastervit_jax.analysis import hlo
from fastervit_jax.analysis.chips import CHIPS, Chip
from fastervit_jax.analysis.multiply_adds import multiply_adds
from fastervit_jax.parallel.mesh import batch_shards, make_mesh
from fastervit_jax.runs.config import mixing_group, model_config
from fastervit_jax.runs.state import TrainState
from fastervit_jax.training import build
from fastervit_jax.training.task import Task

# The number of images changes constants of the step, but not its cost.
_IMAGENET_IMAGES = 1_281_167


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a compiled step on each chip, in bytes.

    Attributes:
        arguments: the state and the batch.
        temporaries: arrays that only exist within the step.
        peak: largest memory in use, as planned by the compiler.
    """

    arguments: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """Result of compiling a step. Bytes, cycles and multiply-adds are per chip.

    Attributes:
        topology: name of the topology.
        device_kind: JAX's name of the chips.
        mesh: sizes of the mesh by axis.
        batch_size: images per step, over all chips.
        accumulate: number of parts of a batch (gradient accumulation).
        remat: stages whose activations are recomputed.
        state_bytes: size of parameters, optimizer state, EMA and statistics.
        state_whole_bytes: size of the whole state, not per chip.
        multiply_adds_by_hand: multiply-adds that follow from the architecture.
        compile_seconds: time of the compilation, without tracing and lowering.
        memory: memory of the step; None if it does not fit.
        cost: cost of the step; None if it does not fit.
        refusal: message of the compiler if the step does not fit, otherwise "".
        program: the compiled program; None if it does not fit.
    """

    topology: str
    device_kind: str
    mesh: dict[str, int]
    batch_size: int
    accumulate: int
    remat: tuple[int, ...]
    state_bytes: int
    state_whole_bytes: int
    multiply_adds_by_hand: int
    compile_seconds: float
    memory: Memory | None
    cost: hlo.Cost | None
    refusal: str
    program: hlo.Program | None = dataclasses.field(default=None, repr=False)

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.mesh.values())

    @property
    def chip(self) -> Chip | None:
        """Specification of the chips; None if they are not in the table `CHIPS`."""
        return CHIPS.get(self.device_kind)

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Estimated shortest and longest time of a step, in seconds.

        The shortest time assumes that all transfers overlap with computation. The longest time
        assumes that none do. None means unknown: the chip is not in the table, or the compiler has
        no estimate for a part of the program.
        """
        if self.cost is None or self.chip is None or self.cost.unknown:
            return None
        computing = self.cost.cycles / self.chip.clock
        computing += self.cost.moved_bytes / self.chip.memory_bandwidth
        copying = self.cost.prefetched_bytes / self.chip.memory_bandwidth + self.link_seconds
        return max(computing, copying), computing + copying

    @property
    def link_seconds(self) -> float:
        """Shortest time of a step's collectives on the links between chips, in seconds.

        0 if the step does not fit, or if the chip is not in the table.
        """
        if self.cost is None or self.chip is None:
            return 0.0
        sent = sum(
            total * _sent_share(kind, group)
            for (kind, group), (_, total) in self.cost.collectives.items()
        )
        return sent / self.chip.link_bandwidth

    def images_per_second(self) -> tuple[float, float] | None:
        """Returns images per second over all chips, for the two times of `seconds`."""
        if self.seconds is None:
            return None
        fast, slow = self.seconds
        return self.batch_size / fast, self.batch_size / slow

    def peak_share(self) -> tuple[float, float] | None:
        """Returns the achieved share of the chip's peak, for the two times of `seconds`.

        The count by hand includes padding that the program omits, 1.7 % for FasterViT-0. The
        smaller of the two counts is used.
        """
        if self.seconds is None or self.cost is None or self.chip is None:
            return None
        fast, slow = self.seconds
        needed = min(self.cost.multiply_adds, self.multiply_adds_by_hand)
        at_peak = 2 * needed / self.chip.peak_flops
        return at_peak / fast, at_peak / slow


def _sent_share(kind: str, group: int) -> float:
    """Returns the bytes that a chip must send at least, divided by the size of the array."""
    if kind == "collective-permute":
        return 1.0
    share = (group - 1) / group if group else 1.0
    return 2 * share if kind == "all-reduce" else share


def compile_for(task: Task, config: ml_collections.ConfigDict, topology: str) -> CompiledStep:
    """Compiles a run's training step for a topology.

    Args:
        task: the task to train.
        config: config of the run.
        topology: libtpu's name of a topology, such as `v5e:16x16`.

    Raises:
        ValueError: the topology or the config is invalid, or libtpu is not installed.
    """
    mesh = make_mesh(**config.mesh, devices=topology_devices(topology))
    shards = batch_shards(mesh)
    task.check(config, batch_shards=shards, hosts=1, tensor=mesh.shape["tensor"])
    lowered, state = _lower(task, config, mesh)
    compiled, refusal, begin = None, "", time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = str(error)
    seconds = time.perf_counter() - begin
    program = None if compiled is None else hlo.parse(compiled.as_text())
    return CompiledStep(
        topology=topology,
        device_kind=mesh.devices.flat[0].device_kind,
        mesh=dict(mesh.shape),
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        remat=tuple(config.remat),
        state_bytes=_bytes_a_device(state),
        state_whole_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        multiply_adds_by_hand=step_multiply_adds(config, mesh.size),
        compile_seconds=seconds,
        memory=compiled and _memory(compiled),
        cost=None if program is None else hlo.cost(program),
        refusal=refusal,
        program=program,
    )


def topology_devices(topology: str) -> list:
    """Returns the devices of a topology, from libtpu.

    Raises:
        ValueError: libtpu is not installed, or does not know the topology.
    """
    from jax.experimental import topologies

    # Without these variables, libtpu queries the network for the type of the machine.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    # No chip is used, so several compilations may run at the same time.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:
        import importlib.util

        hint = (
            "expected a kind and a shape, such as v5e:16x16, v5p:4x4x4 or v6e:16x16."
            if importlib.util.find_spec("libtpu")
            else "the TPU compiler is not installed. Run pip install libtpu."
        )
        raise ValueError(
            f"Invalid --compile_for={topology}: {hint} ({str(error).splitlines()[0]})"
        ) from None


def _lower(task: Task, config: ml_collections.ConfigDict, mesh: Mesh):
    """Returns the lowered step and the shapes of its state."""
    epoch_steps = _IMAGENET_IMAGES // config.batch_size
    program = build.program(task, config, mesh, epoch_steps=epoch_steps)
    step = build.train_step(
        task,
        config,
        mesh,
        program,
        epoch_steps=epoch_steps,
        mixing_group=mixing_group(config, batch_shards(mesh)),
    )
    return step.lower(program.state, task.batch_shapes(config)), program.state


def _bytes_a_device(state: TrainState) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )


def _memory(compiled) -> Memory:
    analysis = compiled.memory_analysis()
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        peak=analysis.peak_memory_in_bytes,
    )


def step_multiply_adds(config: ml_collections.ConfigDict, devices: int) -> int:
    """Returns the multiply-adds of a training step on one device, from the architecture.

    The sum includes the forward pass, twice as much for the gradients, the teacher's forward pass
    of MESA, and the recomputed stages. The first convolution has no gradient of its input.
    """
    count = multiply_adds(model_config(config))
    passes = 3 + (config.mesa.weight > 0)
    again = [stage - 1 for stage in config.remat]
    per_image = passes * count.per_image - count.stem[0] + sum(count.stages[i] for i in again)
    per_pass = passes * count.per_pass + sum(count.positions[i] for i in again)
    return round(config.batch_size / devices * per_image + config.accumulate * per_pass)


def describe(step: CompiledStep) -> str:
    """Returns a report for the user."""
    mesh = " × ".join(f"{axis}={size}" for axis, size in step.mesh.items())
    lines = [
        f"{step.topology}: {step.chips} × {step.device_kind}, mesh {mesh}",
        f"batch           {step.batch_size} images in {step.accumulate} part(s); "
        f"recomputed stages: {', '.join(map(str, step.remat)) or 'none'}",
        f"state           {_gb(step.state_bytes)} per chip, {_gb(step.state_whole_bytes)} in total",
    ]
    if step.memory is None:
        lines += [f"does not fit    {_short(step.refusal)}", f"suggestion      {_remedy(step)}"]
    else:
        lines.append(_memory_line(step.memory, step.chip))
    if step.cost is not None:
        lines += _cost_lines(step, step.cost)
    lines.append(f"compiled in     {step.compile_seconds:.0f} s")
    lines.append("All numbers are estimates of the compiler. Nothing was run.")
    return "\n".join(lines)


def _memory_line(memory: Memory, chip: Chip | None) -> str:
    has = f" of {_gb(chip.memory_bytes)}" if chip else ""
    return (
        f"fits            {_gb(memory.peak)}{has} per chip at the peak: "
        f"arguments {_gb(memory.arguments)}, temporaries {_gb(memory.temporaries)}"
    )


def _cost_lines(step: CompiledStep, cost: hlo.Cost) -> list[str]:
    chip = step.chip
    lines = [
        f"multiply-adds   {cost.multiply_adds / 1e9:.1f} G per chip in the program, "
        f"{step.multiply_adds_by_hand / 1e9:.1f} G from the architecture (with padding)"
    ]
    for (kind, group), (count, total) in sorted(cost.collectives.items()):
        lines.append(f"collectives     {count} × {kind} of {group} chips: {_mb(total)} per chip")
    images, share = step.images_per_second(), step.peak_share()
    if step.seconds is None or images is None or share is None or chip is None:
        reason = "; ".join(cost.unknown) or f"{step.device_kind} is not in the table of chips"
        lines.append(f"step time       unknown: {reason}")
        return lines
    fast, slow = step.seconds
    lines += [
        f"step time       {1e3 * fast:.1f} to {1e3 * slow:.1f} ms: {cost.cycles:,} cycles at "
        f"{chip.clock / 1e9:.2f} GHz, {_mb(cost.moved_bytes)} rearranged",
        f"                at the same time {_mb(cost.prefetched_bytes)} prefetched from memory and "
        f"at least {1e3 * step.link_seconds:.2f} ms of transfers between chips; "
        f"{cost.small:,} instructions on small arrays are not counted",
        f"images/s        {images[1]:,.0f} to {images[0]:,.0f}",
        f"share of peak   {share[1]:.1%} to {share[0]:.1%} of {chip.peak_flops / 1e12:.0f} TFLOP/s "
        f"({chip.source})",
    ]
    return lines


def _short(refusal: str) -> str:
    found = re.search(r"Ran out of memory.*", refusal)
    return found.group(0) if found else refusal.splitlines()[0]


def _remedy(step: CompiledStep) -> str:
    """Suggests flags that reduce the memory of a step."""
    memory = step.chip.memory_bytes if step.chip else math.inf
    fsdp = step.mesh["fsdp"]
    if step.state_bytes > memory / 4 and fsdp < step.chips // step.mesh["tensor"]:
        split = step.state_bytes * fsdp
        while fsdp < step.chips // step.mesh["tensor"] and split / fsdp > memory / 8:
            fsdp *= 2
        return (
            f"the state needs {_gb(step.state_bytes)} per chip. Split it with "
            f"--config.mesh.fsdp={fsdp}"
        )
    if len(step.remat) < 4:
        return "recompute activations with --config.remat=(1,2,3,4)"
    return (
        f"use smaller parts with --config.accumulate={2 * step.accumulate}, a smaller "
        "--config.batch_size, or a larger topology"
    )


def _gb(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _mb(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"
