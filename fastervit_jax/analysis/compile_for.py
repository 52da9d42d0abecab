"""Compile a training step for TPUs or GPUs that are not there: does it fit, and how fast is it?

`train.py --config=… --compile_for=v5e:16x16` builds the same step as training, with shapes instead
of arrays. The compilers of TPUs (`pip install libtpu`) and of GPUs (`pip install
jax-cuda13-plugin jax-cuda13-pjrt`) do not need a device. All numbers are estimates. Nothing is run.
"""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable

import jax
import ml_collections
from jax.sharding import Mesh

from fastervit_jax.analysis import gpu_cost, hlo, places, topology, tpu_cost
from fastervit_jax.analysis.chips import Chip, Gpu
from fastervit_jax.analysis.compilation import Compilation
from fastervit_jax.analysis.multiply_adds import multiply_adds
from fastervit_jax.models.config import FasterViTConfig
from fastervit_jax.parallel.mesh import batch_shards
from fastervit_jax.runs.config import mesh_of, mixing_group, model_config
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
    """

    arguments: int
    temporaries: int

    @property
    def total(self) -> int:
        """What the step needs. Its results replace the arguments."""
        return self.arguments + self.temporaries


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """Result of compiling a step. Bytes, cycles and multiply-adds are per chip.

    Attributes:
        topology: name of the topology.
        device_kind: JAX's name of the chips.
        chip: specification of the chips; None if it is unknown.
        mesh: sizes of the mesh by axis.
        batch_size: images per step, over all chips.
        accumulate: number of parts of a batch (gradient accumulation).
        remat: stages whose activations are recomputed.
        state_bytes: size of parameters, optimizer state, EMA and statistics.
        state_whole_bytes: size of the whole state, not per chip.
        multiply_adds_by_hand: multiply-adds that follow from the architecture; None for networks
            that are not counted.
        compile_seconds: time of the compilation, without tracing and lowering.
        memory: memory of the step; None if the compiler refused it.
        cost: cost of the step; None if the compiler refused it.
        refusal: message of the compiler if the step does not fit, otherwise "".
        by_place: share of the time by stage and part (`places.place`).
        by_kind: share of the time by kind of operation (`places.kind`).
    """

    topology: str
    device_kind: str
    chip: Chip | None
    mesh: dict[str, int]
    batch_size: int
    accumulate: int
    remat: tuple[int, ...]
    state_bytes: int
    state_whole_bytes: int
    multiply_adds_by_hand: int | None
    compile_seconds: float
    memory: Memory | None
    cost: tpu_cost.TpuCost | gpu_cost.GpuCost | None
    refusal: str
    by_place: dict[str, float] = dataclasses.field(default_factory=dict)
    by_kind: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.mesh.values())

    @property
    def fits(self) -> bool:
        """Whether the step fits into the memory of a chip, as far as it is known."""
        if self.memory is None:
            return False
        return self.chip is None or self.memory.total <= self.chip.memory_bytes

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Estimated shortest and longest time of a step, in seconds.

        The shortest time assumes that all transfers overlap with computation. The longest time
        assumes that none do. None means unknown: the chip is not in the table, or a part of the
        program has no estimate.
        """
        if self.cost is None or self.chip is None or self.cost.unknown:
            return None
        return self.cost.seconds(self.chip, self.link_seconds)  # type: ignore[arg-type]

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
        needed = self.cost.multiply_adds
        if self.multiply_adds_by_hand is not None:
            needed = min(needed, self.multiply_adds_by_hand)
        at_peak = 2 * needed / self.chip.peak_flops
        return at_peak / fast, at_peak / slow


def _sent_share(kind: str, group: int) -> float:
    """Returns the bytes that a chip must send at least, divided by the size of the array."""
    if kind == "collective-permute":
        return 1.0
    share = (group - 1) / group if group else 1.0
    return 2 * share if kind == "all-reduce" else share


def compile_for(
    task: Task,
    config: ml_collections.ConfigDict,
    topology_name: str,
    *,
    memory_only: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> CompiledStep:
    """Compiles a run's training step for a topology.

    Args:
        task: the task to train.
        config: config of the run.
        topology_name: the topology (`topology.devices`), such as `v5e:16x16` or `h100:8`.
        memory_only: stop as soon as the memory is known. The result has no cost. The compiler keeps
            running in a thread: end the process.
        say: called with a sentence at the beginning of every part of the work.

    Raises:
        ValueError: the topology or the config is invalid, or the compiler is not installed.
    """
    mesh = mesh_of(config, topology.devices(topology_name))
    shards = batch_shards(mesh)
    task.check(config, batch_shards=shards, hosts=1, tensor=mesh.shape["tensor"])
    device = mesh.devices.flat[0]
    say(f"Tracing the step of {config.model.name} with {config.batch_size} images.")
    chip = topology.chip_of(device)
    compiled, refusal, memory = None, "", None
    # On a mesh, kernels are lowered by the compiler.
    with topology.lowering_for(device):
        lowered, state = lower_step(task, config, mesh)
        say(f"Compiling it for {mesh.size} × {device.device_kind}.")
        begin = time.perf_counter()
        compilation = Compilation(lowered, topology.compiler_options(device))
        total = compilation.memory_bytes()
        if total is not None:
            arguments = _bytes_a_device(state) + _batch_bytes(task, config) // shards
            memory = Memory(arguments, max(0, total - arguments))
            say(f"It needs {total / 2**30:.2f} GiB of memory per chip.")
        try:
            if memory_only and memory is not None:
                compilation.forget()
            else:
                compiled = compilation.result()
                memory = memory_of(compiled)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refusal = str(error)
    seconds = time.perf_counter() - begin
    cost, by_place, by_kind = None, {}, {}
    if compiled is not None:
        say("Reading the compiled program.")
        cost, by_place, by_kind = cost_of(hlo.parse(compiled.as_text()), chip)
    return CompiledStep(
        topology=topology_name,
        device_kind=device.device_kind,
        chip=chip,
        mesh=dict(mesh.shape),
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        remat=tuple(config.remat),
        state_bytes=_bytes_a_device(state),
        state_whole_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        multiply_adds_by_hand=step_multiply_adds(config, mesh.size),
        compile_seconds=seconds,
        memory=None if refusal else memory,
        cost=cost,
        refusal=refusal,
        by_place=by_place,
        by_kind=by_kind,
    )


def cost_of(program: hlo.Program, chip: Chip | None):
    """Returns the cost of a program, and the shares of its time by place and by kind."""

    def kind(instruction):
        return places.kind(program, instruction)

    cost: tpu_cost.TpuCost | gpu_cost.GpuCost
    if isinstance(chip, Gpu):
        cost = gpu_cost.cost(program, chip)
        times = cost.seconds_by(places.place), cost.seconds_by(kind)
    else:
        cost = tpu_cost.cost(program)
        times = (
            tpu_cost.cycles_by(program, places.place),
            tpu_cost.cycles_by(program, kind),
        )
    return cost, *map(_shares, times)


def _shares(times: Counter[str]) -> dict[str, float]:
    total = sum(times.values())
    return {label: time / total for label, time in times.most_common()} if total else {}


def lower_step(task: Task, config: ml_collections.ConfigDict, mesh: Mesh):
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


def _batch_bytes(task: Task, config: ml_collections.ConfigDict) -> int:
    return sum(
        math.prod(shape.shape) * shape.dtype.itemsize
        for shape in task.batch_shapes(config).values()
    )


def _bytes_a_device(state: TrainState) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )


def memory_of(compiled) -> Memory:
    """Returns the memory that a compiled program needs on each chip."""
    analysis = compiled.memory_analysis()
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes + results,
    )


def step_multiply_adds(config: ml_collections.ConfigDict, devices: int) -> int | None:
    """Returns the multiply-adds of a training step on one device, from the architecture.

    The sum includes the forward pass, twice as much for the gradients, the teacher's forward pass
    of MESA, and the recomputed stages. The first convolution has no gradient of its input.
    None means that the network is not a classifier, and is not counted.
    """
    network = model_config(config)
    if not isinstance(network, FasterViTConfig):
        return None
    count = multiply_adds(network)
    passes = 3 + (config.mesa.weight > 0)
    again = [stage - 1 for stage in config.remat]
    per_image = passes * count.per_image - count.stem[0] + sum(count.stages[i] for i in again)
    per_pass = passes * count.per_pass + sum(count.positions[i] for i in again)
    return round(config.batch_size / devices * per_image + config.accumulate * per_pass)
