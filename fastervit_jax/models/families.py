"""Families of networks: which names there are, and what makes a network of a name.

FasterViT registers itself here. The networks of other tasks, which stand above this package,
register themselves when they are imported (`fastervit_jax.create` imports them).
"""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import nnx

from fastervit_jax.models.config import FasterViTConfig


class NetworkConfig(Protocol):
    """Options of one network of any family, a frozen dataclass."""

    @property
    def backbone(self) -> FasterViTConfig:
        """Options of its FasterViT."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the images it is built for, in pixels."""
        ...

    @property
    def class_modules(self) -> tuple[str, ...]:
        """Modules whose arrays depend on the classes: new ones replace them for other classes."""
        ...

    def options(self) -> dict[str, Any]:
        """All options by the names that `Family.config` takes."""
        ...


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of networks.

    Attributes:
        task: what they do: the name of a task (`config.task`).
        names: their names.
        config: (name, **options) → `NetworkConfig`; raises ValueError for an unknown option.
        module: (config, *, dtype, rngs) → the module, with new weights.
        torch_modules: regular expressions that turn our module names into those of a PyTorch file,
            in order; those of the backbone, below `backbone.`, are known (`weights.names`).
        torch_backbone: beginning of the names of the backbone's tensors in a PyTorch file.
    """

    task: str
    names: tuple[str, ...]
    config: Callable[..., Any]
    module: Callable[..., Any]
    torch_modules: Mapping[str, str] = dataclasses.field(default_factory=dict)
    torch_backbone: str = "backbone."

    def abstract(self, config: Any, *, dtype=jnp.float32) -> Any:
        """A network with shapes in place of weights: for counting them, or filling them in.

        `nnx.eval_shape`, which with `nnx.Rngs` takes seconds for large networks.
        """
        return nnx.eval_shape(
            lambda: self.module(config, dtype=dtype, rngs=cast(nnx.Rngs, _SameKey()))
        )


class _SameKey:
    """Stands in for `nnx.Rngs` where nothing is drawn."""

    def __init__(self):
        self._key = jax.random.key(0)

    def params(self) -> jax.Array:
        return self._key


_FAMILIES: list[Family] = []


def register(family: Family) -> Family:
    """Adds a family; returns it. Its names must be new."""
    assert not set(family.names) & set(list_models()), family.names
    _FAMILIES.append(family)
    return family


def list_models(pattern: str = "*") -> list[str]:
    """Names of the networks that match a shell-style pattern such as `"*_any_res"`."""
    return fnmatch.filter([name for family in _FAMILIES for name in family.names], pattern)


def family_of(name: str) -> Family:
    """The family of a network, by its name.

    Raises:
        ValueError: the name is unknown; the message names the nearest ones.
    """
    for family in _FAMILIES:
        if isinstance(name, str) and name in family.names:
            return family
    near = difflib.get_close_matches(str(name), list_models(), n=3, cutoff=0.5)
    hint = f"Nearest: {', '.join(near)}. " if near else ""
    raise ValueError(f"Invalid model {name!r}. {hint}All: {', '.join(list_models())}.")


def network_config(name: str, **options) -> Any:
    """Options of a named network, changed by `options` (a `NetworkConfig`).

    Raises:
        ValueError: the name is unknown, or an option is unknown or impossible; the message says
            what would do.
    """
    return family_of(name).config(name, **options)
