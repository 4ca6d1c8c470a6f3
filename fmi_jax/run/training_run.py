"""The run of a protocol that trains: one loop, then the test of its best step.

Where the arrays of the model come from, the first that applies:

1. the workdir holds a checkpoint: everything is resumed from it;
2. `config.backbone.run` is set: the backbone of that finished run, a fresh head;
3. `config.backbone.weights` is set: the pretrained backbone, a fresh head;
4. otherwise: random initialisation.

The transformer of a stacked classifier comes from `config.transformer.weights`, if that is set.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fmi_jax.artifacts.checkpoints import RunCheckpoints
from fmi_jax.artifacts.result import Best, Result
from fmi_jax.artifacts.scalars import MetricWriter, ProgressReport
from fmi_jax.data import loader
from fmi_jax.protocols.spec import Head
from fmi_jax.run.assembly import augmentation, evaluation_preprocess, placement_of
from fmi_jax.run.conclusion import conclude
from fmi_jax.run.network import initial_arrays
from fmi_jax.run.session import Session
from fmi_jax.tasks.base import Measured
from fmi_jax.training import optim, side_by_side
from fmi_jax.training.evaluation import predict_split
from fmi_jax.training.loop import Loop, Plan, Progress, counters
from fmi_jax.training.partition import Partition
from fmi_jax.training.step import (
    Arrays,
    Augment,
    Placement,
    Preprocess,
    TrainState,
    initial_state,
    make_eval_step,
    make_train_step,
)
from fmi_jax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What is trained, and what it reads.

    Attributes:
      partition: the structure of what is called.
      placement: where its arrays live.
      arrays: all of them, as they begin.
      augment, preprocess: from a batch to what is called, in training and evaluation.
      batches: this process's part of the training batches, from a step on.
      eval_batches: the same of one pass over a split.
    """

    partition: Partition
    placement: Placement
    arrays: Arrays
    augment: Augment
    preprocess: Preprocess
    batches: Callable[[int], Iterator[Batch]]
    eval_batches: Callable[[str], Iterator[Batch]]


class Ended(NamedTuple):
    """How a loop has ended.

    Attributes:
      state: after the last step.
      frozen: the arrays beside it that do not learn.
      progress: what the loop remembered.
      checkpoints: of the run, still open.
    """

    state: TrainState
    frozen: Arrays
    progress: Any
    checkpoints: RunCheckpoints


def train(session: Session) -> Result:
    """Train from where the workdir stands to the end, and report the best step.

    Raises:
      UserError: the loss is no longer finite, or the checkpoints are damaged.
      Stopped: on SIGTERM, after saving.
    """
    plan = Plan.of(session.config, len(session.dataset.ids("train")))
    subject = on_images(session)
    predict = predictor(session, subject)
    state, frozen, progress, checkpoints = run_loop(
        session,
        plan,
        subject,
        loop=Loop,
        progress=lambda meta: Progress(**meta),
        validate=lambda arrays: session.task.evaluate(predict("val", arrays)).values,
    )
    model = {"params": state.params, "stats": state.followers}
    best = checkpoints.restore_model(progress.best_step, abstract(model))
    checkpoints.close()
    arrays = best["params"] | best["stats"] | frozen
    result = conclude(
        session,
        finding=session.evaluated(predict("val", arrays), predict("test", arrays)),
        best=best_of(session, plan, progress),
        steps=plan.total_steps,
        seconds={"training": progress.seconds},
    )
    checkpoints.keep_model(progress.best_step)
    return result


def on_images(session: Session) -> Subject:
    """The classifier of the session, on images that are augmented anew in every step."""
    config, assembly, pixels = session.config, session.assembly, session.origin.info
    placement = placement_of(assembly, config, session.mesh)
    return Subject(
        partition=assembly.partition,
        placement=placement,
        arrays=initial_arrays(assembly, config, placement),
        augment=augmentation(assembly, config, pixels),
        preprocess=evaluation_preprocess(assembly, config, pixels),
        batches=lambda start_step: loader.train_batches(
            session.dataset,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            start_step=start_step,
            threads=config.data.threads,
            workers=config.data.workers,
            places=session.held_places(config.train.batch_size),
        ),
        eval_batches=lambda split: loader.eval_batches(
            session.dataset,
            split,
            batch_size=session.eval_batch_size,
            threads=config.data.threads,
            places=session.held_places(session.eval_batch_size),
        ),
    )


def predictor(
    session: Session, subject: Subject, heads: Sequence[Head] = ()
) -> Callable[[str, Arrays], Measured]:
    """`(split, arrays of the model) -> what is measured of every image`, of each of the heads."""
    measure = session.task.measure
    step = make_eval_step(
        subject.partition,
        subject.preprocess,
        measure=side_by_side.each(measure) if heads else measure,
        mesh=session.mesh,
        placement=subject.placement,
    )

    def predict(split: str, arrays: Arrays) -> Measured:
        count = len(session.dataset.ids(split))
        return predict_split(step, arrays, subject.eval_batches(split), count, session.mesh)

    return predict


def run_loop(
    session: Session,
    plan: Plan,
    subject: Subject,
    *,
    loop: Callable[..., Loop],
    progress: Callable[[Mapping[str, Any]], Any],
    validate: Callable[[Arrays], Any],
    learning_rates: np.ndarray | None = None,
) -> Ended:
    """Train from the newest sound checkpoint, or from the beginning, to the end of the plan.

    Args:
      session, plan, subject: the run.
      loop: makes the loop from the attributes of `Loop`.
      progress: what the loop remembers, from what a checkpoint holds of it (nothing: {}).
      validate: as of the loop.
      learning_rates: of the models that train side by side (first axis of every array that
        learns); None: one, alone.

    Raises:
      UserError: the loss is no longer finite, or the checkpoints are damaged.
      Stopped: on SIGTERM, after saving.
    """
    config, mesh = session.config, session.mesh
    checkpoints = RunCheckpoints(session.workdir / "checkpoints")
    resume_step = checkpoints.newest_sound()
    start_step = resume_step or 0
    arrays = dict(subject.arrays)
    frozen = {name: arrays.pop(name) for name in subject.partition.frozen}
    warmup = optim.warmup_steps(config.optim, plan.steps_per_epoch)
    schedule = optim.relative_rate(config.optim, warmup, plan.total_steps)
    optimizer = optim.make_optimizer(config.optim, schedule)
    if learning_rates is not None:
        optimizer = optim.side_by_side(optimizer)
    rate = config.optim.learning_rate if learning_rates is None else learning_rates
    state = initial_state(
        subject.partition,
        arrays,
        optimizer,
        mesh,
        subject.placement,
        learning_rate=rate,
        seed=config.train.seed,
    )
    loss = session.task.loss
    remembered: Mapping[str, Any] = {}
    if resume_step is not None:
        state, remembered = _restore(checkpoints, resume_step, state)
    begun = progress(remembered)
    session.clock.lap("model")

    report = ProgressReport(
        plan.total_steps, start_step, config.train.batch_size, active=session.active
    )
    begin = f"resuming at step {start_step} of" if start_step else "training for"
    what = begin if learning_rates is None else f"{len(learning_rates)} heads, {begin}"
    report.say(f"{session.heading()}: {what} {plan.total_steps} steps")
    writer = MetricWriter(session.workdir, start_step, active=session.active)
    if start_step < plan.total_steps:
        running = loop(
            config=config,
            plan=plan,
            mesh=mesh,
            train_step=make_train_step(
                subject.partition,
                optimizer,
                schedule,
                subject.augment,
                loss=loss if learning_rates is None else side_by_side.each(loss),
                accumulate=config.optim.accumulate,
                mesh=mesh,
                placement=subject.placement,
                dtype=session.assembly.execution.dtype,
            ),
            frozen=frozen,
            batches=subject.batches(start_step),
            validate=validate,
            metric=session.metric,
            score=session.task.metric(session.metric).score,
            learning_rate=rate,
            batch_ids=lambda step: loader.batch_ids(
                session.dataset, config.train.seed, step, config.train.batch_size
            ),
            checkpoints=checkpoints,
            writer=writer,
            report=report,
            progress=begun,
        )
        state = running.run(state, start_step)
    writer.close()
    session.clock.lap("training")
    return Ended(state, frozen, begun, checkpoints)


def best_of(session: Session, plan: Plan, progress: Progress) -> Best:
    """The best step of a finished loop, or of one of its heads, for the result."""
    assert progress.best_step is not None
    assert progress.best_value is not None
    return Best(
        metric=session.metric,
        value=progress.best_value,
        step=progress.best_step,
        epoch=progress.best_step / plan.steps_per_epoch,
        seconds=progress.best_seconds,
    )


def _restore(
    checkpoints: RunCheckpoints, step: int, state: TrainState
) -> tuple[TrainState, Mapping[str, Any]]:
    """A state like `state` from the checkpoint of a step, and what the loop remembered there."""
    model = {"params": state.params, "stats": state.followers}
    restored = checkpoints.restore(step, abstract(model), abstract(counters(state)))
    state = TrainState(
        params=restored.model["params"], followers=restored.model["stats"], **restored.training
    )
    return state, restored.meta


def abstract(tree: Any) -> Any:
    """Shapes, types and places of the arrays of `tree`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
