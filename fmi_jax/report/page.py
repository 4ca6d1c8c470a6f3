"""The report of a run: its figures, and one HTML page that needs nothing but itself."""

import base64
import datetime
import json
import math
from pathlib import Path
from typing import Any

import jinja2

from fmi_jax import atomic
from fmi_jax.metrics import METRICS, PER_CLASS, Evaluation
from fmi_jax.report import figures
from fmi_jax.report import history as _history
from fmi_jax.report import predictions as _predictions
from fmi_jax.report.examples import ImageOf, confident_mistakes, example, typical_rows
from fmi_jax.report.result import Result
from fmi_jax.types import Task

FILE_NAME = "report.html"


def write_report(workdir: Path, image_of: ImageOf | None = None) -> Path:
    """Draw the finished run in `workdir`: `confusion.png`, `roc.png`, `curves.png`, `report.html`.

    Everything comes from the files of the run (`result.json`, `predictions.csv`,
    `metrics.jsonl`), so a report can be drawn again at any time.

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
    test = result.test
    predictions = _predictions.read_predictions(
        workdir / _predictions.FILE_NAME, test.task, test.classes
    )
    history = _history.read_history(workdir / _history.FILE_NAME)
    assert predictions.labels is not None
    drawn = {"roc": figures.roc(test, predictions.labels, predictions.probabilities)}
    if test.task is not Task.MULTILABEL:
        drawn["confusion"] = figures.confusion(test)
    if history:
        best = result.best
        drawn["curves"] = figures.curves(history, best.metric, test.task, best.step)
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
    template = _environment().get_template("page.html")
    page = template.render(
        r=result,
        test=test,
        headline=result.best.metric,
        headline_label=METRICS[result.best.metric].labels[test.task],
        metrics=[(name, METRICS[name].labels[test.task]) for name in test.values],
        per_class=PER_CLASS,
        figures={
            name: "data:image/png;base64," + base64.b64encode(png).decode()
            for name, png in drawn.items()
        },
        **groups,
    )
    path = workdir / FILE_NAME
    atomic.write_bytes(path, page.encode())
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fmi_jax", "report"),
        autoescape=True,  # names of classes, images and data sets come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "interval": _interval,
        "duration": _duration,
        "large": _large,
        "flat": _flat,
        "when": _when,
    }
    return environment


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def _interval(evaluation: Evaluation, name: str) -> str:
    low, high = evaluation.intervals.get(name, (math.nan, math.nan))
    return "" if math.isnan(low) else f"{_number(low)} to {_number(high)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _large(count: int) -> str:
    """A parameter count as a paper writes it."""
    for size, unit in ((10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:,}"


def _when(iso: str) -> str:
    return datetime.datetime.fromisoformat(iso).strftime("%-d %B %Y, %H:%M")


def _flat(values: dict[str, Any], where: str = "") -> dict[str, str]:
    """Nested JSON values as text by dotted name."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{where}{name}.")
        elif isinstance(value, list):
            flat[where + name] = ", ".join(map(_text, value))
        else:
            flat[where + name] = _text(value)
    return flat


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if type(value) is int:
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
