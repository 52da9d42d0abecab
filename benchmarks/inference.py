"""Images a second of a forward pass: ours against the official package, one device, one run.

    python benchmarks/inference.py --models 0 1 2 --batches 1 8

Candidates take turns; medians count. Theirs is channels-last, eager and by `torch.compile`, with
positions computed every time, as the package has it, or kept (its `switch_to_deploy`). Ours is
plain or deployed (`model.deploy()`). On a GPU both compute in bfloat16; their weights are bfloat16
too, ours float32. `ratio_plain` is ours over their compiled network, `ratio_deployed` the same of
the deployed ones, `ratio_best` our faster one over their fastest.
"""

import functools

import harness
import jax
import jax.numpy as jnp
import networks
import torch

THEIRS = ("eager", "compiled", "compiled_deployed")
OURS = ("ours", "ours_deployed")


def candidates(name: str, batches: list[int], arguments, device: str):
    """For each batch, runs by name of candidate, and a function for how far logits are apart."""
    torch_type = getattr(torch, arguments.dtype)
    theirs = networks.official(name, device).to(torch_type)
    model = networks.ours(name, theirs, dtype=arguments.dtype)
    images = networks.images_of(max(batches), (224, 224))
    tensor = networks.to_torch(images, device).to(torch_type)
    modules = {"eager": theirs}
    if "compiled" in arguments.theirs:
        modules["compiled"] = torch.compile(theirs, dynamic=False)
    if "compiled_deployed" in arguments.theirs:
        kept = networks.deployed_official(theirs, tensor[:1])
        modules["compiled_deployed"] = torch.compile(kept, dynamic=False)
    functions = {"ours": networks.forward(model), "ours_deployed": networks.forward(model.deploy())}
    functions = {key: (jax.jit(run), arrays) for key, (run, arrays) in functions.items()}
    for batch in batches:
        inputs = jnp.asarray(images[:batch], jnp.dtype(arguments.dtype))
        runs = {
            key: networks.torch_repeat(lambda module=module, part=tensor[:batch]: module(part))
            for key, module in modules.items()
        }
        for key, (function, arrays) in functions.items():
            runs[key] = harness.repeat(function, arrays, inputs)
        plain = functools.partial(agreement, *functions["ours"], inputs, theirs, tensor[:batch])
        yield batch, runs, plain


def agreement(function, arrays, inputs, module, tensor) -> float:
    """How far the logits of the two plain networks are apart."""
    return networks.difference(function(arrays, inputs), module(tensor))


def ratios(rates: dict[str, float]) -> dict[str, float]:
    """Ours over theirs, as images a second."""
    found = {"ratio_eager": rates["ours"] / rates["eager"]}
    if "compiled" in rates:
        found["ratio_plain"] = rates["ours"] / rates["compiled"]
    if "compiled_deployed" in rates:
        found["ratio_deployed"] = rates["ours_deployed"] / rates["compiled_deployed"]
    theirs = max(rate for key, rate in rates.items() if key not in OURS)
    found["ratio_best"] = max(rates[key] for key in OURS) / theirs
    return found


@torch.inference_mode()
def main() -> None:
    flags = harness.parser(__doc__)
    flags.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    flags.add_argument("--theirs", nargs="*", choices=THEIRS, default=THEIRS)
    arguments = flags.parse_args()
    device = harness.start(arguments)
    record = harness.Record("inference", arguments, device)
    for number in arguments.models:
        name = networks.name_of(number)
        for batch, runs, difference in candidates(name, arguments.batches, arguments, device):
            first = {key: harness.first_seconds(run) for key, run in runs.items()}
            timings = harness.take_turns(
                runs, rounds=arguments.rounds, seconds=arguments.seconds, device=device
            )
            rates = {key: batch / timing.counted for key, timing in timings.items()}
            record.add(
                model=name,
                batch=batch,
                **rates,
                **ratios(rates),
                difference=difference(),
                first_seconds=first,
                spread={key: timing.spread for key, timing in timings.items()},
            )
        harness.forget()
    record.show(["model", "batch", *THEIRS, *OURS, "ratio_eager", "ratio_plain", "ratio_deployed"])


if __name__ == "__main__":
    main()
