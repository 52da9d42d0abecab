"""How time, memory and multiply-adds of FasterViT-0 any_res grow with the image.

    python benchmarks/growth.py --sides 224 448 672

One image at each size; ours and the official network, plain and eager, taking turns. Hierarchical
attention promises linear growth: `ratio_linear_ours` is multiply-adds a pixel at the first size
over those here, `…_time` the same of time. Memory of ours is what the compiled program reserves for
temporaries, of theirs the allocator's peak beyond weights and image, on a GPU alone.
"""

import harness
import jax
import jax.numpy as jnp
import multiply_adds
import networks
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastervit_jax.analysis.multiply_adds import multiply_adds as multiply_adds_by_hand
from fastervit_jax.models import FasterViT


def their_multiply_adds(model: torch.nn.Module, images: torch.Tensor) -> float:
    """As torch itself counts them: half of the operations of products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() / 2


def our_multiply_adds(model: FasterViT, images: jax.Array) -> int:
    """Of all products and convolutions in the traced program."""
    function, arrays = networks.forward(model)
    return multiply_adds.traced(jax.make_jaxpr(function)(arrays, images).jaxpr)


def their_memory(model: torch.nn.Module, images: torch.Tensor) -> float | None:
    """GB beyond what is held already, at most, during a forward pass; on a GPU alone."""
    if not torch.cuda.is_available():
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model(images)
    return (torch.cuda.max_memory_allocated() - before) / 1e9


@torch.inference_mode()
def main() -> None:
    flags = harness.parser(__doc__)
    flags.add_argument("--sides", type=int, nargs="*", default=[224, 448, 672, 896, 1120, 1344])
    flags.set_defaults(models=[0])
    arguments = flags.parse_args()
    device = harness.start(arguments)
    record = harness.Record("growth", arguments, device)
    for number in arguments.models:
        name = networks.name_of(number, any_res=True)
        first = None
        for side in arguments.sides:
            theirs = networks.official(name, device, resolution=[side, side])
            theirs = theirs.to(getattr(torch, arguments.dtype))
            model = networks.ours(name, theirs, dtype=arguments.dtype, resolution=side)
            images = networks.images_of(1, (side, side))
            tensor = networks.to_torch(images, device).to(getattr(torch, arguments.dtype))
            inputs = jnp.asarray(images, model.dtype)
            function, arrays = networks.forward(model)
            compiled = jax.jit(function)
            timings = harness.take_turns(
                {
                    "eager": networks.torch_repeat(lambda m=theirs, x=tensor: m(x)),
                    "ours": harness.repeat(compiled, arrays, inputs),
                },
                rounds=arguments.rounds,
                seconds=arguments.seconds,
                device=device,
            )
            by_hand = multiply_adds_by_hand(model.config)
            row = {
                "ms_eager": 1e3 * timings["eager"].counted,
                "ms_ours": 1e3 * timings["ours"].counted,
                "gmacs_eager": their_multiply_adds(theirs, tensor) / 1e9,
                "gmacs_ours": our_multiply_adds(model, inputs) / 1e9,
                "gmacs_hand": (by_hand.per_image + by_hand.per_pass) / 1e9,
                "gb_eager": their_memory(theirs, tensor),
                "gb_ours": compiled.lower(arrays, inputs)
                .compile()
                .memory_analysis()
                .temp_size_in_bytes
                / 1e9,
            }
            first = first or (side, row)
            grown = (side / first[0]) ** 2
            record.add(
                model=name,
                side=side,
                **row,
                ratio_eager=row["ms_eager"] / row["ms_ours"],
                ratio_linear_ours=first[1]["gmacs_ours"] * grown / row["gmacs_ours"],
                ratio_linear_ours_time=first[1]["ms_ours"] * grown / row["ms_ours"],
                ratio_linear_eager_time=first[1]["ms_eager"] * grown / row["ms_eager"],
                difference=networks.difference(compiled(arrays, inputs), theirs(tensor)),
            )
            harness.forget()
    record.show(["model", "side", *row, "ratio_eager", "ratio_linear_ours_time"])


if __name__ == "__main__":
    main()
