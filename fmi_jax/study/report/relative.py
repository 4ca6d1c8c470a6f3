"""Rows relative to a baseline: gain (Figure 1), cost of training and inference (Figure 3)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from fmi_jax.artifacts.result import Speed
from fmi_jax.study.report.comparisons import published_draws
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.samples import RESAMPLES, Sample
from fmi_jax.study.report.statistics import mean_relative
from fmi_jax.study.report.table import Table
from fmi_jax.tasks.weighted import interval

BASE: Mapping[str, str] = {"model": "imnet-1k-sup", "head": "linear"}
"""Coordinates of the baseline: supervised ImageNet under a linear head."""

BASELINE = f"{BASE['model']} under a {BASE['head']} head"
"""Baseline in words."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Gain:
    """Mean gain of one row over the baseline, in percent.

    Attributes:
      row: coordinates of the row, in order.
      at: coordinates of the row, by name.
      ours: mean of 100 (value / baseline - 1) over `datasets`; NaN if there are none.
      interval: 95% interval of `ours`; NaN if a number has no sample.
      numbers: numbers that `ours` is made of.
      datasets: data sets that have both numbers.
      published, published_datasets: mean gain and data sets by the published numbers.
      published_interval: 95% interval of `published` over the published runs; NaN if a number was
        published without a spread.
    """

    row: tuple[str, ...]
    at: Mapping[str, str]
    ours: float
    interval: tuple[float, float]
    numbers: tuple[Number, ...]
    datasets: tuple[str, ...]
    published: float
    published_datasets: tuple[str, ...]
    published_interval: tuple[float, float]


def is_base(at: Mapping[str, str]) -> bool:
    """Test whether coordinates are those of the baseline."""
    return all(at.get(name) == value for name, value in BASE.items())


def gains(table: Table, samples: Mapping[Number, Sample]) -> list[Gain]:
    """Compute the gains of all rows except the baseline."""
    base = {n.setting.dataset: n for n in table.numbers if is_base(n.setting.at)}
    return [
        _gain(row.names, row.numbers, base, samples)
        for row in table.rows
        if not is_base(row.numbers[0].setting.at)
    ]


def _gain(
    row: tuple[str, ...],
    numbers: Sequence[Number],
    base: Mapping[str, Number],
    samples: Mapping[Number, Sample],
) -> Gain:
    pairs = [(n, base[n.setting.dataset]) for n in numbers if n.setting.dataset in base]
    both = [(n, b) for n, b in pairs if not math.isnan(n.mean) and not math.isnan(b.mean)]
    printed = {
        n.setting.dataset: (n.setting.published.mean, b.setting.published.mean)
        for n, b in pairs
        if n.setting.published is not None and b.setting.published is not None
    }
    bounds = (math.nan, math.nan)
    if both and all(n in samples and b in samples for n, b in both):
        bounds = interval(
            mean_relative(
                {n.setting.dataset: samples[n].values for n, _ in both},
                {b.setting.dataset: samples[b].values for _, b in both},
            )
        )
    return Gain(
        row=row,
        at=numbers[0].setting.at,
        ours=_mean({n.setting.dataset: (n.mean, b.mean) for n, b in both}),
        interval=bounds,
        numbers=tuple(number for pair in both for number in pair),
        datasets=tuple(n.setting.dataset for n, _ in both),
        published=_mean(printed),
        published_datasets=tuple(printed),
        published_interval=_published_interval(pairs),
    )


def _published_interval(pairs: Sequence[tuple[Number, Number]]) -> tuple[float, float]:
    both = {
        n.setting.dataset: (n, b)
        for n, b in pairs
        if n.setting.published is not None and b.setting.published is not None
    }
    printed = [one.setting.published for pair in both.values() for one in pair]
    if not all(one is not None and one.has_spread for one in printed) or not printed:
        return math.nan, math.nan
    own, base = (
        {name: published_draws(pair[side], RESAMPLES) for name, pair in both.items()}
        for side in (0, 1)
    )
    return interval(mean_relative(own, base))


def _mean(pairs: Mapping[str, tuple[float, float]]) -> float:
    if not pairs:
        return math.nan
    return float(
        mean_relative(
            {name: np.asarray(value) for name, (value, _) in pairs.items()},
            {name: np.asarray(base) for name, (_, base) in pairs.items()},
        )
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Iterations:
    """Relative number of steps to the best validation score of a row.

    Attributes:
      row: coordinates of the row, in order.
      at: coordinates of the row, by name.
      relative: steps divided by those of supervised ImageNet under a linear head with the
        backbone treated alike, averaged over the data sets that have both.
    """

    row: tuple[str, ...]
    at: Mapping[str, str]
    relative: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Inference latency of a backbone on one image.

    Attributes:
      row: head, and name of the model (or of the backbone, if no result says which model it is).
      speed: measured latency.
    """

    row: tuple[str, str]
    speed: Speed


def iterations(table: Table) -> list[Iterations]:
    """Compute the relative steps of all rows that can be compared, in the order of the table."""
    base = {_place(n): n for n in table.numbers if is_base(n.setting.at)}
    found = []
    for row in table.rows:
        ratios = [
            ratio
            for n in row.numbers
            if (reference := base.get(_place(n))) is not None
            and (ratio := n.best_steps / reference.best_steps) == ratio
        ]
        if ratios:
            found.append(
                Iterations(
                    row=row.names,
                    at=row.numbers[0].setting.at,
                    relative=float(np.mean(ratios)),
                )
            )
    return found


def _place(number: Number) -> tuple[str, str]:
    return number.setting.dataset, number.setting.at.get("backbone", "")


def latencies(numbers: Sequence[Number]) -> list[Latency]:
    """Collect the latencies of the timings among `numbers`, those under a linear head before those
    under a transformer, fastest first."""
    models = {
        n.result.backbone["name"]: n.setting.at["model"]
        for n in numbers
        if n.runs and "model" in n.setting.at
    }
    found = [
        Latency(
            row=(speed.transformer or "linear", models.get(speed.backbone) or speed.backbone),
            speed=speed,
        )
        for number in numbers
        if number.finding is not None
        for speed in number.finding.speeds
    ]
    return sorted(found, key=lambda latency: (latency.row[0] != "linear", latency.speed.median))
