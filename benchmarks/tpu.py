"""What the TPU compiler expects of the forward pass and the training step on one chip.

    python benchmarks/tpu.py --models 0 --chips v5e:1x1 --programs forward step

No TPU is needed (`pip install libtpu`), and nothing is run: all figures are the compiler's
estimates, read as `train.py --compile_for` reads them (`analysis.hlo`): bodies of loops count
as often as they run; with anything that has no estimate the total is unknown, and says of what.

Cycles are split by stage and by kind of operation: `products` (matrix products and convolutions,
with what is fused to them), `reductions`, `elementwise`, `moves` (copies and changes of layout).
`gmacs` are the program's multiply-adds, `gmacs_by_hand` those of the architecture with the padding
of convolutions; `ratio_peak` is the least time of the smaller of the two over the estimated time.
"""

import argparse
import importlib.metadata
import time
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
import networks
import places

from fastervit_jax.analysis import hlo
from fastervit_jax.analysis.chips import CHIPS, Chip
from fastervit_jax.analysis.compile_for import topology_devices
from fastervit_jax.analysis.multiply_adds import multiply_adds
from fastervit_jax.augmentation.device import AugmentationSettings
from fastervit_jax.models import abstract_model, variant_config
from fastervit_jax.models.pure_model import PureModel, arrays_of
from fastervit_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from fastervit_jax.runs.state import abstract_state
from fastervit_jax.training.classification import ClassificationObjective
from fastervit_jax.training.optimizers import make_optimizer
from fastervit_jax.training.step import StepSettings, compile_train_step, make_train_step


def lower(program: str, name: str, batch: int, mesh):
    """The forward pass, or the training step without mixing and erasing, for one chip."""
    model = abstract_model(variant_config(name), dtype=jnp.bfloat16)
    pure = PureModel(model)
    height, width = model.config.resolution
    everywhere, shared = replicated(mesh), batch_sharding(mesh)
    if program == "forward":
        arrays = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
            arrays_of(model),
        )
        shape = (batch, height, width, 3)
        images = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=shared)
        return jax.jit(pure.infer).lower(*arrays, images)
    optimizer = make_optimizer("adamw", learning_rate=1e-3, weight_decay=0.005)
    augmentation = AugmentationSettings(
        num_classes=model.config.num_classes,
        group_size=batch,
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
        erasing_probability=0.0,
        dtype=jnp.bfloat16,
    )
    settings = StepSettings(
        seed=0, objective=ClassificationObjective(augmentation), ema_decay=0.9998
    )
    state = abstract_state(model, optimizer, mesh)
    step = compile_train_step(make_train_step(pure, optimizer, settings, mesh), state, mesh)
    images = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)
    return step.lower(state, {"image": images, "label": jax.ShapeDtypeStruct((batch,), jnp.int32)})


def by_hand(program: str, name: str, batch: int) -> int:
    """Multiply-adds of the architecture; the first convolution has no gradient to its input."""
    count = multiply_adds(variant_config(name))
    forward = batch * count.per_image + count.per_pass
    return forward if program == "forward" else 3 * forward - batch * count.stem[0]


def figures(text: str, chip: Chip, needed: int) -> dict:
    """What a compiled program tells; `needed` are the multiply-adds by hand."""
    program = hlo.parse(text)
    cost = hlo.cost(program)
    by_place, by_kind = places.split(program)
    computing = cost.cycles / chip.clock + cost.moved_bytes / chip.memory_bandwidth
    seconds = (
        None if cost.unknown else max(computing, cost.prefetched_bytes / chip.memory_bandwidth)
    )
    return {
        "gmacs": cost.multiply_adds / 1e9,
        "gmacs_by_hand": needed / 1e9,
        "mcycles": cost.cycles / 1e6,
        "ms": seconds and 1e3 * seconds,
        "ratio_peak": seconds and 2 * min(cost.multiply_adds, needed) / chip.peak_flops / seconds,
        "moved_mb": cost.moved_bytes / 1e6,
        "prefetched_mb": cost.prefetched_bytes / 1e6,
        "left_out": cost.small,
        "unknown": list(cost.unknown),
        "kinds": {name: cycles / 1e6 for name, cycles in by_kind.most_common()},
        "places": {name: cycles / 1e6 for name, cycles in by_place.most_common()},
    }


def main() -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--models", type=int, nargs="*", default=[0], metavar="0..6")
    flags.add_argument("--chips", nargs="*", default=["v5e:1x1", "v5p:1x1x1", "v6e:1x1"])
    flags.add_argument("--programs", nargs="*", default=["forward", "step"])
    flags.add_argument("--batch", type=int, default=128)
    flags.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/…")
    flags.add_argument("--dump", type=Path, help="folder for the programs' text")
    arguments = flags.parse_args()
    record = None
    for topology in arguments.chips:
        devices = topology_devices(topology)
        if record is None:
            record = harness.Record("tpu", arguments, "estimate")
            record.content["versions"]["libtpu"] = importlib.metadata.version("libtpu")
        mesh, chip = make_mesh(devices=devices), CHIPS[devices[0].device_kind]
        for number in arguments.models:
            name = networks.name_of(number)
            for program in arguments.programs:
                row = {"model": name, "chip": topology, "program": program}
                row["batch"] = arguments.batch
                lowered, begin = lower(program, name, arguments.batch, mesh), time.perf_counter()
                try:
                    compiled = lowered.compile()
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    record.add(**row, unknown=["does not fit"])
                    continue
                text = compiled.as_text()
                if arguments.dump:
                    arguments.dump.mkdir(parents=True, exist_ok=True)
                    (arguments.dump / f"{name}_{topology}_{program}.hlo").write_text(text)
                peak = compiled.memory_analysis().peak_memory_in_bytes / 1e9
                row |= {"compile_seconds": time.perf_counter() - begin, "peak_gb": peak}
                record.add(**row, **figures(text, chip, by_hand(program, name, arguments.batch)))
    columns = ["model", "chip", "program", "batch", "gmacs", "mcycles", "ms", "ratio_peak"]
    record.show([*columns, "moved_mb", "peak_gb", "kinds"])


if __name__ == "__main__":
    main()
