"""The cost of a program on a TPU, from the estimates that its compiler writes into it.

The TPU compiler adds an estimate of the cycles to most instructions. This module sums them and does
not underestimate: parts without an estimate are listed.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence

from fastervit_jax.analysis import hlo
from fastervit_jax.analysis.chips import TpuChip
from fastervit_jax.analysis.hlo import Executed, Instruction, Program

# Instructions that only name or annotate values and take no time.
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "domain"}
_FREE |= {"opt-barrier", "partition-id", "replica-id", "iota"}
# Custom calls of the TPU compiler that also take no time.
_FREE_CALLS = {"AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast"}
_FREE_CALLS |= {"GatherScatterIndicesBitpacked"}
# A collective that overlaps with computation consists of a fusion that starts it, fusions that
# compute and continue it, and a fusion that ends it. Each of them contains the collective.
_STARTS, _ENDS = "AsyncCollectiveStart", "AsyncCollectiveDone"
# Collectives without a channel cannot be distinguished, so each of them counts.
_NO_CHANNEL = -1
# The TPU compiler's name of a fused all-reduce of which each chip keeps only its part.
_REDUCES_AND_SCATTERS = "all-reduce-scatter"
# Size of a vector register of a TPU. Instructions on fewer numbers have no cost; they are counted.
_REGISTER = 8 * 128


@dataclasses.dataclass(frozen=True)
class TpuCost:
    """Cost of one run of a program on one TPU chip.

    Attributes:
        cycles: sum of the compiler's estimates, in cycles of the chip.
        multiply_adds: multiply-adds of matrix products and convolutions, without padding.
        collectives: maps (kind, number of devices) to (count, bytes). Bytes are the larger one of
            input and output on one device.
        moved_bytes: bytes read and written by instructions without an estimate that only move data.
        prefetched_bytes: bytes copied between memories at the same time as the computation.
        small: number of instructions without an estimate on at most 1024 numbers. They are not
            included in `cycles`.
        unknown: other parts without an estimate. If there are any, `cycles` is too small.
    """

    cycles: int
    multiply_adds: int
    collectives: dict[tuple[str, int], tuple[int, int]]
    moved_bytes: int
    prefetched_bytes: int
    small: int
    unknown: tuple[str, ...]

    def seconds(self, chip: TpuChip, link_seconds: float) -> tuple[float, float]:
        """Returns the shortest and the longest time of a run.

        The shortest time assumes that all transfers overlap with computation. The longest time
        assumes that none do.

        Args:
            chip: the chip.
            link_seconds: time of the transfers between chips.
        """
        computing = self.cycles / chip.clock + self.moved_bytes / chip.memory_bandwidth
        copying = self.prefetched_bytes / chip.memory_bandwidth + link_seconds
        return max(computing, copying), computing + copying

    def explanation(self, chip: TpuChip) -> tuple[str, str]:
        """Returns what the two times of `seconds` are made of, for people."""
        return (
            f"{self.cycles:,} cycles at {chip.clock / 1e9:.2f} GHz, "
            f"{self.moved_bytes / 1e6:,.1f} MB rearranged",
            f"at the same time {self.prefetched_bytes / 1e6:,.1f} MB prefetched from memory; "
            f"{self.small:,} instructions on small arrays are not counted",
        )


def cost(program: Program) -> TpuCost:
    """Returns the cost of one run of a program on one chip."""
    steps, unknown = hlo.executed(program, _weight(program))
    return _total(program, steps, unknown)


def cycles_by(program: Program, label: Callable[[Instruction], str]) -> Counter[str]:
    """Returns the estimated cycles by a label of the instruction (`places`)."""
    steps, _ = hlo.executed(program, _weight(program))
    cycles: Counter[str] = Counter()
    for step in steps:
        if not step.fused and step.instruction.cycles:
            cycles[label(step.instruction)] += step.times * step.instruction.cycles
    return cycles


def _weight(program: Program) -> hlo.Weight:
    def weight(steps):
        total = _total(program, steps, [])
        return total.cycles, total.multiply_adds

    return weight


def _total(program: Program, steps: Sequence[Executed], unknown: list[str]) -> TpuCost:
    arrays = hlo.arrays_by_name(program)
    started = _started(program)
    cycles = moved = prefetched = small = products = 0
    collectives: Counter[tuple[str, int]] = Counter()
    collective_bytes: Counter[tuple[str, int]] = Counter()
    missing: Counter[str] = Counter()
    for step in steps:
        instruction, times = step.instruction, step.times
        products += times * hlo.multiply_adds(instruction, arrays)
        kind = hlo.collective(instruction)
        if kind and step.fused:
            kind = _fused_kind(program, step, kind, started)
        if kind:
            key = kind, hlo.group_size(instruction)
            collectives[key] += times
            collective_bytes[key] += times * hlo.collective_bytes(instruction, arrays)
        if step.fused or kind:
            continue
        if instruction.cycles is not None:
            cycles += times * instruction.cycles
            continue
        size = max((array.size for array in instruction.results), default=0)
        total_bytes = sum(array.bytes for array in instruction.results)
        what = _without_estimate(instruction)
        if what == "fusion" and _is_collective(program, instruction.calls("calls")):
            what = "free"  # runs on the links at the same time as the computation
        if what == "prefetch":
            prefetched += times * instruction.results[0].bytes
        elif what == "free":
            continue
        elif size <= _REGISTER and what != "custom call":
            small += times
        elif what == "moves":
            moved += times * 2 * total_bytes
        elif what == "write":
            # It is done in place. If a copy is needed, it is a separate `copy` instruction.
            moved += times * 2 * arrays[instruction.operands[1]][0].bytes
        else:
            missing[f"{what} {_called_kind(instruction)}"] += times
    return TpuCost(
        cycles=cycles,
        multiply_adds=products,
        collectives={key: (collectives[key], collective_bytes[key]) for key in collectives},
        moved_bytes=moved,
        prefetched_bytes=prefetched,
        small=small,
        unknown=(*unknown, *(f"{count} × {name}" for name, count in missing.items())),
    )


def _without_estimate(instruction: Instruction) -> str:
    """Returns the kind of an instruction without an estimate."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode in ("while", "conditional", "call") or opcode.endswith("-done"):
        return "free"
    if opcode == "custom-call":
        return "free" if instruction.target in _FREE_CALLS else "custom call"
    if opcode in ("copy-start", "slice-start"):
        return "prefetch"
    if opcode in ("copy", "reshape", "transpose", "slice", "concatenate", "broadcast", "reverse"):
        return "moves"
    if opcode == "dynamic-update-slice":
        return "write"
    return "free" if opcode == "async-start" else opcode


def _called_kind(instruction: Instruction) -> str:
    return instruction.target or re.sub(r"[.\d]+$", "", instruction.name)


def _root_target(program: Program, computation: str) -> str:
    return program.computations[computation][-1].target


def _is_collective(program: Program, computation: str) -> bool:
    """Returns whether a fusion only is, starts or ends a collective."""
    if computation.startswith(_REDUCES_AND_SCATTERS):
        return True
    return _root_target(program, computation) in (_STARTS, _ENDS)


def _started(program: Program) -> set[int]:
    """Returns the channels of the collectives that fusions start."""
    return {
        _channel(instruction)
        for name, body in program.computations.items()
        if body and _root_target(program, name) == _STARTS
        for instruction in body
        if hlo.collective(instruction)
    } - {_NO_CHANNEL}


def _fused_kind(program: Program, step: Executed, kind: str, started: set[int]) -> str | None:
    """Returns the kind of a collective in a fusion, or None if its start was counted."""
    if step.computation.startswith(_REDUCES_AND_SCATTERS):
        return "reduce-scatter"
    if _root_target(program, step.computation) == _STARTS:
        return kind
    return None if _channel(step.instruction) in started else kind


def _channel(instruction: Instruction) -> int:
    return hlo.number(r"channel_id=(\d+)", instruction.attributes, _NO_CHANNEL)
