"""One experiment from config to result. `run` reads top to bottom.

Where the arrays of the model come from, the first that applies:

1. the workdir holds a checkpoint: everything is resumed from it;
2. `config.backbone.weights` is set: the pretrained backbone, a fresh head;
3. otherwise: random initialisation.
"""

import dataclasses
import datetime
import functools
import hashlib
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fmi_jax import config as config_module
from fmi_jax import metrics, parallel, runtime
from fmi_jax.assembly import (
    Assembly,
    assemble,
    augmentation,
    evaluation_step,
    initial_arrays,
    placement_of,
)
from fmi_jax.checkpoints.run import RunCheckpoints
from fmi_jax.config import ExperimentConfig
from fmi_jax.data import loader
from fmi_jax.data.prepare import open_or_draw
from fmi_jax.data.prepared import DatasetInfo, PreparedDataset
from fmi_jax.metrics import Evaluation
from fmi_jax.report.console import console_table
from fmi_jax.report.page import write_report
from fmi_jax.report.predictions import FILE_NAME as PREDICTIONS
from fmi_jax.report.predictions import Predictions
from fmi_jax.report.result import FILE_NAME as RESULT
from fmi_jax.report.result import Best, Result
from fmi_jax.training import optim
from fmi_jax.training.evaluation import Outputs, predict_split
from fmi_jax.training.loop import Loop, Plan, Progress, counters
from fmi_jax.training.step import Arrays, TrainState, initial_state, make_train_step
from fmi_jax.workdir import RunRecord, owned
from fmi_jax.writers import MetricWriter, ProgressReport


def run(config: ExperimentConfig, workdir: Path) -> Result:
    """Train and evaluate what `config` describes; everything it makes is in `workdir`.

    Called again with the same arguments it resumes a run that was cut short, and reports one
    that is finished.

    Raises:
      UserError: what the user can mend: the config, the data, the weights, a damaged run.
      Stopped: on SIGTERM, after saving.
    """
    config_module.validate(config)
    runtime.configure()
    with owned(workdir):
        return _run(config, workdir)


def _run(config: ExperimentConfig, workdir: Path) -> Result:
    clock = _Clock()
    mesh = parallel.make_mesh(config.train.model_parallel)
    eval_batch_size = config.train.eval_batch_size or config.train.batch_size
    parallel.check_batch_size(
        mesh, config.train.batch_size, config.optim.accumulate, "train.batch_size"
    )
    parallel.check_batch_size(mesh, eval_batch_size, 1, "train.eval_batch_size")

    dataset = open_or_draw(
        Path(config.data.data_dir), config.data.name, config.data.prepared_size, config.data.split
    )
    info = dataset.info
    metric = config.metric or info.metric
    metrics.check_metric(metric, info.task, info.class_groups)
    clock.lap("data")

    assembly = assemble(config, info.channels, len(info.classes))
    record = RunRecord(
        config=config,
        dataset=info.to_json(),
        weights_sha256=_sha256(assembly.weights),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    earlier = RunRecord.read(workdir)
    if earlier is not None:
        earlier.check_same(record, workdir)
        record = earlier
    elif jax.process_index() == 0:
        record.write(workdir)
    if (workdir / RESULT).is_file():
        result = Result.read(workdir)
        _announce(result, workdir)
        return result

    plan = Plan.of(config, len(dataset.ids("train")))
    schedule = optim.learning_rate(
        config.optim, optim.warmup_steps(config.optim, plan.steps_per_epoch), plan.total_steps
    )
    optimizer = optim.make_optimizer(config.optim, schedule)
    placement = placement_of(assembly, config, mesh)
    checkpoints = RunCheckpoints(workdir / "checkpoints")
    resume_step = checkpoints.newest_sound()
    arrays = initial_arrays(assembly, config, placement)
    frozen = {name: arrays.pop(name) for name in assembly.partition.frozen}
    state = initial_state(assembly.partition, arrays, optimizer, mesh, placement)
    progress = Progress()
    if resume_step is not None:
        state, progress = _restore(checkpoints, resume_step, state)
    start_step = resume_step or 0
    clock.lap("model")

    eval_step = evaluation_step(assembly, config, info, mesh, placement)
    predict = functools.partial(
        _predict, eval_step, dataset, mesh=mesh, batch_size=eval_batch_size,
        threads=config.data.threads,
    )  # fmt: skip
    active = jax.process_index() == 0
    report = ProgressReport(plan.total_steps, start_step, config.train.batch_size, active=active)
    report.say(_describe(assembly, info, plan, start_step))
    writer = MetricWriter(workdir, start_step, active=active)
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
        batches=loader.train_batches(
            dataset,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            start_step=start_step,
            threads=config.data.threads,
            workers=config.data.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        validate=lambda arrays: _evaluate(info, predict("val", arrays)).values,
        metric=metric,
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
    clock.lap("training")

    assert progress.best_step is not None
    assert progress.best_value is not None
    model = {"params": state.params, "stats": state.stats}
    best = checkpoints.restore_model(progress.best_step, _abstract(model))
    checkpoints.close()
    arrays = best["params"] | best["stats"] | frozen
    val = _evaluate(info, predict("val", arrays))
    outputs = predict("test", arrays)
    groups = dataset.groups("test")
    test = _evaluate(info, outputs, config.train.bootstrap_samples, config.train.seed, groups)
    clock.lap("test")

    result = Result(
        config=config_module.as_dict(config),
        protocol=assembly.protocol.summary,
        backbone=_backbone(assembly, config, record.weights_sha256),
        dataset=record.dataset,
        seed=config.train.seed,
        steps=plan.total_steps,
        best=Best(
            metric=metric,
            value=progress.best_value,
            step=progress.best_step,
            epoch=progress.best_step / plan.steps_per_epoch,
            seconds=progress.best_seconds,
        ),
        val=val,
        test=test,
        resampled="image" if groups is None else "group",
        seconds={**clock.laps, "training": progress.seconds},
        device=runtime.device(),
        versions=runtime.versions(),
        notes=tuple(_notes(config, assembly, info)),
        started=record.started,
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    if active:
        Predictions(
            task=info.task,
            classes=info.classes,
            ids=dataset.ids("test"),
            probabilities=metrics.probabilities(info.task, outputs.logits),
            labels=metrics.hard_labels(info.task, outputs.labels),
        ).write(workdir / PREDICTIONS)
        result.write(workdir)
        write_report(workdir, image_of=lambda row: dataset.image("test", row))
        _announce(result, workdir)
    return result


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _restore(
    checkpoints: RunCheckpoints, step: int, state: TrainState
) -> tuple[TrainState, Progress]:
    model = {"params": state.params, "stats": state.stats}
    restored = checkpoints.restore(step, _abstract(model), _abstract(counters(state)))
    state = TrainState(
        params=restored.model["params"], stats=restored.model["stats"], **restored.training
    )
    return state, Progress(**restored.meta)


def _predict(
    eval_step: Any,
    dataset: PreparedDataset,
    split: str,
    arrays: Arrays,
    *,
    mesh: Mesh,
    batch_size: int,
    threads: int,
) -> Outputs:
    batches = loader.eval_batches(
        dataset,
        split,
        batch_size=batch_size,
        threads=threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return predict_split(eval_step, arrays, batches, len(dataset.ids(split)), mesh)


def _evaluate(
    info: DatasetInfo,
    outputs: Outputs,
    samples: int = 0,
    seed: int = 0,
    groups: Any = None,
) -> Evaluation:
    measured = (info.task, outputs.logits, outputs.labels, info.classes)
    evaluation = metrics.evaluate(*measured, class_groups=info.class_groups)
    if not samples:
        return evaluation
    intervals = metrics.bootstrap(*measured, samples, seed, groups, info.class_groups)
    return dataclasses.replace(evaluation, intervals=intervals)


def _sha256(path: Path | None) -> str | None:
    if path is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _backbone(assembly: Assembly, config: ExperimentConfig, sha256: str | None) -> dict[str, Any]:
    shapes = assembly.partition.variables
    size = {name: int(np.prod(v.get_value().shape)) for name, (_, v) in shapes.items()}
    return {
        "name": assembly.spec.name,
        "params": sum(n for name, n in size.items() if name.startswith("backbone.")),
        "trained_params": sum(size[name] for name in assembly.partition.params),
        "weights": config.backbone.weights or "random initialisation",
        "weights_sha256": sha256,
    }


def _notes(config: ExperimentConfig, assembly: Assembly, info: DatasetInfo) -> list[str]:
    notes = []
    if assembly.weights is None and config.protocol == "linear_probe":
        notes.append("The frozen backbone has random weights.")
    if info.channels != 3 and assembly.weights is not None:
        notes.append(
            f"The colour stem was adapted to {info.channels} channel(s) by"
            f" {config.backbone.stem!r}; the study uses 'first'."
        )
    return notes


def _describe(assembly: Assembly, info: DatasetInfo, plan: Plan, start_step: int) -> str:
    where = runtime.device()
    begin = f"resuming at step {start_step} of" if start_step else "training for"
    counts = ", ".join(f"{n} {split}" for split, n in info.counts.items())
    return (
        f"{assembly.spec.name}, {assembly.protocol.summary}, on {info.name} ({counts} images),"
        f" {where['count']} {where['kind']} device(s): {begin} {plan.total_steps} steps"
    )


def _announce(result: Result, workdir: Path) -> None:
    if jax.process_index() == 0:
        console_table(result.test, f"Test set, {result.test.count} images")
        print(f"best validation {result.best.metric} {result.best.value:.4f}"
              f" at step {result.best.step}")  # fmt: skip
        print(f"report: {workdir / 'report.html'}")


class _Clock:
    """Wall-clock seconds by phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self._since
        self._since = now
