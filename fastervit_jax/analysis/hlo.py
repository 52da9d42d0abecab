"""Parse compiled XLA programs: what runs, how often, and its multiply-adds.

XLA prints an optimized program as text (`compiled.as_text()`). `tpu_cost` and `gpu_cost` estimate
the time of what this module finds:

- The body of a loop counts as often as it runs.
- The most expensive branch of a conditional counts.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "collective-broadcast",
    "ragged-all-to-all",
)

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2}
_BYTES |= {"f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8}


@dataclasses.dataclass(frozen=True)
class Array:
    """An array type: element type and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        return math.ceil(self.size * _BYTES.get(self.dtype, 1))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: unique in its program.
        opcode: for example `fusion`.
        results: the returned arrays: one, or those of a tuple.
        operands: names of the operands.
        argument: the text between the parentheses.
        attributes: the text after the parentheses.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    argument: str
    attributes: str

    @property
    def op_name(self) -> str:
        """Origin in the traced program, such as `jit(f)/while/body/dot_general`."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def cycles(self) -> int | None:
        """The TPU compiler's estimate of the time, in cycles of the chip, or None."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
        return int(found.group(1)) if found else None

    @property
    def target(self) -> str:
        """The function of a custom call, otherwise ""."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    def called(self, attribute: str) -> str | None:
        """Returns the computation named by an attribute such as `body`, or None."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else None

    def calls(self, attribute: str) -> str:
        """Returns the computation named by an attribute that the instruction must have.

        Raises:
            ValueError: the instruction has no such attribute.
        """
        name = self.called(attribute)
        if name is None:
            raise ValueError(f"Invalid HLO: the {self.opcode} {self.name} has no {attribute}.")
        return name

    @property
    def branches(self) -> list[str]:
        """Names of the computations of a conditional."""
        found = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if found:
            return re.findall(r"[\w.\-]+", found.group(1))
        return [self.calls("true_computation"), self.calls("false_computation")]


@dataclasses.dataclass(frozen=True)
class Program:
    """A program.

    Attributes:
        computations: instructions in order, by the name of the computation.
        entry: name of the entry computation.
    """

    computations: dict[str, tuple[Instruction, ...]]
    entry: str


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction, and how often one run of the program executes it.

    Attributes:
        instruction: the instruction.
        times: number of executions.
        computation: name of its computation.
        fused: whether it is part of a fusion. The fusion then has the estimate of its time.
    """

    instruction: Instruction
    times: int
    computation: str
    fused: bool


def parse(text: str) -> Program:
    """Parses a program from the text of `compiled.as_text()`.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry: str | None = None
    name: str | None = None
    body: list[Instruction] = []
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$", line)
        if header:
            name, body = header.group(2), []
            entry = name if header.group(1) else entry
        elif line.startswith("}") and name:
            computations[name], name = tuple(body), None
        elif name:
            found = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$", line)
            if found:
                body.append(_instruction(*found.groups()))
    if entry is None:
        raise ValueError("Invalid HLO program: it has no ENTRY computation.")
    return Program(computations, entry)


def _instruction(name: str, types: str, opcode: str, rest: str) -> Instruction:
    depth, end = 1, 0
    while depth:
        depth += (rest[end] == "(") - (rest[end] == ")")
        end += 1
    argument, attributes = rest[: end - 1], rest[end:]
    operands: tuple[str, ...] = ()
    if opcode not in ("constant", "parameter"):
        # Take the last word of each operand. A type may precede the name, and "%" may be missing.
        pattern = r"%([\w.\-]+)" if "%" in argument else r"([\w.\-]+)(?=,|$)"
        operands = tuple(re.findall(pattern, argument))
    return Instruction(name, opcode, _arrays(types), operands, argument, attributes)


def _arrays(types: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(int(size) for size in shape.split(",") if size))
        for dtype, shape in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", types)
    )


Weight = Callable[[Sequence[Executed]], Any]
"""Compares branches: the cost of what a branch executes, as a number or a tuple of numbers."""


def executed(program: Program, weight: Weight) -> tuple[list[Executed], list[str]]:
    """Returns all executed instructions, and the loops with an unknown number of iterations.

    Rejection sampling (Gamma in jax.random) runs until all draws are accepted. Each draw is
    accepted with a probability of at least 0.95 (Marsaglia and Tsang, 2000). 8 iterations are
    counted. More are needed in only 1 of 10¹⁰ cases.

    Args:
        program: the program.
        weight: the branch of a conditional with the largest weight counts.
    """
    unknown: list[str] = []
    return list(_walk(program, program.entry, 1, False, weight, unknown)), unknown


_REJECTION_ROUNDS = 8


def _walk(program, name: str, times: int, fused: bool, weight, unknown) -> Iterator[Executed]:
    for instruction in program.computations[name]:
        yield Executed(instruction, times, name, fused)
        if instruction.opcode == "while":
            rounds = trip_count(program, name, instruction)
            if rounds is None and "jit(_gamma)" in instruction.op_name:
                rounds = _REJECTION_ROUNDS
            if rounds is None:
                unknown.append(f"a loop of unknown length, {instruction.op_name}")
            for part in ("condition", "body"):
                inner = instruction.calls(part)
                yield from _walk(program, inner, times * (rounds or 1), fused, weight, unknown)
        elif instruction.opcode == "conditional":
            yield from _dearest(program, instruction, times, fused, weight, unknown)
        elif instruction.opcode in ("fusion", "call", "async-start"):
            # CPU programs call the parts of parallel loops with `to_apply`.
            inner = instruction.called("calls") or instruction.calls("to_apply")
            in_fusion = fused or instruction.opcode == "fusion"
            yield from _walk(program, inner, times, in_fusion, weight, unknown)


def _dearest(program, conditional, times, fused, weight, unknown) -> list[Executed]:
    branches = []
    for branch in conditional.branches:
        reasons: list[str] = []
        steps = list(_walk(program, branch, times, fused, weight, reasons))
        branches.append((weight(steps), steps, reasons))
    _, steps, reasons = max(branches, key=lambda branch: branch[0])
    unknown += reasons
    return steps


def arrays_by_name(program: Program) -> dict[str, tuple[Array, ...]]:
    """Returns the results of all instructions, by the name of the instruction."""
    return {i.name: i.results for body in program.computations.values() for i in body}


def trip_count(program: Program, computation: str, loop: Instruction) -> int | None:
    """Returns the number of iterations of a loop.

    The compiler may state it. Otherwise it is known if the start, the step and the limit of the
    loop's counter are constants.

    Args:
        program: the program.
        computation: name of the computation that contains the loop.
        loop: the `while` instruction.

    Returns:
        The number of iterations, or None if it depends on values that the body computes.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known.group(1))
    condition = program.computations[loop.calls("condition")]
    body = program.computations[loop.calls("body")]
    scope = _Loop(program, computation, loop)
    test = condition[-1]
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, limit = test.operands
    index = scope.element(condition, counter)
    stop = scope.constant(condition, limit)
    if index is None or stop is None or body[-1].opcode != "tuple":
        return None
    update = _named(body, body[-1].operands[index])
    if update.opcode != "add":
        return None
    sides = [scope.element(body, operand) for operand in update.operands]
    if index not in sides:
        return None
    step = scope.constant(body, update.operands[1 - sides.index(index)])
    start = scope.initial(index)
    if not step or step < 0 or start is None:
        return None
    return max(0, -(-(stop - start) // step))


class _Loop:
    """Finds constants in a loop, including those that are carried unchanged."""

    def __init__(self, program: Program, computation: str, loop: Instruction):
        self._outside = program.computations[computation]
        self._body = program.computations[loop.calls("body")]
        self._start = _named(self._outside, loop.operands[0])

    def element(self, computation, name: str) -> int | None:
        """Returns the index of a value in the loop's state, for the condition or the body."""
        source = self._source(computation, name)
        if source.opcode != "get-tuple-element":
            return None
        found = re.search(r"index=(\d+)", source.attributes)
        return int(found.group(1)) if found else None

    def constant(self, computation, name: str) -> int | None:
        """Returns the value of a constant in the condition or the body."""
        source = self._source(computation, name)
        if source.opcode == "constant":
            return _integer(source.argument)
        index = self.element(computation, name)
        if index is None or self.element(self._body, self._body[-1].operands[index]) != index:
            return None
        return self.initial(index)

    def initial(self, index: int) -> int | None:
        """Returns the initial value of an element of the state if it is a constant."""
        if self._start.opcode != "tuple":
            return None
        source = self._source(self._outside, self._start.operands[index])
        return _integer(source.argument) if source.opcode == "constant" else None

    def _source(self, computation, name: str) -> Instruction:
        instruction = _named(computation, name)
        while instruction.opcode in ("copy", "bitcast", "reshape"):
            instruction = _named(computation, instruction.operands[0])
        return instruction


def _named(computation, name: str) -> Instruction:
    return next(instruction for instruction in computation if instruction.name == name)


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?\d+", text.strip()) else None


def multiply_adds(instruction: Instruction, arrays: dict[str, tuple[Array, ...]]) -> int:
    """Returns the multiply-adds of a matrix product or a convolution; 0 for other instructions.

    Padding and the zeros between the values of a strided gradient are not counted, as in XLA's
    count.

    Args:
        instruction: the instruction.
        arrays: results of all instructions, by name.

    Raises:
        ValueError: a convolution has no `dim_labels`.
    """
    if instruction.opcode == "dot":
        left = arrays[instruction.operands[0]][0].shape
        contracted = numbers(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        return instruction.results[0].size * math.prod(left[axis] for axis in contracted)
    if instruction.opcode != "convolution":
        return 0
    left = arrays[instruction.operands[0]][0].shape
    output = instruction.results[0].shape
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if found is None:
        raise ValueError(f"Invalid HLO: the convolution {instruction.name} has no dim_labels.")
    labels = found.groups()
    window = _window(instruction.attributes)
    groups = [
        number(rf"{kind}_group_count=(\d+)", instruction.attributes, 1)
        for kind in ("feature", "batch")
    ]
    total = left[labels[0].index("f")] // groups[0] * output[labels[2].index("f")]
    total *= left[labels[0].index("b")] // groups[1]
    for axis in range(len(window["size"])):
        total *= _products_along(
            output[labels[2].index(str(axis))],
            left[labels[0].index(str(axis))],
            *(window[key][axis] for key in ("size", "stride", "pad", "lhs_dilate", "rhs_dilate")),
        )
    return total


def _window(attributes: str) -> dict[str, list]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in found.group(1).split()) if found else {}
    size = [int(size) for size in fields["size"].split("x")] if fields else []
    window: dict[str, list] = {"size": size}
    for key, default in (("stride", 1), ("lhs_dilate", 1), ("rhs_dilate", 1)):
        values = fields[key].split("x") if key in fields else [default] * len(size)
        window[key] = [int(value) for value in values]
    pads = fields["pad"].split("x") if "pad" in fields else ["0_0"] * len(size)
    window["pad"] = [int(pad.split("_")[0]) for pad in pads]
    return window


@functools.cache
def _products_along(out, size, window, stride, pad, lhs_dilate, rhs_dilate) -> int:
    """Counts the pairs of output and window positions that use a value of the input."""
    position = np.arange(out)[:, None] * stride - pad + np.arange(window) * rhs_dilate
    inside = (position >= 0) & (position <= (size - 1) * lhs_dilate)
    return int((inside & (position % lhs_dilate == 0)).sum())


def collective(instruction: Instruction) -> str | None:
    """Returns the kind of a collective, or None for other instructions."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


def collective_bytes(instruction: Instruction, arrays: dict[str, tuple[Array, ...]]) -> int:
    """Returns the larger one of input and output of a collective on one device, in bytes."""
    taken = sum(array.bytes for name in instruction.operands for array in arrays[name])
    given = sum(array.bytes for array in instruction.results)
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        given -= taken  # the result is a tuple of input and output
    return max(taken, given)


def group_size(instruction: Instruction) -> int:
    """Returns the number of devices in a group, or 0 if the program does not say it."""
    text = instruction.attributes
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    if listed:
        return len(listed.group(1).split(","))
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]", text)
    if tiled:
        return int(tiled.group(1))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh.group(2)))
    return 2 if "source_target_pairs" in text else 0


def numbers(pattern: str, text: str) -> list[int]:
    """Returns the numbers in the first match of a pattern, or an empty list."""
    found = re.search(pattern, text)
    return [int(each) for each in found.group(1).split(",") if each] if found else []


def number(pattern: str, text: str, default: int) -> int:
    """Returns the number in the first match of a pattern, or the default."""
    found = re.search(pattern, text)
    return int(found.group(1)) if found else default
