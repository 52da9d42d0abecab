"""Compiles a run's step for a TPU topology that need not be there: does it fit, how fast is it?

`train.py --config=… --compile_for=v5e:16x16` builds the same step as training does, on shapes in
place of arrays, and gives it to the TPU's own compiler (`pip install libtpu`), which needs no TPU.
All figures are the compiler's estimates; nothing is run.
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

# The step has constants that depend on the number of images, but its cost does not.
_IMAGENET_IMAGES = 1_281_167


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a compiled step takes on each chip.

    Attributes:
        arguments: the state and the batch.
        temporaries: what lives only inside the step.
        peak: the most that is held at a time, as the compiler plans it.
    """

    arguments: int
    temporaries: int
    peak: int


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What compiling a step for a topology tells. Bytes, cycles and multiply-adds are a chip's.

    Attributes:
        topology: as given.
        device_kind: JAX's name of the chips.
        mesh: sizes of the mesh by axis.
        batch_size: images a step, over all chips.
        accumulate: parts of a batch, one after the other.
        remat: stages that are computed again.
        state_bytes: of parameters, moments, averages and statistics.
        state_whole_bytes: the same of the whole state, over all chips.
        multiply_adds_by_hand: from the architecture.
        compile_seconds: time to compile; tracing and lowering not included.
        memory: None where the step does not fit.
        cost: likewise.
        refusal: the compiler's word where the step does not fit.
        program: what was compiled; None where it does not fit.
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
        """How many chips."""
        return math.prod(self.mesh.values())

    @property
    def chip(self) -> Chip | None:
        """What the chips can do; None for a kind that is not in the table."""
        return CHIPS.get(self.device_kind)

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Estimated time of a step, if all copying is hidden behind computing, and if none is.

        None where it is not known: a chip that is not in the table, or a part of the program for
        which the compiler has no estimate.
        """
        if self.cost is None or self.chip is None or self.cost.unknown:
            return None
        computing = self.cost.cycles / self.chip.clock
        computing += self.cost.moved_bytes / self.chip.memory_bandwidth
        copying = self.cost.prefetched_bytes / self.chip.memory_bandwidth + self.link_seconds
        return max(computing, copying), computing + copying

    @property
    def link_seconds(self) -> float:
        """Least time that the chips' links need for a step's collectives."""
        sent = sum(
            total * _sent_share(kind, group)
            for (kind, group), (_, total) in self.cost.collectives.items()
        )
        return sent / self.chip.link_bandwidth

    def images_per_second(self) -> tuple[float, float] | None:
        """Images a second over all chips, for the two times of `seconds`."""
        if self.seconds is None:
            return None
        fast, slow = self.seconds
        return self.batch_size / fast, self.batch_size / slow

    def peak_share(self) -> tuple[float, float] | None:
        """Share of the chip's peak that the network's multiply-adds make, for the same times.

        The count by hand has padding that the program leaves out, 1.7 % for FasterViT-0: the
        smaller count is used.
        """
        if self.seconds is None:
            return None
        fast, slow = self.seconds
        needed = min(self.cost.multiply_adds, self.multiply_adds_by_hand)
        at_peak = 2 * needed / self.chip.peak_flops
        return at_peak / fast, at_peak / slow


def _sent_share(kind: str, group: int) -> float:
    """Bytes that a chip must send at least, as a share of the array."""
    if kind == "collective-permute":
        return 1.0
    share = (group - 1) / group if group else 1.0
    return 2 * share if kind == "all-reduce" else share


def compile_for(task: Task, config: ml_collections.ConfigDict, topology: str) -> CompiledStep:
    """Compiles a run's training step for a topology.

    Args:
        task: what is trained.
        config: of the run.
        topology: such as `v5e:16x16`, as libtpu names them.

    Raises:
        ValueError: the topology or the config cannot be, or libtpu is missing; the message says
            what would do.
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
    """The devices of a topology, from libtpu.

    Raises:
        ValueError: libtpu is missing, or knows no such topology.
    """
    from jax.experimental import topologies

    # Without these libtpu asks the network what machine it is on.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    # Nothing touches a chip, so several compilations may go on at once.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:
        import importlib.util

        hint = (
            "Give a kind and a shape, such as v5e:16x16, v5p:4x4x4 or v6e:16x16."
            if importlib.util.find_spec("libtpu")
            else "The TPU compiler is missing: pip install libtpu."
        )
        raise ValueError(
            f"--compile_for={topology}: {hint} ({str(error).splitlines()[0]})"
        ) from None


def _lower(task: Task, config: ml_collections.ConfigDict, mesh: Mesh):
    """The lowered step, and the shapes of its state."""
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
    """Multiply-adds of a training step on one of the devices, by hand.

    The forward pass, twice as much for the gradients (the first convolution has no gradient to its
    input), the teacher's forward pass of MESA, and the stages that are computed again.
    """
    count = multiply_adds(model_config(config))
    passes = 3 + (config.mesa.weight > 0)
    again = [stage - 1 for stage in config.remat]
    an_image = passes * count.per_image - count.stem[0] + sum(count.stages[i] for i in again)
    a_pass = passes * count.per_pass + sum(count.positions[i] for i in again)
    return round(config.batch_size / devices * an_image + config.accumulate * a_pass)


def describe(step: CompiledStep) -> str:
    """A report for people."""
    mesh = " × ".join(f"{axis}={size}" for axis, size in step.mesh.items())
    lines = [
        f"{step.topology}: {step.chips} × {step.device_kind}, mesh {mesh}",
        f"batch           {step.batch_size} images, in {step.accumulate} part(s); "
        f"stages computed again: {', '.join(map(str, step.remat)) or 'none'}",
        f"state           {_gb(step.state_bytes)} a chip, {_gb(step.state_whole_bytes)} whole",
    ]
    if step.memory is None:
        lines += [f"does not fit    {_short(step.refusal)}", f"what would help {_remedy(step)}"]
    else:
        lines += [_memory_line(step), *_cost_lines(step)]
    lines.append(f"compiled in     {step.compile_seconds:.0f} s")
    lines.append("All of this is the compiler's estimate; nothing was run.")
    return "\n".join(lines)


def _memory_line(step: CompiledStep) -> str:
    memory, chip = step.memory, step.chip
    has = f" of {_gb(chip.memory_bytes)}" if chip else ""
    return (
        f"fits            {_gb(memory.peak)}{has} a chip at the peak: "
        f"arguments {_gb(memory.arguments)}, temporaries {_gb(memory.temporaries)}"
    )


def _cost_lines(step: CompiledStep) -> list[str]:
    cost, chip = step.cost, step.chip
    lines = [
        f"multiply-adds   {cost.multiply_adds / 1e9:.1f} G a chip in the program, "
        f"{step.multiply_adds_by_hand / 1e9:.1f} G by hand, with padding, without zeros"
    ]
    for (kind, group), (count, total) in sorted(cost.collectives.items()):
        lines.append(f"collectives     {count} × {kind} among {group} chips: {_mb(total)} a chip")
    if step.seconds is None:
        reason = "; ".join(cost.unknown) or f"{step.device_kind} is not in the table of chips"
        lines.append(f"step time       unknown: {reason}")
        return lines
    fast, slow = step.seconds
    images, share = step.images_per_second(), step.peak_share()
    lines += [
        f"step time       {1e3 * fast:.1f} to {1e3 * slow:.1f} ms: {cost.cycles:,} cycles at "
        f"{chip.clock / 1e9:.2f} GHz, {_mb(cost.moved_bytes)} rearranged",
        f"                beside them {_mb(cost.prefetched_bytes)} fetched from memory, "
        f"{1e3 * step.link_seconds:.2f} ms or more on the links; "
        f"{cost.small:,} instructions on few numbers left out",
        f"images/s        {images[1]:,.0f} to {images[0]:,.0f}",
        f"share of peak   {share[1]:.1%} to {share[0]:.1%} of {chip.peak_flops / 1e12:.0f} TFLOP/s "
        f"({chip.source})",
    ]
    return lines


def _short(refusal: str) -> str:
    found = re.search(r"Ran out of memory.*", refusal)
    return found.group(0) if found else refusal.splitlines()[0]


def _remedy(step: CompiledStep) -> str:
    """Flags that would make a step smaller."""
    memory = step.chip.memory_bytes if step.chip else math.inf
    fsdp = step.mesh["fsdp"]
    if step.state_bytes > memory / 4 and fsdp < step.chips // step.mesh["tensor"]:
        split = step.state_bytes * fsdp
        while fsdp < step.chips // step.mesh["tensor"] and split / fsdp > memory / 8:
            fsdp *= 2
        return (
            f"the state alone takes {_gb(step.state_bytes)} a chip: split it, "
            f"--config.mesh.fsdp={fsdp}"
        )
    if len(step.remat) < 4:
        return "compute activations again: --config.remat=(1,2,3,4)"
    return (
        f"smaller parts, --config.accumulate={2 * step.accumulate}, or fewer images a chip, "
        f"--config.batch_size or a larger topology"
    )


def _gb(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _mb(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"
