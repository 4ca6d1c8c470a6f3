"""Training: one loop, for every protocol that trains.

Where the arrays of the model come from, the first that applies:

1. the workdir holds a checkpoint: everything is resumed from it;
2. `config.backbone.run` is set: the backbone of that finished run, a fresh head;
3. `config.backbone.weights` is set: the pretrained backbone, a fresh head;
4. otherwise: random initialisation.

The transformer of a stacked classifier comes from `config.transformer.weights`, if that is set.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fmi_jax import parallel
from fmi_jax.artifacts.checkpoints import RunCheckpoints
from fmi_jax.artifacts.scalars import MetricWriter, ProgressReport
from fmi_jax.augment import with_redrawn_labels
from fmi_jax.data import loader
from fmi_jax.errors import UserError
from fmi_jax.protocols.judging import Monitor
from fmi_jax.run.assembly import (
    Assembly,
    augmentation,
    evaluation_outputs,
    evaluation_preprocess,
    placement_of,
)
from fmi_jax.run.network import initial_arrays
from fmi_jax.run.origin import CHECKPOINTS
from fmi_jax.run.session import Fitted, Session
from fmi_jax.run.watching import watcher
from fmi_jax.tasks.base import Measured, Metric
from fmi_jax.training import optim, side_by_side
from fmi_jax.training.evaluation import predict_split
from fmi_jax.training.loop import Loop, Plan, counters, model_arrays
from fmi_jax.training.partition import Partition, partition
from fmi_jax.training.selection import Selection
from fmi_jax.training.step import (
    Arrays,
    Augment,
    Measure,
    Outputs,
    Placement,
    Preprocess,
    TrainState,
    initial_state,
    make_eval_step,
    make_train_step,
)
from fmi_jax.types import Batch

Predict = Callable[..., Measured]
"""`(split, arrays of the model, metric, draw) -> what is measured of every image`, by heads. The
metric is the one that is asked for, empty: all; the draw is the seed of an augmentation, if any."""

TRAINED_LOSS = "trained_loss"
"""Name of the value of the trained loss on the validation images."""

_LOSS = Metric(label="Trained loss", higher_is_better=False, bounds=(0.0, math.inf))
_DRAW = "draw"  # of the augmentation of an evaluation, for each image of its batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """Input of a training: batches of it and of its evaluations, this process's part of each.

    Attributes:
      batches: training batches from a step on.
      eval_batches: batches of one pass over a split.
      augment: function that makes the model's inputs of a training batch, on the device.
      preprocess: function that makes them in an evaluation, of one view.
      outputs: makes the function that computes the model's outputs, over views of this name.
    """

    batches: Callable[[int], Generator[Batch, None, None]]
    eval_batches: Callable[[str], Iterator[Batch]]
    augment: Augment
    preprocess: Preprocess
    outputs: Callable[[str], Outputs]


def fit(run: Session) -> Session:
    """Train from where the workdir stands to the end; returns the run with what was trained.

    The run builds its own arrays, for heads on kept features need none of the backbone's.

    Raises:
      UserError: the loss is no longer finite, or the checkpoints are damaged.
      Stopped: on SIGTERM, after saving.
    """
    config, assembly, mesh, fit = run.config, run.assembly, run.mesh, run.assembly.fit
    plan = Plan.of(config, len(run.dataset.ids("train")), validates=fit.keeps == "best")
    feed = _image_feed(run) if fit.on_features is None else _feature_feed(run)
    structure = _structure(assembly)
    everywhere = placement_of(assembly, config, mesh)
    placement = {name: everywhere[name] for name in structure.variables}
    arrays = initial_arrays(assembly, config, everywhere, structure.variables)
    predict = _predictor(run, structure, placement, feed, feed.outputs, run.task.measure)

    checkpoints = RunCheckpoints(run.workdir / "checkpoints")
    resume_step = checkpoints.newest_sound()
    start_step = resume_step or 0
    monitor, watch, at_first = fit.monitor(run), None, None
    if monitor is not None:
        at_first, measure = watcher(run, monitor, structure, feed.preprocess, placement, arrays)
        watch = _watch(monitor, at_first, measure, run.workdir)
    frozen = {name: arrays.pop(name) for name in structure.frozen}
    schedule = optim.relative_rate(
        config.optim,
        optim.warmup_steps(config.optim, plan.steps_per_epoch),
        plan.total_steps,
        plan.steps_per_epoch,
    )
    optimizer = optim.make_optimizer(
        config.optim,
        schedule,
        weight_decay=optim.decay_by_step(config.optim, plan.total_steps),
        held=fit.held(plan),
    )
    rate: Any = config.optim.learning_rate
    if fit.heads:
        optimizer = optim.side_by_side(optimizer)
        rate = np.array([head.learning_rate for head in fit.heads], np.float32)
    state = initial_state(
        structure, arrays, optimizer, mesh, placement, learning_rate=rate, seed=config.train.seed
    )
    chooses = bool(plan.evaluate_at) or (monitor is not None and bool(monitor.metric))
    chosen_by, shown = run.metric, run.task.metric(run.metric)
    if config.train.select_by == "loss":
        chosen_by, shown = TRAINED_LOSS, _LOSS
    selection = Selection(
        metric=("knn" if monitor is not None else chosen_by) if chooses else "",
        score=shown.score if chooses else lambda value: value,
        names=[head.name for head in fit.heads],
    )
    if resume_step is not None:
        restored = checkpoints.restore(
            resume_step, abstract(model_arrays(state)), abstract(counters(state))
        )
        state = TrainState(
            params=restored.model["params"],
            followers=restored.model["stats"],
            **restored.training,
        )
        selection.restore(restored.meta)
    run.clock.lap("model")

    report = ProgressReport(
        plan.total_steps, start_step, config.train.batch_size, active=run.active
    )
    begin = f"resuming at step {start_step} of" if start_step else "training for"
    what = f"{len(fit.heads)} heads, {begin}" if fit.heads else begin
    report.say(f"{run.heading()}: {what} {plan.total_steps} steps")
    writer = MetricWriter(run.workdir, start_step, active=run.active)
    if at_first is not None and not start_step:
        writer.write_scalars(0, {f"monitor/{name}": value for name, value in at_first.items()})
    if start_step < plan.total_steps and not selection.ended(config):
        task = fit.task or run.objective
        state = Loop(
            config=config,
            plan=plan,
            mesh=mesh,
            train_step=make_train_step(
                structure,
                optimizer,
                schedule,
                feed.augment,
                loss=side_by_side.each(task.loss) if fit.heads else task.loss,
                accumulate=config.optim.accumulate,
                mesh=mesh,
                placement=placement,
                dtype=assembly.execution.dtype,
                follow=None if fit.follow is None else fit.follow(plan),
                logged=fit.logged,
            ),
            frozen=frozen,
            batches=feed.batches(start_step),
            validate=_validator(run, structure, placement, feed, predict),
            watch=watch,
            learning_rate=rate,
            batch_ids=lambda step: loader.batch_ids(
                run.dataset,
                config.train.seed,
                step,
                config.train.batch_size,
                run.strata,
            ),
            checkpoints=checkpoints,
            writer=writer,
            report=report,
            selection=selection,
        ).run(state, start_step)
    writer.close()
    run.clock.lap("training")
    steps = int(state.step)
    best = selection.best_step if fit.keeps == "best" else None
    arrays = _kept(state, best, checkpoints) | frozen
    checkpoints.close()
    return dataclasses.replace(
        run,
        selection=selection,
        fitted=Fitted(
            arrays=arrays,
            step=best or steps,
            steps=steps,
            plan=plan,
            predict=lambda split: predict(split, arrays, ""),
        ),
    )


def _image_feed(run: Session) -> Feed:
    """Feed images, augmented anew in every step."""
    config, pixels, train = run.config, run.origin.info, run.config.train
    return Feed(
        batches=lambda start_step: loader.train_batches(
            run.dataset,
            batch_size=train.batch_size,
            seed=train.seed,
            start_step=start_step,
            threads=config.data.threads,
            workers=config.data.workers,
            places=parallel.held_places(run.mesh, train.batch_size),
            strata=run.strata,
        ),
        eval_batches=lambda split: loader.eval_batches(
            run.dataset,
            split,
            batch_size=train.evaluation_batch_size,
            threads=config.data.threads,
            places=parallel.held_places(run.mesh, train.evaluation_batch_size),
        ),
        augment=augmentation(run.assembly, config, pixels, run.info.label),
        preprocess=evaluation_preprocess(run.assembly, config, pixels),
        outputs=lambda views: evaluation_outputs(
            run.assembly, config, pixels, run.task, views=views
        ),
    )


def _feature_feed(run: Session) -> Feed:
    """Feed the features of the frozen backbone, which sees every image once, unaugmented."""
    train, splits = run.config.train, run.features()
    return Feed(
        batches=lambda start_step: loader.feature_train_batches(
            splits["train"].features,
            splits["train"].labels,
            batch_size=train.batch_size,
            seed=train.seed,
            start_step=start_step,
            places=parallel.held_places(run.mesh, train.batch_size),
            strata=run.strata,
        ),
        eval_batches=lambda split: loader.feature_eval_batches(
            splits[split].features,
            splits[split].labels,
            batch_size=train.evaluation_batch_size,
            places=parallel.held_places(run.mesh, train.evaluation_batch_size),
        ),
        augment=with_redrawn_labels(lambda keys, batch: batch, *run.config.loss.soft_labels),
        preprocess=lambda features: features,
        outputs=lambda views: lambda module, batch: (module(batch["inputs"], rngs=None), batch),
    )


def _structure(assembly: Assembly) -> Partition:
    """Find the structure that is trained: the whole model, or its part that reads features."""
    fit, reduce = assembly.fit, assembly.fit.on_features
    if reduce is None:
        return assembly.partition
    part = nnx.eval_shape(lambda: reduce(assembly.create(jax.random.key(0))))
    return partition(part, fit.learns, fit.follows)


def _predictor(
    run: Session,
    structure: Partition,
    placement: Placement,
    feed: Feed,
    outputs: Callable[[str], Outputs],
    measure: Measure,
) -> Predict:
    """Make the function that measures every image of a split, given `Feed.outputs`."""
    views = run.config.views

    @functools.cache
    def step(name: str) -> Callable[[Arrays, Arrays], Arrays]:
        return make_eval_step(
            structure,
            outputs(name),
            measure=side_by_side.each(measure) if run.assembly.fit.heads else measure,
            mesh=run.mesh,
            placement=placement,
        )

    def predict(split: str, arrays: Arrays, metric: str, draw: int = 0) -> Measured:
        batches: Any = (
            {**batch, _DRAW: np.full(len(batch["mask"]), draw, np.uint32)}
            for batch in feed.eval_batches(split)
        )
        return predict_split(
            step(views.of_validation if metric else views.name),
            arrays,
            batches,
            len(run.dataset.ids(split)),
            run.mesh,
            functools.partial(run.task.on_host, metric=metric),
        )

    return predict


def _validator(
    run: Session, structure: Partition, placement: Placement, feed: Feed, predict: Predict
) -> Callable[[Arrays, int], Sequence[Mapping[str, float]]]:
    """Make `(arrays of the model, steps done) -> validation metrics`, by heads.

    They are those of what `predict` measures, unless the config augments the validation images or
    selects by the trained loss, which is then one of them.
    """
    train, fit, task = run.config.train, run.assembly.fit, run.task
    loss = (fit.task or run.objective).loss

    def augmented(module: Any, batch: Arrays) -> tuple[Any, Arrays]:
        key = jax.vmap(lambda draw, row: jax.random.fold_in(jax.random.key(draw), row))
        batch = feed.augment(key(batch[_DRAW], batch["index"]), batch)
        return module(batch["inputs"], rngs=None), batch

    def with_loss(outputs: Any, batch: Arrays) -> Arrays:
        return task.measure(outputs, batch) | {TRAINED_LOSS: loss(outputs, batch)[0]}

    if train.augment_validation or train.select_by == "loss":
        outputs = (lambda views: augmented) if train.augment_validation else feed.outputs
        measure = with_loss if train.select_by == "loss" else task.measure
        predict = _predictor(run, structure, placement, feed, outputs, measure)

    def validate(arrays: Arrays, done: int) -> Sequence[Mapping[str, float]]:
        (draw,) = np.random.SeedSequence((train.seed, done)).generate_state(1)
        measured = dict(predict("val", arrays, run.metric, int(draw)))
        losses = measured.pop(TRAINED_LOSS, None)
        each = [side_by_side.of_head(measured, i) for i in range(len(fit.heads))] or [measured]
        values = [task.evaluate(one).values for one in each]
        if losses is None:
            return values
        means = np.atleast_1d(losses.mean(axis=0, dtype=np.float64)).tolist()
        return [{**one, TRAINED_LOSS: mean} for one, mean in zip(values, means, strict=True)]

    return validate


def _watch(
    monitor: Monitor,
    first: Mapping[str, float],
    measure: Callable[[Arrays], dict[str, float]],
    workdir: Path,
) -> Callable[[Arrays, Mapping[str, float], float], Mapping[str, float]]:
    """Measure what a monitor watches, and stop the run once it has collapsed.

    Nothing is stopped at the last step: the run's page says it.
    """

    def watch(arrays: Arrays, recent: Mapping[str, float], progress: float) -> Mapping[str, float]:
        values = measure(arrays)
        words = monitor.collapse(values, first, recent, progress)
        if words and progress < 1:
            saved = any(path.name.isdecimal() for path in (workdir / CHECKPOINTS).glob("*"))
            kept = f" Earlier checkpoints are kept in {workdir / CHECKPOINTS}." if saved else ""
            raise UserError(
                f"the pre-training has collapsed after {progress:.0%} of its steps: {words}.{kept}"
                " Expected images that stay apart: lower optim.learning_rate, lengthen the warm-up,"
                " or see the settings under 'When it collapses' in docs/pretraining.md."
            )
        return values

    return watch


def _kept(state: TrainState, best: int | None, checkpoints: RunCheckpoints) -> Arrays:
    """Read the arrays that training changed, as they were at the best step; None: as they are."""
    if best is None:
        return side_by_side.at_their_best(state.params | state.followers)
    found = checkpoints.restore_model(best, abstract(model_arrays(state)))
    return found["params"] | found["stats"]


def abstract(tree: Any) -> Any:
    """Shapes, types and shardings of the arrays of `tree`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
