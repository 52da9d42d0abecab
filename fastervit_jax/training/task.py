"""What a task gives the trainer: data, network, loss, evaluation, pictures.

`tasks.py` lists the implementations. Loop, step, checkpoints, resume, meshes
and `--compile_for` know a task by these protocols alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import ml_collections
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from fastervit_jax.data import TrainLoader
from fastervit_jax.models.pure_model import Arrays, PureModel
from fastervit_jax.runs.state import TrainState

Batch = dict[str, jax.Array]
"""Arrays whose first axis is the image."""

Metrics = dict[str, jax.Array]
"""Scalars by name."""


class Data(NamedTuple):
    """The data sets of a run. What an example is, the task knows."""

    training: Any
    validation: Any


class Network(Protocol):
    """A network as a function of its arrays (`partition.GatheredModel`)."""

    @property
    def mesh(self) -> Mesh:
        """The mesh over which the batch is split."""
        ...

    def train(
        self, params: Arrays, statistics: Arrays, images: Any, key: jax.Array
    ) -> tuple[Any, Arrays]:
        """Outputs in training mode, and the updated batch-norm statistics."""
        ...

    def infer(self, params: Arrays, statistics: Arrays, images: Any) -> Any:
        """Outputs in inference mode."""
        ...


class Objective(Protocol):
    """What a step minimizes. Both methods are traced: they must be pure."""

    def prepare(self, key: jax.Array, batch: Batch, mesh: Mesh) -> Batch:
        """What the loss needs of a batch from the loader: augmented images, targets.

        Args:
            key: random key of the step.
            batch: as the loader gives it, [N, …].
            mesh: over which the batch is split.
        """
        ...

    def loss(
        self, network: Network, params: Arrays, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Arrays]]:
        """The loss of a batch, or of one of its parts.

        Args:
            network: the network.
            params: the parameters that the gradient is taken of.
            state: everything else: statistics, EMA, number of the step.
            batch: from `prepare`.
            key: random key of the part.

        Returns:
            The loss, float32 scalar; then further metrics and the updated statistics.
        """
        ...


class Evaluation(Protocol):
    """The result of an evaluation."""

    def summary(self) -> dict[str, float]:
        """The numbers to record, by name."""
        ...

    def sentence(self) -> str:
        """The numbers for people."""
        ...


Evaluator = Callable[[Arrays, Arrays, Callable[[int], None]], Evaluation]
"""(parameters, statistics, called with the number of images done) → the evaluation."""


class Panel(NamedTuple):
    """A panel of `curves.png`: its title, and labels of the metrics that it shows."""

    title: str
    lines: Mapping[str, str]


class Task(Protocol):
    """Everything the trainer needs to know about a task."""

    @property
    def panels(self) -> Sequence[Panel]:
        """What `curves.png` shows."""
        ...

    @property
    def headline(self) -> str:
        """The metric of the evaluation that stands in the title of `curves.png`."""
        ...

    def check(
        self, config: ml_collections.ConfigDict, *, batch_shards: int, hosts: int, tensor: int
    ) -> None:
        """Raises ValueError for a config that no run can have (`config_checks.check_config`)."""
        ...

    def open_data(self, config: ml_collections.ConfigDict) -> Data:
        """Opens the data; raises ValueError where it does not fit the config."""
        ...

    def network(self, config: ml_collections.ConfigDict) -> Any:
        """The network, an NNX module with shapes in place of weights.

        Its `backbone` is a FasterViT: itself, or the one in it.
        """
        ...

    def initial_network(self, config: ml_collections.ConfigDict) -> nnx.Module:
        """The network before the first step: new weights, or `config.finetune.weights`."""
        ...

    def train_loader(
        self, config: ml_collections.ConfigDict, source: Any, start_step: int, num_steps: int
    ) -> TrainLoader:
        """This host's batches of steps start_step … num_steps − 1."""
        ...

    def batch_shapes(self, config: ml_collections.ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of a global batch from the loader."""
        ...

    def objective(
        self, config: ml_collections.ConfigDict, *, epoch_steps: int, mixing_group: int
    ) -> Objective:
        """What a step minimizes."""
        ...

    def evaluator(
        self, config: ml_collections.ConfigDict, source: Any, model: PureModel, mesh: Mesh
    ) -> Evaluator:
        """Compiles what evaluates arrays on a data set."""
        ...

    def draw(self, source: Any, evaluation: Any, path: epath.PathLike) -> None:
        """Draws predictions on a data set as a PNG."""
        ...
