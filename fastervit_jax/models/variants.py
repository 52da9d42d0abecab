"""The published networks, as data.

Source: the official registry, `fastervit/models/faster_vit.py` and `faster_vit_any_res.py`.
"""

import difflib
from collections.abc import Iterable

from fastervit_jax.models.config import FasterViTConfig

_SMALL = dict(num_heads=(2, 4, 8, 16))
_LARGE = dict(num_heads=(4, 8, 16, 32), layer_scale=1e-5, do_propagation=True)
_21K = dict(_LARGE, depths=(3, 3, 12, 5), dim=196, in_dim=64, drop_path_rate=0.42, hat=(False,) * 4)

_SQUARE = {
    "faster_vit_0_224": dict(_SMALL, depths=(2, 3, 6, 5), dim=64, in_dim=64),
    "faster_vit_1_224": dict(_SMALL, depths=(1, 3, 8, 5), dim=80, in_dim=32),
    "faster_vit_2_224": dict(_SMALL, depths=(3, 3, 8, 5), dim=96, in_dim=64),
    "faster_vit_3_224": dict(
        _SMALL,
        depths=(3, 3, 12, 5),
        dim=128,
        in_dim=64,
        layer_scale=1e-5,
        do_propagation=True,
        drop_path_rate=0.3,
    ),
    "faster_vit_4_224": dict(_LARGE, depths=(3, 3, 12, 5), dim=196, in_dim=64, drop_path_rate=0.3),
    "faster_vit_5_224": dict(_LARGE, depths=(3, 3, 12, 5), dim=320, in_dim=64, drop_path_rate=0.3),
    "faster_vit_6_224": dict(_LARGE, depths=(3, 3, 16, 8), dim=320, in_dim=64, drop_path_rate=0.5),
    "faster_vit_4_21k_224": dict(_21K, window_size=(7, 7, 14, 7)),
    "faster_vit_4_21k_384": dict(_21K, window_size=(7, 7, 24, 12), resolution=(384, 384)),
    "faster_vit_4_21k_512": dict(_21K, window_size=(7, 7, 32, 16), resolution=(512, 512)),
    "faster_vit_4_21k_768": dict(_21K, window_size=(7, 7, 48, 24), resolution=(768, 768)),
}


def any_res_sibling(name: str) -> str:
    """The name of a square model's any_res sibling."""
    return f"{name}_any_res" if "_21k_" in name else name.replace("_224", "_any_res")


def _any_res_options(name: str) -> dict:
    # The official registry gives number 2 a height of its own.
    resolution = (541, 960) if name == "faster_vit_2_224" else (576, 960)
    options = dict(_SQUARE[name], any_res=True, resolution=resolution)
    if "_21k_" in name:
        options["drop_path_rate"] = 0.3
    return options


VARIANTS: dict[str, dict] = {
    **_SQUARE,
    **{any_res_sibling(name): _any_res_options(name) for name in _SQUARE},
}
"""Options of each published network, by its official name."""


def variant_config(name: str, **overrides) -> FasterViTConfig:
    """Options of a published network, changed by `overrides` (attributes of `FasterViTConfig`).

    Raises:
        ValueError: the name is unknown, or an option is unknown or impossible; the message says
            what would do.
    """
    _check_known("model", name, VARIANTS)
    for option in overrides:
        _check_known("model option", option, FasterViTConfig.__dataclass_fields__)
    any_res = VARIANTS[name].get("any_res", False)
    if overrides.get("any_res", any_res) is not any_res:
        raise ValueError(
            f"Invalid any_res={overrides['any_res']} for {name}: any_res is part of a model's "
            f"name. Choose one of {', '.join(VARIANTS)}."
        )
    try:
        return FasterViTConfig(**{**VARIANTS[name], **overrides})
    except ValueError as error:
        hint = ""
        if not any_res and not {"resolution", "window_size"}.isdisjoint(overrides):
            hint = f" The any_res model of {name} is {any_res_sibling(name)}."
        raise ValueError(f"{name}: {error}{hint}") from None


def _check_known(kind: str, name: str, known: Iterable[str]) -> None:
    if isinstance(name, str) and name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"Nearest: {', '.join(near)}. " if near else ""
    raise ValueError(f"Invalid {kind} {name!r}. {hint}All: {', '.join(known)}.")
