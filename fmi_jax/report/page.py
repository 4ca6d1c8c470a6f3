"""The report of a run: its figures, and one HTML page that needs nothing but itself."""

from pathlib import Path

from fmi_jax import atomic
from fmi_jax.artifacts.result import FILE_NAME as RESULT
from fmi_jax.artifacts.result import Result
from fmi_jax.drawing.template import png_uri, render
from fmi_jax.errors import UserError
from fmi_jax.report import figures
from fmi_jax.report import history as _history
from fmi_jax.report.examples import ImageOf, confident_mistakes, example, typical_rows
from fmi_jax.tasks.classification import PER_CLASS
from fmi_jax.tasks.predictions import read_predictions
from fmi_jax.tasks.registry import TASKS, describe

FILE_NAME = "report.html"


def write_report(workdir: Path, image_of: ImageOf | None = None) -> Path:
    """Write `report.html` of the finished run in `workdir`, and draw the figures of a classifier.

    Everything comes from the files of the run (`result.json`, `predictions.csv`,
    `metrics.jsonl`, figures), so a report can be drawn again at any time.

    Args:
      workdir: folder of a finished run.
      image_of: gives the uint8 image in a row of the test split; without it the page shows no
        images.

    Returns:
      Path of the page.

    Raises:
      UserError: a file of the run is missing or is not what the run wrote.
    """
    result = Result.read(workdir)
    classified = bool(result.finding.evaluations)
    page = _classified(workdir, result, image_of) if classified else _measured(workdir, result)
    path = workdir / FILE_NAME
    atomic.write_bytes(path, page)
    return path


def _measured(workdir: Path, result: Result) -> bytes:
    """Page of a run that does not classify: its figures, its table and how to repeat it."""
    found = result.finding
    try:
        figures = [
            (png_uri((workdir / name).read_bytes()), caption)
            for name, caption in found.figures.items()
        ]
    except OSError as error:
        raise UserError(
            f"{workdir} lacks a figure that its {RESULT} names ({error}): run it again."
        ) from error
    return render("fmi_jax.report", "analysis.html", r=result, f=found, figures=figures)


def _classified(workdir: Path, result: Result, image_of: ImageOf | None) -> bytes:
    """Page of a run that classifies; draws `confusion.png`, `roc.png` and `curves.png`."""
    test = result.test
    task = TASKS[test.task]
    predictions = read_predictions(workdir / task.file, task.label, test.classes)
    history = _history.read_history(workdir / _history.FILE_NAME)
    history |= _history.part(history, result.finding.values.get("curves", ""))
    assert predictions.labels is not None
    drawn = {"roc": figures.roc(test, predictions.labels, predictions.probabilities)}
    if test.confusion.ndim == 2:  # one table for all classes
        drawn["confusion"] = figures.confusion(test)
    best = result.best
    assert best is not None
    headline = describe(best.metric, test.task)
    if history:
        drawn["curves"] = figures.curves(history, headline.label, best.metric, best.step)
    for name, png in drawn.items():
        atomic.write_bytes(workdir / f"{name}.png", png)

    groups = {"typical": [], "mistakes": []}
    if image_of is not None:
        rows = {
            "typical": typical_rows(predictions, 14),
            "mistakes": confident_mistakes(predictions, 14),
        }
        groups = {
            name: [example(predictions, row, image_of) for row in chosen]
            for name, chosen in rows.items()
        }
    return render(
        "fmi_jax.report",
        "page.html",
        r=result,
        details=result.finding.values,
        test=test,
        headline=best.metric,
        headline_label=headline.label,
        metrics=[(name, describe(name, test.task).label) for name in test.values],
        per_class=PER_CLASS,
        figures={name: png_uri(png) for name, png in drawn.items()},
        **groups,
    )
