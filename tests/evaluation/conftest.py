"""A small network with photographs, in memory and on disk."""

import dataclasses
from pathlib import Path

import pytest

from fastervit_jax.data import Source
from fastervit_jax.evaluation.dataset import open_evaluation_set
from fastervit_jax.models import FasterViT
from fastervit_jax.weights.loading import save_model
from tests.small.task import NAMES, small_task

IMAGES = 53  # a prime: no batch and no number of devices divides it


@dataclasses.dataclass
class SmallTask:
    """A network and the photographs it knows about half of."""

    model: FasterViT
    weights: Path
    folder: Path
    images: int = IMAGES

    @property
    def source(self) -> Source:
        """The photographs, labelled by the network's classes (one or the other has none)."""
        return open_evaluation_set(self.spec, model_classes=NAMES, num_logits=len(NAMES)).source

    @property
    def spec(self) -> str:
        return f"folder:{self.folder}"


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> SmallTask:
    root = tmp_path_factory.mktemp("evaluation")
    model, folder = small_task(root / "photographs", IMAGES)
    save_model(model, root / "weights")
    return SmallTask(model, root / "weights", folder)
