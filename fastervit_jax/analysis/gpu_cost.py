"""The cost of a program on a GPU: a roofline of every kernel.

XLA's optimized program for a GPU says which kernels run, on which arrays. A kernel takes at least
as long as the memory needs for what it reads and writes, and as long as the matrix units need for
its multiply-adds. The larger of the two is its roofline (Williams, Waterman and Patterson, 2009).
Real kernels are slower, and each of them has to be started.

docs/benchmarks.md compares these estimates with measurements.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from fastervit_jax.analysis import hlo
from fastervit_jax.analysis.chips import Gpu
from fastervit_jax.analysis.hlo import Array, Executed, Instruction, Program

LAUNCH_SECONDS = 2e-6
"""Average time between two kernels.

Measured on an H100: FasterViT-0 with one image has 343 kernels, which work 0.64 ms of 1.32 ms. Most
of them were started by CUDA graphs, the convolutions one by one.
"""

# Share of the peak in bfloat16 that the matrix units reach with other types. JAX's products of
# float32 are computed in TF32.
_RATE = {"bf16": 1.0, "f16": 1.0, "f32": 0.5, "s8": 2.0, "f8e4m3fn": 2.0, "f8e5m2": 2.0}

# Instructions that start no kernel.
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "domain"}
_FREE |= {"opt-barrier", "partition-id", "replica-id", "while", "conditional", "call"}
_FREE |= {"async-start", "async-update"}
_MATMUL = "__cublas$"
_CONVOLUTION = "__cudnn$conv"
_TRITON = "__gpu$xla.gpu.triton"
# Other custom calls, which only read and write their arrays.
_PASSES = {"__cub$DeviceRadixSort", "TopK", "__gpu$TopK"}
_PASSES |= {"SliceToDynamic", "PadToStatic"}
_SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel, or several runs of it.

    Attributes:
        instruction: the instruction that it computes.
        times: number of runs.
        bytes: bytes that a run reads and writes.
        multiply_adds: multiply-adds of a run.
        seconds: roofline of a run.
    """

    instruction: Instruction
    times: int
    bytes: int
    multiply_adds: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class GpuCost:
    """Cost of one run of a program on one GPU.

    Attributes:
        kernels: all kernels.
        collectives: as in `tpu_cost.TpuCost`.
        unknown: parts whose time is unknown. If there are any, the time is too short.
    """

    kernels: tuple[Kernel, ...]
    collectives: dict[tuple[str, int], tuple[int, int]]
    unknown: tuple[str, ...]

    @property
    def launches(self) -> int:
        """Number of started kernels."""
        return sum(kernel.times for kernel in self.kernels)

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return sum(kernel.times * kernel.bytes for kernel in self.kernels)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of matrix products, convolutions and attention kernels."""
        return sum(kernel.times * kernel.multiply_adds for kernel in self.kernels)

    @property
    def roofline(self) -> float:
        """Sum of the kernels' rooflines, in seconds."""
        return sum(kernel.times * kernel.seconds for kernel in self.kernels)

    def seconds(self, chip: Gpu, link_seconds: float) -> tuple[float, float]:
        """Returns the shortest time of a run, and the same with all that may not overlap.

        The shortest time is the roofline, with transfers at the same time. The other one adds the
        start of every kernel, and the transfers. Both assume that each kernel reaches its roofline.

        Args:
            chip: the GPU.
            link_seconds: time of the transfers between GPUs.
        """
        serial = self.roofline + self.launches * LAUNCH_SECONDS + link_seconds
        return max(self.roofline, link_seconds), serial

    def explanation(self, chip: Gpu) -> tuple[str, str]:
        """Returns what the two times of `seconds` are made of, for people."""
        return (
            f"every kernel at the limit of memory or matrix units, {self.bytes / 1e9:.1f} GB read "
            "and written",
            f"the longer time adds {1e6 * LAUNCH_SECONDS:.0f} µs for the start of each of "
            f"{self.launches:,} kernels. Real kernels are slower: see docs/benchmarks.md",
        )

    def seconds_by(self, label: Callable[[Instruction], str]) -> Counter[str]:
        """Returns the roofline in seconds, by a label of the instruction (`places`)."""
        seconds: Counter[str] = Counter()
        for kernel in self.kernels:
            seconds[label(kernel.instruction)] += kernel.times * kernel.seconds  # type: ignore[assignment]
        return seconds


def cost(program: Program, gpu: Gpu) -> GpuCost:
    """Returns the cost of one run of a program on one GPU."""
    arrays = hlo.arrays_by_name(program)

    def weight(steps) -> float:
        kernels, _ = _kernels(program, steps, arrays, gpu)
        return sum(kernel.times * kernel.seconds for kernel in kernels)

    steps, unknown = hlo.executed(program, weight)
    kernels, missing = _kernels(program, steps, arrays, gpu)
    counts: Counter[tuple[str, int]] = Counter()
    totals: Counter[tuple[str, int]] = Counter()
    for step in steps:
        kind = hlo.collective(step.instruction)
        if kind:
            key = kind, hlo.group_size(step.instruction)
            counts[key] += step.times
            totals[key] += step.times * hlo.collective_bytes(step.instruction, arrays)
    return GpuCost(
        kernels=tuple(kernels),
        collectives={key: (counts[key], totals[key]) for key in counts},
        unknown=(*unknown, *(f"{count} × {name}" for name, count in missing.items())),
    )


def _kernels(program, steps: list[Executed], arrays, gpu: Gpu) -> tuple[list[Kernel], Counter[str]]:
    kernels = []
    unknown: Counter[str] = Counter()
    for step in steps:
        instruction = step.instruction
        opcode = instruction.opcode
        if step.fused or opcode in _FREE or opcode.endswith("-done"):
            continue
        if hlo.collective(instruction):
            continue
        moved = _bytes(program, instruction, arrays)
        products = _products(program, instruction, arrays)
        if products is None:
            unknown[instruction.target or opcode] += step.times
            products = {}
        computing = 0.0
        for dtype, count in products.items():
            if dtype not in _RATE:
                unknown[f"products of {dtype}"] += step.times
            computing += 2 * count / (gpu.peak_flops * _RATE.get(dtype, 1.0))
        seconds = max(moved / gpu.memory_bandwidth, computing)
        kernels.append(Kernel(instruction, step.times, moved, sum(products.values()), seconds))
    return kernels, unknown


def _bytes(program: Program, instruction: Instruction, arrays) -> int:
    """Returns the bytes that a kernel reads and writes.

    The workspace of a library's kernel is not counted. A fusion may read only a part of an operand,
    or write only a slice of its result in place.
    """
    results = instruction.results
    if instruction.target.startswith((_MATMUL, _CONVOLUTION)) and _is_workspace(results[-1]):
        results = results[:-1]
    if instruction.opcode != "fusion":
        read = sum(array.bytes for name in instruction.operands for array in arrays[name])
        return read + sum(array.bytes for array in results)
    body = program.computations[instruction.calls("calls")]
    read = sum(_read(body, arrays))
    return read + sum(_written(_named(body, name), arrays) for name in _outputs(body[-1]))


def _is_workspace(array: Array) -> bool:
    return array.dtype in ("s8", "u8") and len(array.shape) == 1


def _read(body: tuple[Instruction, ...], arrays) -> Iterator[int]:
    """The bytes that a fusion reads of each of its parameters.

    A fusion computes only what its outputs need. An output needs all of the arrays that it is
    computed from, a slice only a part. Two slices are assumed to need different parts: the parts
    are added, up to the whole array.
    """
    needs: dict[str, dict[str, float]] = defaultdict(dict)
    for name in _outputs(body[-1]):
        needs[name][name] = math.inf
    for user in reversed(body):
        if user.opcode == "parameter":
            whole = sum(array.bytes for array in arrays[user.name])
            size = sum(array.size for array in arrays[user.name])
            yield math.ceil(whole * min(1.0, sum(needs[user.name].values()) / max(size, 1)))
        for index, operand in enumerate(user.operands):
            if user.opcode == "dynamic-update-slice" and index == 0:
                continue  # written in place
            needs[operand].update(_needs(user, index, needs[user.name], arrays))


def _needs(user: Instruction, index: int, need: dict[str, float], arrays) -> dict[str, float]:
    """How many elements of an operand each part of an instruction's result needs."""
    size = sum(array.size for array in user.results)
    if user.opcode in _SLICES and index == 0:
        return {user.name: min(size, sum(need.values()))}
    # A sum needs as many times more elements as it takes together.
    ratio = max(1.0, sum(array.size for array in arrays[user.operands[index]]) / max(size, 1))
    return {part: elements * ratio for part, elements in need.items()}


def _outputs(root: Instruction) -> tuple[str, ...]:
    return root.operands if root.opcode == "tuple" else (root.name,)


def _written(instruction: Instruction, arrays) -> int:
    if instruction.opcode == "dynamic-update-slice":
        return arrays[instruction.operands[1]][0].bytes
    return sum(array.bytes for array in instruction.results)


def _named(body: tuple[Instruction, ...], name: str) -> Instruction:
    return next(instruction for instruction in body if instruction.name == name)


def _products(program: Program, instruction: Instruction, arrays) -> dict[str, int] | None:
    """Returns the multiply-adds of a kernel by the type of their inputs; None if unknown."""
    if instruction.opcode == "fusion":
        total: Counter[str] = Counter()
        for inner in program.computations[instruction.calls("calls")]:
            found = _products(program, inner, arrays) if inner.opcode == "fusion" else None
            total.update(found or _counted(inner, hlo.multiply_adds(inner, arrays), arrays))
        return dict(total)
    if instruction.opcode != "custom-call":
        return _counted(instruction, hlo.multiply_adds(instruction, arrays), arrays)
    target = instruction.target
    if target.startswith(_MATMUL):
        left = arrays[instruction.operands[0]][0].shape
        contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
        axes = [int(axis) for axis in re.findall(r"\d+", contracted.group(1))] if contracted else []
        count = instruction.results[0].size * math.prod(left[axis] for axis in axes)
        return _counted(instruction, count, arrays)
    if target.startswith(_CONVOLUTION):
        return _counted(instruction, _convolution(instruction, arrays), arrays)
    if target == _TRITON and _is_attention(instruction, arrays):
        return _counted(instruction, _attention(instruction, arrays), arrays)
    return {} if target in _PASSES else None


def _counted(instruction: Instruction, count: int, arrays) -> dict[str, int]:
    return {arrays[instruction.operands[0]][0].dtype: count} if count else {}


def _convolution(instruction: Instruction, arrays) -> int:
    """Returns the multiply-adds of cuDNN's convolutions, from the forward one of the same sizes."""
    first, second = (arrays[name][0] for name in instruction.operands[:2])
    result = instruction.results[0]
    if "BackwardInput" in instruction.target:
        images, output = result, first
    elif "BackwardFilter" in instruction.target:
        images, output = first, second
    else:
        images, output = first, result
    forward = dataclasses.replace(
        instruction, opcode="convolution", operands=("images",), results=(output,)
    )
    return hlo.multiply_adds(forward, {"images": (images,)})


def _is_attention(instruction: Instruction, arrays) -> bool:
    """Returns whether a kernel of Triton is one of `models/attention_kernel.py`.

    On a mesh, the name of the kernel is lost, and that of the layer is left.
    """
    shape = arrays[instruction.operands[0]][0].shape
    return "attention" in instruction.op_name and len(shape) == 5 and shape[2] == 3


def _attention(instruction: Instruction, arrays) -> int:
    """Returns the multiply-adds of the kernels of `models/attention_kernel.py`.

    Their first operand is q, k, v: [windows, tokens, 3, heads, channels]. Forward has two products
    of tokens × tokens × channels. Backward has them again, and two for the gradient of each.
    """
    qkv: Array = arrays[instruction.operands[0]][0]
    windows, tokens, _, heads, channels = qkv.shape
    products = 2 if len(instruction.results) == 1 else 5
    return products * windows * heads * tokens**2 * channels
