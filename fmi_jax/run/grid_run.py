"""The run of a grid of heads: every learning rate and seed in one pass, then the best rate's test.

Loop, step and checkpoints are those of every run that trains. The heads stand on the frozen
backbone, or on its features where they are kept (`probe_grid.cached`).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from fmi_jax.artifacts.result import Evaluation, Result
from fmi_jax.data import feature_batches
from fmi_jax.protocols.heads.head_grid import FeatureHeads
from fmi_jax.protocols.spec import Head, ProtocolSpec
from fmi_jax.run.assembly import placement_of
from fmi_jax.run.conclusion import conclude
from fmi_jax.run.network import initial_arrays
from fmi_jax.run.session import Session
from fmi_jax.run.training_run import Subject, best_of, on_images, predictor, run_loop
from fmi_jax.tasks.base import Measured, Task
from fmi_jax.training.loop import Plan
from fmi_jax.training.partition import partition
from fmi_jax.training.side_by_side import GridLoop, GridProgress, at_their_best, of_head


def train_grid(session: Session) -> Result:
    """Train all heads from where the workdir stands to the end, and report the chosen one.

    Raises:
      UserError: a loss is no longer finite, or the checkpoints are damaged.
      Stopped: on SIGTERM, after saving.
    """
    config, task = session.config, session.task
    assert isinstance(session.protocol, ProtocolSpec)
    assert session.protocol.grid is not None
    heads = session.protocol.grid.heads(config)
    plan = Plan.of(config, len(session.dataset.ids("train")))
    subject = on_features(session) if config.probe_grid.cached else on_images(session)
    predict = predictor(session, subject, heads)
    state, frozen, progress, checkpoints = run_loop(
        session,
        plan,
        subject,
        loop=functools.partial(GridLoop, names=[head.name for head in heads]),
        progress=lambda meta: GridProgress.from_json(meta, len(heads)),
        validate=lambda arrays: [
            head.values for head in of_each(task, predict("val", arrays), len(heads))
        ],
        learning_rates=np.array([head.learning_rate for head in heads], np.float32),
    )
    checkpoints.close()
    arrays = at_their_best(state.params | state.followers | frozen)
    val, test = predict("val", arrays), predict("test", arrays)
    of_val, of_test = (of_each(task, measured, len(heads)) for measured in (val, test))
    score = task.metric(session.metric).score
    chosen = choose(heads, [score(head.values[session.metric]) for head in of_val])
    if session.active:  # what the run reports is written last
        for i in same_rate(heads, chosen):
            path = session.workdir / predictions_name(heads[i].seed)
            task.keep(path, of_head(test, i), session.dataset.rows("test"))
    finding = session.evaluated(
        of_head(val, chosen),
        of_head(test, chosen),
        values=details(heads, chosen, progress, of_val, of_test),
        notes=tuple(notes(session)),
    )
    result = conclude(
        session,
        finding=finding,
        best=best_of(session, plan, progress.heads[chosen]),
        steps=plan.total_steps,
        seconds={"training": progress.seconds},
    )
    checkpoints.keep_model(plan.total_steps)  # it holds every head's best
    return result


def on_features(session: Session) -> Subject:
    """The backbone sees every image once, unaugmented; the heads need nothing else of it."""
    config, assembly = session.config, session.assembly
    splits = session.features()
    heads = nnx.eval_shape(lambda: FeatureHeads(assembly.create(jax.random.key(0)).head))  # type: ignore[attr-defined]
    protocol = assembly.protocol
    structure = partition(heads, protocol.trainable(config, assembly.arch), protocol.follows)
    placement = placement_of(assembly, config, session.mesh)
    return Subject(
        partition=structure,
        placement={name: placement[name] for name in structure.variables},
        arrays=initial_arrays(assembly, config, placement, structure.variables),
        augment=lambda keys, batch: batch,
        preprocess=lambda features: features,
        batches=lambda start_step: feature_batches.train_batches(
            splits["train"].features,
            splits["train"].labels,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            start_step=start_step,
            places=session.held_places(config.train.batch_size),
        ),
        eval_batches=lambda split: feature_batches.eval_batches(
            splits[split].features,
            splits[split].labels,
            batch_size=session.eval_batch_size,
            places=session.held_places(session.eval_batch_size),
        ),
    )


def of_each(task: Task, measured: Measured, heads: int) -> list[Evaluation]:
    """Evaluate every head on a split, from what was measured of all of them."""
    return [task.evaluate(of_head(measured, head)) for head in range(heads)]


def choose(heads: Sequence[Head], scores: Sequence[float]) -> int:
    """The first head of the rate that is best by validation, in the mean over its seeds.

    Not the head that is best: of several seeds it would be the luckiest, and no longer comparable
    with the one seed of a linear probe. The first of equal rates.

    Args:
      heads: those of one rate stand together.
      scores: score of each head at its best step, more being better.
    """
    rates = list(dict.fromkeys(head.learning_rate for head in heads))
    means = np.array(scores).reshape(len(rates), -1).mean(axis=1)
    return int(np.argmax(means)) * (len(heads) // len(rates))


def same_rate(heads: Sequence[Head], chosen: int) -> list[int]:
    """The heads of the chosen one's learning rate, itself among them."""
    return [i for i, h in enumerate(heads) if h.learning_rate == heads[chosen].learning_rate]


def predictions_name(seed: int) -> str:
    """The file of what the head of a seed says of the test images."""
    return f"predictions_seed{seed}.csv"


def details(
    heads: Sequence[Head],
    chosen: int,
    progress: GridProgress,
    val: Sequence[Evaluation],
    test: Sequence[Evaluation],
) -> dict[str, Any]:
    """Every head, and the chosen rate over its seeds, as JSON values for `Finding.values`.

    Each head stands with the metrics of its best step; `seeds` has the mean and the standard
    deviation (of a sample) of the test metrics over the seeds of the chosen rate.
    """
    same = same_rate(heads, chosen)
    over_seeds = {name: [test[i].values[name] for i in same] for name in test[chosen].values}
    return {
        "chosen": {"learning_rate": heads[chosen].learning_rate, "seed": heads[chosen].seed},
        "curves": heads[chosen].name,
        "seeds": {
            "count": len(same),
            "predictions": {heads[i].seed: predictions_name(heads[i].seed) for i in same},
            "test_mean": {name: float(np.mean(values)) for name, values in over_seeds.items()},
            "test_std": {
                name: float(np.std(values, ddof=1))
                for name, values in over_seeds.items()
                if len(same) > 1
            },
        },
        "heads": [
            {
                "learning_rate": head.learning_rate,
                "seed": head.seed,
                "best_step": progress.heads[i].best_step,
                "val": val[i].values,
                "test": test[i].values,
            }
            for i, head in enumerate(heads)
        ],
    }


def notes(session: Session) -> list[str]:
    """What sets a grid apart from separate linear probes."""
    settings, found = session.config.probe_grid, []
    if settings.seeds > 1:
        found.append(
            f"The {settings.seeds} seeds of a learning rate share the order and augmentation of"
            " the images; they differ in the initialisation of the head alone."
        )
    if settings.cached:
        found.append("The heads were trained on features of images without augmentation.")
    return found
