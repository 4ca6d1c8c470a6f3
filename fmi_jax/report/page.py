"""The report of a run: its figures, and one HTML page that needs nothing but itself."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from fmi_jax import atomic
from fmi_jax.artifacts import history as _history
from fmi_jax.artifacts.evaluation import Evaluation
from fmi_jax.artifacts.result import FILE_NAME as RESULT, Finding, Result
from fmi_jax.drawing.template import png_uri, render
from fmi_jax.errors import UserError
from fmi_jax.report.charts import curves
from fmi_jax.tasks.base import ImageOf
from fmi_jax.tasks.registry import TASKS, describe

FILE_NAME = "report.html"
_Pairs = list[tuple[str, str]]


def write_report(workdir: Path, image_of: ImageOf | None = None, name: str = RESULT) -> Path:
    """Write `report.html` of the finished run in `workdir`, and draw the figures of its test.

    Everything comes from the files of the run (`result.json`, `predictions.csv`,
    `metrics.jsonl`, figures), so a report can be drawn again at any time.

    Args:
      workdir: folder of a finished run.
      image_of: gives the uint8 image in a row of the test split; without it the page shows no
        images.
      name: name of the file with the result.

    Returns:
      Path of the page.

    Raises:
      UserError: a file of the run is missing or is not what the run wrote.
    """
    result = Result.read(workdir, name)
    page = (
        _evaluated(workdir, result, image_of)
        if result.finding.evaluations
        else _measured(workdir, result)
    )
    path = workdir / FILE_NAME
    atomic.write_bytes(path, page)
    return path


def _measured(workdir: Path, result: Result) -> bytes:
    """Page of a run without test metrics: its figures, its table and how to repeat it."""
    return render(
        "fmi_jax.report",
        "analysis.html",
        r=result,
        f=result.finding,
        figures=_figures(workdir, result.finding),
        others=_others(workdir, result),
    )


def _evaluated(workdir: Path, result: Result, image_of: ImageOf | None) -> bytes:
    """Page of a run with test metrics; draws the figures of its task and `curves.png`."""
    test = result.test
    task = TASKS[test.task](test.classes)
    kept = workdir / task.file
    result.check_table(kept)
    history = _history.read_history(workdir / _history.FILE_NAME)
    history |= _history.part(history, result.finding.values.get("curves", ""))
    drawn = task.figures(kept, test)
    best = result.best
    assert best is not None
    headline = describe(best.metric, test.task)
    if history:
        png = curves(history, headline.label, best.metric, best.step)
        drawn["curves"] = ("Loss, validation metric and learning rate against steps", png)
    for name, (_, png) in drawn.items():
        atomic.write_bytes(workdir / f"{name}.png", png)
    pictures = {name: (words, png_uri(png)) for name, (words, png) in drawn.items()}
    return render(
        "fmi_jax.report",
        "page.html",
        r=result,
        details=result.finding.values,
        test=test,
        pooled=result.finding.pooled,
        headline=best.metric,
        headline_label=headline.label,
        metrics=_metrics(test),
        per_class=task.per_class,
        class_methods=_class_methods(test, task.per_class),
        of_classes=task.of_classes,
        rule=_rule(result.config.get("operating", {})),
        curves=pictures.pop("curves", None),
        pictures=[(*pictures[name], _is_wide(drawn[name][1])) for name in pictures],
        figures=_figures(workdir, result.finding),
        groups=[] if image_of is None else task.examples(kept, image_of),
        kept=task.file,
        others=_others(workdir, result),
    )


def _is_wide(png: bytes) -> bool:
    """Test whether a picture needs the whole width of a page."""
    width, height = Image.open(io.BytesIO(png)).size
    return width > 1.3 * height


def _others(workdir: Path, result: Result) -> list[tuple[Finding, _Pairs, _Pairs]]:
    """Findings of the judges that were added to the run's own, with their metrics and figures."""
    return [
        (
            found,
            _metrics(found.evaluations["test"]) if found.evaluations else [],
            _figures(workdir, found),
        )
        for found in result.findings[1:]
    ]


def _metrics(test: Evaluation) -> _Pairs:
    """Name and label of every metric that is shown."""
    left_out = TASKS[test.task].left_out
    return [(name, describe(name, test.task).label) for name in test.values if name not in left_out]


def _rule(operating: Mapping[str, Any]) -> str:
    """Say how thresholds were chosen."""
    name, target = operating.get("name", ""), operating.get("target", 0)
    return {
        "youden": "largest sum of sensitivity and specificity",
        "cost": f"least cost, a miss costing {operating.get('miss', 1):g} false alarms",
    }.get(name, f"{name} of at least {target:g}")


def _class_methods(test: Evaluation, per_class: Mapping[str, str]) -> list[str]:
    """Say which metrics of single classes have intervals of which method."""
    used: dict[str, dict[str, None]] = {}
    for name, row in test.per_class.items():
        for metric, label in per_class.items():  # a class may have metrics that no table shows
            if metric in row and (method := test.methods.get(f"{metric}[{name}]")):
                used.setdefault(method, {})[label] = None
    return [f"{method} for {', '.join(labels)}" for method, labels in used.items()]


def _figures(workdir: Path, found: Finding) -> _Pairs:
    """Image and caption of every figure that a judge left."""
    try:
        return [
            (png_uri((workdir / name).read_bytes()), caption)
            for name, caption in found.figures.items()
        ]
    except OSError as error:
        raise UserError(
            f"{workdir} lacks a figure that its {RESULT} names ({error}): run it again."
        ) from error
