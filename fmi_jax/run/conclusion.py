"""What every run that classifies ends with: metrics, predictions, result, report."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmi_jax import config as config_module
from fmi_jax.artifacts.result import Best, Result
from fmi_jax.report.console import console_table
from fmi_jax.report.page import write_report
from fmi_jax.run import runtime
from fmi_jax.run.session import Session, now
from fmi_jax.tasks.base import Measured


def conclude(
    session: Session,
    *,
    best: Best,
    steps: int,
    val: Measured,
    test: Measured,
    seconds: Mapping[str, float],
    details: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Result:
    """Evaluate both splits, write everything that a finished run leaves, and say it.

    Args:
      session: the run.
      best: what was chosen on validation.
      steps: optimizer steps of the whole run.
      val, test: measurements of what was chosen.
      seconds: wall-clock time by phase, beside that of the session's own clock.
      details: of the protocol, for `Result.details`.
      notes: what a reader must know, beside what is noted of every run.
    """
    config, dataset, record, task = session.config, session.dataset, session.record, session.task
    rows = dataset.rows("test")
    on_val, on_test = task.evaluate(val), task.evaluate(test)
    intervals = task.bootstrap(test, config.train.bootstrap_samples, config.train.seed, rows.groups)
    session.clock.lap("test")
    result = Result(
        config=config_module.as_dict(config),
        protocol=session.protocol.summary,
        backbone=describe_backbone(session),
        dataset=record.dataset,
        seed=config.train.seed,
        steps=steps,
        best=best,
        val=on_val,
        test=dataclasses.replace(on_test, intervals=intervals),
        resampled="image" if rows.groups is None else "group",
        seconds={**session.clock.laps, **seconds},
        device=runtime.device(),
        versions=runtime.versions(),
        notes=(*common_notes(session), *notes),
        details=dict(details or {}),
        started=record.started,
        finished=now(),
        unread=tuple(session.protocol.unread),
    )
    if session.active:
        task.keep(session.workdir / task.file, test, rows)
        result.write(session.workdir)
        write_report(session.workdir, image_of=lambda row: dataset.image("test", row))
        announce(session, result)
    return result


def announce(session: Session, result: Result) -> None:
    """Print the test metrics of a finished run, and where its report is."""
    if not session.active:
        return
    best = result.best
    console_table(result.test, f"Test set, {result.test.count} images")
    at = f" at step {best.step}" if best.step else ""
    print(f"best validation {best.metric} {best.value:.4f}{at}")
    print(f"report: {session.workdir / 'report.html'}")


def describe_backbone(session: Session) -> dict[str, Any]:
    """`Result.backbone`."""
    assembly, config, record = session.assembly, session.config, session.record
    shapes = assembly.partition.variables
    size = {name: int(np.prod(v.get_value().shape)) for name, (_, v) in shapes.items()}
    learned = assembly.partition.params if session.protocol.trains else ()
    trained = sum(size[name] for name in learned)
    if assembly.protocol.grid is not None:
        trained //= len(assembly.protocol.grid.heads(config))  # those of the one reported
    described = {
        "name": assembly.spec.name,
        "params": sum(n for name, n in size.items() if name.startswith("backbone.")),
        "trained_params": trained,
        "weights": config.backbone.weights or "random initialisation",
        "weights_sha256": record.weights_sha256,
        **session.origin.described(),
    }
    if assembly.transformer is not None:
        described |= {
            "transformer": assembly.transformer.name,
            "transformer_weights": config.transformer.weights or "random initialisation",
            "transformer_weights_sha256": record.transformer_sha256,
        }
    return described


def common_notes(session: Session) -> list[str]:
    """What a reader must know of any run with these weights on these images."""
    assembly, config, info = session.assembly, session.config, session.info
    notes = [*session.origin.notes]
    if session.dataset.train_rows is not None:
        notes.append(
            f"Trained on {info.counts['train']} of {session.dataset.manifest['counts']['train']}"
            f" training images (subset_seed={config.data.subset_seed})."
        )
    drawn = assembly.weights is None and not config.backbone.run
    if drawn and any(name.startswith("backbone.") for name in assembly.partition.frozen):
        notes.append("What is frozen of the backbone has random weights.")
    if info.channels != 3 and assembly.weights is not None:
        notes.append(
            f"The colour stem was adapted to {info.channels} channel(s) by"
            f" {config.backbone.stem!r}; the study uses 'first'."
        )
    if assembly.transformer is not None and assembly.transformer_weights is None:
        notes.append(
            "The transformer on top started from random weights; the study starts it from those"
            " of deit_base (transformer.weights='in1k')."
        )
    return notes
