"""What training and inference cost, relative to a reference (Figure 3)."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from fmi_jax.artifacts.result import Speed
from fmi_jax.study.report.gains import is_base
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.table import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Iterations:
    """Steps to the best validation score of a row.

    Attributes:
      row: its coordinates in order; `at`: by name.
      relative: steps divided by those of supervised ImageNet under a linear head with the
        backbone treated alike, in the mean over `datasets`.
      datasets: those that have both.
    """

    row: tuple[str, ...]
    at: Mapping[str, str]
    relative: float
    datasets: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Inference of one image by a backbone.

    Attributes:
      row: what stands on it, and the name of the model (of the backbone, where no result says
        which model it is).
      model: that name.
      speed: measured latency.
    """

    row: tuple[str, str]
    model: str
    speed: Speed


def iterations(table: Table) -> list[Iterations]:
    """The rows whose iterations can be compared, in the order of the table."""
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
    """Steps to the best score in the mean over the seeds; NaN where nothing was trained."""
    steps = [run.steps for run in number.runs if run.steps > 0]
    return float(np.mean(steps)) if steps else np.nan


def latencies(numbers: Sequence[Number]) -> list[Latency]:
    """The rows of the timings among `numbers`, those under a linear head before those under a
    transformer, fastest first."""
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
