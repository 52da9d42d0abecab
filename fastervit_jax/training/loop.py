"""The training loop: one page, in order."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from fastervit_jax.data import Source, prefetch_to_device, steps_per_epoch
from fastervit_jax.evaluation.evaluator import Evaluation, evaluate, make_eval_step
from fastervit_jax.evaluation.pictures import draw_predictions
from fastervit_jax.models import FasterViT
from fastervit_jax.models.pure_model import PureModel
from fastervit_jax.parallel.hosts import check_hosts_agree, failures_of_peers, sum_over_processes
from fastervit_jax.parallel.mesh import batch_shards, make_mesh, place_batch
from fastervit_jax.runs.checkpoints import Checkpoints
from fastervit_jax.runs.config import (
    check_config,
    mixing_group,
    model_config,
    shared_settings,
)
from fastervit_jax.runs.lock import exclusive
from fastervit_jax.runs.resume_check import check_same_run, run_identity
from fastervit_jax.runs.state import (
    abstract_state,
    ema_model,
    place_state,
)
from fastervit_jax.runs.workdir import save_config
from fastervit_jax.training import build
from fastervit_jax.training.finetuning import load_initial_model
from fastervit_jax.training.nonfinite import (
    BatchPlace,
    SkippedSteps,
    TooManySkippedError,
    write_evidence,
)
from fastervit_jax.training.preemption import Interrupted, StopRequest
from fastervit_jax.training.progress import Profile, Progress
from fastervit_jax.training.reporting import Reporter, draw_curves
from fastervit_jax.training.step import compile_train_step, make_train_step


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> Evaluation | None:
    """Trains a network as a config says, or goes on where the work directory stands.

    Args:
        config: of `default_config`, changed at will.
        workdir: directory, local or remote, for checkpoints, metrics, config and pictures.

    Returns:
        The last evaluation, of the EMA; None where the run was asked to stop before its
        end (`preemption`).

    Raises:
        ValueError: the config, the data or the work directory cannot be used; the message says what
            would do. Or too many steps in a row were not finite (`skipped`).
        OSError: something cannot be written, or another process of the run has gone.
    """
    check_hosts_agree({**shared_settings(config), "--workdir": str(workdir)})
    mesh = make_mesh(**config.mesh)
    tensor, hosts = mesh.shape["tensor"], jax.process_count()
    check_config(config, batch_shards=batch_shards(mesh), hosts=hosts, tensor=tensor)
    # A bad transform and bad data are refused before anything is written.
    build.train_transform(config)
    data = build.open_data(config)
    workdir = epath.Path(workdir)
    with StopRequest() as stop, exclusive(workdir), failures_of_peers():
        return _train(config, data, workdir, mesh, stop)


def _train(
    config, data: tuple[Source, Source], workdir: epath.Path, mesh: Mesh, stop: StopRequest
) -> Evaluation | None:
    training, validation = data
    epoch_steps = steps_per_epoch(len(training), config.batch_size)
    total_steps = (config.epochs + config.cooldown_epochs) * epoch_steps
    last_step = min(total_steps, (config.stop_after_epochs * epoch_steps) or total_steps)
    schedule = build.learning_rate(config, epoch_steps)
    optimizer = build.optimizer(config, schedule)
    dtype, skeleton = jnp.dtype(config.model.dtype), build.skeleton(config, mesh)
    model = PureModel(skeleton, frozen=config.finetune.frozen)

    keep = config.checkpoint
    checkpoints = Checkpoints(workdir, keep=keep.keep, keep_best=keep.keep_best)
    about = run_identity(config, training, validation)
    state_shapes = abstract_state(skeleton, optimizer, mesh)
    restored = checkpoints.restore_newest(
        state_shapes,
        lambda step, saved: check_same_run(step, saved, about, config.resume.allow_changes),
    )
    if restored:
        start, state, saved = restored
        about |= {name: saved[name] for name in ("mixing_group", "damaged_images")}
        if jax.process_index() == 0:
            print(f"Going on from step {start} of {total_steps} in {workdir}.", flush=True)
            if saved["code"] != about["code"]:
                print(f"The code is {about['code']}; it was {saved['code']}.", flush=True)
    else:
        start, state = 0, place_state(_initial_model(config, dtype), optimizer, mesh)
        about |= {"mixing_group": mixing_group(config, batch_shards(mesh)), "damaged_images": 0}
    save_config(config, workdir)

    settings = build.step_settings(
        config, epoch_steps=epoch_steps, mixing_group=about["mixing_group"]
    )
    train_step = compile_train_step(
        make_train_step(model, optimizer, settings, mesh), state_shapes, mesh
    )
    eval_step = make_eval_step(model, mesh, dtype=dtype)
    reporter = Reporter(workdir, resume_step=start, wandb_project=config.wandb_project)
    progress = Progress(start, total_steps, config.batch_size)
    profile = Profile(workdir, config.profile_steps)
    skipped = SkippedSteps(config.max_skipped_in_a_row, int(state.skipped_in_a_row))
    check_every = min(config.log_every_steps, config.max_skipped_in_a_row)
    place_of = functools.partial(
        BatchPlace.of, epoch_steps=epoch_steps, batch_size=config.batch_size
    )

    def report_skipped(*, newest: bool) -> None:
        try:
            for bad in skipped.found(newest=newest):
                place = place_of(bad)
                reporter.write(bad, **{f"skipped_{k}": v for k, v in vars(place).items()})
                progress.say(
                    f"step {bad}: the loss or gradients of positions {place.first} to {place.last} "
                    f"of epoch {place.epoch} were not finite; nothing was changed"
                )
        except TooManySkippedError as error:
            checkpoints.close()
            raise write_evidence(error, config, training, workdir, place_of) from None

    def evaluates_at(step: int) -> bool:
        epoch, into_epoch = divmod(step, epoch_steps)
        every = config.evaluation.every_epochs
        return not into_epoch and bool(step) and (epoch % every == 0 or step == last_step)

    def saves_at(step: int) -> bool:
        epoch, into_epoch = divmod(step, epoch_steps)
        at_epoch = not into_epoch and epoch % keep.every_epochs == 0
        at_step = keep.every_steps and step % keep.every_steps == 0
        return at_epoch or at_step or step == last_step

    def evaluate_average() -> Evaluation:
        with contextlib.closing(build.validation_batches(config, validation)) as batches:
            arrays = ema_model(state)
            return evaluate(eval_step, *arrays, batches, mesh, images_done=stop.interrupt)

    def evaluate_and_report(step: int) -> Evaluation:
        evaluation = evaluate_average()
        summary = evaluation.summary()
        epoch = step // epoch_steps
        reporter.write(step, epoch=epoch, **{f"validation_{k}": summary[k] for k in summary})
        progress.say(
            f"epoch {epoch}: {evaluation.images} held-out images, "
            f"top-1 {evaluation.top1:.2%}, loss {evaluation.loss:.4f}"
        )
        checkpoints.scores.update(reporter.scores(keep.best_metric))
        return evaluation

    evaluation, step = None, start
    damage_before = about["damaged_images"]
    with contextlib.ExitStack() as stack:
        loader = build.train_loader(config, training, start, last_step)
        for closed in (progress, reporter, loader):
            stack.callback(closed.close)
        hosts = jax.process_count()
        damage_here = damage_before // hosts
        drawn_here = start * config.batch_size // hosts + damage_here
        loader.damage.start(drawn_here, damage_here)
        try:
            checkpoints.scores.update(reporter.scores(keep.best_metric))
            if evaluates_at(start) and not reporter.has(start, "validation_loss"):
                evaluation = evaluate_and_report(start)
            batches = prefetch_to_device(
                ((batch, loader.damage.count - damage_here) for batch in loader),
                lambda item: (place_batch(item[0], mesh), item[1]),
            )
            for step, (batch, damaged) in enumerate(progress.waiting_for(batches), start + 1):
                with profile.of_step(step):
                    state, metrics = train_step(state, batch)
                progress.step_done()
                skipped.add(step, metrics.pop("skipped"))
                stopping = stop.agreed(step)
                logs = step % config.log_every_steps == 0 or step == last_step
                saves = saves_at(step) or stopping
                if logs or saves:
                    about["damaged_images"] = damage_before + sum_over_processes(damaged)
                if logs or saves or step % check_every == 0:
                    report_skipped(newest=logs or saves)
                if logs:
                    values = {name: float(value) for name, value in metrics.items()}
                    values["learning_rate"] = float(schedule(step - 1))
                    values["skipped"] = int(state.skipped)
                    progress.show(**values)
                    values["damaged_images"] = about["damaged_images"]
                    reporter.write(step, **values, **progress.speed())
                    checkpoints.check()
                if saves:
                    reporter.flush()
                    checkpoints.save(step, state, about)
                if stopping:
                    raise Interrupted
                if evaluates_at(step):
                    evaluation = evaluate_and_report(step)
            evaluation = evaluation or evaluate_average()
            checkpoints.close()
        except Interrupted:
            if step != start and checkpoints.latest_step != step:
                checkpoints.save(step, state, about)
            checkpoints.close()
            progress.say(
                f"Stopped after step {step} of {total_steps}, which is saved in {workdir}: start "
                f"the same command again to go on."
            )
            return None
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
