"""Paired tests of models, protocols and heads, and comparison with the published numbers."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

from fmi_jax import atomic
from fmi_jax.study.planned import DATASET, PlannedStudy
from fmi_jax.study.published import Published
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.samples import Sample, integer
from fmi_jax.study.report.statistics import (
    FEW,
    RankCorrelation,
    drawn_mean,
    paired_p,
    rank_correlation,
)
from fmi_jax.tasks.intervals import holm
from fmi_jax.tasks.registry import describe
from fmi_jax.tasks.weighted import interval

_HOW = ("protocol", "head", "backbone")
"""Coordinates that say how a model is used."""

LEVEL = 0.05
"""Significance level: adjusted p below which two numbers differ."""

ENOUGH = 3
"""Fewest seeds of a number that is tested, unless its protocol draws nothing. With one seed a test
takes the luck of that seed for a difference."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Paired test of two numbers.

    Attributes:
      first, second: values of the compared coordinate, such as names of models.
      difference: metric of the first minus that of the second.
      p: two-sided p-value of no difference.
      adjusted: p-value after Holm's correction over the pairs of the comparison.
    """

    first: str
    second: str
    difference: float
    p: float
    adjusted: float

    @property
    def differ(self) -> bool:
        """Test whether the difference is significant at `LEVEL`."""
        return self.adjusted < LEVEL


class Sides(NamedTuple):
    """Results of one value's tests against the others.

    Attributes:
      better: values that it is significantly better than.
      worse: values that it is significantly worse than.
      alike: values that it does not differ from significantly.
    """

    better: list[str]
    worse: list[str]
    alike: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Paired tests between all numbers that differ in one coordinate alone.

    Attributes:
      axis: coordinate that is compared.
      at: coordinates that the numbers share, the data set first.
      metric: name of the metric that is compared.
      label: name of the metric in tables.
      numbers: numbers by their value of `axis`, in the order of the settings.
      pairs: test of each pair of numbers.
      smallest: least adjusted p that is possible with so many pairs and resamples.
    """

    axis: str
    at: Mapping[str, str]
    metric: str
    label: str
    numbers: Mapping[str, Number]
    pairs: tuple[Pair, ...]
    smallest: float

    @property
    def title(self) -> str:
        """Shared coordinates in words."""
        return ", ".join(self.at.values())

    def pair(self, first: str, second: str) -> Pair:
        """Test of two numbers, in this order."""
        for pair in self.pairs:
            if (pair.first, pair.second) == (first, second):
                return pair
            if (pair.first, pair.second) == (second, first):
                return dataclasses.replace(
                    pair, first=first, second=second, difference=-pair.difference
                )
        raise KeyError((first, second))

    def against(self, name: str) -> Sides:
        """Compare one value with all others."""
        higher = describe(self.metric).higher_is_better
        sides = Sides([], [], [])
        for other in self.numbers:
            if other != name:
                pair = self.pair(name, other)
                worse = (pair.difference < 0) is higher
                (sides.alike if not pair.differ else sides[worse]).append(other)
        return sides


def compared_coordinate(study: PlannedStudy) -> str | None:
    """Coordinate that stands for the models: the first of a row that is a model, a size or an
    initialisation. None if a row has no such coordinate."""
    return next((name for name in study.rows if name not in _HOW), None)


def compared_axes(study: PlannedStudy) -> list[str]:
    """Coordinates whose values are tested against each other: the models, then how they are
    used."""
    how = [name for name in study.coordinates if name in _HOW]
    return [name for name in (compared_coordinate(study), *how) if name is not None]


def compare(
    study: PlannedStudy, numbers: Sequence[Number], samples: Mapping[Number, Sample]
) -> list[Comparison]:
    """Make the comparisons of a study, by axis and then in the order of its settings.

    Only numbers of the same metric on the very same test images are compared, and only those that
    have `ENOUGH` seeds.
    """
    tested = [number for number in numbers if not lacks_seeds(number)]
    return [
        _comparison(axis, at, by_name, samples)
        for axis in compared_axes(study)
        for at, by_name in _places(axis, tested, samples)
        if len(by_name) > 1
    ]


def untested(
    study: PlannedStudy, numbers: Sequence[Number], samples: Mapping[Number, Sample]
) -> list[Number]:
    """Numbers that have something to be compared with but too few seeds, in order."""
    lacking = {
        number
        for axis in compared_axes(study)
        for _, by_name in _places(axis, numbers, samples)
        if len(by_name) > 1
        for number in by_name.values()
        if lacks_seeds(number)
    }
    return [number for number in numbers if number in lacking]


def lacks_seeds(number: Number) -> bool:
    """Test whether a number has too few seeds to be tested against another."""
    return number.draws and len(number.runs) < ENOUGH


def _places(
    axis: str, numbers: Sequence[Number], samples: Mapping[Number, Sample]
) -> Iterator[tuple[dict[str, str], dict[str, Number]]]:
    """Yield, for each place of an axis, its coordinates and the numbers by their value of the
    axis."""
    places: dict[tuple, dict[str, Number]] = {}
    for number in numbers:
        at = dict(number.setting.at)
        if number in samples and axis in at:
            name = at.pop(axis)
            dataset = at.pop(DATASET, "")
            key = (dataset, *at.items(), number.metric, samples[number].images)
            places.setdefault(key, {})[name] = number
    for (dataset, *at, _, _), by_name in places.items():
        yield {DATASET: dataset, **dict(at)}, by_name


def _comparison(
    axis: str,
    at: Mapping[str, str],
    numbers: Mapping[str, Number],
    samples: Mapping[Number, Sample],
) -> Comparison:
    pairs = list(itertools.combinations(numbers.items(), 2))
    p = [
        paired_p(a.mean - b.mean, samples[a].values - samples[b].values) for (_, a), (_, b) in pairs
    ]
    one = next(iter(numbers.values()))
    return Comparison(
        axis=axis,
        at=at,
        metric=one.metric,
        label=one.label,
        numbers=numbers,
        pairs=tuple(
            Pair(first=first, second=second, difference=a.mean - b.mean, p=own, adjusted=adjusted)
            for ((first, a), (second, b)), own, adjusted in zip(
                pairs, p, holm(p).tolist(), strict=True
            )
        ),
        smallest=min(1.0, len(pairs) / (1 + len(samples[one].values))),
    )


def comparisons_csv(found: Mapping[str, Sequence[Comparison]]) -> bytes:
    """Write every pair of every comparison as CSV; comparisons are given by name of the study."""
    coordinates = list(
        dict.fromkeys(name for comparisons in found.values() for c in comparisons for name in c.at)
    )
    rows = [
        [
            "study",
            "compared",
            *coordinates,
            "metric",
            "first",
            "second",
            "difference",
            "p",
            "p_adjusted",
        ]
    ]
    rows += [
        [
            study,
            c.axis,
            *(c.at.get(name, "") for name in coordinates),
            c.metric,
            pair.first,
            pair.second,
            *map(repr, (pair.difference, pair.p, pair.adjusted)),
        ]
        for study, comparisons in found.items()
        for c in comparisons
        for pair in c.pairs
    ]
    return atomic.csv_bytes(rows)


def published_draws(number: Number, resamples: int) -> Float[np.ndarray, "r"]:
    """Draw means that a number's published mean may stand for; all are the mean if the spread of
    its runs is unknown."""
    published = number.setting.published
    assert published is not None
    if published.std is None or not published.has_spread:
        return np.full(resamples, published.mean)
    seed = integer(repr((published.source, *number.setting.at.items())))
    return drawn_mean(published.mean, published.std, published.runs, resamples, seed)


def differences(
    numbers: Sequence[Number], samples: Mapping[Number, Sample]
) -> dict[Number, tuple[float, float]]:
    """95% intervals of our number less the published one, for those with both in one metric.

    Each is recovered from the intervals of the two (Zou and Donner 2008): ours, and Student's t of
    the published runs. So it is ours less the published number where that has no spread.
    """
    found = {}
    for number in numbers:
        if np.isnan(number.difference) or (sample := samples.get(number)) is None:
            continue
        low, high = (abs(end - number.mean) for end in sample.interval)
        published = number.setting.published
        assert published is not None
        half = _half_width(published)
        d = number.difference
        found[number] = d - math.hypot(low, half), d + math.hypot(high, half)
    return found


def _half_width(published: Published) -> float:
    """Half of the 95% interval of a published mean; 0 if the spread of its runs is unknown."""
    if published.std is None or not published.has_spread:
        return 0.0
    t = scipy.stats.t.ppf(0.975, published.runs - 1)
    return float(t) * published.std / math.sqrt(published.runs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement between our numbers and the published ones on one data set.

    Attributes:
      dataset: name of the data set.
      n: number of rows with both numbers.
      mean_difference: our number minus the published one, averaged over these rows.
      interval: 95% interval of `mean_difference`; NaN if a row has no sample.
      largest: difference that is farthest from zero.
      apart: number of rows whose difference has an interval without zero.
      models: number of models among the rows.
      ranks: rank correlation of the means over the rows of each model, since rows of one model are
        not independent; None if there are too few models.
    """

    dataset: str
    n: int
    mean_difference: float
    interval: tuple[float, float]
    largest: float
    apart: int
    models: int
    ranks: RankCorrelation | None

    @property
    def too_few(self) -> bool:
        """Test whether there are too few models for a rank correlation."""
        return self.models < FEW


def agreements(
    numbers: Sequence[Number], samples: Mapping[Number, Sample], model: str | None
) -> list[Agreement]:
    """Compute the agreement for each data set with rows that have both numbers in one metric.

    Args:
      numbers: numbers of a study.
      samples: samples of them.
      model: coordinate that rows of one model share; None: every row is one of its own.
    """
    by_dataset: dict[str, list[Number]] = {}
    for number in numbers:
        if not np.isnan(number.difference):
            by_dataset.setdefault(number.setting.dataset, []).append(number)
    return [_agreement(dataset, rows, samples, model) for dataset, rows in by_dataset.items()]


def _agreement(
    dataset: str, rows: Sequence[Number], samples: Mapping[Number, Sample], model: str | None
) -> Agreement:
    found = np.array([number.difference for number in rows])
    drawn = [
        sample.values - published_draws(number, len(sample.values))
        for number in rows
        if (sample := samples.get(number)) is not None
    ]
    whole = len(drawn) == len(rows)
    by_model: dict[Any, list[Number]] = {}
    for number in rows:
        by_model.setdefault(number.setting.at.get(model or "", number), []).append(number)
    return Agreement(
        dataset=dataset,
        n=len(rows),
        mean_difference=float(found.mean()),
        interval=interval(np.mean(drawn, axis=0)) if whole else (math.nan, math.nan),
        largest=float(found[np.abs(found).argmax()]),
        apart=sum(low > 0 or high < 0 for low, high in differences(rows, samples).values()),
        models=len(by_model),
        ranks=rank_correlation(
            [float(np.mean([n.centre for n in same])) for same in by_model.values()],
            [float(np.mean([n.centre - n.difference for n in same])) for same in by_model.values()],
        ),
    )
