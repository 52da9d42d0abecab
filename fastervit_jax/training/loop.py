"""The training loop: one page, in order."""

import contextlib

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from flax import nnx

from fastervit_jax.data import prefetch_to_device, steps_per_epoch
from fastervit_jax.evaluation.evaluator import Evaluation, evaluate, make_eval_step
from fastervit_jax.evaluation.pictures import draw_predictions
from fastervit_jax.models import FasterViT
from fastervit_jax.models.functional import PureModel
from fastervit_jax.training import recipe
from fastervit_jax.training.checkpoints import Checkpoints
from fastervit_jax.training.config import check_config, mixing_group, model_config
from fastervit_jax.training.finetuning import load_initial_model
from fastervit_jax.training.mesh import batch_shards, make_mesh, place_batch
from fastervit_jax.training.profile import Profile
from fastervit_jax.training.progress import Progress
from fastervit_jax.training.reporting import Reporter, draw_curves
from fastervit_jax.training.state import (
    TrainState,
    abstract_state,
    average_model,
    place_state,
)
from fastervit_jax.training.step import compile_train_step, make_train_step
from fastervit_jax.training.workdir import save_config


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> Evaluation:
    """Trains a network as a config says, or goes on where the work directory stands.

    Args:
        config: of `default_config`, changed at will.
        workdir: directory, local or remote, for checkpoints, metrics, config and pictures.

    Returns:
        The last evaluation, of the moving average.

    Raises:
        ValueError: the config or the data cannot be used; the message says what would do.
    """
    mesh = make_mesh(**config.mesh)
    tensor, hosts = mesh.shape["tensor"], jax.process_count()
    check_config(config, batch_shards=batch_shards(mesh), hosts=hosts, tensor=tensor)
    recipe.train_transform(config)  # refuses a bad one before anything is written
    training, validation = recipe.open_data(config)
    epoch_steps = steps_per_epoch(len(training), config.batch_size)
    total_steps = (config.epochs + config.cooldown_epochs) * epoch_steps
    last_step = min(total_steps, (config.stop_after_epochs * epoch_steps) or total_steps)
    schedule = recipe.learning_rate(config, epoch_steps)
    optimizer = recipe.optimizer(config, schedule)
    dtype, skeleton = jnp.dtype(config.model.dtype), recipe.skeleton(config)
    model = PureModel(skeleton, frozen=config.finetune.frozen)

    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    save_config(config, workdir)
    group = mixing_group(config, batch_shards(mesh))
    about = {"class_names": list(training.class_names), "mixing_group": group}
    checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep, about=about)
    start = checkpoints.latest_step or 0
    state_shapes = abstract_state(skeleton, optimizer, mesh)
    if start:
        state = checkpoints.restore(start, state_shapes)
        group = checkpoints.keep_about(start)["mixing_group"]
        print(f"Going on from step {start} of {total_steps} in {workdir}.", flush=True)
    else:
        state = place_state(_initial_model(config, dtype), optimizer, mesh)

    settings = recipe.step_settings(config, epoch_steps=epoch_steps, mixing_group=group)
    train_step = compile_train_step(
        make_train_step(model, optimizer, settings, mesh), state_shapes, mesh
    )
    eval_step = make_eval_step(model, mesh, dtype=dtype)

    def evaluate_average() -> Evaluation:
        with contextlib.closing(recipe.validation_batches(config, validation)) as batches:
            return evaluate(eval_step, *average_model(state), batches, mesh)

    evaluation = None
    reporter = Reporter(workdir, resume_step=start, wandb_project=config.wandb_project)
    progress = Progress(start, total_steps, config.batch_size)
    profile = Profile(workdir, config.profile_steps)
    loader = recipe.train_loader(config, training, start, last_step)
    batches = prefetch_to_device(loader, lambda batch: place_batch(batch, mesh))
    for step, batch in enumerate(progress.waiting_for(batches), start + 1):
        with profile.of_step(step):
            state, metrics = train_step(state, batch)
        progress.step_done()
        if step % config.log_every_steps == 0 or step == last_step:
            values = {name: float(value) for name, value in metrics.items()}
            values["learning_rate"] = float(schedule(step - 1))
            progress.show(**values)
            _stop_if_diverged(state, config.max_skipped_in_a_row)
            values["damaged_images"] = loader.damage.count
            reporter.write(step, **values, **progress.speed())

        epoch, steps_into_epoch = divmod(step, epoch_steps)
        if steps_into_epoch:
            continue
        if epoch % config.evaluation.every_epochs == 0 or step == last_step:
            evaluation = evaluate_average()
            summary = evaluation.summary()
            reporter.write(step, epoch=epoch, **{f"validation_{k}": summary[k] for k in summary})
            progress.say(
                f"epoch {epoch}: {evaluation.images} held-out images, "
                f"top-1 {evaluation.top1:.2%}, loss {evaluation.loss:.4f}"
            )
        if epoch % config.checkpoint.every_epochs == 0 or step == last_step:
            checkpoints.save(step, state)

    checkpoints.close()
    reporter.close()
    progress.close()
    loader.close()
    evaluation = evaluation or evaluate_average()
    if jax.process_index() == 0:
        draw_curves(workdir)
        draw_predictions(validation, evaluation.predictions, workdir / "predictions.png")
    return evaluation


def _initial_model(config: ml_collections.ConfigDict, dtype) -> FasterViT:
    """A new or loaded model on this host's CPU, the same on every host.

    New weights are not compiled as a whole: hundreds of random draws make a program that takes
    longer to compile than to run.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        if config.finetune.weights:
            return load_initial_model(config, dtype)
        return FasterViT(model_config(config), dtype=dtype, rngs=nnx.Rngs(config.seed))


def _stop_if_diverged(state: TrainState, limit: int) -> None:
    """Raises ValueError where too many steps in a row had no finite gradients."""
    in_a_row = int(state.skipped_in_a_row)
    if in_a_row >= limit:
        raise ValueError(
            f"The last {in_a_row} steps had a loss or gradients that are not finite and changed "
            f"nothing. The newest checkpoint is from before them: lower "
            f"config.optimizer.learning_rate, or look at the data."
        )
