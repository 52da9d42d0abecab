"""Reading what a run of `train.py` left in its work directory."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from flax import nnx

from fastervit_jax.data.paths import write_whole
from fastervit_jax.models import FasterViT
from fastervit_jax.models.pure_model import arrays_of, unflatten
from fastervit_jax.runs.checkpoints import Checkpoints
from fastervit_jax.runs.config import NEW_NAMES, default_config, model_config


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        model: the module, in inference mode.
        config: of the run.
        class_names: in the order of the logits.
        step: updates it was trained for.
    """

    model: FasterViT
    config: ml_collections.ConfigDict
    class_names: tuple[str, ...]
    step: int


def is_workdir(path: epath.PathLike) -> bool:
    """Whether `train.py` made this directory."""
    path = epath.Path(path)
    return (path / "config.json").exists() and (path / "checkpoints").exists()


def save_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes `config.json`, on the first process: whole, or not at all."""
    if jax.process_index() == 0:
        write_whole(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def load_config(workdir: epath.PathLike) -> ml_collections.ConfigDict:
    """Reads `config.json`.

    Raises:
        ValueError: it is missing, no JSON, or not the config of a run.
    """
    path = epath.Path(workdir) / "config.json"
    config = default_config()
    try:
        config.lock()  # refuses unknown keys
        config.update(_with_new_names(_with_tuples(json.loads(path.read_text()))))
        config.unlock()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}): is this a work directory?") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not the config of a run of train.py: {error}.") from None
    return config


def load_trained(workdir: epath.PathLike, *, ema: bool = True, dtype: str | None = None) -> Trained:
    """Reads the newest checkpoint of a work directory.

    Args:
        workdir: of `train.py`.
        ema: whether to take the EMA, which is what training evaluates, or the plain weights.
        dtype: type of the computation; by default the run's own.

    Raises:
        ValueError: there is no checkpoint, or the newest one is damaged.
    """
    config = load_config(workdir)
    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.latest_step
    if step is None:
        raise ValueError(f"{workdir} has no finished checkpoint yet: let train.py go on.")
    network = model_config(config)
    compute = jnp.dtype(dtype or config.model.dtype)
    model = nnx.eval_shape(lambda: FasterViT(network, dtype=compute, rngs=nnx.Rngs(0)))
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
    """JSON's lists as the tuples that configs hold."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return value


def _with_new_names(config: dict) -> dict:
    """A stored config with the present names of its keys."""
    return {NEW_NAMES.get(key, key): value for key, value in config.items()}
