"""Estimates of the forward pass and the training step on one TPU chip or GPU.

    python benchmarks/estimate.py --models 0 --chips v5e:1x1 --programs forward step
    python benchmarks/estimate.py --models 0 1 2 3 4 5 6 --chips h100 --programs deployed step
    python benchmarks/estimate.py --recipes dino_4scale_faster_vit_0_224_12ep --batch 2 --chips h100

No device is needed, and nothing is run: all figures are estimates from the compiled program, as of
`train.py --compile_for` (`analysis.tpu_cost`, `analysis.gpu_cost`). Bodies of loops count as often
as they run. With anything that has no estimate the total is unknown, and the row says of what;
`known_ms` is the time of the rest.

The time is split by stage (`places`) and by kind of operation (`kinds`); see `analysis.places`.
`gmacs` are the program's multiply-adds, `gmacs_by_hand` those of the architecture with the padding
of convolutions (classifiers only); `ratio_peak` is the least time of the smaller of the two over
the estimated time. A recipe's step and its images' size are those of the recipe; for a detector,
the size is the first bucket.
"""

import argparse
import importlib.metadata
import time
from pathlib import Path

import harness
import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.analysis import gpu_cost, hlo, topology
from fastervit_jax.analysis.chips import Chip, Gpu
from fastervit_jax.analysis.compile_for import cost_of, lower_step, memory_of
from fastervit_jax.analysis.multiply_adds import multiply_adds
from fastervit_jax.augmentation.device import AugmentationSettings
from fastervit_jax.models import FasterViT, abstract_model, variant_config
from fastervit_jax.models.deploy import deployed
from fastervit_jax.models.pure_model import PureModel
from fastervit_jax.parallel.compiler import compiler_options
from fastervit_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from fastervit_jax.runs.recipes import load_recipe
from fastervit_jax.runs.state import abstract_state
from fastervit_jax.training.classification import ClassificationObjective
from fastervit_jax.training.optimizers import make_optimizer
from fastervit_jax.training.step import StepSettings, compile_train_step, make_train_step
from fastervit_jax.training.tasks import task_of


def lower(program: str, name: str, batch: int, mesh):
    """The forward pass, that of the deployed network, or the step without mixing and erasing."""
    config = variant_config(name)
    model = abstract_model(config, dtype=jnp.bfloat16)
    height, width = model.config.resolution
    if program != "step":
        if program == "deployed":
            model = nnx.eval_shape(
                lambda: deployed(FasterViT(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
            )
        return lower_forward(model, (batch, height, width, 3), mesh)
    pure = PureModel(model)
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


def lower_forward(model: nnx.Module, shape: tuple[int, ...], mesh):
    """The forward pass on images of this shape."""
    model.eval()
    graph, state = nnx.split(model)
    arrays = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        state,
    )
    images = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=batch_sharding(mesh))
    forward = jax.jit(
        lambda state, images: nnx.merge(graph, state)(images),
        compiler_options=compiler_options(mesh),
    )
    return forward.lower(arrays, images)


def lower_recipe(program: str, name: str, batch: int, mesh):
    """The forward pass or the step of a recipe's network."""
    config = load_recipe(name)
    config.batch_size = config.group_size = batch
    task = task_of(config)
    if program == "step":
        return lower_step(task, config, mesh)[0]
    shape = task.batch_shapes(config)["image"].shape
    return lower_forward(task.network(config), shape, mesh)


def by_hand(program: str, name: str, batch: int) -> int:
    """Multiply-adds of the architecture; the first convolution has no gradient to its input."""
    count = multiply_adds(variant_config(name))
    forward = batch * count.per_image + count.per_pass
    return forward if program != "step" else 3 * forward - batch * count.stem[0]


def figures(text: str, chip: Chip, counted: int | None) -> dict:
    """What a compiled program tells; `counted` are the multiply-adds by hand."""
    cost, by_place, by_kind = cost_of(hlo.parse(text), chip)
    needed = cost.multiply_adds if counted is None else counted
    known, with_all = cost.seconds(chip, 0.0)
    seconds, longest = (None, None) if cost.unknown else (known, with_all)
    common = {
        "gmacs": cost.multiply_adds / 1e9,
        "gmacs_by_hand": counted and counted / 1e9,
        "known_ms": 1e3 * known,
        "ms": seconds and 1e3 * seconds,
        "longest_ms": longest and 1e3 * longest,
        "ratio_peak": seconds and 2 * min(cost.multiply_adds, needed) / chip.peak_flops / seconds,
        "unknown": list(cost.unknown),
    }
    if isinstance(cost, gpu_cost.GpuCost):
        return common | {
            "kernels": cost.launches,
            "moved_gb": cost.bytes / 1e9,
            "kinds": by_kind,
            "places": by_place,
        }
    mcycles = cost.cycles / 1e6
    return common | {
        "mcycles": mcycles,
        "moved_mb": cost.moved_bytes / 1e6,
        "prefetched_mb": cost.prefetched_bytes / 1e6,
        "left_out": cost.small,
        "kinds": {name: share * mcycles for name, share in by_kind.items()},
        "places": {name: share * mcycles for name, share in by_place.items()},
    }


def main() -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--models", type=int, nargs="*", default=[0], metavar="0..6")
    flags.add_argument("--recipes", nargs="*", default=[], help="instead of models, by name")
    flags.add_argument("--chips", nargs="*", default=["v5e:1x1", "v5p:1x1x1", "v6e:1x1"])
    flags.add_argument("--programs", nargs="*", default=["forward", "step"])
    flags.add_argument("--batch", type=int, default=128)
    flags.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/…")
    flags.add_argument("--dump", type=Path, help="folder for the programs' text")
    arguments = flags.parse_args()
    record = None
    for name_of_chip in arguments.chips:
        devices = topology.devices(name_of_chip)
        chip = topology.chip_of(devices[0])
        kind = "gpu" if isinstance(chip, Gpu) else "tpu"
        if record is None:
            record = harness.Record(kind, arguments, "estimate")
            compiler = "libtpu" if kind == "tpu" else "jax-cuda13-plugin"
            record.content["versions"][compiler] = importlib.metadata.version(compiler)
        mesh = make_mesh(devices=devices)
        names = arguments.recipes or [f"faster_vit_{number}_224" for number in arguments.models]
        for name in names:
            for program in arguments.programs:
                row = {"model": name, "chip": name_of_chip, "program": program}
                row["batch"] = arguments.batch
                with topology.lowering_for(devices[0]):
                    make = lower_recipe if arguments.recipes else lower
                    lowered = make(program, name, arguments.batch, mesh)
                begin = time.perf_counter()
                try:
                    compiled = lowered.compile(topology.compiler_options(devices[0]))
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    record.add(**row, unknown=["does not fit"])
                    continue
                text = compiled.as_text()
                if arguments.dump:
                    arguments.dump.mkdir(parents=True, exist_ok=True)
                    (arguments.dump / f"{name}_{name_of_chip}_{program}.hlo").write_text(text)
                memory = memory_of(compiled).total / 1e9
                row |= {"compile_seconds": time.perf_counter() - begin, "memory_gb": memory}
                count = None if arguments.recipes else by_hand(program, name, arguments.batch)
                record.add(**row, **figures(text, chip, count))
    columns = ["model", "chip", "program", "batch", "gmacs", "ms", "longest_ms", "ratio_peak"]
    record.show([*columns, "memory_gb", "kinds"])


if __name__ == "__main__":
    main()
