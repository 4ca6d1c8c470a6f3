"""Ends a run: writes its result and its page, and prints a few lines on the console."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fmi_jax import atomic
from fmi_jax.artifacts.charts import PICTURES
from fmi_jax.artifacts.checkpoints import keep_models
from fmi_jax.artifacts.result import FILE_NAME as RESULT, PENDING, Best, Finding, Result, tables_in
from fmi_jax.data.registry import note_on
from fmi_jax.data.remarks import remarks_on
from fmi_jax.errors import UserError
from fmi_jax.fields import as_dict
from fmi_jax.report.charts import draw_chart
from fmi_jax.report.console import console_table, per_group_line
from fmi_jax.report.page import FILE_NAME as PAGE, write_report
from fmi_jax.run import runtime
from fmi_jax.run.origin import CHECKPOINTS, chosen_head, kept_steps
from fmi_jax.run.session import Session, now


def conclude(session: Session, findings: Sequence[Finding]) -> Result:
    """Make the result of a run, and write everything that a finished run leaves.

    Args:
      session: run that ends.
      findings: results of its judges, in their order.
    """
    config, record = session.config, session.record
    if not config.data.thumbnails:
        findings = [_without_pictures(found) for found in findings]
    trained, fitted = session.protocol.fit, session.fitted
    data = remarks_on(session.dataset)
    measured = fitted is not None or any(found.evaluations for found in findings)
    result = Result(
        config=as_dict(config),
        protocol=session.protocol.summary,
        adapt="" if trained is None else trained.adapt,
        head="" if trained is None else trained.head,
        backbone=describe_backbone(session),
        dataset={**record.dataset, "group_counts": session.info.group_counts, "remarks": data},
        seed=config.train.seed,
        steps=0 if fitted is None else fitted.steps,
        best=_best(session, findings[0]),
        findings=tuple(findings),
        seconds={
            **session.clock.laps,
            **({} if session.selection is None else {"training": session.selection.seconds}),
        },
        device=runtime.device(),
        versions=runtime.versions(),
        notes=(
            *warnings(session, findings),
            *((*common_notes(session), *data) if measured else session.origin.notes),
        ),
        started=record.started,
        finished=now(),
        unread=tuple(session.protocol.unread),
        tables=tables_in(session.workdir),
    )
    if session.active:
        charts = {name: chart for found in findings for name, chart in found.charts.items()}
        for name, chart in charts.items():
            atomic.write_bytes(session.workdir / name, draw_chart(chart))
        result.write(session.workdir, PENDING)
        finish(session, result)
    return result


def finish(session: Session, result: Result) -> None:
    """Write the page of a run that is measured, tidy its checkpoints, and say what it found.

    Its result waits under another name until the rest is there: a run that is killed meanwhile
    has no `result.json`, and goes on from here.
    """
    workdir, pending = session.workdir, session.workdir / PENDING
    shown = session.config.data.thumbnails
    if pending.is_file() or not (workdir / PAGE).is_file():
        name = PENDING if pending.is_file() else RESULT
        image_of = (lambda row: session.dataset.image("test", row)) if shown else None
        write_report(workdir, image_of, name)
    checkpoints, steps = workdir / CHECKPOINTS, kept_steps(session.assembly.fit, result)
    if any((checkpoints / str(step) / "training").is_dir() for step in steps):
        try:
            keep_models(checkpoints, steps)
        except UserError as error:
            print(f"note: {error} No checkpoint was deleted.")
    if pending.is_file():
        pending.replace(workdir / RESULT)
    announce(session, result)


def _without_pictures(found: Finding) -> Finding:
    """Leave out the charts that show images of the data."""
    left = {name for name, chart in found.charts.items() if isinstance(chart, PICTURES)}
    return dataclasses.replace(
        found,
        charts={name: chart for name, chart in found.charts.items() if name not in left},
        figures={name: words for name, words in found.figures.items() if name not in left},
    )


def _best(session: Session, own: Finding) -> Best | None:
    """Describe the choice on validation: a step of the training, or a setting of a judge."""
    fitted, metric = session.fitted, session.metric
    if "val" not in own.evaluations:
        return None
    if fitted is None or session.selection is None:
        return Best(
            metric=metric,
            value=own.evaluations["val"].values[metric],
            step=0,
            epoch=0.0,
            seconds=session.clock.laps["features"] + session.clock.laps["judging"],
        )
    heads = session.assembly.fit.heads
    track = session.selection.tracks[chosen_head(heads, own) if heads else 0]
    assert track.best_step is not None
    value, train = track.best_value, session.config.train
    if train.select_by == "loss" or train.augment_validation:
        value = own.evaluations["val"].values[metric]  # of the images as they are
    assert value is not None
    return Best(
        metric=metric,
        value=value,
        step=track.best_step,
        epoch=track.best_step / fitted.plan.steps_per_epoch,
        seconds=track.best_seconds,
    )


def warnings(session: Session, findings: Sequence[Finding]) -> Iterator[str]:
    """List what a reader must know before any number; first in the notes and on the console."""
    for found in findings:
        if "test" in found.evaluations and (
            words := session.task.warning(found.evaluations["test"])
        ):
            yield f"{found.title}: {words}" if found.title else words


def announce(session: Session, result: Result) -> None:
    """Print what a finished run found, and where its report is."""
    for warning in warnings(session, result.findings):
        print(f"note: {warning}")
    best = result.best
    for found in result.findings:
        if "test" in found.evaluations:
            test = found.evaluations["test"]
            title = f"{found.title}: test set" if found.title else "Test set"
            console_table(test, f"{title}, {test.count} images")
        if found.pooled is not None:
            print(per_group_line(found.pooled, session.metric))
        if found.text:
            print(found.text)
    if best is not None:
        at = f" at step {best.step}" if best.step else ""
        by_loss = best.step and session.config.train.select_by == "loss"
        how = "validation" if by_loss else "best validation"
        why = ", where the trained loss is lowest" if by_loss else ""
        print(f"{how} {best.metric} {best.value:.4f}{at}{why}")
    print(f"report: {session.workdir / 'report.html'}")


def describe_backbone(session: Session) -> dict[str, Any]:
    """Describe the backbone, for `Result.backbone`."""
    assembly, config, record = session.assembly, session.config, session.record
    size = {
        name: int(np.prod(variable.get_value().shape))
        for name, (_, variable) in assembly.partition.variables.items()
    }
    trained = sum(size[name] for name in assembly.partition.params)
    described = {
        "name": assembly.spec.name,
        "params": sum(n for name, n in size.items() if name.startswith("backbone.")),
        # Of several heads, those of the one that is reported.
        "trained_params": trained // max(1, len(assembly.fit.heads)),
        "weights": config.backbone.weights or "random initialisation",
        "weights_sha256": record.weights_sha256,
    }
    if session.origin.ancestors:
        parent, pixels = session.origin.ancestors[0], session.origin.info
        described |= {
            "weights": f"run {parent.folder}",
            "run": parent.folder,
            "run_sha256": parent.sha256,
            "pixels": {"dataset": pixels.name, "mean": list(pixels.mean), "std": list(pixels.std)},
        }
    fit = session.protocol.fit
    if fit is not None and fit.transformer is not None:
        asked = fit.transformer(config)
        described |= {
            "transformer": asked.backbone,
            "transformer_weights": asked.weights or "random initialisation",
            "transformer_weights_sha256": record.transformer_sha256,
        }
    return described


def common_notes(session: Session) -> Iterator[str]:
    """List facts that a reader must know of any run with these weights on these images."""
    assembly, config, info = session.assembly, session.config, session.info
    yield from session.origin.notes
    if note := note_on(info):
        yield note
    if session.dataset.train_rows is not None:
        yield (
            f"Trained on {info.counts['train']} of {session.dataset.manifest['counts']['train']}"
            f" training images (subset_seed={config.data.subset_seed})."
        )
        if session.selection is None or assembly.fit.keeps == "best":
            yield (
                f"What is reported was chosen on all {info.counts['val']} validation images: their"
                f" labels are used beside those of the {info.counts['train']} training images."
            )
    fitted = session.fitted
    if fitted is not None and fitted.steps < fitted.plan.total_steps:
        assert session.selection is not None
        why = (
            f"the learning rate had fallen below {config.optim.plateau_floor:g} of its full value"
            " (optim.plateau_floor)"
        )
        if session.selection.out_of_patience(config.train):
            why = (
                f"validation had not improved {config.train.patience + 1} times in a row"
                " (train.patience)"
            )
        yield f"Training ended after {fitted.steps} of {fitted.plan.total_steps} steps: {why}."
    drawn = assembly.weights is None and not config.backbone.run
    if drawn and any(name.startswith("backbone.") for name in assembly.partition.frozen):
        yield "What is frozen of the backbone has random weights."
    if info.channels != 3 and assembly.weights is not None:
        yield (
            f"The colour stem was adapted to {info.channels} channel(s) by"
            f" {config.backbone.stem!r}; the study uses 'first'."
        )
    if assembly.transformer is not None and assembly.transformer_weights is None:
        yield (
            "The transformer on top started from random weights; the study starts it from those"
            " of deit_base (transformer.weights='in1k')."
        )
