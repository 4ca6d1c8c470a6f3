"""Cost of training and inference, relative to a reference (Figure 3)."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from fmi_jax.artifacts.result import Speed
from fmi_jax.study.report.gains import is_base
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.table import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Iterations:
    """Relative number of steps to the best validation score of a row.

    Attributes:
      row: coordinates of the row, in order.
      at: coordinates of the row, by name.
      relative: steps divided by those of supervised ImageNet under a linear head with the
        backbone treated alike, averaged over `datasets`.
      datasets: data sets that have both.
    """

    row: tuple[str, ...]
    at: Mapping[str, str]
    relative: float
    datasets: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Inference latency of a backbone on one image.

    Attributes:
      row: head, and name of the model (or of the backbone, if no result says which model it is).
      model: name of the model or backbone.
      speed: measured latency.
    """

    row: tuple[str, str]
    model: str
    speed: Speed


def iterations(table: Table) -> list[Iterations]:
    """Compute the relative steps of all rows that can be compared, in the order of the table."""
    base = {_place(n): n for n in table.numbers if is_base(n.setting.at)}
    found = []
    for row in table.rows:
        numbers = [cell.number for cell in row.cells if cell is not None]
        ratios = {
            n.setting.dataset: ratio
            for n in numbers
            if (reference := base.get(_place(n))) is not None
            and (ratio := _steps(n) / _steps(reference)) == ratio
        }
        if ratios:
            found.append(
                Iterations(
                    row=row.names,
                    at=numbers[0].setting.at,
                    relative=float(np.mean(list(ratios.values()))),
                    datasets=tuple(ratios),
                )
            )
    return found


def _place(number: Number) -> tuple[str, str]:
    return number.setting.dataset, number.setting.at.get("backbone", "")


def _steps(number: Number) -> float:
    """Mean steps to the best score over the seeds; NaN if nothing was trained."""
    steps = [run.steps for run in number.runs if run.steps > 0]
    return float(np.mean(steps)) if steps else np.nan


def latencies(numbers: Sequence[Number]) -> list[Latency]:
    """Collect the latencies of the timings among `numbers`, those under a linear head before those
    under a transformer, fastest first."""
    models = {
        n.result.backbone["name"]: n.setting.at["model"]
        for n in numbers
        if n.runs and "model" in n.setting.at
    }
    found = []
    for speed in (speed for number in numbers for speed in number.speeds):
        model = models.get(speed.backbone) or speed.backbone
        found.append(Latency(row=(speed.transformer or "linear", model), model=model, speed=speed))
    return sorted(found, key=lambda latency: (latency.row[0] != "linear", latency.speed.median))
