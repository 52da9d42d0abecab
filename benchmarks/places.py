"""Where the compiler's estimated cycles go: by stage and part, and by kind of operation."""

import re
from collections import Counter

from fastervit_jax.analysis import hlo

STAGES = r"stem|stage\d/downsample|stage\d|head"
PARTS = r"carriers|tokenizer|attention|mlp"
_MOVES = {"copy", "transpose", "bitcast", "reshape", "slice", "concatenate", "pad", "broadcast"}
_MOVES |= {"parameter", "constant", "convert", "dynamic-slice", "tuple", "get-tuple-element"}


def where(instruction: hlo.Instruction) -> str:
    """The stage, and the part of an attention layer, that an instruction comes from."""
    path = re.sub(r"\w+\(|\)", "", instruction.op_name)
    stage = re.search(STAGES, path)
    parts = re.findall(PARTS, path)
    return "/".join([stage.group(0) if stage else "rest", *dict.fromkeys(parts)])


def kind(program: hlo.Program, instruction: hlo.Instruction) -> str:
    """What sort of work an instruction does."""
    inside = [instruction]
    if instruction.opcode == "fusion":
        inside = list(program.computations[instruction.called("calls")])
        for inner in [i for i in inside if i.opcode == "fusion"]:
            inside += program.computations[inner.called("calls")]
    opcodes = {each.opcode for each in inside} - {"fusion"}
    if opcodes & {"convolution", "dot"}:
        return "products"
    if opcodes & {"reduce", "reduce-window"}:
        return "reductions"
    return "moves" if opcodes <= _MOVES else "elementwise"


def split(program: hlo.Program) -> tuple[Counter, Counter]:
    """Estimated cycles by where they are spent and by kind."""
    by_place: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    steps, _ = hlo.executed(program)
    for step in steps:
        if not step.fused and step.instruction.cycles:
            cycles = step.times * step.instruction.cycles
            by_place[where(step.instruction)] += cycles
            by_kind[kind(program, step.instruction)] += cycles
    return by_place, by_kind
