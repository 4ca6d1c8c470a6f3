"""Lowering of a config's real step, which is made by the functions that a run calls."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fmi_jax import parallel
from fmi_jax.aot.program import Program
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.labels import Label
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.protocols.judging import Network
from fmi_jax.protocols.registry import protocol_of
from fmi_jax.run import features
from fmi_jax.run.assembly import (
    Assembly,
    assemble,
    augmentation,
    evaluation_preprocess,
    evaluation_step,
    placement_of,
)
from fmi_jax.tasks.registry import suitable, task_of
from fmi_jax.training import optim, side_by_side
from fmi_jax.training.loop import Plan
from fmi_jax.training.step import TrainState, make_train_step

CHANNELS = 3
CLASSES = 5
# Constants of the schedule; they change no more of the program than their own values.
WARMUP, STEPS = 100, 10_000


def data_set(config: ExperimentConfig) -> DatasetInfo:
    """Describe a data set of colour images with five classes, without any images.

    Its labels have the first form that the protocol takes.
    """
    label, classes = protocol_of(config).parts[0].labels[0], tuple("01234")
    task = suitable(label, classes)
    return DatasetInfo(
        name="aot",
        label=label,
        task=task.name,
        classes=classes,
        channels=CHANNELS,
        size=config.data.prepared_size,
        mean=(0.5,) * CHANNELS,
        std=(0.25,) * CHANNELS,
        metric=task.selects,
        split="",
        limit=0,
        split_sha256="",
        counts={},
        class_counts={},
        class_groups={},
        synthetic=True,
        manifest_sha256="",
    )


def network(config: ExperimentConfig) -> Assembly:
    """Assemble the classifier of `config` for that data set, in the abstract."""
    return assemble(config, CHANNELS, CLASSES)


def lower(program: Program) -> Any:
    """Trace the step of `program` and lower it for its target.

    Raises:
      UsageError: the config is invalid, or its batch cannot be divided over the chips.
    """
    config, target = program.config, program.target
    mesh = parallel.make_mesh(config.train.model_parallel, devices=target.devices())
    parallel.check_batch_size(
        mesh, config.train.batch_size, config.optim.accumulate, "train.batch_size"
    )
    assembly = network(config)
    info = data_set(config)
    batch = _batch(config, info.label)
    if program.what == "train":
        return _train(assembly, config, info, mesh, batch)
    arrays = assembly.partition.shapes(tuple(assembly.partition.variables))
    placement = placement_of(assembly, config, mesh)
    if program.what == "eval":
        step = evaluation_step(assembly, config, info, task_of(info), mesh, placement)
    else:
        net = Network(
            name="",
            config=config,
            spec=assembly.spec,
            arch=assembly.arch,
            partition=assembly.partition,
            arrays={},
            placement=placement,
            dtype=assembly.execution.dtype,
            preprocess=evaluation_preprocess(assembly, config, info),
            info=info,
            identity={},
        )
        step = features._feature_step(net, mesh)
    return step.lower(arrays, batch)  # type: ignore[attr-defined]


def _batch(config: ExperimentConfig, label: Label) -> dict[str, jax.ShapeDtypeStruct]:
    b, side = config.train.batch_size, config.data.prepared_size
    return {
        "inputs": jax.ShapeDtypeStruct((b, side, side, CHANNELS), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((b, *label.shape(CLASSES, side)), label.dtype),
        "mask": jax.ShapeDtypeStruct((b,), jnp.float32),
        "index": jax.ShapeDtypeStruct((b,), jnp.int32),
    }


def _train(
    assembly: Assembly, config: ExperimentConfig, info: DatasetInfo, mesh: Mesh, batch: Any
) -> Any:
    partition = assembly.partition
    schedule = optim.relative_rate(config.optim, WARMUP, STEPS)
    plan = Plan(
        total_steps=STEPS, steps_per_epoch=STEPS / 2, evaluate_at=frozenset(), save_at=frozenset()
    )
    optimizer = optim.make_optimizer(
        config.optim,
        schedule,
        weight_decay=optim.decay_by_step(config.optim, STEPS),
        held=assembly.fit.held(plan),
    )
    loss = (assembly.fit.task or task_of(info)).loss
    heads = (len(assembly.fit.heads),) if assembly.fit.heads else ()
    if heads:
        optimizer = optim.side_by_side(optimizer)
    step = make_train_step(
        partition,
        optimizer,
        schedule,
        augmentation(assembly, config, info, info.label),
        loss=side_by_side.each(loss) if heads else loss,
        accumulate=config.optim.accumulate,
        mesh=mesh,
        placement=placement_of(assembly, config, mesh),
        dtype=assembly.execution.dtype,
        follow=None if assembly.fit.follow is None else assembly.fit.follow(plan),
        logged=assembly.fit.logged,
    )
    params = partition.shapes(partition.params)
    state = TrainState(
        step=jax.ShapeDtypeStruct((), np.int32),
        params=params,
        followers=partition.shapes(partition.followers),
        opt_state=jax.eval_shape(optimizer.init, params),
        learning_rate=jax.ShapeDtypeStruct(heads, np.float32),
        seed=jax.ShapeDtypeStruct((), np.uint32),
        bad_step=jax.ShapeDtypeStruct((), np.int32),
    )
    return step.lower(state, partition.shapes(partition.frozen), batch)  # type: ignore[attr-defined]
