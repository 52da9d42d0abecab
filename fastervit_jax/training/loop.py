"""The training loop, on one page: step, log, save, evaluate, stop."""

import contextlib

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh

from fastervit_jax.data import prefetch_to_device, steps_per_epoch
from fastervit_jax.parallel.hosts import check_hosts_agree, failures_of_peers
from fastervit_jax.parallel.mesh import batch_shards, place_batch
from fastervit_jax.runs.checkpoints import Checkpoints
from fastervit_jax.runs.config import mesh_of, mixing_group, shared_settings
from fastervit_jax.runs.lock import exclusive
from fastervit_jax.runs.resume_check import check_same_run, run_identity
from fastervit_jax.runs.state import TrainState, ema_model
from fastervit_jax.runs.workdir import save_config
from fastervit_jax.training import build
from fastervit_jax.training.bookkeeping import DamageCount, Timetable
from fastervit_jax.training.nonfinite import NonFiniteReport, SkippedSteps
from fastervit_jax.training.preemption import Interrupted, StopRequest
from fastervit_jax.training.progress import Profile, Progress
from fastervit_jax.training.reporting import Reporter, draw_curves
from fastervit_jax.training.task import Data, Evaluation, Task


def train(
    task: Task, config: ml_collections.ConfigDict, workdir: epath.PathLike
) -> Evaluation | None:
    """Trains a network, or resumes where the work directory stands.

    Args:
        task: what is trained (`training.tasks.task_of`).
        config: of `default_config`, changed at will.
        workdir: directory, local or remote, for checkpoints, metrics, config and pictures.

    Returns:
        The last evaluation, of the EMA; None where the run was asked to stop before its end
        (`preemption`).

    Raises:
        ValueError: the config, the data or the work directory cannot be used; the message says what
            would do. Or too many steps in a row were not finite (`nonfinite`).
        OSError: something cannot be written, or another process of the run has ended.
    """
    check_hosts_agree({**shared_settings(config), "--workdir": str(workdir)})
    mesh = mesh_of(config)
    tensor, hosts = mesh.shape["tensor"], jax.process_count()
    task.check(config, batch_shards=batch_shards(mesh), hosts=hosts, tensor=tensor)
    # What cannot be trained is refused before anything is written.
    data = task.open_data(config)
    times = Timetable(config, steps_per_epoch(len(data.training), config.batch_size))
    program = build.program(task, config, mesh, epoch_steps=times.epoch_steps)
    workdir = epath.Path(workdir).expanduser()
    with StopRequest() as stop, exclusive(workdir), failures_of_peers():
        return _train(task, config, data, times, program, workdir, mesh, stop)


def _train(
    task: Task,
    config: ml_collections.ConfigDict,
    data: Data,
    times: Timetable,
    program: build.Program,
    workdir: epath.Path,
    mesh: Mesh,
    stop: StopRequest,
) -> Evaluation | None:
    checkpoints = Checkpoints(
        workdir, keep=config.checkpoint.keep, keep_best=config.checkpoint.keep_best
    )
    about = run_identity(config, *data)
    start, restored = _resume(checkpoints, program.state, about, config, times, workdir)
    if restored is None:
        about |= {"mixing_group": mixing_group(config, batch_shards(mesh)), "damaged_images": 0}
        restored = build.initial_state(task, config, mesh, program)
    state: TrainState = restored
    save_config(config, workdir)

    train_step = build.train_step(
        task,
        config,
        mesh,
        program,
        epoch_steps=times.epoch_steps,
        mixing_group=about["mixing_group"],
    )
    evaluator = task.evaluator(config, data.validation, program.model, mesh)
    reporter = Reporter(workdir, resume_step=start, wandb_project=config.wandb_project)
    progress = Progress(start, times.total_steps, config.batch_size)
    profile = Profile(workdir, config.profile_steps)
    skipped = SkippedSteps(config.max_skipped_in_a_row, int(state.skipped_in_a_row))
    nonfinite = NonFiniteReport(task, config, data.training, workdir, times.epoch_steps, skipped)

    def log(step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        values["learning_rate"] = float(program.schedule(step - 1))
        values["skipped"] = int(state.skipped)
        progress.show(**values)
        values["damaged_images"] = damage.total
        reporter.write(step, **values, **progress.speed())
        checkpoints.check()

    def save(step: int) -> None:
        reporter.flush()
        checkpoints.save(step, state, {**about, "damaged_images": damage.total})

    def evaluate() -> Evaluation:
        return evaluator(*ema_model(state), stop.interrupt)

    def evaluate_and_report(step: int) -> Evaluation:
        evaluation = evaluate()
        epoch = step // times.epoch_steps
        place = f"step {step}" if config.total_steps else f"epoch {epoch}"
        numbers = {f"validation_{name}": value for name, value in evaluation.summary().items()}
        reporter.write(step, epoch=epoch, **numbers)
        progress.say(f"{place}: {evaluation.sentence()}")
        checkpoints.scores.update(reporter.scores(config.checkpoint.best_metric))
        return evaluation

    evaluation, step = None, start
    with contextlib.ExitStack() as stack:
        loader = task.train_loader(config, data.training, start, times.last_step)
        for closed in (checkpoints, progress, reporter, loader):
            stack.callback(closed.close)
        damage = DamageCount(
            loader, about["damaged_images"], start=start, batch_size=config.batch_size
        )
        checkpoints.scores.update(reporter.scores(config.checkpoint.best_metric))
        try:
            if times.evaluates_at(start) and not reporter.has(start, f"validation_{task.headline}"):
                evaluation = evaluate_and_report(start)
            batches = prefetch_to_device(
                damage.batches(), lambda item: (place_batch(item[0], mesh), item[1])
            )
            for step, (batch, damaged) in enumerate(progress.waiting_for(batches), start + 1):
                with profile.of_step(step):
                    state, metrics = train_step(state, batch)
                progress.step_done()
                skipped.add(step, metrics.pop("skipped"))
                stopping = stop.agreed(step)
                logs, saves = times.logs_at(step), times.saves_at(step) or stopping
                if logs or saves:
                    damage.sum_up(damaged)
                if saves or times.looks_for_nonfinite_at(step):
                    nonfinite.report(reporter, progress, newest=logs or saves)
                if logs:
                    log(step, metrics)
                if saves:
                    save(step)
                if stopping:
                    raise Interrupted
                if times.evaluates_at(step):
                    evaluation = evaluate_and_report(step)
            evaluation = evaluation or evaluate()
        except Interrupted:
            if step != start and checkpoints.latest_step != step:
                save(step)
            checkpoints.wait()
            progress.say(
                f"Stopped after step {step} of {times.total_steps}, which is saved in {workdir}. "
                f"Run the same command again to resume."
            )
            return None
    if jax.process_index() == 0:
        draw_curves(workdir, task.panels, task.headline)
        task.draw(data.validation, evaluation, workdir / "predictions.png")
    return evaluation


def _resume(
    checkpoints: Checkpoints,
    shapes: TrainState,
    about: dict,
    config: ml_collections.ConfigDict,
    times: Timetable,
    workdir: epath.Path,
) -> tuple[int, TrainState | None]:
    """The newest checkpoint's step and state; (0, None) for a new run.

    Adds to `about` what a checkpoint says of its run.
    """
    restored = checkpoints.restore_newest(
        shapes,
        lambda step, saved: check_same_run(step, saved, about, config.resume.allow_changes),
    )
    if restored is None:
        return 0, None
    step, state, saved = restored
    about |= {name: saved[name] for name in ("mixing_group", "damaged_images")}
    if jax.process_index() == 0:
        print(f"Resuming from step {step} of {times.total_steps} in {workdir}.", flush=True)
        if saved["code"] != about["code"]:
            print(f"The code is {about['code']}; it was {saved['code']}.", flush=True)
    return step, state
