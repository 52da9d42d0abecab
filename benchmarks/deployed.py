"""What `model.deploy()` saves: multiply-adds, arrays and CPU time of all eleven networks.

    python benchmarks/deployed.py [--seconds=30] [NAME …]

prints the table of docs/guides/export.md, and more columns. Multiply-adds are those of the matrix
products and convolutions in the traced program, for one image. XLA's own estimate of all
floating-point operations (halved) stands beside them. Times are CPU times of all cores
together, the least of several passes.
"""

import argparse
import gc
import math
import os
import time

import jax
import jax.numpy as jnp
import multiply_adds
from flax import nnx

from fastervit_jax.models import FasterViT, abstract_model, list_models, variant_config


def program(model: FasterViT):
    """The forward pass as a pure function, its arrays, and the image it takes."""
    graph, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((1, *model.config.resolution, 3), jnp.float32)
    return (lambda state, image: nnx.merge(graph, state)(image)), state, image


def count(model: FasterViT) -> tuple[float, float, float]:
    """Multiply-adds, half of XLA's operations, and numbers stored; all in units of 10⁹ and 10⁶."""
    function, state, image = program(model)
    macs = multiply_adds.traced(jax.make_jaxpr(function)(state, image).jaxpr)
    estimate = jax.jit(function).lower(state, image).cost_analysis()["flops"] / 2
    stored = sum(array.size for array in jax.tree.leaves(state))
    return macs / 1e9, estimate / 1e9, stored / 1e6


def fill(model: FasterViT) -> None:
    """Gives an abstract model weights; their values do not matter for time."""
    for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
        value = 1.0 if path[-1] in ("scale", "var", "gamma") else 0.01
        variable.set_value(jnp.full(variable.shape, value, jnp.float32))


def seconds(models: list[FasterViT], *, budget: float) -> list[float]:
    """Least CPU time of a forward pass of one image; models take turns on a busy machine."""
    runs = []
    for model in models:
        function, state, image = program(model)
        runs.append((jax.jit(function), state, jnp.ones(image.shape, image.dtype)))
        runs[-1][0](*runs[-1][1:]).block_until_ready()
    fastest, start = [math.inf] * len(runs), time.perf_counter()
    while time.perf_counter() - start < budget or math.inf in fastest:
        for number, (run, state, image) in enumerate(runs):
            before = time.process_time()
            run(state, image).block_until_ready()
            fastest[number] = min(fastest[number], time.process_time() - before)
    return fastest


def main() -> None:
    """Prints one line of the table for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=None)
    parser.add_argument("--seconds", type=float, default=30, help="of timing a model; 0 for none")
    arguments = parser.parse_args()
    square = [name for name in list_models("faster_vit_*") if not name.endswith("any_res")]
    print(f"{os.cpu_count()} CPU cores, JAX {jax.__version__}; one image, float32\n")
    columns = ["model", "GMACs", "deployed", "XLA", "deployed", "numbers, M", "deployed"]
    columns += ["CPU ms", "deployed"] if arguments.seconds else []
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for name in arguments.names or square:
        model = abstract_model(variant_config(name))
        model.eval()
        deployed = nnx.eval_shape(lambda model: model.deploy(), model)
        values = [x for pair in zip(count(model), count(deployed), strict=True) for x in pair]
        cells = [f"{value:.2f}" for value in values]
        if arguments.seconds:
            fill(model)
            times = seconds([model, model.deploy()], budget=arguments.seconds)
            cells += [f"{1000 * value:.0f}" for value in times]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        del model, deployed
        gc.collect()
        jax.clear_caches()


if __name__ == "__main__":
    main()
