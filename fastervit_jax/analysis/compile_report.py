"""The report of `--compile_for`, for people."""

import math
import re

from fastervit_jax.analysis.chips import Gpu
from fastervit_jax.analysis.compile_for import CompiledStep

# JAX reserves this share of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.
_RESERVED = 0.75
# Parts of a step with less than this share of its time are not listed.
_SMALLEST_SHARE = 0.02


def describe(step: CompiledStep) -> str:
    """Returns a report for the user."""
    mesh = " × ".join(f"{axis}={size}" for axis, size in step.mesh.items())
    lines = [
        f"{step.topology}: {step.chips} × {step.device_kind}, mesh {mesh}",
        f"batch           {step.batch_size} images in {step.accumulate} part(s); "
        f"recomputed stages: {', '.join(map(str, step.remat)) or 'none'}",
        f"state           {_gb(step.state_bytes)} per chip, {_gb(step.state_whole_bytes)} in total",
    ]
    lines += _memory_lines(step)
    if step.cost is not None:
        lines += _cost_lines(step)
    lines.append(f"compiled in     {step.compile_seconds:.0f} s")
    lines.append("All numbers are estimates from the compiled program. Nothing was run.")
    return "\n".join(lines)


def _memory_lines(step: CompiledStep) -> list[str]:
    memory, chip = step.memory, step.chip
    if memory is None:
        return [f"does not fit    {_short(step.refusal)}", f"suggestion      {_remedy(step)}"]
    needed = (
        f"{_gb(memory.total)}{f' of {_gb(chip.memory_bytes)}' if chip else ''} per chip: "
        f"arguments {_gb(memory.arguments)}, temporaries {_gb(memory.temporaries)}"
    )
    if not step.fits:
        return [f"does not fit    {needed}", f"suggestion      {_remedy(step)}"]
    lines = [f"fits            {needed}"]
    if isinstance(chip, Gpu) and memory.total > _RESERVED * chip.memory_bytes:
        lines.append("                set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95: JAX reserves 75 %")
    return lines


def _cost_lines(step: CompiledStep) -> list[str]:
    chip, cost = step.chip, step.cost
    assert cost is not None
    by_hand = step.multiply_adds_by_hand
    lines = [
        f"multiply-adds   {cost.multiply_adds / 1e9:.1f} G per chip in the program"
        + (f", {by_hand / 1e9:.1f} G from the architecture (with padding)" if by_hand else "")
    ]
    for (kind, group), (count, total) in sorted(cost.collectives.items()):
        lines.append(f"collectives     {count} × {kind} of {group} chips: {_mb(total)} per chip")
    images, share = step.images_per_second(), step.peak_share()
    if step.seconds is None or images is None or share is None or chip is None:
        reason = "; ".join(cost.unknown) or f"{step.device_kind} is not in the table of chips"
        lines.append(f"step time       unknown: {reason}")
        return lines
    fast, slow = step.seconds
    first, second = cost.explanation(chip)  # type: ignore[arg-type]
    lines += [
        f"step time       {1e3 * fast:.1f} to {1e3 * slow:.1f} ms: {first}",
        f"                {second}",
    ]
    if step.link_seconds:
        lines.append(
            f"                at least {1e3 * step.link_seconds:.2f} ms of transfers between chips"
        )
    lines += [
        f"images/s        {images[1]:,.0f} to {images[0]:,.0f}",
        f"share of peak   {share[1]:.1%} to {share[0]:.1%} of {chip.peak_flops / 1e12:.0f} TFLOP/s "
        f"({chip.source})",
        f"by place        {_listed(step.by_place)}",
        f"by kind         {_listed(step.by_kind)}",
    ]
    return lines


def _listed(shares: dict[str, float]) -> str:
    large = [f"{name} {s:.0%}" for name, s in shares.items() if s >= _SMALLEST_SHARE]
    return ", ".join(large)


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
