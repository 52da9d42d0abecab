"""The check of a config's keys and of the types of their values, before any value is used."""

import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections

_LARGEST = 2**31
"""Whole numbers are below it: devices count in 32 bits."""

_ELEMENTS = {
    "finetune.frozen": "",
    "optimizer.drop_epochs": 0.0,
    "remat": 0,
    "resume.allow_changes": "",
}
"""An element of each tuple that is empty by default."""

_OF_THE_TYPE = {bool: False, int: 0, float: 0.0, str: ""}
"""A value of each type that optional keys can have."""


class _Kind(NamedTuple):
    """What values a key takes.

    Attributes:
        holds: whether it takes a value.
        wanted: how a message calls such values.
    """

    holds: Callable[[Any], bool]
    wanted: str


def check_types(
    config: ml_collections.ConfigDict,
    defaults: ml_collections.ConfigDict,
    new_names: dict[str, str],
) -> None:
    """Checks that a config has the keys of the default config, with values of their types.

    A value that is None is accepted only where it is the default. Everything accepted can be
    written as JSON.

    Args:
        config: config of a run.
        defaults: the default config.
        new_names: current names of renamed keys.

    Raises:
        ValueError: a key is unknown or missing, or a value has another type. The message says the
            key.
    """
    _check_section(config, defaults, new_names, "")


def _check_section(config, defaults, new_names: dict[str, str], section: str) -> None:
    names = list(defaults)
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"Invalid config.{section.rstrip('.')}={config!r}: expected the keys {_listed(names)}."
        )
    for name in config:
        if name not in defaults:
            near = (
                [new_names[name]] if name in new_names else difflib.get_close_matches(name, names)
            )
            hint = f"Nearest: {', '.join(near)}." if near else f"All: {_listed(names)}."
            raise ValueError(f"Invalid config.{section}{name}: the config has no such key. {hint}")
    for name in names:
        key = section + name
        if name not in config:
            raise ValueError(f"Missing config.{key}: start from default_config(), which has it.")
        value, default = config[name], defaults[name]
        if isinstance(default, ml_collections.ConfigDict):
            _check_section(value, default, new_names, f"{key}.")
            continue
        if value is None and default is None:
            continue
        kind = _kind_of_key(key, default, defaults.get_type(name))
        if not kind.holds(value):
            raise ValueError(f"Invalid config.{key}={value!r}: expected {kind.wanted}.")


def _kind_of_key(key: str, default: Any, type_of_key: type) -> _Kind:
    if key == "seed":  # of 32 bits without a sign
        return _Kind(_is_whole, "a whole number")
    if key in _ELEMENTS:
        return _kind((_ELEMENTS[key],))
    if default is not None:
        return _kind(default)
    if type_of_key in _OF_THE_TYPE:
        return _kind(_OF_THE_TYPE[type_of_key])
    # The network checks what a tuple or a resolution holds.
    return _Kind(_is_plain, "numbers, text, True or False, or tuples of them")


def _kind(example: Any) -> _Kind:
    """What is like an example."""
    if isinstance(example, bool):
        return _Kind(lambda value: isinstance(value, bool), "True or False")
    if isinstance(example, int):
        return _Kind(
            lambda value: _is_whole(value) and abs(value) < _LARGEST,
            "a whole number below 2**31",
        )
    if isinstance(example, float):
        return _Kind(_is_number, "a finite number")
    if isinstance(example, str):
        return _Kind(lambda value: isinstance(value, str), "text")
    element = _kind(example[0])
    return _Kind(
        lambda value: isinstance(value, list | tuple) and all(map(element.holds, value)),
        f"a tuple; of each element, {element.wanted}",
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return _is_whole(value) and abs(value) < _LARGEST


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | str) or _is_number(value)


def _listed(names: list[str]) -> str:
    return ", ".join(names)
