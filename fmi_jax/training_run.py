"""The run of a protocol that trains: one loop, then the test of its best step.

Where the arrays of the model come from, the first that applies:

1. the workdir holds a checkpoint: everything is resumed from it;
2. `config.backbone.weights` is set: the pretrained backbone (and the transformer of
   `config.transformer.weights`), a fresh head;
3. otherwise: random initialisation.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from fmi_jax.assembly import augmentation, evaluation_step, initial_arrays, placement_of
from fmi_jax.checkpoints.run import RunCheckpoints
from fmi_jax.conclusion import conclude, evaluate
from fmi_jax.data import loader
from fmi_jax.report.result import Best, Result
from fmi_jax.session import Session
from fmi_jax.training import optim
from fmi_jax.training.evaluation import Outputs, predict_split
from fmi_jax.training.loop import Loop, Plan, Progress, counters
from fmi_jax.training.step import Arrays, TrainState, initial_state, make_train_step
from fmi_jax.types import Batch
from fmi_jax.writers import MetricWriter, ProgressReport


def train(session: Session) -> Result:
    """Train from where the workdir stands to the end, and report the best step.

    Raises:
      UserError: the loss is no longer finite, or the checkpoints are damaged.
      Stopped: on SIGTERM, after saving.
    """
    config, info, mesh = session.config, session.info, session.mesh
    dataset, assembly = session.dataset, session.assembly
    plan = Plan.of(config, len(dataset.ids("train")))
    schedule = optim.learning_rate(
        config.optim, optim.warmup_steps(config.optim, plan.steps_per_epoch), plan.total_steps
    )
    optimizer = optim.make_optimizer(config.optim, schedule)
    placement = placement_of(assembly, config, mesh)
    checkpoints = RunCheckpoints(session.workdir / "checkpoints")
    resume_step = checkpoints.newest_sound()
    arrays = initial_arrays(assembly, config, placement)
    frozen = {name: arrays.pop(name) for name in assembly.partition.frozen}
    state = initial_state(assembly.partition, arrays, optimizer, mesh, placement)
    progress = Progress()
    if resume_step is not None:
        state, meta = restore(checkpoints, resume_step, state)
        progress = Progress(**meta)
    start_step = resume_step or 0
    session.clock.lap("model")

    predict = predictor(session, evaluation_step(assembly, config, info, mesh, placement))
    report = ProgressReport(
        plan.total_steps, start_step, config.train.batch_size, active=session.active
    )
    report.say(f"{session.heading()}: {beginning(plan, start_step)}")
    writer = MetricWriter(session.workdir, start_step, active=session.active)
    loop = Loop(
        config=config,
        plan=plan,
        mesh=mesh,
        train_step=make_train_step(
            assembly.partition,
            optimizer,
            schedule,
            augmentation(assembly, config, info),
            task=info.task,
            seed=config.train.seed,
            accumulate=config.optim.accumulate,
            mesh=mesh,
            placement=placement,
        ),
        frozen=frozen,
        batches=train_batches(session, start_step),
        validate=lambda arrays: evaluate(info, predict("val", arrays)).values,
        metric=session.metric,
        batch_ids=lambda step: loader.batch_ids(
            dataset, config.train.seed, step, config.train.batch_size
        ),
        checkpoints=checkpoints,
        writer=writer,
        report=report,
        progress=progress,
    )
    if start_step < plan.total_steps:
        state = loop.run(state, start_step)
    writer.close()
    session.clock.lap("training")

    assert progress.best_step is not None
    assert progress.best_value is not None
    model = {"params": state.params, "stats": state.stats}
    best = checkpoints.restore_model(progress.best_step, abstract(model))
    checkpoints.close()
    arrays = best["params"] | best["stats"] | frozen
    return conclude(
        session,
        best=Best(
            metric=session.metric,
            value=progress.best_value,
            step=progress.best_step,
            epoch=progress.best_step / plan.steps_per_epoch,
            seconds=progress.best_seconds,
        ),
        steps=plan.total_steps,
        val=predict("val", arrays),
        test=predict("test", arrays),
        seconds={"training": progress.seconds},
    )


def predictor(
    session: Session, eval_step: Callable[[Arrays, Arrays], Arrays]
) -> Callable[[str, Arrays], Outputs]:
    """`(split, arrays of the model) -> outputs of every image of the split`."""

    def predict(split: str, arrays: Arrays) -> Outputs:
        count = len(session.dataset.ids(split))
        batches = eval_batches(session, split)
        return predict_split(eval_step, arrays, batches, count, session.mesh)

    return predict


def eval_batches(session: Session, split: str) -> Iterator[Batch]:
    """This process's part of the batches of one pass over a split."""
    return loader.eval_batches(
        session.dataset,
        split,
        batch_size=session.eval_batch_size,
        threads=session.config.data.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def train_batches(session: Session, start_step: int) -> Iterator[Batch]:
    """This process's part of every batch, from the next step on."""
    config = session.config
    return loader.train_batches(
        session.dataset,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        start_step=start_step,
        threads=config.data.threads,
        workers=config.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def restore(
    checkpoints: RunCheckpoints, step: int, state: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """A state like `state` from the checkpoint of a step, and what the loop remembered there."""
    model = {"params": state.params, "stats": state.stats}
    restored = checkpoints.restore(step, abstract(model), abstract(counters(state)))
    state = TrainState(
        params=restored.model["params"], stats=restored.model["stats"], **restored.training
    )
    return state, restored.meta


def abstract(tree: Any) -> Any:
    """Shapes, types and places of the arrays of `tree`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def beginning(plan: Plan, start_step: int) -> str:
    """From where to where a run trains, for the console."""
    begin = f"resuming at step {start_step} of" if start_step else "training for"
    return f"{begin} {plan.total_steps} steps"
