"""Where the time of a program goes: by stage and part, and by kind of operation."""

import re

from fastervit_jax.analysis import hlo

STAGES = r"stem|stage\d/downsample|stage\d|encoder|decoder|auxiliary|head"
PARTS = r"carriers|tokenizer|attention|mlp"
_MOVES = {"copy", "transpose", "bitcast", "reshape", "slice", "concatenate", "pad", "broadcast"}
_MOVES |= {"parameter", "constant", "convert", "dynamic-slice", "tuple", "get-tuple-element"}


def place(instruction: hlo.Instruction) -> str:
    """Returns the stage, and the part of an attention layer, that an instruction comes from."""
    path = re.sub(r"\w+\(|\)", "", instruction.op_name)
    stage = re.search(STAGES, path)
    parts = re.findall(PARTS, path)
    return "/".join([stage.group(0) if stage else "rest", *dict.fromkeys(parts)])


def kind(program: hlo.Program, instruction: hlo.Instruction) -> str:
    """Returns the kind of work of an instruction.

    `products` are matrix products and convolutions, with what is fused to them; `attention` are
    attention kernels; `moves` only copy or rearrange. The others are `reductions`, `elementwise`
    and `other`.
    """
    if instruction.opcode == "custom-call":
        if instruction.target.startswith(("__cublas", "__cudnn$conv")):
            return "products"
        return "attention" if "attention" in instruction.op_name else "other"
    inside = [instruction]
    if instruction.opcode == "fusion":
        inside = list(program.computations[instruction.calls("calls")])
        for inner in [i for i in inside if i.opcode == "fusion"]:
            inside += program.computations[inner.calls("calls")]
    opcodes = {each.opcode for each in inside} - {"fusion"}
    if opcodes & {"convolution", "dot"}:
        return "products"
    if opcodes & {"reduce", "reduce-window"}:
        return "reductions"
    return "moves" if opcodes <= _MOVES else "elementwise"
