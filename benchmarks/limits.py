"""How far each part of the network is from its floor: where the time goes, block by block.

    python benchmarks/limits.py --models 0 --batch 8

The device's matrix rate and copy bandwidth are measured in the same run, taking turns with the
parts. A part's floor is the larger of two times: its multiply-adds at that rate, and its bytes
(arrays, input and output, each once) at that bandwidth. `ratio_floor` is floor over time: the share
of the limit that is reached. The network is the deployed one; every part is compiled by itself, so
parts need not sum to the whole: what the compiler joins across them shows as the difference.

Multiply-adds are counted by hand, in the network traced without a layout for any device, and (half
of all floating-point operations of XLA's cost analysis, elementwise work included) in the compiled
program.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import multiply_adds
import networks
from flax import nnx

from fastervit_jax.analysis.multiply_adds import multiply_adds as multiply_adds_by_hand
from fastervit_jax.models import FasterViT, FasterViTConfig
from fastervit_jax.models.windows import map_to_windows, windows_to_map

COLUMNS = ("part", "number", "ms", "share", "gmacs", "hand", "compiled", "mb", "floor_ms")


class Piece(NamedTuple):
    """A part of the network that runs by itself.

    Attributes:
        name: with dots for parts of parts.
        number: how many equal ones the network has.
        function: from (arrays, *inputs) to an output.
        arrays: the part's weights.
        inputs: shapes and types of what enters it.
    """

    name: str
    number: int
    function: Callable
    arrays: list[jax.Array]
    inputs: tuple[jax.ShapeDtypeStruct, ...]


def piece(name: str, number: int, module: Any, call: Callable, *inputs) -> Piece:
    """A piece from a module and how it is called: (module, *inputs) → output."""
    graph, state = nnx.split(module)
    arrays, tree = jax.tree.flatten(state)

    def run(arrays, *inputs):
        return call(nnx.merge(graph, jax.tree.unflatten(tree, arrays)), *inputs)

    return Piece(name, number, jax.jit(run), arrays, inputs)


def pieces(model: FasterViT, images: jax.ShapeDtypeStruct) -> Iterator[Piece]:
    """The whole, its stages in order, and behind each stage what is inside its first block."""

    def whole(module, *inputs):
        return module(*inputs)

    def then(part: Piece) -> jax.ShapeDtypeStruct:
        return jax.eval_shape(part.function, part.arrays, *part.inputs)

    yield piece("whole", 1, model, whole, images)
    part = piece("stem", 1, model.stem, whole, images)
    yield part
    x = then(part)
    for index, stage in enumerate(model.stages):
        name = f"stages.{index}"
        part = piece(name, 1, stage, whole, x)
        yield part
        if index < 2:
            depth = len(stage.blocks)
            yield piece(f"{name}.block", depth, stage.blocks[0], whole, x)
        else:
            yield from inside(name, stage, x)
        x = then(part)
        if index < 3:
            name = f"downsamples.{index}"
            part = piece(name, 1, model.downsamples[index], whole, x)
            yield part
            x = then(part)

    def head(module, x):
        return module(jnp.mean(x.astype(jnp.float32), axis=(1, 2)))

    yield piece("head", 1, model.head, head, x)  # the norm before it is folded into it


def inside(name: str, stage: Any, x: jax.ShapeDtypeStruct) -> Iterator[Piece]:
    """The parts of an attention stage, of its first block alone."""
    window, depth, block = stage.window_size, len(stage.blocks), stage.blocks[0]
    grid = stage.geometry.window_grid
    windows = jax.eval_shape(lambda x: map_to_windows(x, window), x)

    def there_and_back(x):
        return windows_to_map(map_to_windows(x, window) * 2, window, grid)

    yield Piece(f"{name}.windows", 1, jax.jit(lambda _, x: there_and_back(x)), [], (x,))
    carriers = None
    if stage.geometry.hierarchical:
        part = piece(f"{name}.tokenizer", 1, stage.carrier_tokenizer, lambda part, x: part(x), x)
        yield part
        carriers = jax.eval_shape(part.function, part.arrays, x)
        layer = block.carrier_layer
        side = int(carriers.shape[1] ** 0.5)
        yield from layer_pieces(f"{name}.carrier", depth, layer, side, carriers)
    yield piece(
        f"{name}.block",
        depth,
        block,
        lambda block, *inputs: block(inputs[0], inputs[1] if inputs[1:] else None, grid),
        *((windows,) if carriers is None else (windows, carriers)),
    )
    tokens = windows.shape[1] + (block.ct_size**2 if stage.geometry.hierarchical else 0)
    x = jax.ShapeDtypeStruct((windows.shape[0], tokens, windows.shape[2]), x.dtype)
    yield from layer_pieces(f"{name}.window", depth, block.window_layer, window, x)


def layer_pieces(name: str, depth: int, layer: Any, side: int, x: Any) -> Iterator[Piece]:
    """Attention and MLP of a transformer layer, without norms and sums."""
    yield piece(f"{name}.attention", depth, layer.attention, lambda part, x: part(x, side), x)
    yield piece(f"{name}.mlp", depth, layer.mlp, lambda part, x: part(x), x)


def limits(device: str, dtype: str) -> tuple[dict[str, harness.Run], float, float]:
    """Runs that show the device's limits, multiply-adds of one, bytes of the other."""
    side = 8192 if device == "gpu" else 2048
    left, right = jax.random.normal(jax.random.key(0), (2, side, side), jnp.dtype(dtype))
    size = 2**30 if device == "gpu" else 2**26
    # In place: a new array at every call would time the system's handing out of memory instead.
    negative = jax.jit(jnp.negative, donate_argnums=0)
    held = [jnp.ones(size, jnp.float32)]

    def copy(calls: int) -> None:
        for _ in range(calls):
            held[0] = negative(held[0])
        jax.block_until_ready(held)

    runs = {"matrix": harness.repeat(jax.jit(jnp.dot), left, right), "copy": copy}
    return runs, side**3, 2 * 4 * size


def by_hand(config: FasterViTConfig, batch: int) -> dict[str, int]:
    """Multiply-adds by piece, where they are counted by hand; positions are computed beforehand."""
    count = multiply_adds_by_hand(config)
    found = {"whole": count.per_image, "stem": sum(count.stem), "head": count.head}
    found |= {f"stages.{index}": value for index, value in enumerate(count.stages)}
    found |= {f"downsamples.{index}": value for index, value in enumerate(count.downsamples)}
    return {name: batch * value for name, value in found.items()}


def traced(part: Piece) -> int:
    """Multiply-adds of one call."""
    return multiply_adds.traced(jax.make_jaxpr(part.function)(part.arrays, *part.inputs).jaxpr)


def compiled_and_bytes(part: Piece) -> tuple[float, float]:
    """Of one call: multiply-adds as compiled, and bytes."""
    lowered = part.function.lower(part.arrays, *part.inputs)
    compiled = lowered.compile().cost_analysis().get("flops", 0) / 2
    outputs = jax.eval_shape(part.function, part.arrays, *part.inputs)
    leaves = jax.tree.leaves((part.arrays, part.inputs, outputs))
    return compiled, sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def main() -> None:
    flags = harness.parser(__doc__)
    flags.add_argument("--batch", type=int, default=8)
    flags.add_argument("--stages_only", action="store_true", help="not what is inside of stages")
    arguments = flags.parse_args()
    device = harness.start(arguments)
    record = harness.Record("limits", arguments, device)
    for number in arguments.models:
        name = networks.name_of(number)
        model = networks.ours(name, networks.official(name, device), dtype=arguments.dtype).deploy()
        hand = by_hand(model.config, arguments.batch)
        shape = (arguments.batch, *model.config.resolution, 3)
        images = jax.ShapeDtypeStruct(shape, model.dtype)
        parts = list(pieces(model, images))
        counted = pieces(model, images)
        macs_of = {part.name: traced(part) for part in counted}
        if arguments.stages_only:
            parts = [part for part in parts if part.name.count(".") < 2]
        runs, matrix_macs, copied = limits(device, arguments.dtype)
        for part in parts:
            inputs = [jax.random.normal(jax.random.key(0), x.shape, x.dtype) for x in part.inputs]
            runs[part.name] = harness.repeat(part.function, part.arrays, *inputs)
        timings = harness.take_turns(
            runs, rounds=arguments.rounds, seconds=arguments.seconds, device=device
        )
        rate, bandwidth = matrix_macs / timings["matrix"].counted, copied / timings["copy"].counted
        print(f"{name}: {2 * rate / 1e12:.4g} TFLOP/s, {bandwidth / 1e9:.4g} GB/s")
        for part in parts:
            compiled, size = compiled_and_bytes(part)
            macs = macs_of[part.name]
            seconds = timings[part.name].counted
            floor = max(macs / rate, size / bandwidth)
            record.add(
                model=name,
                part=part.name,
                number=part.number,
                ms=1e3 * seconds,
                share=part.number * seconds / timings["whole"].counted,
                gmacs=macs / 1e9,
                hand=hand[part.name] / 1e9 if part.name in hand else None,
                compiled=compiled / 1e9,
                mb=size / 1e6,
                floor_ms=1e3 * floor,
                ratio_floor=floor / seconds,
                bound="matrix" if macs / rate > size / bandwidth else "memory",
                tflops=2 * rate / 1e12,
                gb_per_second=bandwidth / 1e9,
                spread=timings[part.name].spread,
            )
        harness.forget()
    record.show(["model", *COLUMNS, "ratio_floor", "bound"])


if __name__ == "__main__":
    main()
