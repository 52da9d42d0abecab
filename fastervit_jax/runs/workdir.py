"""Read the work directory of a run of `train.py`."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from flax import nnx

from fastervit_jax.data.paths import write_whole
from fastervit_jax.models import family_of
from fastervit_jax.models.pure_model import arrays_of, unflatten
from fastervit_jax.runs.checkpoints import Checkpoints
from fastervit_jax.runs.config import NEW_NAMES, default_config, model_config


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        model: the module, in inference mode.
        config: config of the run.
        class_names: names of the classes, in the order of the logits.
        step: number of training steps.
    """

    model: Any
    config: ml_collections.ConfigDict
    class_names: tuple[str, ...]
    step: int


def is_workdir(path: epath.PathLike) -> bool:
    """Returns whether a directory is a work directory of `train.py`."""
    path = epath.Path(path)
    return (path / "config.json").exists() and (path / "checkpoints").exists()


def save_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json` atomically. Only the first process writes it."""
    if jax.process_index() == 0:
        write_whole(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def load_config(workdir: epath.PathLike) -> ml_collections.ConfigDict:
    """Reads `config.json`.

    Raises:
        ValueError: the file is missing, is not JSON, or is not the config of a run.
    """
    path = epath.Path(workdir).expanduser() / "config.json"
    config = default_config()
    try:
        config.lock()  # rejects unknown keys
        config.update(_with_new_names(_with_tuples(json.loads(path.read_text()))))
        config.unlock()
    except OSError as error:
        raise ValueError(
            f"Cannot read {path} ({error}). Check that this is a work directory of train.py."
        ) from None
    except Exception as error:  # whatever odd values lead to: TypeError, OverflowError, …
        raise ValueError(
            f"Invalid {path}: expected the config of a run of train.py ({error})."
        ) from None
    return config


def load_trained(workdir: epath.PathLike, *, ema: bool = True, dtype: str | None = None) -> Trained:
    """Reads the newest checkpoint of a work directory.

    Args:
        workdir: work directory of `train.py`.
        ema: True for the EMA of the weights, which training evaluates. False for the weights.
        dtype: dtype of the computation; by default that of the run.

    Raises:
        ValueError: there is no checkpoint, or the newest checkpoint is damaged.
    """
    config = load_config(workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.latest_step
    if step is None:
        raise ValueError(f"{workdir} has no complete checkpoint yet. Continue the training.")
    network = model_config(config)
    compute = jnp.dtype(dtype or config.model.dtype)
    model = family_of(config.model.name).abstract(network, dtype=compute)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), arrays_of(model)
    )
    about = checkpoints.about(step)
    params, statistics = checkpoints.restore_model(step, *shapes, ema=ema)
    nnx.update(model, unflatten({**params, **statistics}))
    model.eval()
    class_names = tuple(about["class_names"])
    checkpoints.close()
    return Trained(model, config, class_names, step)


def _with_tuples(value):
    """Converts lists to tuples, as in configs."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return value


def _with_new_names(config: dict) -> dict:
    """Returns a stored config with the current names of its keys."""
    return {NEW_NAMES.get(key, key): value for key, value in config.items()}
