"""Tests of all rows against those of a study's reference, run by run, as publications have them.

Student's t-test of two independent samples takes the runs of two rows as they are, so that it says
whether other seeds would give the same order on these test images. The paired test beside it covers
the test images as well.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from fmi_jax import atomic
from fmi_jax.study.planned import DATASET, PlannedStudy
from fmi_jax.study.report.comparisons import lacks_seeds
from fmi_jax.study.report.numbers import Number
from fmi_jax.study.report.samples import Sample
from fmi_jax.study.report.statistics import paired_p, two_sample_p
from fmi_jax.tasks.intervals import holm


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Against:
    """Tests of one number against that of the reference.

    Attributes:
      at: coordinates that both share, the data set first.
      name: row's value of the reference's coordinate.
      number, reference: the two numbers.
      t_p, t_adjusted: p of the t-test on the runs, and after Holm over the rows of one place.
      paired_p, paired_adjusted: p of the paired bootstrap test on the test images and runs, and
        after Holm; NaN where the two were tested on different images.
    """

    at: Mapping[str, str]
    name: str
    number: Number
    reference: Number
    t_p: float
    t_adjusted: float
    paired_p: float
    paired_adjusted: float

    @property
    def title(self) -> str:
        """Shared coordinates in words."""
        return ", ".join(filter(None, self.at.values()))

    @property
    def difference(self) -> float:
        """Mean of the row minus that of the reference."""
        return self.number.mean - self.reference.mean

    @property
    def runs(self) -> str:
        """Number of runs of the row and of the reference."""
        return f"{len(self.number.runs)}, {len(self.reference.runs)}"


def against_reference(
    study: PlannedStudy, numbers: Sequence[Number], samples: Mapping[Number, Sample]
) -> list[Against]:
    """Test every number against that of the reference where all other coordinates agree.

    Only numbers of one metric that have enough seeds are tested. Empty without a reference.
    """
    found = []
    for axis, reference in study.reference.items():
        places: dict[tuple, dict[str, Number]] = {}
        for number in numbers:
            at = dict(number.setting.at)
            if number.runs and not lacks_seeds(number) and axis in at:
                name, dataset = at.pop(axis), at.pop(DATASET, "")
                place = ((DATASET, dataset), *at.items(), number.metric)
                places.setdefault(place, {})[name] = number
        for (*at, _), by_name in places.items():
            base = by_name.pop(reference, None)
            if base is not None:
                found += _tests(dict(at), by_name, base, samples)
    return found


def _tests(
    at: Mapping[str, str],
    numbers: Mapping[str, Number],
    base: Number,
    samples: Mapping[Number, Sample],
) -> list[Against]:
    of_runs = [two_sample_p(number.values, base.values) for number in numbers.values()]
    paired = [_paired(number, base, samples) for number in numbers.values()]
    return [
        Against(
            at=at,
            name=name,
            number=number,
            reference=base,
            t_p=t_p,
            t_adjusted=t_adjusted,
            paired_p=own,
            paired_adjusted=adjusted,
        )
        for (name, number), t_p, t_adjusted, own, adjusted in zip(
            numbers.items(),
            of_runs,
            holm(of_runs).tolist(),
            paired,
            holm(paired).tolist(),
            strict=True,
        )
    ]


def _paired(number: Number, base: Number, samples: Mapping[Number, Sample]) -> float:
    first, second = samples.get(number), samples.get(base)
    if first is None or second is None or first.images != second.images:
        return float("nan")
    return paired_p(number.mean - base.mean, first.values - second.values)


def against_csv(found: Mapping[str, Sequence[Against]]) -> bytes:
    """Write every test against a reference as CSV; tests are given by name of the study."""
    coordinates = list(
        dict.fromkeys(name for tests in found.values() for one in tests for name in one.at)
    )
    columns = ("metric", "row", "runs", "reference_runs", "difference", "t_p", "t_p_adjusted")
    rows = [["study", *coordinates, *columns, "paired_p", "paired_p_adjusted"]]
    rows += [
        [
            study,
            *(one.at.get(name, "") for name in coordinates),
            one.number.metric,
            one.name,
            *map(str, (len(one.number.runs), len(one.reference.runs))),
            *map(repr, (one.difference, one.t_p, one.t_adjusted)),
            *map(repr, (one.paired_p, one.paired_adjusted)),
        ]
        for study, tests in found.items()
        for one in tests
    ]
    return atomic.csv_bytes(rows)
