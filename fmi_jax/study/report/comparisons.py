"""Comparison of models by paired tests, and of numbers with the published ones."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from fmi_jax import atomic
from fmi_jax.study.planned import DATASET, PlannedStudy
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.samples import Sample
from fmi_jax.study.report.statistics import (
    FEW,
    RankCorrelation,
    paired_p,
    rank_correlation,
)
from fmi_jax.tasks.intervals import holm

_NOT_COMPARED = ("protocol", "head", "backbone")
"""Coordinates of a row that say how a model is used; they are not compared."""

LEVEL = 0.05
"""Significance level: adjusted p below which models differ."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Paired test of two models.

    Attributes:
      first, second: names of the models.
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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Paired tests between all models at one place of a study.

    Attributes:
      at: coordinates that the models share, the data set first.
      metric: name of the metric that is compared.
      label: name of the metric in tables.
      numbers: number of each model by name, in the order of the settings.
      pairs: test of each pair of models.
      smallest: least adjusted p that is possible with so many pairs and resamples.
    """

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
        """Test of two models, in this order."""
        for pair in self.pairs:
            if (pair.first, pair.second) == (first, second):
                return pair
            if (pair.first, pair.second) == (second, first):
                return dataclasses.replace(
                    pair, first=first, second=second, difference=-pair.difference
                )
        raise KeyError((first, second))

    @property
    def best(self) -> str:
        """The model with the best mean."""
        return max(self.numbers, key=lambda name: self.numbers[name].score)

    @property
    def as_good(self) -> list[str]:
        """Models that do not differ significantly from the best."""
        best = self.best
        return [n for n in self.numbers if n != best and not self.pair(best, n).differ]


def compared_coordinate(study: PlannedStudy) -> str | None:
    """Coordinate whose values are tested against each other: the first of a row that is a model, a
    size or an initialisation. None if a row has no such coordinate."""
    return next((name for name in study.rows if name not in _NOT_COMPARED), None)


def compare(
    study: PlannedStudy, numbers: Sequence[Number], samples: Mapping[Number, Sample]
) -> list[Comparison]:
    """Make the comparisons of a study, in the order of its settings.

    Only numbers of the same metric on the very same test images are compared.
    """
    coordinate = compared_coordinate(study)
    if coordinate is None:
        return []
    places: dict[tuple, dict[str, Number]] = {}
    for number in numbers:
        at = dict(number.setting.at)
        if number in samples and coordinate in at:
            name = at.pop(coordinate)
            dataset = at.pop(DATASET, "")
            key = (dataset, *at.items(), number.metric, samples[number].images)
            places.setdefault(key, {})[name] = number
    return [
        _comparison({DATASET: dataset, **dict(at)}, metric, by_name, samples)
        for (dataset, *at, metric, _), by_name in places.items()
        if len(by_name) > 1
    ]


def _comparison(
    at: Mapping[str, str],
    metric: str,
    numbers: Mapping[str, Number],
    samples: Mapping[Number, Sample],
) -> Comparison:
    pairs = list(itertools.combinations(numbers.items(), 2))
    p = [
        paired_p(a.mean - b.mean, samples[a].values - samples[b].values) for (_, a), (_, b) in pairs
    ]
    one = next(iter(numbers.values()))
    return Comparison(
        at=at,
        metric=metric,
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
    rows = [["study", *coordinates, "metric", "first", "second", "difference", "p", "p_adjusted"]]
    rows += [
        [
            study,
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement between our numbers and the published ones on one data set.

    Attributes:
      dataset: name of the data set.
      n: number of rows with both numbers.
      mean_difference: our number minus the published one, averaged over these rows.
      largest: difference that is farthest from zero.
      ranks: rank correlation; None if there are too few rows.
    """

    dataset: str
    n: int
    mean_difference: float
    largest: float
    ranks: RankCorrelation | None

    @property
    def too_few(self) -> bool:
        """Test whether there are too few rows for a rank correlation."""
        return self.n < FEW


def agreements(numbers: Sequence[Number]) -> list[Agreement]:
    """Compute the agreement for each data set with rows that have both numbers in one metric."""
    found = []
    for dataset in dict.fromkeys(number.setting.dataset for number in numbers):
        both = [
            (number.mean, number.setting.published.mean)
            for number in numbers
            if number.setting.dataset == dataset
            and number.setting.published is not None
            and not np.isnan(number.difference)
        ]
        if both:
            ours, theirs = (np.array(side) for side in zip(*both, strict=True))
            differences = ours - theirs
            found.append(
                Agreement(
                    dataset=dataset,
                    n=len(both),
                    mean_difference=float(differences.mean()),
                    largest=float(differences[np.abs(differences).argmax()]),
                    ranks=rank_correlation(ours.tolist(), theirs.tolist()),
                )
            )
    return found
