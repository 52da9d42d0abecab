"""The recipes of the package: the files in `configs/`."""

import importlib.util
from pathlib import Path

import ml_collections

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE.parent / "configs", _PACKAGE / "configs")
"""Folders of the recipes: in a checkout, and in an installed package."""


def recipe_file(name: str) -> str:
    """Returns the path of a recipe.

    Args:
        name: path of a file, or name of a recipe of the package, such as `digits`.

    Raises:
        ValueError: the recipe does not exist. The message lists the recipes of the package.
    """
    if Path(name).is_file():
        return name
    recipes = {path.stem: path for folder in _FOLDERS for path in sorted(folder.glob("*.py"))}
    if name in recipes:
        return str(recipes[name])
    raise ValueError(
        f"Invalid --config={name}: expected a file or one of {', '.join(sorted(recipes))}."
    )


def load_recipe(name: str) -> ml_collections.ConfigDict:
    """Loads the config of a recipe, by path or name.

    Raises:
        ValueError: the recipe does not exist, or is not a Python file.
    """
    path = recipe_file(name)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"Invalid --config={name}: expected a Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()
