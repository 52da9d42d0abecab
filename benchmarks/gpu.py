"""One worker of `gpu.sh`: measures one side of a comparison on a GPU that all workers share.

    python benchmarks/gpu.py ours --output results/gpu_ours.json --until 400

Workers: `ours` (forward pass), `ours_step` (training step), `theirs` and `theirs_step` (the
official network in torch). Every worker first compiles its candidates, the important ones first,
while the others compile theirs. It stops when the time to compile is over. Then all workers time
their candidates in turns: a lock gives the GPU to one of them at a time. The record is written
after every step, so a run that is cut off leaves what it has measured.
"""

import argparse
import contextlib
import fcntl
import functools
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastervit_jax.parallel.compiler import GPU_OPTIONS

START = float(os.environ.get("GPU_START", time.time()))
LEVERS = {
    "kernel": ("by_kernel",),
    "rows": ("rows",),
    "gelu": ("tanh_gelu", "recomputed_gelu"),
}
"""What GPUs compute differently: short names, and the names of the functions in `models`."""

ROUNDS, SECONDS = 5, 0.25


def elapsed() -> float:
    """Seconds since `gpu.sh` started."""
    return time.time() - START


class Record:
    """What a worker measured; written after every change."""

    def __init__(self, path: Path):
        self.path = path
        self.content: dict[str, Any] = {"rows": []}

    def set(self, **values) -> None:
        self.content.update(values)
        self.write()

    def write(self) -> None:
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")


class Candidate:
    """Something to time: `run(calls)` returns when all calls are done."""

    def __init__(self, run: Callable[[int], None], row: dict[str, Any]):
        self.run, self.row = run, row
        self.calls = 0
        self.turns: list[float] = []

    def turn(self) -> None:
        if not self.calls:
            self.run(3)
            begin = time.perf_counter()
            self.run(3)
            self.calls = max(3, round(SECONDS / ((time.perf_counter() - begin) / 3)))
        begin = time.perf_counter()
        self.run(self.calls)
        self.turns.append((time.perf_counter() - begin) / self.calls)
        median = statistics.median(self.turns)
        self.row.update(
            ms=1e3 * median,
            images_per_second=self.row["batch"] / median,
            spread=(max(self.turns) - min(self.turns)) / median,
            turns=len(self.turns),
        )


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Holds the lock of the GPU."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def work(worker: str, arguments: argparse.Namespace) -> None:
    """Compiles, waits for the other workers, and times."""
    record = Record(arguments.output / f"gpu_{worker}.json")
    locks = Path(os.environ.get("GPU_LOCKS", arguments.output))
    lock = locks / ".lock"
    try:
        candidates = compiled(worker, arguments, record, lock)
    finally:  # a worker that fails lets the others go on
        (locks / f".{worker}.ready").touch()
    others = os.environ.get("GPU_WORKERS", worker).split()
    while elapsed() < arguments.until + 60:
        if all((locks / f".{name}.ready").exists() for name in others):
            break
        time.sleep(0.2)
    for _ in range(ROUNDS):
        for candidate in candidates:
            with alone(lock):
                candidate.turn()
        record.write()
    for candidate in candidates:
        row = candidate.row
        print(f"{elapsed():5.0f} s {worker}: {row['name']} {row['ms']:.3f} ms", flush=True)
    if worker.startswith("ours"):
        traces = record.content.setdefault("traces", [])
        for candidate in candidates[: arguments.traces]:
            with alone(lock):
                traces.append(traced(candidate))
            record.write()


def compiled(worker: str, arguments, record: Record, lock: Path) -> list[Candidate]:
    """Compiles the candidates of a worker until the time is over."""
    candidates = []
    for make in WORKERS[worker](arguments, record, lock):
        left = arguments.until - elapsed()
        if left < 0:
            break
        begin = time.time()
        try:
            candidate = make()
        except Exception as error:
            traceback.print_exc()
            record.content.setdefault("failures", []).append(
                f"{type(error).__name__}: {str(error)[:400]}"
            )
            record.write()
            continue
        candidate.row["first_seconds"] = time.time() - begin
        candidates.append(candidate)
        record.content["rows"].append(candidate.row)
        record.write()
        print(f"{elapsed():5.0f} s {worker}: {candidate.row}", flush=True)
    return candidates


def settings() -> dict[str, Any]:
    """Versions and device."""
    from harness import about

    return about("gpu")


def only(levers: tuple[str, ...]) -> None:
    """From now on, GPUs compute only these things their own way."""
    from fastervit_jax.models import layouts

    original = getattr(layouts, "_original", layouts.by_platform)
    layouts._original = original
    names = {name for lever in levers for name in LEVERS.get(lever, ())}

    def by_platform(*args, default, **branches):
        if "cuda" in branches and branches["cuda"].__name__ not in names:
            branches.pop("cuda")
        return original(*args, default=default, **branches)

    layouts.by_platform = by_platform


ALL = tuple(LEVERS)
GRAPHS = "xla_gpu_enable_command_buffer"

TRITON = {GRAPHS: GPU_OPTIONS[GRAPHS]}
"""As the trainer compiles, except that XLA's own kernels compute the products."""

ONE_GRAPH = GPU_OPTIONS | {GRAPHS: f"{GPU_OPTIONS[GRAPHS]},CONVOLUTION"}
"""Convolutions are recorded in CUDA graphs as well. XLA does not do this by default, because it
cannot record all of them (openxla/xla, pull request 34572)."""

CONCURRENT = ONE_GRAPH | {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}
"""Kernels that do not need each other may run at the same time."""

NOT_PADDED = {"xla_disable_hlo_passes": "cublas-pad-for-gemms"}
"""Products of 53 rows are not padded to 56, nor heads of 49 channels to 56."""

NO_GRAPHS = {name: value for name, value in GPU_OPTIONS.items() if name != GRAPHS}

FORWARD = [
    # model, batch, deployed, levers, options of the compiler
    (0, 128, True, ALL, GPU_OPTIONS),
    (0, 1, True, ALL, GPU_OPTIONS),
    (0, 1, True, ALL, ONE_GRAPH),
    (0, 1, True, ALL, GPU_OPTIONS | NOT_PADDED),
    (0, 1, True, ALL, ONE_GRAPH | NOT_PADDED),
    (0, 1, True, ALL, CONCURRENT | NOT_PADDED),
    (0, 1, True, ALL, TRITON),
    (4, 128, True, ALL, GPU_OPTIONS),
    (4, 128, True, (*ALL, "padded"), GPU_OPTIONS),
    ("4_21k", 64, True, ALL, GPU_OPTIONS),
    ("4_21k", 64, True, ALL, GPU_OPTIONS | NOT_PADDED),
    (5, 128, True, ALL, GPU_OPTIONS),
    (6, 128, True, ALL, GPU_OPTIONS),
    (0, 128, True, ALL, NO_GRAPHS),
    (0, 128, True, ALL, ONE_GRAPH),
    (0, 128, True, (), {}),
    (2, 128, True, ALL, GPU_OPTIONS),
    (1, 128, True, ALL, GPU_OPTIONS),
    (3, 128, True, ALL, GPU_OPTIONS),
]


def ours(arguments, record: Record, lock: Path) -> Iterator[Callable[[], Candidate]]:
    """Forward passes, after the ceilings of the card and attention alone."""
    import jax

    record.set(**settings())
    with alone(lock):
        record.set(ceilings=ceilings(arguments.tiny))
    if not arguments.no_attention:
        with alone(lock):
            record.set(attention=attention_alone(arguments.tiny))
    for spec in FORWARD if not arguments.tiny else FORWARD[:2]:
        yield lambda spec=spec: forward(*spec, arguments=arguments, record=record)
    jax.clear_caches()


def forward(number, batch, deployed, levers, options, *, arguments, record) -> Candidate:
    """A forward pass of ours."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from fastervit_jax.models import FasterViT, variant_config

    only(levers)
    on_gpu = jax.default_backend() == "gpu"
    batch = 2 if arguments.tiny else batch
    model = FasterViT(
        variant_config(f"faster_vit_{number}_224"), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    model.eval()
    model = model.deploy() if deployed else model
    if "padded" in levers:
        pad_first_stage(model)
    graph, state = nnx.split(model)
    arrays, tree = jax.tree.flatten(state)
    images = jnp.asarray(
        np.random.default_rng(0).standard_normal((batch, 224, 224, 3)), jnp.bfloat16
    )

    def run(arrays, images):
        return nnx.merge(graph, jax.tree.unflatten(tree, arrays))(images)

    compiled = jax.jit(run, compiler_options=options if on_gpu else {})
    row = {
        "name": f"ours {number} b{batch} {'deployed' if deployed else 'plain'} "
        f"{'+'.join(levers) or 'before'}{named(options)}",
        "model": number,
        "batch": batch,
        "deployed": deployed,
        "levers": list(levers),
        "options": options,
    }
    logits = np.asarray(compiled(arrays, images)[:2], np.float64)
    if number == 0:
        exact = logits_in_float32()[: len(logits)]
        row["error"] = float(np.linalg.norm(logits - exact) / np.linalg.norm(exact))

    def repeat(calls: int) -> None:
        for _ in range(calls):
            out = compiled(arrays, images)
        jax.block_until_ready(out)

    return Candidate(repeat, row)


def pad_first_stage(model) -> None:
    """Pads the channels of the first stage of a deployed network to a multiple of 8 with zeros.

    FasterViT-4 has 196 there, which the matrix units' kernels cannot load in whole rows. Zeros stay
    zeros through the stage, and are cut off behind it: the logits are the same.
    """
    import jax.numpy as jnp

    from fastervit_jax.models.deploy import Constant, Identity

    channels = model.config.dim
    missing = -channels % 8

    def pad(module, name, axes) -> None:
        array = getattr(module, name)[...]
        widths = [(0, missing if axis in axes else 0) for axis in range(array.ndim)]
        setattr(module, name, Constant(jnp.pad(array, widths)))

    class Cut(Identity):
        def __call__(self, x, *_):
            return x[..., :channels]

    pad(model.stem.conv2, "kernel", (3,))
    pad(model.stem.conv2, "bias", (0,))
    for block in model.stages[0].blocks:
        for convolution in (block.conv1, block.conv2):
            pad(convolution, "kernel", (2, 3))
            pad(convolution, "bias", (0,))
        if block.scale is not None:
            pad(block.scale, "gamma", (0,))
    model.stages[0].blocks.append(Cut())


@functools.cache
def logits_in_float32():
    """Logits of FasterViT-0 for the first two images, in float32 on the CPU."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from fastervit_jax.models import FasterViT, variant_config

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        only(())
        model = FasterViT(variant_config("faster_vit_0_224"), rngs=nnx.Rngs(0))
        model.eval()
        images = np.random.default_rng(0).standard_normal((2, 224, 224, 3))
        rounded = jnp.asarray(images, jnp.bfloat16).astype(jnp.float32)
        return np.asarray(nnx.jit(lambda model, images: model(images))(model, rounded))


def named(options: dict[str, Any]) -> str:
    """Compiler options in a few words."""
    words = " cublaslt" if "xla_gpu_enable_cublaslt" in options else ""
    words += " not padded" if "xla_disable_hlo_passes" in options else ""
    recorded = options.get(GRAPHS, "")
    words += " one graph" if "CONVOLUTION" in recorded else " graphs" if recorded else ""
    concurrent = options.get("xla_gpu_command_buffer_scheduling_mode") == "CONCURRENT"
    return words + (" concurrent" if concurrent else "")


def ceilings(tiny: bool) -> dict[str, float]:
    """The card's copy in TB/s, and its bfloat16 product in TFLOP/s, both on random numbers."""
    import jax
    import jax.numpy as jnp

    side = 256 if tiny else 8192
    count = 1 << (16 if tiny else 29)
    big = jax.random.normal(jax.random.key(0), (count,), jnp.float32)
    a, b = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in (1, 2))
    copy, product = jax.jit(lambda x: x + 1), jax.jit(jnp.dot)
    seconds = [timed(copy, big), timed(product, a, b)]
    return {
        "copy_tb_s": 8 * count / seconds[0] / 1e12,
        "product_tflop_s": 2 * side**3 / seconds[1] / 1e12,
    }


def timed(function, *arguments, calls: int = 20) -> float:
    """Median seconds of a call, of three turns."""
    import jax

    jax.block_until_ready(function(*arguments))
    turns = []
    for _ in range(3):
        begin = time.perf_counter()
        for _ in range(calls):
            out = function(*arguments)
        jax.block_until_ready(out)
        turns.append((time.perf_counter() - begin) / calls)
    return statistics.median(turns)


def attention_alone(tiny: bool) -> list[dict[str, Any]]:
    """Attention of single layers in several forms, and how far each is from float64."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from fastervit_jax.models import attention_kernel

    interpret = jax.default_backend() != "gpu"

    def formula(qkv, bias, scale):
        q, k, v = (qkv[:, :, part].swapaxes(1, 2) for part in range(3))
        logits = jnp.einsum("nhqd,nhkd->nhqk", q, k, preferred_element_type=jnp.float32)
        weights = jnp.exp(logits * scale + bias - (logits * scale + bias).max(-1, keepdims=True))
        total = weights.sum(-1, keepdims=True)
        values = jnp.einsum(
            "nhqk,nhkd->nhqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return (values / total).astype(v.dtype).swapaxes(1, 2)

    def cudnn(qkv, bias, scale):
        q, k, v = (qkv[:, :, part] for part in range(3))
        return jax.nn.dot_product_attention(
            q, k, v, bias[None].astype(q.dtype), scale=scale, implementation="cudnn"
        )

    def kernel(warps):
        def run(qkv, bias, scale):
            attention_kernel.WARPS = warps
            return attention_kernel.window_attention(qkv, bias, scale, interpret)

        return run

    forms = {"formula": formula, "cudnn": cudnn}
    forms |= {f"kernel, {warps} warps": kernel(warps) for warps in (1, 2, 4, 8)}
    shapes = [(512, 53, 8, 32), (128, 49, 16, 32), (128, 16, 8, 32), (512, 49, 8, 49)]
    rows = []
    for n, tokens, heads, channels in shapes[:1] if tiny else shapes:
        n = 2 if tiny else n
        rng = np.random.default_rng(0)
        qkv = jnp.asarray(rng.standard_normal((n, tokens, 3, heads, channels)), jnp.bfloat16)
        bias = jnp.asarray(4 * rng.standard_normal((heads, tokens, tokens)), jnp.float32)
        weight = jnp.asarray(rng.standard_normal((n, tokens, heads, channels)), jnp.bfloat16)
        scale = channels**-0.5
        exact = in_float64(np.asarray(qkv[:2], np.float64), np.asarray(bias, np.float64), scale)
        for name, form in forms.items():
            row = {"shape": [n, tokens, heads, channels], "form": name}
            rows.append(row)
            try:
                jax.clear_caches()
                ahead = jax.jit(lambda qkv, bias, form=form, scale=scale: form(qkv, bias, scale))
                out = np.asarray(ahead(qkv, bias)[:2], np.float64)
                row["error"] = float(np.linalg.norm(out - exact) / np.linalg.norm(exact))
                row["us"] = 1e6 * timed(ahead, qkv, bias, calls=2 if tiny else 50)
                both = jax.jit(
                    lambda qkv, bias, weight, form=form, scale=scale: jax.vjp(
                        lambda q, b: form(q, b, scale), qkv, bias
                    )[1](weight)
                )
                row["gradients_us"] = 1e6 * timed(both, qkv, bias, weight, calls=2 if tiny else 50)
            except Exception as error:
                row["failure"] = f"{type(error).__name__}: {str(error)[:200]}"
            print(f"{elapsed():5.0f} s attention {row}", flush=True)
    attention_kernel.WARPS = 4
    return rows


def in_float64(qkv, bias, scale):
    """Attention in NumPy."""
    import numpy as np

    q, k, v = (qkv[:, :, part] for part in range(3))
    logits = np.einsum("nqhd,nkhd->nhqk", q, k) * scale + bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("nhqk,nkhd->nqhd", weights / weights.sum(-1, keepdims=True), v)


def traced(candidate: Candidate, calls: int = 10) -> dict[str, Any]:
    """Microseconds per call of every kernel of a candidate."""
    import tempfile

    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            candidate.run(calls)
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    kernels: dict[str, list[float]] = {}
    launches: dict[str, list[float]] = {}
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                if "GPU" in plane.name and line.name.startswith("Stream"):
                    kernels.setdefault(event.name, []).append(event.duration_ns / 1e3)
                elif event.name.startswith("cu"):
                    launches.setdefault(event.name, []).append(event.duration_ns / 1e3)
    return {
        "candidate": candidate.row["name"],
        "busy_us": sum(map(sum, kernels.values())) / calls,
        "kernels": _per_call(kernels, calls),
        "launches": _per_call(launches, calls),
    }


def _per_call(events: dict[str, list[float]], calls: int) -> dict[str, list[float]]:
    """Number and microseconds per call of each event, the largest first."""
    table = {name: [len(times) / calls, sum(times) / calls] for name, times in events.items()}
    return dict(sorted(table.items(), key=lambda item: -item[1][1])[:80])


def theirs(arguments, record: Record, lock: Path) -> Iterator[Callable[[], Candidate]]:
    """Forward passes of the official network in torch."""
    record.set(**settings())
    how = "compiled, reduce-overhead"
    specs = [(0, 128, how), (0, 1, how), (4, 128, how), (5, 128, how), (6, 128, how)]
    specs += [(2, 128, how), (0, 128, "eager")]
    for spec in specs[-1:] if arguments.tiny else specs:
        yield lambda spec=spec: torch_forward(*spec, tiny=arguments.tiny)


def torch_forward(number: int, batch: int, how: str, *, tiny: bool) -> Candidate:
    """A forward pass of the official network: bfloat16 weights and images, channels-last."""
    import networks
    import torch

    torch.set_float32_matmul_precision("high")
    place = "gpu" if torch.cuda.is_available() else "cpu"
    batch = 2 if tiny else batch
    model = networks.official(f"faster_vit_{number}_224", place).to(torch.bfloat16)
    images = networks.to_torch(networks.images_of(batch, (224, 224)), place).to(torch.bfloat16)
    torch._dynamo.config.cache_size_limit = 64
    if how.startswith("compiled"):
        mode = "reduce-overhead" if "reduce" in how else None
        model = torch.compile(
            networks.deployed_official(model, images[:1]), dynamic=False, mode=mode
        )

    @torch.inference_mode()
    def run(calls: int) -> None:
        for _ in range(calls):
            model(images)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    run(3)
    name = f"theirs {number} b{batch} {how}"
    return Candidate(run, {"name": name, "model": number, "batch": batch, "how": how})


def ours_step(arguments, record: Record, lock: Path) -> Iterator[Callable[[], Candidate]]:
    """Training steps of ours."""
    record.set(**settings())
    for number in (0,) if arguments.tiny else (0, 3):
        yield lambda number=number: our_step(
            number, 128, (*ALL, "shared"), NO_GRAPHS, tiny=arguments.tiny
        )


def ours_step_graphs(arguments, record: Record, lock: Path) -> Iterator[Callable[[], Candidate]]:
    """The same with CUDA graphs, in several ways; the last one without operands that are shared."""
    record.set(**settings())
    for levers, options in [
        ((*ALL, "shared"), GPU_OPTIONS),
        ((*ALL, "shared"), ONE_GRAPH),
        ((*ALL, "shared"), CONCURRENT),
        (ALL, GPU_OPTIONS),
    ][: 1 if arguments.tiny else None]:
        yield lambda levers=levers, options=options: our_step(
            0, 128, levers, options, tiny=arguments.tiny
        )


def our_step(number: int, batch: int, levers, options, *, tiny: bool) -> Candidate:
    """A training step of ours; `shared` is the lever of `training/few_kernels.py`."""
    import jax
    import training_step

    from fastervit_jax.training import step as training
    from fastervit_jax.training.few_kernels import share_operands

    only(levers)
    shared = "shared" in levers
    training.share_operands = share_operands if shared else lambda tree, mesh: tree
    batch = 2 if tiny else batch
    images, labels = random_batch(batch)
    on_gpu = jax.default_backend() == "gpu"
    step = training_step.OurStep(
        f"faster_vit_{number}_224", images, labels, "bfloat16", options if on_gpu else {}
    )
    step.run(1)
    row = {
        "name": f"our step {number} b{batch} {'+'.join(levers) or 'before'}{named(options)}",
        "model": number,
        "batch": batch,
        "levers": list(levers),
        "options": options,
    }
    return Candidate(step.run, row)


def theirs_step(arguments, record: Record, lock: Path) -> Iterator[Callable[[], Candidate]]:
    """Training steps of the official network in torch."""
    record.set(**settings())
    specs = [(0, "compiled"), (0, "eager"), (3, "compiled"), (3, "eager")]
    for spec in specs[1:2] if arguments.tiny else specs:
        yield lambda spec=spec: torch_step(*spec, tiny=arguments.tiny)


def torch_step(number: int, how: str, *, tiny: bool) -> Candidate:
    """A training step of the official network: autocast to bfloat16, channels-last."""
    import networks
    import torch
    import training_step

    batch = 2 if tiny else 128
    images, labels = random_batch(batch)
    torch.set_float32_matmul_precision("high")
    name = f"faster_vit_{number}_224"
    step = training_step.TorchStep(name, images, labels, how == "compiled", "bfloat16")
    run = networks.torch_repeat(step.step)
    run(2)
    row = {"name": f"their step {number} b{batch} {how}", "model": number, "batch": batch}
    return Candidate(run, row | {"how": how})


def random_batch(batch: int):
    """uint8 images and labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, 224, 224, 3), np.uint8)
    return images, rng.integers(0, 1000, batch, np.int32)


WORKERS = {
    worker.__name__: worker for worker in (ours, ours_step, ours_step_graphs, theirs, theirs_step)
}


def main() -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("worker", choices=WORKERS)
    flags.add_argument("--output", type=Path, required=True, help="folder of the records")
    flags.add_argument(
        "--until", type=float, default=330, help="seconds to compile, from the start"
    )
    flags.add_argument("--traces", type=int, default=4, help="candidates whose kernels to list")
    flags.add_argument("--no_attention", action="store_true", help="no attention by itself")
    flags.add_argument("--tiny", action="store_true", help="a rehearsal: two images, on any device")
    arguments = flags.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    arguments.output.mkdir(parents=True, exist_ok=True)
    work(arguments.worker, arguments)


if __name__ == "__main__":
    main()
