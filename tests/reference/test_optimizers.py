"""Five updates of each optimizer against torch's and timm's, built as the official script does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fastervit_jax import create_model
from fastervit_jax.models.pure_model import arrays_of
from fastervit_jax.training.optimizers import by_path, decay_mask, make_optimizer

torch = pytest.importorskip("torch")
optim_factory = pytest.importorskip("timm.optim.optim_factory")

SHAPES = {
    "conv": {"weight": (3, 3, 4, 8), "bias": (8,)},
    "norm": {"weight": (8,), "bias": (8,)},
    "head": {"weight": (8, 5), "bias": (5,)},
    # LAMB has a branch of its own for weights whose norm is 0.
    "zero": {"weight": (4, 4)},
}
RATES = [1e-3, 5e-3, 2e-3, 4e-3, 3e-3]


def arrays(seed, scale):
    rng = np.random.default_rng(seed)
    return {
        module: {name: rng.normal(size=shape) * scale for name, shape in parameters.items()}
        for module, parameters in SHAPES.items()
    }


def start():
    params = arrays(0, 0.5)
    params["zero"]["weight"][:] = 0
    return params


def torch_module(parameters, dtype):
    module = torch.nn.Module()
    for name, array in parameters.items():
        module.register_parameter(name, torch.nn.Parameter(torch.tensor(array, dtype=dtype)))
    return module


def official_parameters(name, weight_decay, gradient_scale, clip_norm, dtype):
    """Parameters after the five updates of the official script's loop."""
    model = torch.nn.ModuleDict(
        {module: torch_module(parameters, dtype) for module, parameters in start().items()}
    )
    optimizer = optim_factory.create_optimizer_v2(
        model,
        opt=name,
        lr=RATES[0],
        weight_decay=weight_decay,
        momentum=0.9,
        **({} if name == "sgd" else dict(eps=1e-8, betas=(0.9, 0.999))),
    )
    for step, rate in enumerate(RATES):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for module, parameters in arrays(step + 1, gradient_scale).items():
            for parameter, array in parameters.items():
                getattr(model[module], parameter).grad = torch.tensor(array, dtype=dtype)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
    return {
        module: {name: getattr(model[module], name).detach().numpy() for name in parameters}
        for module, parameters in SHAPES.items()
    }


def our_parameters(name, weight_decay, gradient_scale, clip_norm, dtype, **settings):
    """Parameters after the five updates of our optimizer."""
    optimizer = make_optimizer(
        name,
        learning_rate=lambda count: jnp.array(RATES)[count],
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        **settings,
    )
    return parameters_after_updates(optimizer, gradient_scale, dtype)


def parameters_after_updates(optimizer, gradient_scale, dtype):
    params = jax.tree.map(lambda array: jnp.asarray(array, dtype), start())
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(len(RATES)):
        gradients = jax.tree.map(lambda g: jnp.asarray(g, dtype), arrays(step + 1, gradient_scale))
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(dtype)}
    return params


def largest_difference(ours, official):
    differences = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(),
        ours,
        official,
    )
    return max(jax.tree.leaves(differences))


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.12])
# The gradients' norms are about 0.2 (nothing clips), 2 (only LAMB's own clip does) and 20.
@pytest.mark.parametrize(
    ("gradient_scale", "clip_norm"), [(0.01, 5.0), (0.1, 5.0), (1.0, 5.0), (1.0, None)]
)
def test_five_updates_equal_the_official_ones(name, weight_decay, gradient_scale, clip_norm):
    case = (name, weight_decay, gradient_scale, clip_norm)
    with jax.enable_x64(True):
        ours = our_parameters(*case, np.float64)
    # timm's LAMB keeps the gradients' norm in float32 whatever the parameters are.
    tolerance = 1e-8 if name == "lamb" else 1e-12
    assert largest_difference(ours, official_parameters(*case, torch.float64)) < tolerance

    ours = our_parameters(*case, np.float32)
    assert largest_difference(ours, official_parameters(*case, torch.float32)) < 1e-6


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("adamw", dict(decay_mask=by_path(lambda path: True))),
        ("adamw", dict(epsilon=1e-6)),
        ("adamw", dict(betas=(0.9, 0.99))),
        ("lamb", dict(decay_mask=by_path(lambda path: path.startswith("head")))),
        ("lamb", dict(decay_mask=by_path(lambda path: True))),
        ("sgd", dict(momentum=0.8)),
    ],
)
def test_the_comparison_notices_a_wrong_setting(name, wrong):
    case = (name, 0.12, 1.0, 5.0)
    with jax.enable_x64(True):
        ours = our_parameters(*case, np.float64, **wrong)
    assert largest_difference(ours, official_parameters(*case, torch.float64)) > 1e-7


def test_the_comparison_notices_optax_lamb_and_optax_clipping():
    """What makes the LAMB here more than `optax.lamb`, and torch's clipping not optax's."""
    case = ("lamb", 0.12, 1.0, 5.0)
    decayed = by_path(lambda path: path.endswith("weight") and "norm" not in path)
    optax_lamb = optax.chain(
        optax.clip_by_global_norm(5.0),
        optax.lamb(
            lambda count: jnp.array(RATES)[count], eps=1e-8, weight_decay=0.12, mask=decayed
        ),
    )
    with jax.enable_x64(True):
        ours = parameters_after_updates(optax_lamb, 1.0, np.float64)
        assert largest_difference(ours, official_parameters(*case, torch.float64)) > 1e-4

        sgd = optax.chain(
            optax.clip_by_global_norm(5.0),
            optax.sgd(lambda count: jnp.array(RATES)[count], momentum=0.9, nesterov=True),
        )
        ours = parameters_after_updates(sgd, 1.0, np.float64)
    official = official_parameters("sgd", 0.0, 1.0, 5.0, torch.float64)
    assert largest_difference(ours, official) > 1e-11


def test_as_many_parameters_of_the_real_network_decay():
    faster_vit = pytest.importorskip("fastervit.models.faster_vit")
    no_decay, decay = optim_factory.param_groups_weight_decay(faster_vit.faster_vit_0_224(), 0.05)
    official = [
        (len(group["params"]), sum(parameter.numel() for parameter in group["params"]))
        for group in (no_decay, decay)
    ]
    params, _ = arrays_of(nnx.eval_shape(lambda: create_model("faster_vit_0_224")))
    mask = decay_mask(params)
    chosen = [[params[name].size for name in params if mask[name] == value] for value in (0, 1)]
    assert [(len(sizes), sum(sizes)) for sizes in chosen] == official
