"""The tasks of the trainer, by the name in `config.task`."""

import ml_collections

from fastervit_jax.models import family_of
from fastervit_jax.runs.config import check_types
from fastervit_jax.training.classification import Classification
from fastervit_jax.training.detection import Detection
from fastervit_jax.training.segmentation import Segmentation
from fastervit_jax.training.task import Task

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "detection": Detection,
    "segmentation": Segmentation,
}
"""Tasks by name. A config without the key `task` is one of classification."""


def task_of(config: ml_collections.ConfigDict) -> Task:
    """Returns the task of a run.

    Raises:
        ValueError: a key is missing, unknown or of another type, `config.task` is unknown, or
            `config.model.name` is unknown or a network of another task.
    """
    check_types(config)
    if config.task not in TASKS:
        raise ValueError(f"Invalid config.task={config.task!r}: expected {' or '.join(TASKS)}.")
    try:
        of_model = family_of(config.model.name).task
    except ValueError as error:
        raise ValueError(f"Invalid config.model.name: {error}") from None
    if of_model != config.task:
        raise ValueError(
            f"Invalid config.model.name={config.model.name}: it is a network for {of_model}, and "
            f"config.task is {config.task}."
        )
    return TASKS[config.task]()
